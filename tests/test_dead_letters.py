"""max_deliveries, the dead letters and redrive."""

from __future__ import annotations

import threading

import pytest
from processes import PATIENCE, until

from durableq import DecodeError, Delivery, Empty, ShutDown
from durableq._state import GET_WAITERS, JOIN_WAITERS, LETTER_WAITERS, LETTER_WORD, PUT_WAITERS


def exhaust(q, times):
    for _ in range(times):
        q.reserve(timeout=0).nack()


def test_after_max_deliveries_an_item_goes_to_the_dead_letters(open_queue):
    q = open_queue(max_deliveries=3)
    q.put_many(["bad", "good"])
    exhaust(q, 3)
    assert q.get_nowait() == "good"
    assert q.dead_letters.get_nowait() == "bad"


def test_before_max_deliveries_an_item_is_delivered_again(open_queue):
    q = open_queue(max_deliveries=3)
    q.put("x")
    exhaust(q, 2)
    delivery = q.reserve(timeout=0)
    assert delivery.deliveries == 3
    delivery.ack()
    assert q.dead_letters.empty()


def test_without_max_deliveries_an_item_is_delivered_for_ever(q):
    q.put("x")
    exhaust(q, 400)
    assert q.get_nowait() == "x"


def test_an_item_that_kills_its_worker_every_time_ends_in_the_dead_letters(open_queue, start, path):
    q = open_queue(max_deliveries=2)
    q.put("poison")
    for _ in range(2):
        worker = start("q = DurableQueue(path); say(q.get(timeout=30)); os.kill(os.getpid(), signal.SIGKILL)", path)
        worker.expect("poison")
        worker.process.wait(PATIENCE)
    with pytest.raises(Empty):
        q.get(timeout=0.3)
    assert q.dead_letters.get_nowait() == "poison"


def test_dead_letters_count_as_finished_and_do_not_wait(open_queue):
    q = open_queue(max_deliveries=1)
    q.put("x")
    exhaust(q, 1)
    q.join()
    stats = q.stats()
    assert (stats.dead, stats.unfinished, stats.ready) == (1, 0, 0)
    assert q.empty()


def test_dead_letters_survive_a_reopening(q, open_queue):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.close()
    again = open_queue()
    assert again.empty()
    assert again.dead_letters.get_nowait() == "x"


def test_dead_letters_are_seen_by_every_process(q, start, path):
    q.put("x")
    q.reserve(timeout=0).reject()
    start("say(DurableQueue(path).dead_letters.get())", path).expect("x")


def test_dead_letters_are_a_queue(q):
    q.put_many("abcd")
    for delivery in q.reserve_many(4):
        delivery.reject()
    dead = q.dead_letters
    assert dead.qsize() == 4
    assert not dead.empty()
    assert dead.peek(2) == ["a", "b"]
    assert dead.get() == "a"
    assert dead.get_nowait() == "b"
    dead.task_done()
    dead.task_done()
    with dead.reserve(timeout=0) as delivery:
        assert delivery.item == "c"
    assert dead.get_many(5) == ["d"]
    assert dead.empty()


def test_an_empty_dead_letter_queue_raises_empty(q):
    assert q.dead_letters.empty()
    assert q.dead_letters.qsize() == 0
    with pytest.raises(Empty):
        q.dead_letters.get_nowait()
    with pytest.raises(Empty):
        q.dead_letters.get(timeout=0.01)


def test_a_dead_letter_that_was_done_is_gone(q, open_queue):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.dead_letters.reserve(timeout=0).ack()
    assert q.stats().dead == 0
    q.close()
    assert open_queue().dead_letters.empty()


def test_a_dead_letter_that_was_taken_and_not_done_stays_a_dead_letter(q, open_queue):
    q.put("x")
    q.reserve(timeout=0).reject()
    assert q.dead_letters.get_nowait() == "x"
    q.close()
    again = open_queue()
    assert again.empty()
    assert again.dead_letters.get_nowait() == "x"


def test_dead_letters_reserved_as_a_batch_are_settled_one_by_one(q):
    q.put_many("ab")
    for delivery in q.reserve_many(2):
        delivery.reject()
    first, second = q.dead_letters.reserve_many(5)
    assert (first.item, second.item) == ("a", "b")
    first.ack()
    second.nack()
    assert q.dead_letters.peek(5) == ["b"]


def test_redrive_puts_the_dead_letters_back(q):
    q.put_many("ab")
    for delivery in q.reserve_many(2):
        delivery.reject()
    assert q.redrive() == 2
    assert q.dead_letters.empty()
    assert [q.get_nowait(), q.get_nowait()] == ["a", "b"]


def test_redriven_items_are_unfinished_again(q):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.redrive()
    assert q.stats().unfinished == 1
    assert q.qsize() == 1


def test_redriven_items_have_all_their_deliveries_before_them_again(open_queue):
    q = open_queue(max_deliveries=2)
    q.put("x")
    exhaust(q, 2)
    q.redrive()
    exhaust(q, 1)
    assert q.get_nowait() == "x"


def test_redrive_wakes_a_waiting_get(q, start, path):
    q.put("x")
    q.reserve(timeout=0).reject()
    consumer = start("q = DurableQueue(path); say('open'); say(q.get())", path)
    consumer.expect("open")
    q.redrive()
    consumer.expect("x")


def test_redrive_of_nothing_is_zero(q):
    q.put("x")
    assert q.redrive() == 0
    assert q.qsize() == 1


def test_redriven_items_survive_a_reopening(q, open_queue):
    q.put("x")
    q.reserve(timeout=0).reject()
    q.redrive()
    q.close()
    again = open_queue()
    assert again.dead_letters.empty()
    assert again.get_nowait() == "x"


