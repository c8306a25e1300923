"""`durableq.connect`: one battery of tests, many subjects. What an engine cannot do raises UnsupportedError; see `subject`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time

import pytest
from processes import PATIENCE, until

import durableq
from durableq import DecodeError, Empty, Full, StaleDeliveryError, UnsupportedError

_numbers = itertools.count()


class Subject:
    """An engine with a queue of the test's own."""

    def __init__(self, kind, url, *cannot):
        self.kind, self.url, self.cannot = kind, url, cannot
        self._opened = []

    def open(self, **options):
        self._opened.append(durableq.connect(self.url, **options))
        return self._opened[-1]

    def cannot_do(self, what):
        """For a test of `what`: whether this engine raises UnsupportedError for it."""
        return what in self.cannot

    def dispose(self):
        for queue in self._opened:
            queue.close()


@pytest.fixture(params=["file", "redis", "rabbitmq"])
def subject(request, path, make_redis):
    if request.param == "file":
        found = Subject("file", f"file://{path}")
    elif request.param == "redis":
        found = Subject("redis", f"redis://127.0.0.1:{make_redis().port}/0/jobs?silence=1", "shutdown", "foreign task_done")
    else:
        url = f"{request.getfixturevalue('rabbitmq').url}?queue=jobs{next(_numbers)}"
        limits = ("join", "maxsize", "delay", "max_deliveries", "lease", "peek", "shutdown", "foreign task_done", "counts")
        found = Subject("rabbitmq", url, *limits)
    yield found
    found.dispose()


@pytest.fixture
def jobs(subject):
    return subject.open()


def refuses(call):
    with pytest.raises(UnsupportedError):
        call()


# -- putting and getting -----------------------------------------------------------------------------------------------


def test_items_come_out_in_the_order_in_which_they_went_in(jobs):
    for item in ["a", 1, None, {"b": [2.5]}, b"\x00\xff"]:
        jobs.put(item)
    assert [jobs.get() for _ in range(5)] == ["a", 1, None, {"b": [2.5]}, b"\x00\xff"]


def test_an_empty_queue_raises_empty(jobs):
    for call in (jobs.get_nowait, lambda: jobs.get(timeout=0.05), lambda: jobs.reserve(block=False)):
        with pytest.raises(Empty):
            call()


def test_a_negative_timeout_raises_value_error(jobs):
    with pytest.raises(ValueError):
        jobs.get(timeout=-1)
    with pytest.raises(ValueError):
        jobs.put("x", timeout=-1)


def test_an_item_that_cannot_be_encoded_raises_in_put(jobs):
    with pytest.raises(Exception, match=r"pickle|local"):
        jobs.put(lambda: None)
    assert jobs.empty()


def test_a_get_waits_for_the_put_of_another_process(subject, jobs, start):
    child = start("q = durableq.connect(path); hear(); q.put('x'); say('put'); hear()", subject.url)
    child.tell()
    assert jobs.get(timeout=PATIENCE) == "x"


def test_batches_keep_the_order(jobs):
    jobs.put_many(range(1200))
    got = []
    while len(got) < 1200:
        part = jobs.get_many(1000, timeout=PATIENCE)
        assert len(part) <= 1000
        got += part
    assert got == list(range(1200))


def test_get_many_takes_what_is_there(jobs):
    jobs.put_many("ab")
    assert jobs.get_many(10) == ["a", "b"]
    with pytest.raises(Empty):
        jobs.get_many(10, timeout=0)


def test_two_handles_share_the_queue(subject, jobs):
    other = subject.open()
    jobs.put("a")
    other.put("b")
    assert [other.get(), jobs.get()] == ["a", "b"]


def test_threads_get_every_item_once(jobs):
    jobs.put_many(range(100))
    got = []

    def work():
        while True:
            try:
                item = jobs.get_nowait()
            except Empty:
                return
            got.append(item)
            jobs.task_done()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(100))
    assert jobs.qsize() == 0


def test_qsize_counts_what_waits(jobs):
    jobs.put_many("abc")
    assert (jobs.qsize(), jobs.empty()) == (3, False)
    jobs.get()
    assert jobs.qsize() == 2


def test_a_full_queue_raises_full_or_waits_for_room(subject):
    if subject.cannot_do("maxsize"):
        return refuses(lambda: subject.open(maxsize=2))
    jobs = subject.open(maxsize=2)
    jobs.put_many("ab")
    assert jobs.full()
    with pytest.raises(Full):
        jobs.put_nowait("c")
    with pytest.raises(Full):
        jobs.put("c", timeout=0.02)
    waiting = threading.Thread(target=jobs.put, args=("c",))
    waiting.start()
    assert jobs.get() == "a"
    waiting.join(PATIENCE)
    assert [jobs.get(), jobs.get()] == ["b", "c"]


def test_a_batch_that_does_not_fit_says_how_much_did(subject):
    if subject.cannot_do("maxsize"):
        return refuses(lambda: subject.open(maxsize=2))
    jobs = subject.open(maxsize=2)
    with pytest.raises(Full, match="2 items were put"):
        jobs.put_many("abc", block=False)
    assert jobs.qsize() == 2


def test_the_bound_holds_for_all_handles_and_can_be_assigned(subject):
    if subject.cannot_do("maxsize"):
        jobs = subject.open()
        assert jobs.maxsize == 0
        return refuses(lambda: setattr(jobs, "maxsize", 1))
    jobs, other = subject.open(maxsize=1), subject.open()
    assert other.maxsize == 1
    other.put("a")
    with pytest.raises(Full):
        jobs.put_nowait("b")
    jobs.maxsize = 2
    other.put_nowait("b")


