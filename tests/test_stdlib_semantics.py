"""What the standard library's queues have in common holds here too: one text, run against them and against ours.

A test that a standard queue fails says nothing about ours, so each shared one runs against both. Behind them, what the README
lists as differences, with what the standard classes do instead.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE, until

import durableq

Make = Callable[..., Any]

THEIRS: dict[str, Make] = {"queue.Queue": queue.Queue, "multiprocessing.JoinableQueue": multiprocessing.JoinableQueue}
OURS = ["durableq.JoinableQueue", "durableq.DurableQueue"]
WITH_SHUTDOWN = [*OURS, *(["queue.Queue"] if sys.version_info >= (3, 13) else [])]


@pytest.fixture
def make(request: pytest.FixtureRequest, path: Path) -> Iterator[Make]:
    """`make(maxsize)` is a new queue of the kind under test."""
    made = []

    def maker(*args: Any, **options: Any) -> Any:
        if request.param in THEIRS:
            q = THEIRS[request.param](*args, **options)
        elif request.param == "durableq.DurableQueue":
            q = durableq.DurableQueue(path, *args, **options)
        else:
            q = durableq.JoinableQueue(*args, **options)
        made.append(q)
        return q

    yield maker
    for q in made:
        if hasattr(q, "close"):
            q.close()
            q.join_thread()


shared = pytest.mark.parametrize("make", [*THEIRS, *OURS], indirect=True)
shared_with_threads_only = pytest.mark.parametrize("make", ["queue.Queue", *OURS], indirect=True)
shared_with_processes = pytest.mark.parametrize("make", ["multiprocessing.JoinableQueue", *OURS], indirect=True)
shutting_down = pytest.mark.parametrize("make", WITH_SHUTDOWN, indirect=True)
ours = pytest.mark.parametrize("make", OURS, indirect=True)


class Background(threading.Thread):
    """A call in a thread of its own; `outcome()` is what it returned, or raises what it raised."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._args = call, args
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call(*self._args)
        except BaseException as error:
            self._error = error

    def inside(self) -> bool:
        """Whether the call has begun: what comes now meets it waiting, or about to."""
        frame = sys._current_frames().get(self.ident or 0)
        while frame is not None:
            if frame.f_code is self._call.__code__:
                return True
            frame = frame.f_back
        return False

    def outcome(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), f"{self._call} did not return"
        if self._error is not None:
            raise self._error
        return self._result


def come(q: Any, count: int) -> list[Any]:
    """So many items, in the order in which they come."""
    return [q.get(timeout=PATIENCE) for _ in range(count)]


# -- order, bounds, timeouts -------------------------------------------------------------------------------------------


@shared
def test_items_come_in_the_order_in_which_they_were_put(make: Make) -> None:
    q = make()
    for n in range(100):
        q.put(n)
    assert come(q, 100) == list(range(100))


@shared
def test_each_producer_s_items_keep_their_order_and_each_comes_once(make: Make) -> None:
    q = make(10)

    def produce(who: int) -> None:
        for n in range(100):
            q.put((who, n))

    producers = [Background(produce, who) for who in range(3)]
    consumers = [Background(come, q, 100) for _ in range(3)]
    came = [consumer.outcome() for consumer in consumers]
    for producer in producers:
        producer.outcome()
    assert sorted(item for part in came for item in part) == [(who, n) for who in range(3) for n in range(100)]
    for part in came:
        for who in range(3):
            of_one = [n for name, n in part if name == who]
            assert of_one == sorted(of_one)


@shared
@pytest.mark.parametrize("item", [None, False, 0, "", b"", (), [], {}, "x", 1.5, {"a": [1, (2, None)]}])
def test_anything_that_can_be_pickled_is_an_item(make: Make, item: Any) -> None:
    q = make()
    q.put(item)
    assert q.get(timeout=PATIENCE) == item


@shared
@pytest.mark.parametrize(
    "get",
    [
        lambda q: q.get_nowait(),
        lambda q: q.get(False),
        lambda q: q.get(block=False),
        lambda q: q.get(False, 5),
        lambda q: q.get(True, 0),
        lambda q: q.get(timeout=0.01),
    ],
)
def test_an_empty_queue_raises_empty(make: Make, get: Callable[[Any], Any]) -> None:
    with pytest.raises(queue.Empty):
        get(make())


@shared
@pytest.mark.parametrize(
    "put",
    [
        lambda q: q.put_nowait("y"),
        lambda q: q.put("y", False),
        lambda q: q.put("y", block=False),
        lambda q: q.put("y", False, 5),
        lambda q: q.put("y", True, 0),
        lambda q: q.put("y", timeout=0.01),
    ],
)
def test_a_full_queue_raises_full_and_does_not_take_the_item(make: Make, put: Callable[[Any], Any]) -> None:
    q = make(1)
    q.put("x")
    with pytest.raises(queue.Full):
        put(q)
    assert come(q, 1) == ["x"]
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)


@shared
def test_get_waits_as_long_as_its_timeout(make: Make) -> None:
    q = make()
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.2)
    assert time.monotonic() - began >= 0.19