def test_max_deliveries_that_is_not_positive_raises_value_error(open_queue):
    with pytest.raises(ValueError, match="max_deliveries"):
        open_queue(max_deliveries=0)


# -- task_done ---------------------------------------------------------------------------------------------------------


def a_letter(q, item="letter"):
    q.put(item)
    q.reserve(timeout=0).reject()


@pytest.mark.parametrize("letter_first", [True, False])
def test_task_done_of_the_queue_and_of_its_dead_letters_are_about_items_of_their_own(q, open_queue, letter_first):
    a_letter(q)
    q.put("job")
    first, second = (q.dead_letters, q) if letter_first else (q, q.dead_letters)
    first.get()
    second.get()
    q.task_done()
    q.close()
    again = open_queue()
    assert (again.qsize(), again.dead_letters.peek()) == (0, ["letter"])


def test_task_done_of_the_dead_letters_finishes_the_letters_in_their_order(q, open_queue):
    for item in "abc":
        a_letter(q, item)
    q.put("job")
    assert (q.get(), q.dead_letters.get(), q.dead_letters.get()) == ("job", "a", "b")
    q.dead_letters.task_done()
    q.close()
    again = open_queue()
    assert (again.peek(), again.dead_letters.peek(5)) == (["job"], ["b", "c"])


@pytest.mark.parametrize("holder", ["this handle", "another"])
def test_task_done_of_the_dead_letters_finishes_no_item_of_the_queue(q, open_queue, holder):
    q.put_many("ab")
    (q if holder == "this handle" else open_queue()).get()
    q.reserve()
    with pytest.raises(ValueError):
        q.dead_letters.task_done()
    assert q.unfinished_tasks == 2


def test_task_done_of_the_dead_letters_finishes_another_thread_s_letter_when_this_one_has_none(q):
    a_letter(q)
    q.put("job")
    q.get()
    taker = threading.Thread(target=q.dead_letters.get)
    taker.start()
    taker.join(PATIENCE)
    q.dead_letters.task_done()
    assert (q.stats().dead, q.unfinished_tasks) == (0, 1)


def test_task_done_of_the_dead_letters_finishes_another_process_s_letter_when_this_one_has_none(q, start, path):
    a_letter(q)
    other = start("q = DurableQueue(path); say(q.dead_letters.get()); hear()", path)
    other.expect("letter")
    q.dead_letters.task_done()
    with pytest.raises(ValueError):
        q.dead_letters.task_done()
    other.kill()
    assert q.dead_letters.empty()
    assert q.stats().dead == 0


# -- waiting -----------------------------------------------------------------------------------------------------------


def waits_for_a_letter(q):
    """A thread that waits for a dead letter, and a list of what becomes of that."""
    outcome = []

    def wait():
        try:
            outcome.append(q.dead_letters.get())
        except ShutDown:
            outcome.append("shut down")

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    return waiter, outcome


def test_who_waits_for_a_dead_letter_takes_no_wake_from_who_waits_for_an_item(q):
    waiter, outcome = waits_for_a_letter(q)
    words = q._store._words
    assert [words[word] for word in (GET_WAITERS, PUT_WAITERS, JOIN_WAITERS)] == [0, 0, 0]
    a_letter(q)
    waiter.join(PATIENCE)
    assert outcome == ["letter"]
    assert words[LETTER_WAITERS] == 0


def test_a_killed_process_that_waited_for_a_dead_letter_is_not_counted_for_ever(q, start, path):
    sleeper = start("DurableQueue(path).dead_letters.get()", path)
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    sleeper.kill()
    q._store.reap()
    assert q._store._words[LETTER_WAITERS] == 0


def nacked_too_often(q, _):
    q.reserve().nack()


def was_not_decoded(q, _):
    with pytest.raises(DecodeError):
        q.get()


def held_by_who_is_killed(q, start):
    child = start("q = DurableQueue(path); q.get(); say('has it'); hear()", q.path)
    child.expect("has it")
    child.kill()
    until(q._store.reap)


def kept_too_long(q, _):
    q.reserve().extend(0.001)
    until(q._store.is_due)
    q.qsize()


def given_back(settle):
    def way(q, _):
        q.reserve().reject()
        letter = q.dead_letters.reserve()
        q._store._words[LETTER_WORD] = 0
        settle(letter)

    return way


WAYS = {
    "rejected": lambda q, _: q.reserve().reject(),
    "nacked too often": nacked_too_often,
    "not decoded": was_not_decoded,
    "its holder is killed": held_by_who_is_killed,
    "its lease ends": kept_too_long,
    "a letter that is nacked": given_back(Delivery.nack),
    "a letter that is released": given_back(Delivery.release),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_makes_a_dead_letter_wakes_who_waits_for_one(open_queue, start, way):
    q = open_queue(max_deliveries=1)
    open_queue(serializer="json").put("x") if way is not was_not_decoded else q.put(Undecodable())
    words = q._store._words
    before = words[LETTER_WORD]
    words[LETTER_WAITERS] = 1  # as if one slept
    way(q, start)
    words[LETTER_WAITERS] = 0
    assert words[LETTER_WORD] != before
    assert q.dead_letters.qsize() == 1


class Undecodable:
    def __reduce__(self):
        return int, ("no number",)


def test_who_waits_for_a_dead_letter_hears_of_a_shutdown(q):
    waiter, outcome = waits_for_a_letter(q)
    q.shutdown()
    waiter.join(PATIENCE)
    assert outcome == ["shut down"]


def test_after_a_shutdown_the_dead_letters_are_still_there_for_who_takes_them(q):
    a_letter(q)
    q.shutdown()
    assert q.dead_letters.get() == "letter"
    for take in (q.dead_letters.get, q.dead_letters.get_nowait, q.dead_letters.reserve):
        with pytest.raises(ShutDown):
            take()
