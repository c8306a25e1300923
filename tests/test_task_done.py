"""task_done and join: whose item is done, and when all of them are."""

from __future__ import annotations

import errno
import threading

import pytest
from processes import PATIENCE

from durableq import StaleDeliveryError


def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def what_comes_back(q, open_queue):
    """Items that were lent by this handle and not done: closing it gives them back."""
    q.close()
    again = open_queue()
    return [again.get_nowait() for _ in range(again.qsize())]


def test_an_item_that_was_not_done_comes_back(q, open_queue):
    q.put("x")
    q.get_nowait()
    assert what_comes_back(q, open_queue) == ["x"]


def test_an_item_that_was_done_does_not_come_back(q, open_queue):
    q.put("x")
    q.get_nowait()
    q.task_done()
    assert what_comes_back(q, open_queue) == []


def test_task_done_finishes_the_oldest_item_first(q, open_queue):
    q.put_many("abc")
    for _ in range(3):
        q.get_nowait()
    q.task_done()
    assert what_comes_back(q, open_queue) == ["b", "c"]


def test_task_done_finishes_this_thread_s_item_before_an_older_one_of_another_thread(q, open_queue):
    q.put_many(["theirs", "mine"])
    in_a_thread(q.get_nowait)
    assert q.get_nowait() == "mine"
    q.task_done()
    assert what_comes_back(q, open_queue) == ["theirs"]


def test_task_done_finishes_another_thread_s_item_when_this_one_has_none(q, open_queue):
    q.put_many(["theirs", "waiting"])
    in_a_thread(q.get_nowait)
    q.task_done()
    assert what_comes_back(q, open_queue) == ["waiting"]


def test_task_done_finishes_this_process_s_item_before_an_older_one_of_another_process(q, open_queue, start, path):
    q.put_many(["theirs", "mine"])
    other = start("q = DurableQueue(path); say(q.get()); hear()", path)
    other.expect("theirs")
    assert q.get_nowait() == "mine"
    q.task_done()
    q.close()
    again = open_queue()
    assert again.empty()
    other.kill()
    assert again.get(timeout=PATIENCE) == "theirs"


def test_task_done_finishes_another_process_s_item_when_this_one_has_none(q, start, path):
    q.put("x")
    other = start("q = DurableQueue(path); say(q.get()); hear()", path)
    other.expect("x")
    q.task_done()
    assert q.stats().unfinished == 0
    other.kill()
    assert q.empty()


def test_one_task_done_too_many_raises_value_error(q):
    q.put("x")
    q.get_nowait()
    q.task_done()
    with pytest.raises(ValueError):
        q.task_done()


def test_task_done_of_a_new_queue_raises_value_error(q):
    with pytest.raises(ValueError):
        q.task_done()


def test_a_task_done_too_many_changes_nothing(q):
    q.put_many("ab")
    q.get_nowait()
    q.task_done()
    with pytest.raises(ValueError):
        q.task_done()
    assert q.stats().unfinished == 1
    assert q.get_nowait() == "b"
    q.task_done()


def test_task_done_counts_one_item_each_for_threads_that_work_at_once(q):
    q.put_many(range(400))

    def work():
        for _ in range(100):
            q.get_nowait()
            q.task_done()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert q.stats().unfinished == 0
    with pytest.raises(ValueError):
        q.task_done()


def test_task_done_does_not_finish_what_reserve_lent(q):
    q.put_many(["reserved", "got"])
    delivery = q.reserve(timeout=0)
    assert q.get_nowait() == "got"
    q.task_done()
    with pytest.raises(ValueError):
        q.task_done()
    delivery.nack()
    assert q.get_nowait() == "reserved"


def test_join_of_a_new_queue_returns(q):
    q.join()


def test_join_waits_for_the_last_task_done(q):
    q.put_many("ab")
    joined = threading.Event()

    def wait():
        q.join()
        joined.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    q.get_nowait()
    q.get_nowait()
    q.task_done()
    assert not joined.wait(0.05)
    q.task_done()
    assert joined.wait(PATIENCE)
    waiter.join()


def test_join_in_one_process_waits_for_workers_in_others(q, start, path):
    q.put_many(range(50))
    code = """
        q = DurableQueue(path)
        while True:
            q.get()
            q.task_done()
    """
    for _ in range(2):
        start(code, path)
    q.join()
    assert q.stats().unfinished == 0


def test_join_waits_for_an_item_whose_worker_was_killed(q, start, path):
    q.put("x")
    worker = start("q = DurableQueue(path); say(q.get()); hear()", path)
    worker.expect("x")
    joiner = start("q = DurableQueue(path); say('open'); q.join(); say('joined')", path)
    joiner.expect("open")
    worker.kill()
    assert q.get(timeout=PATIENCE) == "x"
    assert q.stats().unfinished == 1
    q.task_done()
    joiner.expect("joined")


def test_join_counts_in_the_file_across_a_reopening(q, open_queue, start, path):
    q.put("x")
    q.close()
    joiner = start("q = DurableQueue(path); say('open'); q.join(); say('joined')", path)
    joiner.expect("open")
    again = open_queue()
    assert again.stats().unfinished == 1
    again.get_nowait()
    again.task_done()
    joiner.expect("joined")


def test_join_returns_in_every_process_that_waits(q, start, path):
    q.put("x")
    code = "q = DurableQueue(path); say('open'); q.join(); say('joined')"
    joiners = [start(code, path) for _ in range(2)]
    for joiner in joiners:
        joiner.expect("open")
    q.get_nowait()
    q.task_done()
    for joiner in joiners:
        joiner.expect("joined")


def test_unfinished_is_what_waits_and_what_is_lent(q):
    q.put_many("abc")
    q.get_nowait()
    assert q.stats().unfinished == 3
    q.task_done()
    assert q.stats().unfinished == 2


def test_with_a_lease_too_a_thread_may_finish_what_another_took(open_queue):
    q = open_queue(lease=60)
    q.put_many(["x", "y"])
    q.get()
    q.get()
    thread = threading.Thread(target=q.task_done)
    thread.start()
    thread.join()
    q.task_done()
    assert q.stats().unfinished == 0


def test_task_done_that_failed_before_it_did_anything_can_be_too_late_when_it_is_repeated(open_queue, monkeypatch):
    q, other = open_queue(lease=0.3), open_queue()
    q.put("x")
    q.get()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(q._store, "ack", fail)
        q.task_done()
    other.reserve(timeout=PATIENCE).extend(60)
    with pytest.raises(StaleDeliveryError):
        q.task_done()


def test_who_takes_and_never_acks_does_not_remember_what_others_have_acked(q):
    def finish():
        for _ in range(100):
            q.task_done()

    for _ in range(100):
        q.put_many(range(100))
        for _ in range(100):
            q.get()
        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()
    assert len(q._this_thread.unacked._words) < 10_000
    q.put("mine")
    assert q.get() == "mine"
    q.task_done()
    assert q.unfinished_tasks == 0


def test_who_holds_many_items_forgets_none_of_them(q, open_queue):
    q.put_many(range(5000))
    for _ in range(5000):
        q.get()
    for _ in range(4999):
        q.task_done()
    q.close()
    assert open_queue().get_many(5) == [4999]
