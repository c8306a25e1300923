"""Queue, JoinableQueue and SimpleQueue: the standard library's signatures."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import queue
import threading

import pytest
from processes import PATIENCE, until

import durableq


def test_queue_takes_maxsize_by_position_and_by_name(path):
    with durableq.Queue(3) as by_position, durableq.Queue(maxsize=4) as by_name:
        assert (by_position.maxsize, by_name.maxsize) == (3, 4)


def test_queue_takes_the_options_of_durable_queue(path):
    with durableq.Queue(path=path, serializer="json", max_deliveries=2, sync=None) as q:
        q.put(["x"])
        assert q.get(timeout=10) == ["x"]


def test_path_is_by_name_only(path):
    with pytest.raises(TypeError):
        durableq.Queue(0, path)
    with pytest.raises(TypeError):
        durableq.SimpleQueue(path)


@pytest.mark.parametrize("kind", [durableq.Queue, durableq.JoinableQueue, durableq.SimpleQueue])
def test_the_ctx_that_the_classes_of_multiprocessing_insist_on_is_taken(kind):
    q = kind(ctx=multiprocessing.get_context("spawn"))
    q.put("x")
    assert q.get() == "x"
    q.close()


@pytest.mark.parametrize("kind", [durableq.Queue, durableq.JoinableQueue, durableq.SimpleQueue])
def test_a_drop_in_can_be_subscripted_in_an_annotation(kind):
    assert kind[int].__origin__ is kind


@pytest.mark.parametrize("kind", [durableq.Queue, durableq.JoinableQueue])
def test_put_nowait_goes_through_a_put_that_a_subclass_has_changed(kind):
    class Doubling(kind):
        def put(self, obj, *args, **options):
            super().put(2 * obj, *args, **options)

    with Doubling() as q:
        q.put_nowait(21)
        assert q.get_nowait() == 42


def test_task_done_of_a_queue_raises_value_error_when_it_is_called_more_often_than_get():
    with durableq.Queue() as q:
        q.put_many("abc")
        with pytest.raises(ValueError, match="too many"):
            q.task_done()
        q.get_many(2)
        q.task_done()
        q.task_done()
        with pytest.raises(ValueError, match="too many"):
            q.task_done()
        assert q.qsize() == 1


def test_task_done_of_a_queue_leaves_alone_what_others_have_on_loan(path, open_queue):
    lends = open_queue()
    lends.put_many("ab")
    assert lends.get() == "a"
    with durableq.Queue(path=path) as q:
        assert q.get() == "b"
        q.task_done()
        with pytest.raises(ValueError, match="too many"):
            q.task_done()
    assert lends.stats().lent == 1
    lends.task_done()


def test_join_of_a_queue_waits_until_everything_was_taken():
    with durableq.Queue() as q:
        q.put("x")
        joined = threading.Thread(target=q.join)
        joined.start()
        q.get()
        joined.join(PATIENCE)
        assert not joined.is_alive()


def test_join_of_a_queue_waits_for_task_done_in_a_program_that_calls_it():
    with durableq.Queue() as q:
        q.put_many("ab")
        q.get_many(2)
        q.task_done()
        joined = threading.Thread(target=q.join)
        joined.start()
        until(lambda: q.stats().owners[0].waiting)
        q.task_done()
        joined.join(PATIENCE)
        assert not joined.is_alive()


def test_a_child_does_not_inherit_the_count_of_what_a_queue_handed_out():
    def child():
        with pytest.raises(ValueError, match="too many"):
            q.task_done()
        q.join()

    with durableq.Queue() as q:
        q.put_many("ab")
        q.get_many(2)
        q.task_done()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0


def test_queue_hands_items_over_for_good(path):
    with durableq.Queue(path=path) as q:
        q.put("x")
        assert q.get(timeout=10) == "x"
        assert q.stats().unfinished == 0
    with durableq.Queue(path=path) as again:
        assert again.empty()


def test_joinable_queue_lends_items_until_task_done(path):
    with durableq.JoinableQueue(path=path) as q:
        q.put_many("ab")
        q.get()
        q.task_done()
        q.get()
    with durableq.JoinableQueue(path=path) as again:
        assert again.get(timeout=10) == "b"
        again.task_done()
        again.join()


def test_simple_queue_has_the_methods_of_multiprocessing_s(path):
    q = durableq.SimpleQueue(path=path)
    q.put("x")
    assert not q.empty()
    assert q.get() == "x"
    assert q.empty()
    q.close()


def test_simple_queue_hands_items_over_for_good(path):
    q = durableq.SimpleQueue(path=path)
    q.put("a")
    q.put("b")
    assert q.get() == "a"
    q.close()
    with durableq.DurableQueue(path) as again:
        assert again.get_many(5) == ["b"]


def test_a_simple_queue_travels_to_another_process(start):
    q = durableq.SimpleQueue()
    other = start("import pickle; pickle.loads(bytes.fromhex(sys.argv[1])).put('x')", pickle.dumps(q).hex())
    assert q.get() == "x"
    other.finish()
    q.close()


@pytest.mark.parametrize("method", ["put", "get", "put_nowait", "get_nowait"])
def test_a_call_that_fits_the_standard_library_fits_here(method):
    theirs = list(inspect.signature(getattr(queue.Queue, method)).parameters)[1:]
    ours = list(inspect.signature(getattr(durableq.DurableQueue, method)).parameters)[1:]
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "name",
    [
        *("put", "get", "put_nowait", "get_nowait", "task_done", "join", "qsize", "empty", "full"),
        *("close", "join_thread", "cancel_join_thread", "shutdown"),
    ],
)
def test_every_standard_name_is_there(name):
    assert callable(getattr(durableq.DurableQueue, name))


def test_the_exceptions_are_the_standard_library_s():
    assert durableq.Empty is queue.Empty
    assert durableq.Full is queue.Full
    if hasattr(queue, "ShutDown"):
        assert durableq.ShutDown is queue.ShutDown


def test_the_close_and_join_thread_idiom_works():
    q = durableq.Queue()
    q.put("x")
    q.get()
    q.close()
    q.join_thread()


def test_cancel_join_thread_is_allowed_at_any_time():
    with durableq.Queue() as q:
        q.cancel_join_thread()
        q.put("x")
        assert q.get() == "x"


def square(tasks, results):
    for number in iter(tasks.get, "STOP"):
        results.put((number, number * number))
        tasks.task_done()


def test_the_multiprocessing_documentation_s_worker_example_works_with_only_the_names_changed():
    context = multiprocessing.get_context("spawn")
    tasks, results = durableq.JoinableQueue(), durableq.Queue()
    for number in range(20):
        tasks.put(number)
    workers = [context.Process(target=square, args=(tasks, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    tasks.join()
    for _ in workers:
        tasks.put("STOP")
    found = dict(results.get(timeout=30) for _ in range(20))
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert found == {number: number * number for number in range(20)}
    tasks.close()
    results.close()


def test_a_put_is_in_the_queue_when_it_returns_and_not_after_a_feeder_thread():
    with durableq.Queue() as q:
        q.put("x")
        assert not q.empty()
        assert q.get_nowait() == "x"
