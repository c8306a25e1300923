"""Items that are put with a delay."""

from __future__ import annotations

import time

import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, Empty, Full
from durableq._handle import Handle


def test_a_delayed_item_is_not_delivered_before_its_time(q):
    began = time.monotonic()
    q.put("x", delay=1)
    with pytest.raises(Empty):
        q.get_nowait()
    assert q.get(timeout=PATIENCE) == "x"
    assert time.monotonic() - began >= 0.95


def test_a_delay_holds_up_nothing_else(q):
    q.put("later", delay=60)
    q.put("now")
    assert q.get_nowait() == "now"


def test_a_delayed_item_waits_and_counts_as_waiting(q):
    q.put("later", delay=60)
    assert q.qsize() == 1
    assert not q.empty()
    assert (q.stats().delayed, q.stats().ready) == (1, 0)


def test_a_delayed_item_counts_towards_maxsize(open_queue):
    q = open_queue(maxsize=1)
    q.put("later", delay=60)
    assert q.full()


def test_items_come_in_the_order_in_which_they_fall_due(q):
    q.put("second", delay=3)  # far apart: once both are due, the older one comes first
    q.put("first", delay=0.2)
    assert [q.get(timeout=PATIENCE), q.get(timeout=PATIENCE)] == ["first", "second"]


def test_a_delay_of_zero_is_none(q):
    q.put("x", delay=0)
    assert q.get_nowait() == "x"


def test_a_negative_delay_raises_value_error(q):
    with pytest.raises(ValueError, match="delay"):
        q.put("x", delay=-1)
    assert q.empty()


def test_a_get_that_waits_is_woken_when_an_item_falls_due(q, start, path):
    consumer = start("q = DurableQueue(path); say('open'); say(q.get())", path)
    consumer.expect("open")
    q.put("x", delay=0.2)
    consumer.expect("x")


def test_a_delayed_item_survives_a_reopening(q, open_queue):
    q.put("x", delay=0.5)
    q.put("kept back", delay=600)
    q.close()
    again = open_queue()
    assert again.get(timeout=PATIENCE) == "x"
    with pytest.raises(Empty):
        again.get_nowait()
    assert again.stats().delayed == 1


def test_a_delayed_item_survives_the_kill_of_its_producer(q, start, path):
    producer = start("q = DurableQueue(path); q.put('x', delay=0.3); say('put'); hear()", path)
    producer.expect("put")
    producer.kill()
    assert q.get(timeout=PATIENCE) == "x"


def test_join_waits_for_delayed_items(q, start, path):
    q.put("x", delay=0.2)
    joiner = start("q = DurableQueue(path); say('open'); q.join(); say('joined')", path)
    joiner.expect("open")
    assert q.get(timeout=PATIENCE) == "x"
    q.task_done()
    joiner.expect("joined")


def test_a_nacked_delay_survives_a_reopening(q, open_queue):
    q.put_many("ab")
    q.reserve(timeout=0).nack(delay=600)
    q.close()
    again = open_queue()
    assert again.get_nowait() == "b"
    with pytest.raises(Empty):
        again.get_nowait()
    assert again.qsize() == 1


@pytest.mark.parametrize("compiled", [True, False])
def test_who_only_polls_gets_a_delayed_item_when_its_time_has_come(path, monkeypatch, compiled):
    monkeypatch.setattr(Handle, "compiled", compiled)
    with DurableQueue(path) as q:
        q.put("x", delay=0.05)

        def got():
            try:
                return q.get_nowait()
            except Empty:
                return None

        until(got)


def test_a_delayed_item_that_a_get_passed_by_is_delivered_when_it_is_due(q):
    for _ in range(2):
        q.put("warm")
        q.get()
        q.task_done()
    q.put("a")
    q.put("delayed", delay=0.05)
    due = time.time() + 0.06
    q.put_many("bc")
    assert q.get_many(2) == ["a", "b"]
    q._store._look_at = float("inf")
    until(lambda: time.time() > due)
    assert q.get_many(2, block=False) == ["delayed", "c"]


def test_who_is_killed_while_it_gives_back_with_a_delay_leaves_an_item_that_falls_due(start, path, q):
    """Between any two stores to its entry: each call that stores is made the last one."""
    for last in ("change", "set_until", "pwrite"):
        q.put(last)
        child = start(
            f"""
            from durableq import _os
            q = DurableQueue(path)
            delivery = q.reserve()
            ledger = q._store._ledger
            where, name = (_os, "pwrite") if {last!r} == "pwrite" else (ledger, {last!r})
            real = getattr(where, name)
            def once(*args):
                real(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            setattr(where, name, once)
            delivery.nack(delay=0.01)
            """,
            path,
        )
        child.process.wait(PATIENCE)
        assert q.get(timeout=PATIENCE) == last
        q.task_done()
    q.join()


def test_an_item_that_falls_due_is_there_for_a_put_that_drops_the_oldest(open_queue):
    q = open_queue(max_bytes=4096, on_full="drop_oldest")
    with pytest.raises(Full):
        while True:
            q.put(b"x" * 400, False, delay=1)
    q.put(b"y" * 400, timeout=PATIENCE)
    assert q.stats().drops == 1


def test_the_end_of_a_delay_is_no_look_at_all_that_was_given_back(open_queue, monkeypatch):
    q = open_queue(max_deliveries=5)
    q.put_many(range(500))
    first, *others = q.reserve_many(500)
    for delivery in others:
        delivery.nack()
    first.nack(delay=0.01)
    until(q._store.is_due)
    looks = []
    search = q._store._ledger.search
    monkeypatch.setattr(q._store._ledger, "search", lambda *args: looks.append(args) or search(*args))
    assert q.get_nowait() == 0
    assert len(looks) < 10


def test_an_interrupt_as_a_delay_ends_does_not_make_it_endless(open_queue, cut_short):
    q = open_queue()
    q.put("x")
    q.reserve().nack(delay=0.01)
    until(q._store.is_due)
    cut_short(q)
    assert q.get(timeout=PATIENCE) == "x"


@pytest.mark.parametrize("delay", [2e16, 1e300, float("inf")])
def test_a_delay_longer_than_any_calendar_is_for_ever(q, open_queue, delay):
    q.put("put", delay=delay)
    q.put("nacked")
    q.reserve(timeout=0).nack(delay=delay)
    assert (q.stats().ready, q.stats().delayed) == (0, 2)
    q.close()
    again = open_queue()
    with pytest.raises(Empty):
        again.get(timeout=0.01)
    assert again.stats().delayed == 2


def test_a_delay_that_is_no_number_is_refused_before_anything_is_changed(q):
    q.put("x")
    delivery = q.reserve(timeout=0)
    with pytest.raises(ValueError, match="delay"):
        q.put("y", delay=float("nan"))
    with pytest.raises(ValueError, match="delay"):
        delivery.nack(delay=float("nan"))
    delivery.ack()
    assert q.unfinished_tasks == 0
