"""shutdown(): Python 3.13's, on every Python, for every process that has the queue open."""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading

import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, Empty, ShutDown


def test_put_after_a_shutdown_raises(q):
    q.shutdown()
    with pytest.raises(ShutDown):
        q.put("x")
    with pytest.raises(ShutDown):
        q.put_nowait("x")
    with pytest.raises(ShutDown):
        q.put_many(["x"])


def test_get_after_a_shutdown_drains_the_queue_and_then_raises(q):
    q.put_many("ab")
    q.shutdown()
    assert [q.get(), q.get_nowait()] == ["a", "b"]
    with pytest.raises(ShutDown):
        q.get()
    with pytest.raises(ShutDown):
        q.get_nowait()


def test_the_batch_and_reserve_forms_raise_too(q):
    q.shutdown()
    for take in (lambda: q.get_many(2), lambda: q.reserve(), lambda: q.reserve_many(2), lambda: q.reserve(timeout=0)):
        with pytest.raises(ShutDown):
            take()


def test_task_done_and_join_work_after_a_shutdown(q):
    q.put("x")
    q.shutdown()
    q.get()
    q.task_done()
    q.join()


def test_deliveries_are_settled_after_a_shutdown(q):
    q.put_many("ab")
    first, second = q.reserve_many(2)
    q.shutdown()
    first.ack()
    second.nack()
    assert q.get() == "b"


def test_a_thread_that_waits_in_get_gets_shut_down(q):
    outcome = []

    def wait():
        try:
            q.get()
        except ShutDown:
            outcome.append("shut down")

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.shutdown()
    waiter.join(PATIENCE)
    assert outcome == ["shut down"]


@pytest.mark.parametrize("immediate", [False, True])
def test_a_process_that_waits_in_get_gets_shut_down(q, start, path, immediate):
    consumer = start(
        """
        try:
            DurableQueue(path).get()
        except durableq.ShutDown:
            say("shut down")
        """,
        path,
    )
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.shutdown(immediate)
    consumer.expect("shut down")


@pytest.mark.parametrize("immediate", [False, True])
def test_a_process_that_waits_in_put_gets_shut_down(open_queue, start, path, immediate):
    q = open_queue(maxsize=1)
    q.put("x")
    producer = start(
        """
        try:
            DurableQueue(path).put("y")
        except durableq.ShutDown:
            say("shut down")
        """,
        path,
    )
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.shutdown(immediate)
    producer.expect("shut down")


def test_a_shutdown_by_another_process_is_seen_here(q, start, path):
    other = start("q = DurableQueue(path); q.shutdown(); say('done'); hear()", path)
    other.expect("done")
    with pytest.raises(ShutDown):
        q.put("x")


def test_a_handle_opened_while_the_shutdown_lasts_is_shut_down_too(q, open_queue):
    q.shutdown()
    with pytest.raises(ShutDown):
        open_queue().put("x")


def test_immediate_makes_get_raise_although_items_wait(q):
    q.put_many("ab")
    q.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        q.get()
    with pytest.raises(ShutDown):
        q.get_nowait()


def test_immediate_empties_the_queue(q):
    q.put_many("ab")
    q.shutdown(immediate=True)
    assert q.qsize() == 0


def test_immediate_lets_join_return_once_nothing_is_lent(q):
    q.put_many("ab")
    q.get()
    q.shutdown(immediate=True)
    assert q.stats().unfinished == 1
    q.task_done()
    q.join()


def test_immediate_wakes_a_process_that_waits_in_join(q, start, path):
    q.put_many("ab")
    joiner = start("q = DurableQueue(path); say('open'); q.join(); say('joined')", path)
    joiner.expect("open")
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.shutdown(immediate=True)
    joiner.expect("joined")


def test_a_second_shutdown_may_be_immediate(q):
    q.put("x")
    q.shutdown()
    q.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        q.get_nowait()


def test_a_shutdown_ends_when_the_last_handle_is_closed(q, open_queue):
    q.put("x")
    q.shutdown()
    q.close()
    again = open_queue()
    again.put("y")
    assert [again.get(), again.get()] == ["x", "y"]


def test_a_shutdown_lasts_while_another_process_has_the_queue_open(q, open_queue, start, path):
    other = start("q = DurableQueue(path); say('open'); hear(); q.close(); say('closed'); hear()", path)
    other.expect("open")
    q.shutdown()
    q.close()
    late = open_queue()
    with pytest.raises(ShutDown):
        late.put("x")
    late.close()
    other.tell()
    other.expect("closed")
    open_queue().put("x")


