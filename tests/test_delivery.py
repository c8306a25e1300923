"""reserve and Delivery: ack, nack, reject, extend, and the deliveries that are no longer one's own."""

from __future__ import annotations

import time

import pytest
from processes import PATIENCE, until

from durableq import Delivery, Empty, StaleDeliveryError


def test_reserve_lends_one_item(q):
    q.put("x")
    delivery = q.reserve(timeout=0)
    assert isinstance(delivery, Delivery)
    assert delivery.item == "x"
    assert q.empty()
    assert q.stats().lent == 1


def test_reserve_of_an_empty_queue_raises_empty(q):
    with pytest.raises(Empty):
        q.reserve(block=False)
    with pytest.raises(Empty):
        q.reserve(timeout=0.01)


def test_reserve_waits_for_an_item(q, start, path):
    producer = start("q = DurableQueue(path); hear(); q.put('x')", path)
    producer.tell()
    assert q.reserve(timeout=PATIENCE).item == "x"


def test_an_acked_item_is_done(q, open_queue):
    q.put("x")
    q.reserve(timeout=0).ack()
    assert q.stats().unfinished == 0
    q.join()
    q.close()
    assert open_queue().empty()


def test_a_nacked_item_is_delivered_again_before_everything_that_waits(q):
    q.put_many("ab")
    q.reserve(timeout=0).nack()
    assert [q.get_nowait(), q.get_nowait()] == ["a", "b"]


def test_a_nacked_item_reaches_another_process(q, start, path):
    q.put("x")
    delivery = q.reserve(timeout=0)
    other = start("q = DurableQueue(path); say('open'); d = q.reserve(); say(d.item, d.deliveries); d.ack()", path)
    other.expect("open")
    delivery.nack()
    other.expect("x 2")


def test_items_nacked_in_any_order_come_back_oldest_first(q):
    q.put_many("abc")
    first, second, third = q.reserve_many(3)
    second.nack()
    third.nack()
    first.nack()
    assert [q.get_nowait() for _ in range(3)] == ["a", "b", "c"]


def test_a_nack_with_delay_holds_the_item_back(q):
    q.put_many("ab")
    q.reserve(timeout=0).nack(delay=60)
    assert q.get_nowait() == "b"
    with pytest.raises(Empty):
        q.get_nowait()
    assert q.stats().delayed == 1


def test_a_nacked_item_comes_after_its_delay(q):
    q.put("x")
    began = time.monotonic()
    q.reserve(timeout=0).nack(delay=0.2)
    assert q.get(timeout=PATIENCE) == "x"
    assert time.monotonic() - began >= 0.15


def test_a_rejected_item_goes_to_the_dead_letters(q):
    q.put_many("ab")
    q.reserve(timeout=0).reject()
    assert q.dead_letters.get_nowait() == "a"
    assert q.get_nowait() == "b"


def test_a_rejected_item_counts_as_finished(q):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.join()
    assert q.stats().unfinished == 0
    assert q.stats().dead == 1


def test_deliveries_counts_from_one(q):
    q.put("x")
    for expected in (1, 2, 3):
        delivery = q.reserve(timeout=0)
        assert delivery.deliveries == expected
        delivery.nack()


def test_enqueued_at_is_the_time_of_the_put(q):
    before = time.time()
    q.put("x")
    after = time.time()
    delivery = q.reserve(timeout=0)
    assert before - 0.01 <= delivery.enqueued_at <= after + 0.01
    delivery.nack()
    assert q.reserve(timeout=0).enqueued_at == delivery.enqueued_at


def test_leaving_the_context_acks(q):
    q.put("x")
    with q.reserve(timeout=0) as delivery:
        assert delivery.item == "x"
    assert q.stats().unfinished == 0


def test_leaving_the_context_by_an_exception_nacks_and_lets_it_through(q):
    q.put("x")
    with pytest.raises(ZeroDivisionError), q.reserve(timeout=0):
        raise ZeroDivisionError
    assert q.reserve(timeout=0).deliveries == 2


@pytest.mark.parametrize("settle", ["ack", "nack", "reject"])
def test_leaving_the_context_of_a_settled_delivery_does_nothing_more(q, settle):
    q.put("x")
    with q.reserve(timeout=0) as delivery:
        getattr(delivery, settle)()
    stats = q.stats()
    assert (stats.ready, stats.lent, stats.dead) == {"ack": (0, 0, 0), "nack": (1, 0, 0), "reject": (0, 0, 1)}[settle]