@shared
def test_put_waits_as_long_as_its_timeout(make: Make) -> None:
    q = make(1)
    q.put("x")
    began = time.monotonic()
    with pytest.raises(queue.Full):
        q.put("y", timeout=0.2)
    assert time.monotonic() - began >= 0.19


@shared
@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_maxsize_below_one_is_no_bound(make: Make, maxsize: int) -> None:
    q = make(maxsize)
    for n in range(200):
        q.put_nowait(n)
    assert not q.full()
    assert come(q, 200) == list(range(200))


@shared
def test_maxsize_is_taken_by_place_and_by_name(make: Make) -> None:
    for q in (make(2), make(maxsize=2)):
        q.put(1)
        q.put(2)
        assert q.full()
        come(q, 2)


@shared
def test_qsize_empty_and_full_tell_what_waits(make: Make) -> None:
    q = make(2)
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
    q.put("a")
    until(lambda: not q.empty())
    assert (q.qsize(), q.full()) == (1, False)
    q.put("b")
    assert (q.qsize(), q.full()) == (2, True)
    come(q, 2)
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)


@shared
def test_what_was_taken_makes_room_before_it_is_done(make: Make) -> None:
    q = make(1)
    q.put("a")
    assert q.get(timeout=PATIENCE) == "a"
    q.put_nowait("b")
    assert q.get(timeout=PATIENCE) == "b"


# -- waiting -----------------------------------------------------------------------------------------------------------


@shared
def test_a_get_that_waits_is_woken_by_a_put(make: Make) -> None:
    q = make()
    getter = Background(q.get)
    until(getter.inside)
    q.put("x")
    assert getter.outcome() == "x"


@shared
def test_a_put_that_waits_is_woken_by_a_get(make: Make) -> None:
    q = make(1)
    q.put("a")
    putter = Background(q.put, "b")
    until(putter.inside)
    assert come(q, 2) == ["a", "b"]
    putter.outcome()


@shared
def test_of_many_that_wait_each_gets_one(make: Make) -> None:
    q = make()
    getters = [Background(q.get) for _ in range(6)]
    for n in range(6):
        q.put(n)
    assert sorted(getter.outcome() for getter in getters) == list(range(6))


@shared
def test_of_many_that_wait_for_room_each_puts_one(make: Make) -> None:
    q = make(1)
    q.put(0)
    putters = [Background(q.put, n) for n in range(1, 6)]
    assert sorted(come(q, 6)) == list(range(6))
    for putter in putters:
        putter.outcome()


# -- task_done and join ------------------------------------------------------------------------------------------------


@shared
def test_join_returns_at_once_while_nothing_was_put(make: Make) -> None:
    q = make()
    Background(q.join).outcome()


@shared
def test_join_waits_for_items_that_nobody_has_taken(make: Make) -> None:
    q = make()
    q.put("x")
    joined = Background(q.join)
    until(joined.inside)
    joined.join(0.02)
    assert joined.is_alive()
    come(q, 1)
    q.task_done()
    joined.outcome()


@shared
def test_join_waits_for_as_many_task_dones_as_there_were_puts(make: Make) -> None:
    q = make()
    for n in range(3):
        q.put(n)
    come(q, 3)
    q.task_done()
    q.task_done()
    joined = Background(q.join)
    until(joined.inside)
    joined.join(0.02)
    assert joined.is_alive()
    q.task_done()
    joined.outcome()
    Background(q.join).outcome()


@shared
def test_several_can_join(make: Make) -> None:
    q = make()
    q.put("x")
    joined = [Background(q.join) for _ in range(3)]
    until(lambda: all(one.inside() for one in joined))
    come(q, 1)
    q.task_done()
    for one in joined:
        one.outcome()


@shared
def test_join_waits_for_what_a_worker_puts_while_it_works(make: Make) -> None:
    q = make()

    def work() -> None:
        for _ in range(10):
            n = q.get()
            if n:
                q.put(n - 1)
            q.task_done()

    q.put(9)
    worker = Background(work)
    Background(q.join).outcome()
    worker.outcome()
    assert q.empty()


@shared
def test_a_task_done_too_many_raises_value_error(make: Make) -> None:
    q = make()
    with pytest.raises(ValueError):
        q.task_done()
    q.put("x")
    come(q, 1)
    q.task_done()
    with pytest.raises(ValueError):
        q.task_done()


@shared
def test_task_done_may_be_called_by_another_thread_than_get(make: Make) -> None:
    q = make()
    q.put("x")
    Background(come, q, 1).outcome()
    q.task_done()
    Background(q.join).outcome()


# -- what one of the two standard classes has, and ours too ------------------------------------------------------------


@shared_with_threads_only
@pytest.mark.parametrize("call", [lambda q: q.get(timeout=-1), lambda q: q.put("y", timeout=-1)])
def test_a_negative_timeout_raises_value_error(make: Make, call: Callable[[Any], Any]) -> None:
    q = make(1)
    with pytest.raises(ValueError, match="timeout"):
        call(q)
    assert q.empty()


