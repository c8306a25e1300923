"""`durableq.connect`: one battery of tests, many subjects. What an engine cannot do raises UnsupportedError; see `subject`."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
from engines.subjects import refuses
from processes import PATIENCE, until

import durableq
from durableq import Empty, Full, StaleDeliveryError

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
    began = time.monotonic()  # before the put: whatever holds us up then is part of the delay
    jobs.put("late", delay=0.3)
    jobs.put("early")
    assert jobs.qsize() == 2
    assert [jobs.get(), jobs.get(timeout=PATIENCE)] == ["early", "late"]
    assert time.monotonic() - began >= 0.25


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