def test_an_exception_after_the_settling_does_nothing_more(q):
    q.put("x")
    with pytest.raises(ZeroDivisionError), q.reserve(timeout=0) as delivery:
        delivery.ack()
        raise ZeroDivisionError
    assert q.stats().unfinished == 0


@pytest.mark.parametrize("first", ["ack", "nack", "reject"])
@pytest.mark.parametrize("second", ["ack", "nack", "reject"])
def test_a_second_settling_raises_and_changes_nothing(q, first, second):
    q.put("x")
    delivery = q.reserve(timeout=0)
    getattr(delivery, first)()
    before = q.stats()
    with pytest.raises(StaleDeliveryError):
        getattr(delivery, second)()
    after = q.stats()
    assert (after.ready, after.lent, after.dead) == (before.ready, before.lent, before.dead)


@pytest.mark.parametrize("settle", ["ack", "nack", "reject"])
def test_settling_after_the_item_went_to_somebody_else_raises_and_changes_nothing(open_queue, settle):
    late = open_queue(lease=0.5)
    other = open_queue()
    late.put("x")
    lost = late.reserve(timeout=0)
    current = other.reserve(timeout=PATIENCE)
    current.extend(60)
    assert current.item == "x"
    with pytest.raises(StaleDeliveryError):
        getattr(lost, settle)()
    assert other.stats().lent == 1
    current.ack()
    assert other.stats().unfinished == 0


def test_extending_after_the_item_went_to_somebody_else_raises(open_queue):
    late, other = open_queue(lease=0.5), open_queue()
    late.put("x")
    lost = late.reserve(timeout=0)
    other.reserve(timeout=PATIENCE).ack()
    with pytest.raises(StaleDeliveryError):
        lost.extend(60)


def test_a_stale_ack_inside_the_context_raises(open_queue):
    late, other = open_queue(lease=0.5), open_queue()
    late.put("x")
    with pytest.raises(StaleDeliveryError), late.reserve(timeout=0):
        other.reserve(timeout=PATIENCE).ack()


def test_settling_after_the_handle_was_closed_raises_value_error(q, open_queue):
    q.put("x")
    delivery = q.reserve(timeout=0)
    q.close()
    with pytest.raises(ValueError):
        delivery.ack()
    assert open_queue().get_nowait() == "x"


def test_deliveries_may_be_settled_in_any_order(q, open_queue):
    q.put_many("abcd")
    one, two, three, four = q.reserve_many(4)
    three.ack()
    one.ack()
    four.ack()
    q.close()
    again = open_queue()
    assert again.get_nowait() == two.item == "b"
    assert again.empty()


def test_a_stale_delivery_error_is_a_value_error():
    assert issubclass(StaleDeliveryError, ValueError)


def test_an_item_keeps_its_id_from_delivery_to_delivery_and_over_a_reopening(open_queue, q):
    q.put_many(["a", "b"])
    first, second = q.reserve_many(2)
    ids = first.id, second.id
    assert ids[0] != ids[1]
    first.nack()
    q.close()
    again = open_queue()
    assert [d.id for d in again.reserve_many(2)] == [ids[0], ids[1]]


# -- release -----------------------------------------------------------------------------------------------------------


def test_a_released_item_comes_next_and_its_delivery_does_not_count(q):
    q.put_many("ab")
    q.reserve(timeout=0).nack()
    q.reserve(timeout=0).release()
    again = q.reserve(timeout=0)
    assert (again.item, again.deliveries) == ("a", 2)


def test_a_release_is_not_counted_by_max_deliveries_either(open_queue, path):
    q = open_queue(max_deliveries=2)
    q.put("x")
    for _ in range(5):
        q.reserve(timeout=0).release()
    q.close()
    path.with_name("q.dq-shm").unlink()  # as after a reboot: what counts then is what the file says
    assert open_queue().reserve(timeout=0).deliveries == 1


def test_a_release_of_a_dead_letter_leaves_it_one(q):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.dead_letters.reserve(timeout=0).release()
    assert q.dead_letters.peek() == ["x"] and q.empty()


def test_a_release_after_the_item_went_to_somebody_else_raises_and_changes_nothing(q):
    q.put("x")
    late = q.reserve(timeout=0)
    late.nack()
    holder = q.reserve(timeout=0)
    with pytest.raises(StaleDeliveryError):
        late.release()
    assert holder.deliveries == 2
    holder.ack()
    assert q.stats().unfinished == 0


def test_a_release_wakes_who_waits(q, start, path):
    q.put("x")
    delivery = q.reserve(timeout=0)
    other = start("q = DurableQueue(path); say('open'); say(q.get())", path)
    other.expect("open")
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    delivery.release()
    other.expect("x")
