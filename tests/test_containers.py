"""Processes in containers of their own that share one queue: each may be process 1 and knows nothing of the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
from processes import PATIENCE

from durableq import DurableQueue

CONTAINERS = (["unshare", "--pid", "--fork"], ["unshare", "--user", "--map-root-user", "--pid", "--fork"])


@pytest.fixture
def contained(start):
    """`contained(code, *args)`: as `start`, as process 1 of a process namespace of its own."""
    for wrapper in CONTAINERS:
        probe = [*wrapper, "--kill-child", sys.executable, "-c", "import os; print(os.getpid())"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).stdout == b"1\n":
            return lambda code, *args: start(code, *args, wrapper=[*wrapper, "--kill-child"])
    pytest.skip("no permission to make process namespaces")


def test_each_takes_the_items_of_the_others(contained, path, q):
    one = contained("q = DurableQueue(path); say(os.getpid()); hear(); q.put('x'); say('put'); hear()", path)
    two = contained("q = DurableQueue(path); say(os.getpid()); say(q.get()); hear()", path)
    one.expect("1")
    two.expect("1")
    one.tell()
    one.expect("put")
    two.expect("x")
    assert q.stats().lent == 1


def test_an_item_returns_from_a_killed_container_and_not_from_a_living_one(contained, path, q):
    q.put_many(["a", "b"])
    code = "q = DurableQueue(path); say(q.get()); hear()"
    one, two = contained(code, path), contained(code, path)
    held = {one.hear(): one, two.hear(): two}
    held["a"].kill()
    assert q.get(timeout=PATIENCE) == "a"
    assert q.empty()
    assert held["b"].process.poll() is None


def test_task_done_does_not_take_another_container_s_process_1_for_its_own(contained, path, q):
    q.put_many(["theirs", "mine"])
    one = contained("q = DurableQueue(path); say(q.get()); hear(); q.close(); say('closed'); hear()", path)
    one.expect("theirs")
    two = contained(
        """
        q = DurableQueue(path)
        taker = threading.Thread(target=lambda: say(q.get()))
        taker.start()
        taker.join()
        q.task_done()
        say("done")
        hear()
        """,
        path,
    )
    two.expect("mine")
    two.expect("done")
    two.kill()
    assert q.empty()
    one.kill()
    assert q.get(timeout=PATIENCE) == "theirs"


def test_one_may_drain_what_another_is_filling(contained, path, open_queue):
    # Each drained queue's file is used from its front again, often while the other end is in the middle of a put.
    producer = """
        q = DurableQueue(path, sync=None)
        item = os.urandom(1_000_000)
        for number in range(500):
            q.put((number, item))
        say("put")
        hear()
    """
    consumer = """
        q = DurableQueue(path, sync=None)
        for number in range(500):
            assert q.get(timeout=30)[0] == number
            q.task_done()
        say("got")
        hear()
    """
    ends = [contained(producer, path), contained(consumer, path)]
    assert [end.hear() for end in ends] == ["put", "got"]
    assert open_queue().stats().unfinished == 0


def test_all_may_put_and_get_at_once(contained, path, open_queue):
    code = """
        q = DurableQueue(path, sync=None)
        for number in range(1000):
            q.put((sys.argv[2], number, bytes(3000)))
            q.get(timeout=30)
            q.task_done()
            if number % 10 == 0:
                q.compact()
        say("done")
        hear()
    """
    for child in [contained(code, path, name) for name in "abc"]:
        child.expect("done")
    assert open_queue().stats().unfinished == 0


def test_an_interrupt_while_the_lock_is_busy_harms_nobody(contained, path):
    busy = """
        q = DurableQueue(path, sync=None)
        say("ready")
        while True:
            q.put_many([bytes(100_000)] * 20)
            for _ in q.get_many(20):
                q.task_done()
    """
    # The interrupt is kept for the time in which the queue is at work: elsewhere it would only end the program.
    interrupted = """
        armed = pending = False
        def interrupt(*_):
            global armed, pending
            pending = True
            if armed:
                armed = pending = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)
        q = DurableQueue(path, sync=None)
        say("ready")
        for number in range(50):
            try:
                armed = True
                if pending:
                    interrupt()
                while True:
                    q.put_many([bytes(100_000)] * 20)
                    for _ in q.get_many(20):
                        q.task_done()
            except KeyboardInterrupt:
                say(number)
        hear()
    """
    first = contained(busy, path)
    first.expect("ready")
    second = contained(interrupted, path)
    second.expect("ready")
    pid = only_child_of(second.pid)
    for number in range(50):
        os.kill(pid, signal.SIGINT)
        second.expect(str(number))
    assert first.process.poll() is None


def only_child_of(pid):
    # `unshare --fork` stays the parent of process 1 of the namespace.
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read())


def test_deliveries_are_counted_over_containers_that_each_mount_the_queue_anew(start, path):
    wrapper = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    mount_id = "from durableq import _os; print(_os.mount_id(os.open('/', os.O_RDONLY)), flush=True)"
    probe = [sys.executable, "-c", f"import os; {mount_id}"]
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    here, there = (subprocess.run(command, capture_output=True).stdout for command in (probe, [*wrapper, *probe]))
    if not there or here == there:
        pytest.skip("no permission to mount anew, or the kernel does not tell one mount from another")
    with DurableQueue(path, max_deliveries=3) as q:
        q.put_many(["before", "poison", "after"])
        assert q.get() == "before"
        q.task_done()
    code = "q = DurableQueue(path, max_deliveries=3); d = q.reserve(); say(d.item, d.deliveries); hear()"
    for count in (1, 2, 3):
        victim = start(code, path, wrapper=wrapper)
        victim.expect(f"poison {count}")
        victim.kill()
    with DurableQueue(path, max_deliveries=3) as q:
        assert q.get() == "after"
        assert [letter.item for letter in q.dead_letters.reserve_many(9)] == ["poison"]
