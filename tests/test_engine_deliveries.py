"""`durableq.connect`, second half of the battery: what is lent, done, given back or dead."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from engines.subjects import refuses
from processes import PATIENCE, until

from durableq import DecodeError, Empty, StaleDeliveryError

# -- done, and what is not ---------------------------------------------------------------------------------------------


def test_what_is_done_does_not_come_back(subject, jobs):
    jobs.put_many("ab")
    assert jobs.get() == "a"
    jobs.task_done()
    jobs.close()
    again = subject.open()
    assert again.get(timeout=PATIENCE) == "b"
    assert again.empty()


def test_what_a_closed_handle_held_comes_back_first(subject, jobs):
    other = subject.open()
    jobs.put_many("abc")
    assert other.get() == "a"
    other.close()
    until(lambda: jobs.qsize() == 3)
    assert [jobs.get(timeout=PATIENCE) for _ in range(3)] == ["a", "b", "c"]


def test_what_a_killed_process_held_comes_back_with_its_deliveries_counted(subject, jobs, start):
    jobs.put_many("ab")
    child = start("q = durableq.connect(path); say(q.get()); hear()", subject.url)
    child.expect("a")
    child.kill()
    found = {}
    for _ in range(2):
        delivery = jobs.reserve(timeout=PATIENCE)
        found[delivery.item] = delivery.deliveries
        delivery.ack()
    assert found == {"a": 2, "b": 1}


def test_what_a_living_process_holds_does_not_come_back(subject, jobs, start):
    jobs.put("a")
    child = start("q = durableq.connect(path); say(q.get()); hear(); q.task_done(); say('done')", subject.url)
    child.expect("a")
    with pytest.raises(Empty):
        jobs.get(timeout=subject.long_enough)
    child.tell()
    child.expect("done")


def test_task_done_called_too_often_raises_value_error(jobs):
    jobs.put("a")
    jobs.get()
    jobs.task_done()
    with pytest.raises(ValueError):
        jobs.task_done()


def test_task_done_is_for_the_oldest_item_of_this_thread(subject, jobs):
    jobs.put_many("ab")
    jobs.get()
    other = threading.Thread(target=lambda: (jobs.get(), jobs.task_done()))
    other.start()
    other.join(PATIENCE)
    jobs.close()
    assert subject.open().get(timeout=PATIENCE) == "a"


def test_task_done_of_another_thread_finishes_what_this_process_holds(subject, jobs):
    jobs.put("a")
    taker = threading.Thread(target=jobs.get)
    taker.start()
    taker.join(PATIENCE)
    jobs.task_done()
    jobs.close()
    assert subject.open().empty()


def test_task_done_does_not_touch_what_was_reserved(jobs):
    jobs.put("a")
    delivery = jobs.reserve()
    with pytest.raises(ValueError):
        jobs.task_done()
    delivery.ack()


def test_task_done_for_what_another_process_holds(subject, jobs):
    other = subject.open()
    jobs.put("a")
    other.get()
    if subject.cannot_do("foreign task_done"):
        with pytest.raises(ValueError):
            jobs.task_done()
    else:
        jobs.task_done()
        jobs.join()


def test_join_waits_until_everything_is_done(subject, jobs, start):
    if subject.cannot_do("join"):
        return refuses(jobs.join)
    jobs.put_many("ab")
    child = start("q = durableq.connect(path)\nfor _ in 'ab': q.get(); hear(); q.task_done()\nhear()", subject.url)
    joined = threading.Thread(target=jobs.join)
    joined.start()
    child.tell()
    until(lambda: jobs.unfinished_tasks == 1)
    assert joined.is_alive()
    child.tell()
    joined.join(PATIENCE)
    assert not joined.is_alive()


def test_under_ack_get_an_item_is_done_when_it_is_taken(subject):
    jobs = subject.open(ack="get")
    jobs.put_many("abc")
    assert jobs.get() == "a"
    assert jobs.get_many(2) == ["b", "c"]
    with pytest.raises(ValueError):
        jobs.task_done()
    jobs.close()
    assert subject.open().empty()


def test_under_ack_get_a_get_that_waits_takes_too(subject, start):
    jobs = subject.open(ack="get")
    child = start("q = durableq.connect(path); hear(); q.put('x'); say('put'); hear()", subject.url)
    child.tell()
    assert jobs.get(timeout=PATIENCE) == "x"
    jobs.close()
    assert subject.open().empty()


def test_reserve_ignores_ack_get(subject):
    jobs = subject.open(ack="get")
    jobs.put("a")
    with pytest.raises(ZeroDivisionError), jobs.reserve():
        raise ZeroDivisionError
    with jobs.reserve(timeout=PATIENCE) as delivery:
        assert (delivery.item, delivery.deliveries) == ("a", 2)
    assert jobs.empty()


# -- deliveries --------------------------------------------------------------------------------------------------------


def test_leaving_the_block_of_a_delivery_acks(subject, jobs):
    jobs.put("a")
    with jobs.reserve() as delivery:
        assert (delivery.item, delivery.deliveries) == ("a", 1)
        assert abs(delivery.enqueued_at - time.time()) < PATIENCE
    jobs.close()
    assert subject.open().empty()


def test_what_is_given_back_comes_first_oldest_first(jobs):
    jobs.put_many("abcd")
    one, two, three = jobs.reserve_many(3)
    two.nack()
    one.nack()
    three.nack()
    assert [jobs.get(timeout=PATIENCE) for _ in range(4)] == ["a", "b", "c", "d"]


def test_deliveries_are_counted(subject, jobs):
    jobs.put("a")
    seen = []
    for _ in range(3):
        delivery = jobs.reserve(timeout=PATIENCE)
        seen.append(delivery.deliveries)
        delivery.nack()
    assert seen == ([1, 2, 2] if subject.cannot_do("counts") else [1, 2, 3])


def test_what_is_released_was_not_delivered(subject, jobs):
    jobs.put("a")
    jobs.reserve().release()
    assert jobs.reserve(timeout=PATIENCE).deliveries == (2 if subject.cannot_do("counts") else 1)


def test_an_item_given_back_with_a_delay_comes_after_it(subject, jobs):
    jobs.put_many("ab")
    delivery = jobs.reserve()
    name = delivery.id
    if subject.cannot_do("delay"):
        return refuses(lambda: delivery.nack(delay=1))
    delivery.nack(delay=0.3)
    assert jobs.get() == "b"
    again = jobs.reserve(timeout=PATIENCE)
    assert (again.item, again.deliveries, again.id) == ("a", 2, name)


def test_an_id_stays_with_its_item(subject, jobs):
    jobs.put_many("ab")
    first, second = jobs.reserve_many(2)
    names = [first.id, second.id]
    assert names[0] != names[1]
    first.nack()
    second.ack()
    assert second.id == names[1]
    assert jobs.reserve(timeout=PATIENCE).id == names[0]


@pytest.mark.parametrize("settle", ["ack", "nack", "release", "reject"])
def test_a_second_settling_raises(jobs, settle):
    jobs.put("a")
    delivery = jobs.reserve()
    delivery.ack()
    with pytest.raises(StaleDeliveryError):
        getattr(delivery, settle)()
    assert jobs.empty()


def test_a_lease_ends_though_the_holder_lives_and_its_ack_comes_too_late(subject):
    if subject.cannot_do("lease"):
        return refuses(lambda: subject.open(lease=0.5))
    late, other = subject.open(lease=0.5), subject.open()
    late.put("a")
    lost = late.reserve()
    current = other.reserve(timeout=PATIENCE)
    current.extend(60)
    assert (current.item, current.deliveries) == ("a", 2)
    for settle in (lost.ack, lost.nack, lost.reject):
        with pytest.raises(StaleDeliveryError):
            settle()
    current.ack()
    assert other.unfinished_tasks == 0


def test_the_first_of_two_deliveries_of_an_item_to_one_process_is_stale(subject):
    if subject.cannot_do("lease"):
        return refuses(lambda: subject.open(lease=0.5))
    jobs = subject.open(lease=0.5)
    jobs.put("a")
    lost = jobs.reserve()
    current = jobs.reserve(timeout=PATIENCE)
    current.extend(60)
    with pytest.raises(StaleDeliveryError):
        lost.ack()
    current.ack()
    assert jobs.unfinished_tasks == 0


def test_an_extended_delivery_outlasts_the_lease(subject):
    if subject.cannot_do("lease"):
        return refuses(lambda: subject.open(lease=0.5))
    jobs, other = subject.open(lease=0.5), subject.open()
    jobs.put("a")
    delivery = jobs.reserve()
    delivery.extend(60)
    with pytest.raises(Empty):
        other.get(timeout=1.5)
    delivery.ack()


def test_a_process_that_was_stopped_too_long_has_lost_what_it_held(subject, jobs, start):
    if subject.kind != "redis":
        pytest.skip("elsewhere a stopped process is as good as a living one")
    jobs.put("a")
    child = start(
        """
        q = durableq.connect(path)
        d = q.reserve()
        say(d.item)
        hear()
        try:
            d.ack()
        except durableq.StaleDeliveryError:
            say('too late')
        """,
        subject.url,
    )
    child.expect("a")
    os.kill(child.pid, signal.SIGSTOP)
    delivery = jobs.reserve(timeout=PATIENCE)
    os.kill(child.pid, signal.SIGCONT)
    child.tell()
    child.expect("too late")
    delivery.ack()
    assert jobs.unfinished_tasks == 0


# -- dead letters ------------------------------------------------------------------------------------------------------


def test_a_rejected_item_is_a_dead_letter_and_the_rest_goes_on(jobs):
    jobs.put_many("ab")
    jobs.reserve().reject()
    assert jobs.get() == "b"
    assert jobs.dead_letters.qsize() == 1
    assert jobs.dead_letters.get(timeout=PATIENCE) == "a"


def test_dead_letters_keep_their_id_and_come_back_as_new(jobs):
    jobs.put_many("ab")
    names = []
    for delivery in jobs.reserve_many(2):
        names.append(delivery.id)
        delivery.reject()
    assert jobs.redrive() == 2
    again = jobs.reserve_many(2, timeout=PATIENCE)
    assert [(one.item, one.deliveries, one.id) for one in again] == [("a", 1, names[0]), ("b", 1, names[1])]
    assert jobs.redrive() == 0


def test_a_dead_letter_that_is_not_acked_stays_one(subject, jobs):
    jobs.put("a")
    jobs.reserve().reject()
    jobs.dead_letters.reserve(timeout=PATIENCE).nack()
    jobs.dead_letters.reserve(timeout=PATIENCE).reject()
    with jobs.dead_letters.reserve(timeout=PATIENCE) as delivery:
        assert delivery.item == "a"
    assert jobs.dead_letters.empty()


def test_what_is_delivered_too_often_is_a_dead_letter(subject):
    if subject.cannot_do("max_deliveries"):
        return refuses(lambda: subject.open(max_deliveries=2))
    jobs = subject.open(max_deliveries=2)
    jobs.put_many("ab")
    for _ in range(2):
        delivery = jobs.reserve(timeout=PATIENCE)
        assert delivery.item == "a"
        delivery.nack()
    assert jobs.get(timeout=PATIENCE) == "b"
    assert jobs.dead_letters.get(timeout=PATIENCE) == "a"


def test_what_kills_its_holders_is_a_dead_letter_after_max_deliveries(subject, start):
    if subject.cannot_do("max_deliveries"):
        return refuses(lambda: subject.open(max_deliveries=1))
    jobs = subject.open(max_deliveries=1)
    jobs.put("poison")
    child = start("q = durableq.connect(path); say(q.get()); hear()", subject.url)
    child.expect("poison")
    child.kill()

    def buried():
        with pytest.raises(Empty):
            jobs.get(timeout=0.1)
        return jobs.dead_letters.qsize()

    until(buried)
    assert jobs.dead_letters.get(timeout=PATIENCE) == "poison"


def test_an_item_that_cannot_be_decoded_is_a_dead_letter(subject, jobs):
    jobs.put_many([{"pickled": True}, "x"])
    plain = subject.open(serializer="json")
    with pytest.raises(DecodeError):
        plain.get()
    until(lambda: jobs.dead_letters.qsize() == 1)
    assert jobs.get() == "x"
    assert jobs.dead_letters.get(timeout=PATIENCE) == {"pickled": True}
