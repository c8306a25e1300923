"""Leases: a lent item returns after its time although its holder lives."""

from __future__ import annotations

import pytest
from processes import PATIENCE, until

from durableq import Empty, StaleDeliveryError


def test_an_item_returns_when_its_lease_ends_although_its_holder_lives(open_queue, start, path):
    q = open_queue(lease=0.3)
    q.put("x")
    holder = start("q = DurableQueue(path); say(q.get()); hear()", path)
    holder.expect("x")
    delivery = q.reserve(timeout=PATIENCE)
    assert (delivery.item, delivery.deliveries) == ("x", 2)
    assert holder.process.poll() is None


def test_without_a_lease_an_item_stays_with_its_living_holder(q, open_queue):
    q.put("x")
    q.reserve(timeout=0)
    with pytest.raises(Empty):
        open_queue().get(timeout=0.3)


def test_a_lease_that_has_not_ended_keeps_the_item(open_queue):
    q = open_queue(lease=60)
    q.put("x")
    q.get_nowait()
    with pytest.raises(Empty):
        open_queue().get(timeout=0.1)


def test_the_lease_of_got_items_ends_too(open_queue):
    q = open_queue(lease=0.2)
    q.put_many("ab")
    assert q.get_many(2) == ["a", "b"]
    assert q.get(timeout=PATIENCE) == "a"
    assert q.get(timeout=PATIENCE) == "b"


def test_task_done_after_the_lease_ended_does_not_finish_somebody_else_s_item(open_queue):
    late, other = open_queue(lease=0.5), open_queue()
    late.put("x")
    late.get_nowait()
    delivery = other.reserve(timeout=PATIENCE)
    delivery.extend(60)
    with pytest.raises(ValueError):
        late.task_done()
    assert other.stats().lent == 1
    delivery.ack()


def test_extending_keeps_the_item_past_its_lease(open_queue):
    q, other = open_queue(lease=0.3), open_queue()
    q.put("x")
    delivery = q.reserve(timeout=0)
    delivery.extend(60)
    with pytest.raises(Empty):
        other.get(timeout=0.8)
    delivery.ack()
    assert other.stats().unfinished == 0


def test_an_extension_ends_too(open_queue):
    q, other = open_queue(lease=60), open_queue()
    q.put("x")
    q.reserve(timeout=0).extend(0.2)
    assert other.get(timeout=PATIENCE) == "x"


def test_an_item_whose_lease_ended_comes_before_everything_that_waits(open_queue):
    q = open_queue(lease=0.2)
    q.put("old")
    q.reserve(timeout=0)
    other = open_queue()
    with pytest.raises(Empty):
        other.get_nowait()
    assert other.get(timeout=PATIENCE) == "old"


def test_an_acked_item_does_not_return_when_its_lease_would_have_ended(open_queue):
    q = open_queue(lease=0.1)
    q.put("x")
    q.reserve(timeout=0).ack()
    with pytest.raises(Empty):
        q.get(timeout=0.3)


def test_the_lease_is_the_queue_s_and_reaches_handles_that_do_not_name_it(open_queue):
    q = open_queue(lease=0.2)
    q.put("x")
    holder = open_queue()
    holder.get_nowait()
    assert q.get(timeout=PATIENCE) == "x"


def test_every_lease_that_ends_counts_as_a_delivery(open_queue):
    q = open_queue(lease=0.1, max_deliveries=2)
    q.put("x")
    assert q.get(timeout=PATIENCE) == "x"
    assert q.get(timeout=PATIENCE) == "x"
    with pytest.raises(Empty):
        q.get(timeout=0.5)
    assert q.dead_letters.get_nowait() == "x"


def test_a_lease_that_is_not_positive_raises_value_error(open_queue):
    with pytest.raises(ValueError, match="lease"):
        open_queue(lease=-1)


def test_task_done_after_the_lease_ended_is_about_no_other_item(open_queue):
    late, other = open_queue(lease=1), open_queue()
    late.put_many([1, 2])
    assert late.get_many(2) == [1, 2]
    for _ in range(2):
        delivery = other.reserve(timeout=PATIENCE)
        delivery.extend(60)
        with pytest.raises(StaleDeliveryError):
            late.task_done()  # meant for what is somebody else's now
    assert other.stats().lent == 2


