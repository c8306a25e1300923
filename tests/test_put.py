"""put, put_nowait and the bound on waiting items."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from processes import PATIENCE, until

from durableq import Full


def test_a_put_item_comes_out_of_get(q):
    q.put({"name": "x", "values": [1, 2.5, None, b"raw"]})
    assert q.get_nowait() == {"name": "x", "values": [1, 2.5, None, b"raw"]}


def test_items_come_out_in_the_order_they_went_in(q):
    for number in range(1000):
        q.put(number)
    assert [q.get_nowait() for _ in range(1000)] == list(range(1000))


def test_none_and_empty_items_are_items(q):
    for item in (None, "", b"", (), 0):
        q.put(item)
    assert [q.get_nowait() for _ in range(5)] == [None, "", b"", (), 0]


def test_an_item_may_be_larger_than_any_buffer(q):
    item = bytes(range(256)) * (9 * 4096)
    q.put(item)
    assert q.get_nowait() == item


def test_an_item_is_what_it_was_at_the_time_of_the_put(q):
    item = [1]
    q.put(item)
    item.append(2)
    assert q.get_nowait() == [1]


def test_put_nowait_puts(q):
    q.put_nowait("x")
    assert q.get_nowait() == "x"


def test_put_returns_nothing(q):
    assert q.put("x") is None


def test_a_queue_without_maxsize_is_never_full(q):
    assert q.maxsize == 0
    q.put_many(range(10_000))
    assert not q.full()


def test_maxsize_is_readable(open_queue):
    assert open_queue(maxsize=7).maxsize == 7


def test_full_says_whether_maxsize_items_wait(open_queue):
    q = open_queue(maxsize=2)
    q.put(1)
    assert not q.full()
    q.put(2)
    assert q.full()
    q.get_nowait()
    assert not q.full()


def test_put_nowait_raises_full_when_maxsize_items_wait(open_queue):
    q = open_queue(maxsize=1)
    q.put(1)
    with pytest.raises(Full):
        q.put_nowait(2)
    with pytest.raises(Full):
        q.put(2, block=False)
    assert q.qsize() == 1


def test_put_raises_full_after_its_timeout_and_not_before(open_queue):
    q = open_queue(maxsize=1)
    q.put(1)
    began = time.monotonic()
    with pytest.raises(Full):
        q.put(2, timeout=0.1)
    assert time.monotonic() - began >= 0.1


def test_put_with_timeout_zero_does_not_wait(open_queue):
    q = open_queue(maxsize=1)
    q.put(1)
    with pytest.raises(Full):
        q.put(2, True, 0)


def test_the_standard_library_s_positional_arguments_work(open_queue):
    q = open_queue(maxsize=1)
    q.put(1, True, 5)
    with pytest.raises(Full):
        q.put(2, False)


def test_a_refused_item_is_not_in_the_queue(open_queue):
    q = open_queue(maxsize=1)
    q.put("in")
    with pytest.raises(Full):
        q.put("refused", timeout=0.01)
    assert q.get_nowait() == "in"
    assert q.empty()


def test_a_put_that_waits_goes_on_when_a_thread_gets(open_queue):
    q = open_queue(maxsize=1)
    q.put("first")
    waiter = threading.Thread(target=q.put, args=("second",), kwargs={"timeout": PATIENCE})
    waiter.start()
    assert q.get_nowait() == "first"
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert q.get_nowait() == "second"


def test_a_put_that_waits_goes_on_when_another_process_gets(open_queue, start, path):
    q = open_queue(maxsize=1)
    q.put("first")
    producer = start(
        """
        q = DurableQueue(path)
        say("about to put")
        q.put("second")
        say("put")
        """,
        path,
    )
    producer.expect("about to put")
    assert q.get_nowait() == "first"
    producer.expect("put")
    assert q.get_nowait() == "second"


def test_lent_items_do_not_count_towards_maxsize(open_queue):
    q = open_queue(maxsize=1)
    q.put(1)
    q.get_nowait()
    q.put_nowait(2)
    assert q.qsize() == 1


def test_maxsize_holds_for_all_processes_together(open_queue, start, path):
    q = open_queue(maxsize=5)
    code = """
        q = DurableQueue(path)
        placed = 0
        try:
            while True:
                q.put_nowait(placed)
                placed += 1
        except durableq.Full:
            say(placed)
    """
    producers = [start(code, path), start(code, path)]
    assert sum(int(producer.hear()) for producer in producers) == 5
    assert q.qsize() == 5


def test_every_put_of_many_threads_arrives_once(q):
    def produce(name):
        for number in range(200):
            q.put((name, number))

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    items = [q.get_nowait() for _ in range(1000)]
    assert q.empty()
    for name in range(5):
        assert [number for who, number in items if who == name] == list(range(200))


def test_every_put_of_many_processes_arrives_once_and_in_its_producer_s_order(q, start, path):
    code = """
        q = DurableQueue(path)
        for number in range(300):
            q.put((sys.argv[2], number))
        say("done")
    """
    producers = [start(code, path, name) for name in "abc"]
    for producer in producers:
        producer.expect("done")
    items = [q.get_nowait() for _ in range(900)]
    assert q.empty()
    for name in "abc":
        assert [number for who, number in items if who == name] == list(range(300))


def test_an_interrupted_put_that_waited_leaves_no_item_behind(open_queue, start, path):
    q = open_queue(maxsize=1)
    q.put("first")
    producer = start(
        """
        q = DurableQueue(path)
        say("ready")
        try:
            q.put("second")
        except KeyboardInterrupt:
            say("interrupted")
        """,
        path,
    )
    producer.expect("ready")
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    producer.process.send_signal(signal.SIGINT)
    producer.expect("interrupted")
    producer.finish()
    assert q.get_nowait() == "first"
    assert q.empty()


def test_an_item_that_linux_cannot_write_at_a_time_is_refused(open_queue):
    q = open_queue(serializer="bytes")
    with pytest.raises(ValueError, match="never fits"):
        q.put(bytes(0x7FFFF000))
    with pytest.raises(ValueError, match="never fits"):
        q.put_many([b"x", bytes(0x7FFFF000)])
    assert q.qsize() == 0
