"""get, get_nowait and waiting for items; qsize and empty."""

from __future__ import annotations

import json
import signal
import threading
import time

import pytest
from processes import PATIENCE, until

from durableq import Empty


def test_get_nowait_of_an_empty_queue_raises_empty(q):
    with pytest.raises(Empty):
        q.get_nowait()
    with pytest.raises(Empty):
        q.get(block=False)


def test_get_raises_empty_after_its_timeout_and_not_before(q):
    began = time.monotonic()
    with pytest.raises(Empty):
        q.get(timeout=0.1)
    assert time.monotonic() - began >= 0.1


def test_get_with_timeout_zero_does_not_wait(q):
    with pytest.raises(Empty):
        q.get(True, 0)
    q.put("x")
    assert q.get(True, 0) == "x"


def test_a_new_queue_is_empty(q):
    assert q.empty()
    assert q.qsize() == 0


def test_qsize_counts_what_waits_and_not_what_is_lent(q):
    q.put_many("abc")
    assert q.qsize() == 3
    q.get_nowait()
    assert q.qsize() == 2
    assert not q.empty()


def test_qsize_is_the_same_in_every_process(q, start, path):
    q.put_many("abc")
    other = start("say(DurableQueue(path).qsize())", path)
    other.expect("3")


def test_get_waits_for_a_put_of_another_thread(q):
    threading.Timer(0.05, q.put, ("x",)).start()
    assert q.get(timeout=PATIENCE) == "x"


def test_get_without_timeout_waits_for_a_put_of_another_process(q, start, path):
    producer = start("q = DurableQueue(path); hear(); q.put('x'); say('put')", path)
    producer.tell()
    assert q.get() == "x"
    producer.expect("put")


def test_a_process_that_waits_in_get_is_woken_by_a_put(q, start, path):
    consumer = start("say(DurableQueue(path).get())", path)
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.put("x")
    consumer.expect("x")


def test_one_put_reaches_exactly_one_of_many_waiting_processes(q, start, path):
    code = """
        q = DurableQueue(path)
        while True:
            say(q.get())
            q.task_done()
    """
    consumers = [start(code, path) for _ in range(3)]
    until(lambda: sum(bool(owner.waiting) for owner in q.stats().owners) == 3)
    q.put("x")
    q.join()
    for consumer in consumers:
        consumer.kill()
    assert b"".join(consumer.process.stdout.read() for consumer in consumers) == b"x\n"


def test_many_waiting_threads_get_one_item_each(q):
    got = []
    threads = [threading.Thread(target=lambda: got.append(q.get(timeout=PATIENCE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(8):
        q.put(number)
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(8))


def test_many_consuming_processes_share_the_items_without_doubles(q, start, path):
    q.put_many(range(600))
    code = """
        q = DurableQueue(path)
        mine = []
        try:
            while True:
                mine.append(q.get_nowait())
                q.task_done()
        except durableq.Empty:
            say(mine)
    """
    consumers = [start(code, path) for _ in range(3)]
    taken = [number for consumer in consumers for number in json.loads(consumer.hear())]
    assert sorted(taken) == list(range(600))


def test_an_interrupted_get_leaves_the_queue_usable(q, start, path):
    consumer = start(
        """
        q = DurableQueue(path)
        try:
            q.get()
        except KeyboardInterrupt:
            say("interrupted")
        say(q.get(timeout=30))
        """,
        path,
    )
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    consumer.process.send_signal(signal.SIGINT)
    consumer.expect("interrupted")
    q.put("x")
    consumer.expect("x")


def test_other_threads_run_while_one_waits_in_get(q):
    waiter = threading.Thread(target=q.get, kwargs={"timeout": PATIENCE})
    waiter.start()
    count = sum(range(100_000))
    assert waiter.is_alive()
    assert count == 4999950000
    q.put("end")
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


def test_a_stopped_process_holds_nobody_up(q, start, path):
    other = start("q = DurableQueue(path); q.put('x'); say('put'); hear()", path)
    other.expect("put")
    other.process.send_signal(signal.SIGSTOP)
    q.put("y")
    assert [q.get_nowait(), q.get_nowait()] == ["x", "y"]
    other.process.send_signal(signal.SIGCONT)