def test_task_done_after_another_has_done_the_item_is_about_no_other_item(open_queue):
    late, other = open_queue(lease=0.5), open_queue()
    late.put_many([1, 2])
    late.get_many(2)
    other.reserve(timeout=PATIENCE).ack()
    with pytest.raises(StaleDeliveryError):
        late.task_done()
    assert other.get(timeout=PATIENCE) == 2


def test_an_extension_ends_with_its_delivery(open_queue):
    """Without a lease, who has the item next has it for as long as it lives."""
    first, second, third = open_queue(), open_queue(), open_queue()
    first.put("x")
    delivery = first.reserve()
    delivery.extend(0.3)
    delivery.nack()
    delivery = second.reserve()
    with pytest.raises(Empty):
        third.get(timeout=0.6)
    delivery.ack()


def test_an_item_whose_last_lease_ended_is_a_dead_letter_for_who_waits_for_one(open_queue):
    q = open_queue(lease=0.2, max_deliveries=1)
    q.put("x")
    q.get()
    assert q.dead_letters.get(timeout=PATIENCE) == "x"


def test_join_returns_when_an_item_becomes_a_dead_letter_by_the_end_of_its_lease(open_queue):
    q, holder = open_queue(lease=0.2, max_deliveries=1), open_queue()
    q.put("x")
    holder.get()
    q.join()
    assert q.dead_letters.qsize() == 1


def test_who_waits_for_a_dead_letter_sleeps_when_something_has_fallen_due(open_queue, monkeypatch):
    q = open_queue()
    q.put("x", delay=1)
    with pytest.raises(Empty):
        q.get(timeout=0)
    looks = []
    real = q._store.dead_letters
    monkeypatch.setattr(q._store, "dead_letters", lambda: looks.append(1) or real())
    with pytest.raises(Empty):
        q.dead_letters.get(timeout=1.5)
    assert len(looks) < 100


def test_the_end_of_a_lease_is_no_look_at_all_that_was_given_back(open_queue, monkeypatch):
    q = open_queue(lease=0.5, max_deliveries=5)
    q.put_many(range(500))
    first, *others = q.reserve_many(500)
    for delivery in others:
        delivery.nack()
    until(q._store.is_due)
    looks = []
    search = q._store._ledger.search
    monkeypatch.setattr(q._store._ledger, "search", lambda *args: looks.append(args) or search(*args))
    delivery = q.reserve(timeout=0)
    assert (delivery.item, delivery.deliveries) == (first.item, 2)
    assert len(looks) < 10


def test_an_interrupt_as_a_lease_ends_does_not_leave_the_item_to_its_holder_for_ever(open_queue, cut_short):
    q, holder = open_queue(lease=0.1, max_deliveries=1), open_queue()
    q.put("x")
    holder.get()
    until(q._store.is_due)
    cut_short(q)
    assert q.dead_letters.get(timeout=PATIENCE) == "x"


def test_a_reaper_that_is_killed_before_the_last_delivery_is_noticed_leaves_a_dead_letter_all_the_same(open_queue, start, path):
    q = open_queue(max_deliveries=1)
    q.put("x")
    holder = start("q = DurableQueue(path); say(q.get()); hear()", path)
    holder.expect("x")
    reaper = start(
        """
        from durableq._handle import Handle
        q = DurableQueue(path)
        say("open")
        hear()
        Handle._retire = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        q.qsize()
        """,
        path,
    )
    reaper.expect("open")
    holder.kill()
    reaper.tell()
    reaper.process.wait(PATIENCE)
    assert q.qsize() == 0
    assert q.dead_letters.qsize() == 1


@pytest.mark.parametrize("seconds", [2e16, float("inf")])
def test_an_extension_longer_than_any_calendar_is_for_ever(open_queue, seconds):
    q = open_queue(lease=0.1)
    q.put("x")
    delivery = q.reserve()
    delivery.extend(seconds)
    with pytest.raises(Empty):
        q.get(timeout=0.3)
    delivery.ack()


def test_an_extension_that_is_no_number_is_refused_before_anything_is_changed(q):
    q.put("x")
    delivery = q.reserve()
    with pytest.raises(ValueError, match="seconds"):
        delivery.extend(float("nan"))
    with pytest.raises(Empty):
        q.get(timeout=0.01)
    delivery.ack()


def test_an_extension_into_the_past_ends_the_lease(q):
    q.put("x")
    q.reserve().extend(float("-inf"))
    assert q.get(timeout=PATIENCE) == "x"