def test_a_killed_process_does_not_prolong_a_shutdown(q, open_queue, start, path):
    other = start("q = DurableQueue(path); q.shutdown(); say('shut down'); hear()", path)
    other.expect("shut down")
    q.close()
    other.kill()
    q = open_queue()
    q.put("x")
    assert q.get_nowait() == "x"


def test_what_was_lent_comes_back_after_the_shutdown_ended(q, open_queue):
    q.put("x")
    q.get()
    q.shutdown()
    q.close()
    assert open_queue().get_nowait() == "x"


def test_shut_down_is_the_standard_library_s_where_it_has_one():
    if sys.version_info >= (3, 13):
        assert ShutDown is queue.ShutDown
    else:
        assert issubclass(ShutDown, Exception)


def test_join_returns_after_an_immediate_shutdown_when_its_last_holder_is_killed(start, path, q):
    q.put("x")
    child = start("q = DurableQueue(path); q.get(); say('got'); hear()", path)
    child.expect("got")
    q.shutdown(immediate=True)
    child.kill()
    q.join()


def test_join_returns_after_an_immediate_shutdown_when_its_last_item_is_given_back(q):
    q.put("x")
    delivery = q.reserve()
    q.shutdown(immediate=True)
    delivery.nack()
    q.join()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_who_was_given_the_queue_hears_of_its_shutdown_even_when_all_others_have_closed_it(method, path):
    """It comes to use its handle only after that."""
    context = multiprocessing.get_context(method)
    begin, told = context.Event(), context.SimpleQueue()
    q = DurableQueue(path)
    process = context.Process(target=_drain_to_the_shutdown, args=(q, begin, told))
    process.start()
    q.put_many([1, 2])
    q.shutdown()
    q.close()
    begin.set()
    assert [told.get() for _ in range(3)] == [1, 2, "ShutDown"]
    process.join(PATIENCE)
    with DurableQueue(path) as again:  # with those who had it, it has ended
        again.put(3)
        assert again.get_nowait() == 3


def _drain_to_the_shutdown(q, begin, told):
    begin.wait(PATIENCE)
    try:
        while True:
            told.put(q.get(timeout=PATIENCE))
            q.task_done()
    except Exception as error:
        told.put(type(error).__name__)


# -- items that wait for their time ------------------------------------------------------------------------------------


def get_in_a_thread(q, outcome):
    def wait():
        try:
            outcome.append(q.get())
        except ShutDown:
            outcome.append("shut down")

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    return waiter


def test_after_a_shutdown_get_waits_for_what_waits_for_its_time(q):
    q.put("x", delay=0.3)
    q.shutdown()
    assert q.get(timeout=PATIENCE) == "x"
    with pytest.raises(ShutDown):
        q.get()


def test_after_a_shutdown_get_that_does_not_wait_finds_a_delayed_queue_empty(q):
    q.put("x", delay=60)
    q.shutdown()
    with pytest.raises(Empty):
        q.get_nowait()
    with pytest.raises(Empty):
        q.get_many(5, timeout=0.01)
    assert q.qsize() == 1


def test_workers_that_leave_at_the_shutdown_leave_nothing_to_join(q):
    q.put_many(["fails at first", "works"])
    q.shutdown()
    with pytest.raises(ShutDown):
        while True:
            delivery = q.reserve(timeout=PATIENCE)
            if delivery.item == "fails at first" and delivery.deliveries == 1:
                delivery.nack(delay=0.2)
            else:
                delivery.ack()
    q.join()


@pytest.mark.parametrize("end", ["it is taken", "it is removed", "immediate"])
def test_all_who_wait_for_a_delayed_item_after_a_shutdown_are_released_at_its_end(q, open_queue, end):
    q.put("x", delay=0.3 if end == "it is taken" else 60)
    handles = [q, open_queue(), open_queue()]
    q.shutdown()
    outcome = []
    waiters = [get_in_a_thread(handle, outcome) for handle in handles]
    until(lambda: len([owner for owner in handles[0].stats().owners if owner.waiting]) == 3 or outcome)
    if end == "it is removed":
        q.purge()
    elif end == "immediate":
        q.shutdown(immediate=True)
    for waiter in waiters:
        waiter.join(PATIENCE)
    expected = {"it is taken": ["shut down", "shut down", "x"]}.get(end, ["shut down"] * 3)
    assert sorted(outcome) == expected


def test_who_waits_for_a_delayed_item_after_a_shutdown_sleeps(q, monkeypatch):
    q.put("x", delay=60)
    q.shutdown()
    tries = []
    real = q._take
    monkeypatch.setattr(q, "_take", lambda *how: tries.append(1) or real(*how))
    real_look = q._store.may_take
    monkeypatch.setattr(q._store, "may_take", lambda: tries.append(1) or real_look())
    with pytest.raises(Empty):
        q.get(timeout=1)
    assert len(tries) < 50