@shared_with_threads_only
def test_a_timeout_counts_for_nothing_without_block(make: Make) -> None:
    q = make()
    q.put("x", False, -1)
    assert q.get(False, -1) == "x"


@shared_with_threads_only
def test_an_item_is_in_the_queue_when_put_returns(make: Make) -> None:
    q = make()
    for n in range(50):
        q.put(n)
        assert q.get_nowait() == n


@shared_with_threads_only
def test_maxsize_can_be_assigned(make: Make) -> None:
    q = make(2)
    q.put_nowait("a")
    q.maxsize = 1
    with pytest.raises(queue.Full):
        q.put_nowait("b")


@shared_with_threads_only
def test_unfinished_tasks_counts_what_join_waits_for(make: Make) -> None:
    q = make()
    q.put("a")
    q.put("b")
    q.get()
    assert q.unfinished_tasks == 2
    q.task_done()
    assert q.unfinished_tasks == 1


@shared_with_processes
@pytest.mark.parametrize("call", [lambda q: q.put("x"), lambda q: q.get(timeout=0), lambda q: q.put_nowait("x")])
def test_put_and_get_on_a_closed_queue_raise_value_error(make: Make, call: Callable[[Any], Any]) -> None:
    q = make()
    q.close()
    with pytest.raises(ValueError, match="closed"):
        call(q)


@shared_with_processes
def test_an_item_is_a_copy(make: Make) -> None:
    q = make()
    item = ["x"]
    q.put(item)
    came = q.get(timeout=PATIENCE)
    assert came == item and came is not item


@shared_with_processes
def test_close_can_be_called_twice_and_join_thread_and_cancel_join_thread_after_it(make: Make) -> None:
    q = make()
    q.put("x")
    q.cancel_join_thread()
    q.close()
    q.close()
    q.join_thread()
    q.cancel_join_thread()


@shutting_down
def test_after_a_shutdown_put_raises_and_get_drains_and_then_raises(make: Make) -> None:
    q = make()
    q.put("x")
    q.shutdown()
    with pytest.raises(durableq.ShutDown):
        q.put("y")
    assert q.get() == "x"
    with pytest.raises(durableq.ShutDown):
        q.get()
    q.task_done()
    Background(q.join).outcome()


@shutting_down
def test_an_immediate_shutdown_empties_the_queue(make: Make) -> None:
    q = make()
    q.put("x")
    q.shutdown(immediate=True)
    with pytest.raises(durableq.ShutDown):
        q.get()
    Background(q.join).outcome()


@shutting_down
@pytest.mark.parametrize("immediate", [False, True])
def test_a_shutdown_ends_what_waits(make: Make, immediate: bool) -> None:
    q = make(1)
    getter = Background(q.get)
    until(getter.inside)
    q.shutdown(immediate)
    with pytest.raises(durableq.ShutDown):
        getter.outcome()


@shutting_down
def test_a_shutdown_ends_a_put_that_waits_for_room(make: Make) -> None:
    q = make(1)
    q.put("x")
    putter = Background(q.put, "y")
    until(putter.inside)
    q.shutdown()
    with pytest.raises(durableq.ShutDown):
        putter.outcome()
    assert q.get() == "x"


# -- the README's list of differences ----------------------------------------------------------------------------------


@ours
def test_an_item_that_cannot_be_pickled_is_refused_by_put_and_nothing_was_put(make: Make) -> None:
    q = make()
    with pytest.raises(Exception, match="pickle"):
        q.put(threading.Lock())
    assert q.empty() and q.unfinished_tasks == 0
    q.put("x")
    assert q.get_nowait() == "x"


@ours
def test_an_item_is_taken_down_by_put_so_that_a_later_change_of_it_changes_nothing(make: Make) -> None:
    q = make()
    item = ["x"]
    q.put(item)
    item.append("y")
    assert q.get() == ["x"]


def test_the_queue_of_threads_hands_over_the_object_itself() -> None:
    q: queue.Queue[Any] = queue.Queue()
    item = ["x"]
    q.put(item)
    item.append("y")
    assert q.get() is item


def test_the_queue_of_processes_takes_a_negative_timeout_for_none_at_all() -> None:
    q = multiprocessing.JoinableQueue()
    with pytest.raises(queue.Empty):
        q.get(timeout=-1)
    q.close()


@ours
def test_task_done_without_a_get_raises_value_error_even_if_items_wait(make: Make) -> None:
    q = make()
    q.put("x")
    with pytest.raises(ValueError):
        q.task_done()
    assert q.unfinished_tasks == q.qsize() == 1


@pytest.mark.parametrize("make", list(THEIRS), indirect=True)
def test_the_standard_queues_count_a_task_done_before_its_get(make: Make) -> None:
    q = make()
    q.put("x")
    q.task_done()
    Background(q.join).outcome()
    come(q, 1)


@ours
def test_there_is_no_lock_and_no_list_of_items_to_reach_around_the_methods(make: Make) -> None:
    q = make()
    for name in ("mutex", "queue", "not_empty", "not_full", "all_tasks_done"):
        assert not hasattr(q, name)
        assert hasattr(queue.Queue(), name)
