"""KeyboardInterrupt at any moment: no item is lost or done twice, and no lock is kept."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import striking
from processes import PATIENCE

import durableq
from durableq import DurableQueue, _lifetimes, _os
from durableq._unacked import Unacked

# The handler raises only while the queue is at work, so that the program's own lists stay true.
INTERRUPTED = """
import json
armed = pending = False
def interrupt(*_):
    global armed, pending
    pending = True
    if armed:
        armed = pending = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)

def rounds(work):
    global armed
    for number in range(int(sys.argv[2])):
        try:
            armed = True
            if pending:
                interrupt()
            work()
        except KeyboardInterrupt:
            armed = False
            say(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
"""

ROUNDS = 150


def unindented(code):
    return "\n".join(line[8:] for line in code.splitlines())


def interrupt(child):
    child.expect("ready")
    for number in range(ROUNDS):
        child.process.send_signal(signal.SIGINT)
        child.expect(str(number))


@pytest.mark.parametrize("options", [{}, {"maxsize": 1}])
def test_interrupted_puts_put_whole_items_once_or_not_at_all(start, path, options):
    DurableQueue(path, **options).close()
    code = """
        q = DurableQueue(path, sync=None)
        putting, put = 0, []
        def work():
            global putting
            while True:
                putting += 1
                q.put((putting, "x" * (putting % 300)))
                put.append(putting)
        say("ready")
        rounds(work)
        say(json.dumps(put))
    """
    producer = start(INTERRUPTED + unindented(code), path, ROUNDS)
    consumer = start(
        """
        import json
        q = DurableQueue(path)
        got = []
        say("ready")
        while (item := q.get())[0] is not None:
            assert item[1] == "x" * (item[0] % 300)
            got.append(item[0])
            q.task_done()
        say(json.dumps(got))
        """,
        path,
    )
    consumer.expect("ready")
    interrupt(producer)
    put = json.loads(producer.hear())
    with DurableQueue(path) as q:
        q.put((None, None))
        got = json.loads(consumer.hear())
    assert got == sorted(set(got))
    assert set(put) <= set(got)


def test_interrupted_deliveries_lose_nothing_and_repeat_nothing_that_was_done(start, path):
    code = """
        q = DurableQueue(path, sync=None)
        number, put, done = 0, [], []
        def work():
            global number
            while True:
                number += 1
                q.put(number)
                put.append(number)
                delivery = q.reserve()
                delivery.ack()
                done.append(delivery.item)
        say("ready")
        rounds(work)
        rest = []
        q.close()
        with DurableQueue(path) as q:
            while not q.empty():
                rest += q.get_many(1000)
        say(json.dumps([put, done, rest]))
    """
    child = start(INTERRUPTED + unindented(code), path, ROUNDS)
    interrupt(child)
    put, done, rest = json.loads(child.hear())
    assert len(set(done)) == len(done)
    assert not set(done) & set(rest)
    assert len(set(rest)) == len(rest)
    # An interrupt may hit an ack that was done already: at most one item for each of them.
    assert len(set(put) - set(done) - set(rest)) <= ROUNDS


def test_interrupted_gets_that_hand_over_for_good_keep_the_counts_right(start, path):
    code = """
        q = DurableQueue(path, ack="get", sync=None)
        def work():
            while True:
                q.put_many(range(5))
                q.get_many(3)
                q.get()
        say("ready")
        rounds(work)
        waiting = q.qsize()
        assert waiting == q.stats().unfinished
        items = q.get_many(100_000) if waiting else []  # on a slow machine no round came as far as its first put
        assert len(items) == waiting, (len(items), waiting)
        q.join()
        say("right")
    """
    child = start(INTERRUPTED + unindented(code), path, ROUNDS)
    interrupt(child)
    child.expect("right")


@pytest.mark.parametrize("what", ["q.get()", "full.put(1)", "full.join()", "q.reserve_many(3)"])
def test_a_wait_can_be_interrupted_and_waited_again(start, path, what):
    code = f"""
        q = DurableQueue(path)
        full = DurableQueue(path + ".full", 1)
        full.put(0)
        def work():
            {what}
        say("ready")
        rounds(work)
        q.put("x")
        assert q.get(timeout=30) == "x"
        assert full.get(timeout=30) == 0 and full.empty()
        say("fine")
    """
    child = start(INTERRUPTED + unindented(code), path, ROUNDS)
    interrupt(child)
    child.expect("fine")


def strike(path, scene, gap=0):
    played = subprocess.run(
        [sys.executable, striking.__file__, scene, str(path), str(gap)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(durableq.__file__))},
    )
    assert played.returncode == 0, played.stdout
    assert int(played.stdout.splitlines()[-1].split()[0]) > 10


@pytest.mark.parametrize("scene", striking.SCENES)
def test_an_interrupt_at_any_point_leaves_the_queue_whole_and_free(path, scene):
    strike(path, scene)


DOUBLY = [
    "put",
    "get behind a ledger that moved",
    "get_many of what fell due",
    "a get that waits",
    "get_many for good",
    "ack",
    "nack",
    "compact",
    "open",
]


@pytest.mark.parametrize("scene", DOUBLY)
def test_a_second_interrupt_while_the_first_is_dealt_with_leaves_it_whole_and_free_too(path, scene):
    strike(path, scene, gap=1)


CORE = sorted(path for path in Path(durableq.__file__).parent.glob("_*.py") if "demo" not in path.name)


def jumps_out(code):
    """Lines at which a jump back leaves the handler that its target is covered by: an interrupt there passes it by."""
    instructions = list(dis.get_instructions(code))
    begins = {i.offset for i in instructions if i.opname == "PUSH_EXC_INFO"}
    entries = [entry for entry in dis.Bytecode(code).exception_entries if entry.target in begins]
    for i in instructions:
        if "JUMP_BACKWARD" in i.opname and "NO_INTERRUPT" not in i.opname:
            covering = ({e.target for e in entries if e.start <= at < e.end} for at in (i.argval, i.offset))
            if next(covering) - next(covering):
                yield f"{code.co_name}, line {i.positions.lineno}"
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from jumps_out(constant)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11 such a jump was always covered")
@pytest.mark.parametrize("source", CORE, ids=lambda source: source.stem)
def test_no_loop_lets_an_interrupt_pass_by_the_try_around_it(source):
    assert list(jumps_out(compile(source.read_text(), source.name, "exec"))) == []


def once(function, before=False):
    """`function`, but the first call is interrupted: behind its work, or before it."""
    calls = []

    def interrupted(*args):
        calls.append(args)
        if before and len(calls) == 1:
            raise KeyboardInterrupt
        result = function(*args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    return interrupted


@pytest.fixture
def left_locked(q, start, path):
    """A queue whose head lock was held by a process that was killed."""
    holder = start("DurableQueue(path)._store._head.hold(lambda: (say('held'), hear()))", path)
    holder.expect("held")
    holder.kill()
    return q


def others_go_on(q):
    done = threading.Thread(target=q.compact, daemon=True)
    done.start()
    done.join(PATIENCE)
    assert not done.is_alive()
    q.put("x")
    assert q.get(timeout=PATIENCE) == "x"


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_in_the_mending_of_a_dead_holder_s_lock_keeps_it_from_nobody(left_locked, monkeypatch, before):
    monkeypatch.setattr(_os, "mutex_mend", once(_os.mutex_mend, before))
    with pytest.raises(KeyboardInterrupt):
        left_locked._store._head.hold_if_free(lambda: None)
    others_go_on(left_locked)


def test_an_interrupt_just_after_a_dead_holder_s_lock_was_taken_leaves_it_usable(left_locked, monkeypatch):
    monkeypatch.setattr(_os, "mutex_try", once(_os.mutex_try))
    with pytest.raises(KeyboardInterrupt):
        left_locked._store._head.hold(lambda: None)
    others_go_on(left_locked)


def test_an_interrupt_at_the_very_end_of_opening_closes_each_file_once(path, monkeypatch):
    class Interrupting(type(_lifetimes._held)):
        def __setitem__(self, key, value):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_lifetimes, "_held", Interrupting())
        with pytest.raises(KeyboardInterrupt):
            DurableQueue(path)
    with contextlib.ExitStack() as files:  # they get the numbers that are free now
        mine = [files.enter_context(open(path.with_name(str(n)), "w")) for n in range(8)]
        gc.collect()
        for file in mine:
            file.write("x")
            file.flush()


def test_an_interrupt_on_the_way_to_the_rest_of_a_batch_keeps_what_was_taken_before(open_queue):
    """The compiled call takes three items and leaves the huge one; the ledger is laid out anew before its twin comes to it."""
    q, other = open_queue(sync=None, serializer="bytes"), open_queue(sync=None, serializer="bytes")
    q.put(b"first")
    q.get()
    q.task_done()
    q.put_many([b"a", b"b", b"c"])
    q.put(bytes(9 << 20))
    store, theirs = q._store, other._store
    locked, waits, interrupted = threading.Event(), threading.Event(), threading.Event()

    def rebuild():
        theirs._see_head()
        theirs._ledger.rebuild()
        theirs._leave_head()
        locked.set()
        waits.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)
        interrupted.wait(PATIENCE)

    def may_take():
        del store.may_take
        threading.Thread(target=lambda: theirs._head.hold(rebuild)).start()
        locked.wait(PATIENCE)
        return True

    def wait(code, real=store._head.wait):
        waits.set()
        return real(code)

    def interrupt(*_):
        interrupted.set()
        raise KeyboardInterrupt

    store._look_at = float("inf")
    store.may_take = may_take
    store._head.wait = wait
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            q.get_many(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert other.stats().lent == 0


@pytest.mark.usefixtures("in_python")
def test_an_interrupt_while_a_ledger_that_moved_is_mapped_leaves_the_handle_usable(open_queue, monkeypatch):
    q, other = open_queue(sync=None), open_queue(sync=None)
    q.put_many(range(5001))
    other.get()
    q.get_many(4999)  # more than the first ledger has room for
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as kept:
        patch.setattr(ctypes, "addressof", once(ctypes.addressof, before=True))
        other.get()
    assert other.get() == 5000
    other.task_done()
    assert q.stats().lent == 5000
    del kept


@pytest.mark.parametrize("held", [0, 1, 3])
@pytest.mark.parametrize("take", ["get", "get_many"])
def test_after_a_get_that_was_interrupted_at_its_end_task_done_is_about_what_comes_next(q, monkeypatch, take, held):
    """The item had been noted as this thread's, and then went back."""
    q.put_many(range(held + 2))
    for _ in range(held):
        q.get()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Unacked, "push", once(Unacked.push))
        q.get() if take == "get" else q.get_many(2)
    for number in (held, held + 1):
        assert q.get() == number
    for left in reversed(range(held + 2)):
        q.task_done()
        assert q.unfinished_tasks == left


def test_an_interrupted_batch_takes_nothing_of_what_was_noted_before_along(q, open_queue, monkeypatch):
    q.put_many(range(6))
    assert q.get_many(3) == [0, 1, 2]
    q.task_done()
    calls = iter(range(9))

    def push(unacked, *item, real=Unacked.push):
        real(unacked, *item)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Unacked, "push", push)
        q.get_many(3)
    q.task_done()
    q.task_done()
    q.close()
    assert open_queue().get_many(9) == [3, 4, 5]