def test_an_option_that_contradicts_the_queue_s_own_is_an_error(subject):
    if subject.cannot_do("maxsize"):
        return refuses(lambda: subject.open(maxsize=2))
    subject.open(maxsize=2)
    with pytest.raises(durableq.OptionMismatchError):
        subject.open(maxsize=3)


def test_a_delayed_item_comes_after_its_delay(subject, jobs):
    if subject.cannot_do("delay"):
        return refuses(lambda: jobs.put("x", delay=1))
    jobs.put("late", delay=0.3)
    jobs.put("early")
    assert jobs.qsize() == 2
    began = time.monotonic()
    assert [jobs.get(), jobs.get(timeout=PATIENCE)] == ["early", "late"]
    assert time.monotonic() - began >= 0.25


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
        jobs.get(timeout=2.5)  # more than two silences
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
    import signal

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
    with pytest.raises(Empty):
        jobs.get(timeout=3)
    assert jobs.dead_letters.get(timeout=PATIENCE) == "poison"


def test_an_item_that_cannot_be_decoded_is_a_dead_letter(subject, jobs):
    jobs.put_many([{"pickled": True}, "x"])
    plain = subject.open(serializer="json")
    with pytest.raises(DecodeError):
        plain.get()
    until(lambda: jobs.dead_letters.qsize() == 1)
    assert jobs.get() == "x"
    assert jobs.dead_letters.get(timeout=PATIENCE) == {"pickled": True}


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_peek_shows_what_comes_next_and_takes_nothing(subject, jobs):
    if subject.cannot_do("peek"):
        return refuses(jobs.peek)
    jobs.put_many("abc")
    jobs.reserve().nack()
    assert jobs.peek(5) == ["a", "b", "c"]
    shown = jobs.peek_deliveries(2)
    assert [one.deliveries for one in shown] == [1, 0]
    assert jobs.qsize() == 3
    assert [one.id for one in jobs.reserve_many(2)] == [one.id for one in shown]


def test_purge_removes_what_waits_and_nothing_else(jobs):
    jobs.put_many("abcd")
    rejected, lent, returned = jobs.reserve_many(3)
    rejected.reject()
    returned.nack()
    until(lambda: jobs.qsize() == 2)
    assert jobs.purge() == 2
    assert jobs.empty()
    lent.ack()
    assert jobs.dead_letters.qsize() == 1


def test_a_closed_handle_raises_value_error(jobs):
    jobs.put("a")
    delivery = jobs.reserve()
    jobs.close()
    jobs.close()
    assert jobs.closed
    for call in (jobs.get, lambda: jobs.put("x"), jobs.qsize, jobs.task_done, jobs.purge, delivery.ack):
        with pytest.raises(ValueError):
            call()


def test_a_handle_is_a_context_manager(subject):
    with subject.open() as jobs:
        jobs.put("a")
    assert jobs.closed


def test_shutdown_reaches_everybody_or_is_refused(subject, jobs):
    if subject.cannot_do("shutdown"):
        assert jobs.is_shutdown is False
        return refuses(jobs.shutdown)
    jobs.shutdown()
    with pytest.raises(durableq.ShutDown):
        subject.open().put("a")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_handle_goes_to_a_child_process(jobs, method):
    context = multiprocessing.get_context(method)
    child = context.Process(target=put_and_take, args=(jobs,))
    jobs.put("for the child")
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert jobs.get(timeout=PATIENCE) == "from the child"
    assert jobs.empty()


def put_and_take(jobs):
    with jobs.reserve(timeout=PATIENCE) as delivery:
        assert delivery.item == "for the child"
    jobs.put("from the child")


def test_what_the_parent_holds_is_not_the_forked_child_s(jobs):
    jobs.put("a")
    delivery = jobs.reserve()
    child = multiprocessing.get_context("fork").Process(target=look_and_leave, args=(jobs, delivery))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    delivery.ack()
    assert jobs.empty()


def look_and_leave(jobs, delivery):
    try:
        delivery.ack()
    except StaleDeliveryError:
        pass
    else:
        raise AssertionError("the child has acked what its parent holds")
    try:
        jobs.get(timeout=0)
    except Empty:
        jobs.close()
        return
    raise AssertionError("the child has taken what its parent holds")


WORKER = """
q = durableq.connect(path)
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
while True:
    with q.reserve() as delivery:
        os.write(log, f'{delivery.id} {delivery.item}\\n'.encode())
"""


def test_with_workers_killed_at_random_every_item_is_done(subject, jobs, start, tmp_path):
    total = 300
    jobs.put_many(range(total))
    log = tmp_path / "log"
    log.touch()
    workers = [start(WORKER, subject.url, log) for _ in range(3)]
    for kill in range(3):
        until(lambda kill=kill: len(log.read_text().splitlines()) > 40 * (kill + 1))
        workers[kill].kill()
        workers.append(start(WORKER, subject.url, log))
    until(lambda: len(set(log.read_text().splitlines())) == total)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert {int(item) for _, item in lines} == set(range(total))
    assert len({name for name, _ in lines}) == total
    # Each of the killed can have had one item in its hands.
    assert total <= len(lines) <= total + 3
