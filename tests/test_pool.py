"""WorkerPool: what becomes of items, of their results, and of those that fail. Workers are real processes."""

from __future__ import annotations

import logging
import os
import socket
import time

import pool_jobs
import pytest
from pool_jobs import AT_ONCE, LATER
from processes import until

from durableq import Backoff, DurableQueue, PoolError, WorkerPool, failures
from durableq.pool import Result
from durableq.pool._link import Cell
from durableq.pool._settings import Settings
from durableq.pool._worker import Worker


@pytest.fixture
def results(tmp_path):
    with DurableQueue(tmp_path / "results.dq") as queue:
        yield queue


def everything(queue):
    items = queue.get_many(10_000, block=False) if not queue.empty() else []
    for _ in items:
        queue.task_done()
    return items


# -- what is done ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_every_item_is_done_and_its_result_is_in_the_results_queue(q, pool, results, start_method):
    q.put_many(range(50))
    ids = {peeked.item: peeked.id for peeked in q.peek_deliveries(50)}
    tally = pool(pool_jobs.double, 2, results=results.path, start_method=start_method).run(until_empty=True)
    found = everything(results)
    assert sorted(result.value for result in found) == list(range(0, 100, 2))
    assert all(ids[result.value // 2] == result.id for result in found)
    assert isinstance(found[0], Result)
    assert q.stats().unfinished == 0
    assert (tally.done, tally.failed, tally.dead, tally.deaths) == (50, 0, 0, 0)
    assert tally.ended == "the queue is empty"


def test_a_pool_works_on_what_is_put_while_it_runs_and_ends_with_its_block(q, pool, results):
    with pool(results=results.path) as running:
        for n in range(5):
            q.put(n)
        q.join()
        until(lambda: running.tally().done == 5)
    assert running.tally().ended == "stop()"
    q.put("too late")
    assert q.qsize() == 1


def test_results_may_go_to_a_queue_that_is_open_already_under_any_serializer(q, pool, open_queue, tmp_path):
    q.put_many([1, 2])
    results = open_queue(tmp_path / "results.dq", serializer="json")
    pool(results=results).run(until_empty=True)
    assert [value for _, value in everything(results)] == [1, 2]


def test_the_results_of_a_pool_on_bytes_are_pickled(open_queue, pool, results):
    open_queue(serializer="bytes").put(b"x")
    pool(results=results.path, serializer="bytes").run(until_empty=True)
    assert [value for _, value in everything(results)] == [b"x"]


def test_a_full_results_queue_makes_the_workers_wait(q, pool, open_queue, tmp_path):
    results = open_queue(tmp_path / "results.dq", maxsize=1)
    q.put_many(range(3))
    with pool(results=results.path):
        until(lambda: results.full() and (q.stats().lent, q.stats().ready) == (1, 1))
        assert [results.get(timeout=30).value for _ in range(3)] == [0, 1, 2]
        q.join()


def test_a_disk_that_does_not_take_the_result_is_no_fault_of_the_item(q, pool, open_queue, tmp_path, caplog):
    results = open_queue(tmp_path / "results.dq", serializer=pool_jobs.Fussy(tmp_path / "flag"))
    q.put(("tell", tmp_path / "told"))
    pool(results=results, max_deliveries=1).run(until_empty=True)
    assert len(results.peek(5)) == 1
    assert len((tmp_path / "told").read_text().splitlines()) == 1, "the work is not done again"
    assert "waits until it can be put: [Errno 28]" in caplog.text


def test_a_disk_that_fails_under_the_results_costs_the_item_nothing(q, pool, open_queue, tmp_path):
    results = open_queue(tmp_path / "results.dq", serializer=pool_jobs.Sick())
    q.put("x")
    with pytest.raises(PoolError, match="ended with exit code 1"):
        pool(results=results, max_deliveries=2).run(until_empty=True)
    assert q.dead_letters.qsize() == 0
    assert q.reserve(timeout=0).deliveries == 1


def test_a_function_may_be_a_closure_under_fork(q, pool, tmp_path):
    q.put("x")
    seen = tmp_path / "seen"
    pool(lambda item: seen.write_text(item), start_method="fork").run(until_empty=True)
    assert seen.read_text() == "x"


def test_the_queue_is_created_where_there_is_none(path, pool):
    assert pool().run(until_empty=True).done == 0
    assert path.exists()


# -- what fails --------------------------------------------------------------------------------------------------------


def test_an_item_that_fails_too_often_is_a_dead_letter_with_its_story(q, pool):
    q.put_many([1, ("raise", "no such customer"), 2])
    before = time.time()
    running = pool(max_deliveries=3)
    tally = running.run(until_empty=True)
    assert (tally.done, tally.failed, tally.dead) == (2, 3, 1)
    assert q.dead_letters.peek(5) == [("raise", "no such customer")]
    (story,) = running.failures()
    assert story.id in q.dead_letters.ids()
    assert (story.reason, story.deliveries) == ("ValueError: no such customer", 3)
    assert story.details.startswith("Traceback (most recent call last):") and "in do_raise" in story.details
    assert "durableq/pool" not in story.details, "what is not the user's is left out"
    assert (story.host, story.item) == (socket.gethostname(), "('raise', 'no such customer')")
    assert story.pid != os.getpid() and before < story.time < time.time()


def test_an_item_that_fails_once_is_tried_again_and_done(q, pool, tmp_path):
    q.put(("fail_once", tmp_path / "told"))
    tally = pool().run(until_empty=True)
    assert (tally.done, tally.failed, tally.dead) == (1, 1, 0)


def test_an_item_that_failed_waits_for_its_next_try_and_others_pass_it(q, pool):
    q.put_many([("raise", "x"), "good"])
    with pool(backoff=LATER):
        until(lambda: q.stats().delayed == 1 and q.stats().unfinished == 1)


def test_the_back_off_is_asked_with_the_number_of_the_delivery(q, pool):
    q.put(("raise", "x"))
    asked = []

    def backoff(deliveries):
        asked.append(deliveries)
        with open(f"{q.path}-asked", "a") as file:
            file.write(f"{deliveries} ")
        return 0.0

    pool(backoff=backoff, max_deliveries=4, start_method="fork").run(until_empty=True)
    with open(f"{q.path}-asked") as file:
        assert file.read() == "1 2 3 "


def test_a_function_that_calls_exit_has_failed_and_does_not_end_its_worker(q, pool):
    q.put(("leave", 3))
    running = pool(max_deliveries=1)
    assert running.run(until_empty=True).deaths == 0
    assert running.failures()[0].reason == "SystemExit: 3"


def test_on_error_may_give_an_item_up_at_once(q, pool):
    q.put_many([("raise", "hopeless"), ("raise", "try again")])
    running = pool(on_error=pool_jobs.give_up, max_deliveries=3)
    running.run(until_empty=True)
    assert {story.item: story.deliveries for story in running.failures()} == {
        "('raise', 'hopeless')": 1,
        "('raise', 'try again')": 3,
    }


def test_an_on_error_that_fails_itself_changes_nothing(q, pool, caplog):
    q.put(("raise", "x"))
    tally = pool(on_error=pool_jobs.note_and_fail, max_deliveries=2).run(until_empty=True)
    assert (tally.failed, tally.dead) == (2, 1)
    assert "on_error itself failed" in caplog.text and "on_error is broken, too" in caplog.text


@pytest.mark.parametrize(("of_queue", "of_pool", "tries"), [(2, 5, 2), (5, 2, 2), (None, 2, 2), (2, None, 2)])
def test_the_smaller_max_deliveries_of_queue_and_pool_counts_and_the_story_is_told(open_queue, pool, of_queue, of_pool, tries):
    q = open_queue(max_deliveries=of_queue)
    q.put(("raise", "x"))
    running = pool(max_deliveries=of_pool)
    assert running.run(until_empty=True).failed == tries
    assert [story.deliveries for story in running.failures()] == [tries]


def test_without_any_max_deliveries_an_item_is_tried_until_it_is_done(q, pool, tmp_path):
    q.put(("raise", "x"))
    with pool(max_deliveries=None) as running:
        until(lambda: running.tally().failed > 20)
    assert q.stats().dead == 0


def test_a_result_that_cannot_be_put_is_a_failure_of_the_item(q, pool, results):
    q.put("x")
    running = pool(pool_jobs.not_picklable, max_deliveries=1, results=results.path)
    running.run(until_empty=True)
    assert "not_picklable.<locals>" in running.failures()[0].reason
    assert results.empty()


def test_an_item_that_cannot_be_decoded_is_a_dead_letter_and_the_others_are_done(q, pool, open_queue, caplog):
    q.put_many([1j, 2j])
    open_queue(serializer="json").put([3])
    running = pool(serializer="json")
    assert running.run(until_empty=True).done == 1
    assert q.stats().dead == 2
    assert len([story for story in running.failures() if "serializer 'pickle'" in story.reason]) == 2
    assert "written by serializer 'pickle'" in caplog.text


def test_dead_letters_that_are_driven_back_are_worked_on_again_by_the_next_pool(q, pool, tmp_path):
    q.put(("fail_once", tmp_path / "told"))
    running = pool(max_deliveries=1)
    running.run(until_empty=True)
    assert len(running.failures()) == 1
    q.redrive()
    assert running.run(until_empty=True).done == 1
    assert running.failures() == []


def test_what_was_delivered_too_often_by_those_before_is_not_tried_again(q, pool, tmp_path):
    q.put(("tell", tmp_path / "told"))
    for _ in range(2):
        q.reserve(timeout=0).nack()
    running = pool(max_deliveries=2)
    running.run(until_empty=True)
    assert not (tmp_path / "told").exists()
    (story,) = running.failures()
    assert story.deliveries == 2 and "nobody lived to tell" in story.reason


# -- back-off ----------------------------------------------------------------------------------------------------------


def test_the_back_off_grows_up_to_its_most():
    backoff = Backoff(first=1.0, factor=2.0, most=10.0, jitter=0.0)
    assert [backoff(n) for n in (1, 2, 3, 4, 5, 6, 5000)] == [1, 2, 4, 8, 10, 10, 10]


def test_the_jitter_takes_up_to_its_share():
    backoff = Backoff(first=8.0, jitter=0.5)
    drawn = [backoff(1) for _ in range(200)]
    assert all(4.0 <= delay <= 8.0 for delay in drawn)
    assert len(set(drawn)) > 100


@pytest.mark.parametrize("wrong", [{"first": -1}, {"factor": 0.5}, {"most": -1}, {"jitter": 1.5}])
def test_a_back_off_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="takes first >= 0"):
        Backoff(**wrong)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_with_a_list_and_a_result_for_each_item(q, pool, results):
    q.put_many(range(25))
    ids = {peeked.item: peeked.id for peeked in q.peek_deliveries(50)}
    assert pool(pool_jobs.work_all, batch=10, results=results.path).run(until_empty=True).done == 25
    assert {result.value: result.id for result in everything(results)} == ids


def test_a_batch_that_fails_comes_again_one_by_one_so_that_only_the_bad_item_dies(q, pool, results):
    q.put_many([1, 2, ("raise", "x"), 3])
    tally = pool(pool_jobs.work_all, batch=10, max_deliveries=2, results=results.path).run(until_empty=True)
    assert sorted(result.value for result in everything(results)) == [1, 2, 3]
    assert q.dead_letters.peek(5) == [("raise", "x")]
    assert (tally.done, tally.dead) == (3, 1)


def test_a_batch_that_kills_its_worker_comes_again_one_by_one_so_that_only_the_bad_item_dies(q, pool, results):
    q.put_many([1, 2, ("exit", 1), 3])
    running = pool(pool_jobs.work_all, batch=10, max_deliveries=2, results=results.path)
    assert running.run(until_empty=True).deaths == 2
    assert sorted(result.value for result in everything(results)) == [1, 2, 3]
    assert q.dead_letters.peek(5) == [("exit", 1)]
    assert running.failures()[0].reason == "ended with exit code 1"


def test_what_was_delivered_before_comes_alone_and_not_with_the_fresh_items_behind_it(q, pool):
    q.put(("raise", "x"))
    q.reserve(timeout=0).nack()
    q.put_many([1, 2, 3])
    tally = pool(pool_jobs.work_all, batch=10, max_deliveries=2).run(until_empty=True)
    assert (tally.done, tally.failed, tally.dead) == (3, 1, 1)


def test_what_comes_back_while_a_batch_is_made_up_is_not_taken_into_it(q):
    q.put_many("abc")
    first, second = q.reserve_sealed(2)
    second.nack()
    settings = Settings(q, print, None, 10, None, AT_ONCE, None, None, None, None, logging.INFO)
    together = Worker(settings, Cell(), None)._join(first)
    for delivery in together:
        q.unseal(delivery)
    assert [delivery.item for delivery in together] == ["a", "c"]
    assert q.reserve(timeout=0).deliveries == 2


def test_a_batch_with_the_wrong_number_of_results_has_failed(q, pool, results):
    q.put_many([1, 2])
    running = pool(pool_jobs.one_too_few, batch=2, max_deliveries=1, results=results.path)
    running.run(until_empty=True)
    assert q.stats().dead == 2 and results.empty()
    assert running.failures()[0].reason == "ValueError: the function returned 1 results for a batch of 2 items"


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_queue_that_is_shut_down_is_worked_off_and_ends_the_pool(q, pool):
    q.put_many(range(5))
    q.shutdown()
    tally = pool().run()
    assert (tally.done, tally.ended) == (5, "the queue was shut down")


def test_a_queue_that_is_shut_down_is_worked_off_to_what_waits_for_its_time(q, pool):
    with pool(processes=2) as running:
        until(lambda: len([owner for owner in q.stats().owners if owner.waiting]) == 2)
        q.put(1, delay=0.5)
        q.shutdown()
        until(lambda: not q.unfinished_tasks, 5)
    assert running.tally().done == 1


def test_a_results_queue_that_is_shut_down_ends_the_pool_and_the_item_is_given_back_uncounted(q, pool, results):
    q.put("x")
    results.shutdown()
    tally = pool(results=results.path).run()
    assert (tally.done, tally.ended) == (0, "the results queue was shut down")
    assert q.reserve(timeout=0).deliveries == 1


def test_a_pool_that_is_told_to_stop_before_it_runs_ends_at_once(q, pool):
    q.put("x")
    running = pool()
    running.stop()
    assert running.run().done == 0
    assert running.run(until_empty=True).done == 1


def test_a_pool_does_not_run_twice_at_a_time(q, pool):
    with pool() as running:
        until(lambda: running._supervisor)
        with pytest.raises(RuntimeError, match="running already"):
            running.run()


def test_what_ends_a_pool_in_its_block_is_raised_by_the_block(tmp_path, pool):
    (tmp_path / "q.dq").write_text("no spool at all" * 1000)
    with pytest.raises(ValueError, match="is not a durableq spool"), pool():
        pass
    (tmp_path / "q.dq").unlink()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_function_that_cannot_travel_to_a_worker_is_refused_with_a_remedy(path):
    with pytest.raises(TypeError, match=r"function=.*cannot be sent to a worker process.*top level of a module"):
        WorkerPool(path, lambda item: item)
    with pytest.raises(TypeError, match=r"on_error=.*cannot be sent"):
        WorkerPool(path, pool_jobs.work, on_error=lambda delivery, error: None)


def test_a_coroutine_function_is_refused(path):
    with pytest.raises(TypeError, match=r"is a coroutine function.*asyncio\.run"):
        WorkerPool(path, pool_jobs.coroutine)


def test_what_cannot_be_called_is_refused(path):
    with pytest.raises(TypeError, match="cannot be called"):
        WorkerPool(path, "pool_jobs.work")


@pytest.mark.parametrize(
    "wrong",
    [{"processes": 0}, {"max_deliveries": 0}, {"lease": 0}, {"batch": -1}, {"timeout": 0}, {"max_items": 0}, {"grace": -1}],
)
def test_numbers_that_make_no_sense_are_refused_by_their_names(path, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        WorkerPool(path, pool_jobs.work, **wrong)


def test_results_cannot_go_to_the_queue_that_they_come_from(path, tmp_path):
    with pytest.raises(ValueError, match="cannot go to the queue that they come from"):
        WorkerPool(path, pool_jobs.work, results=tmp_path / "." / "q.dq")


def test_workers_that_cannot_start_end_the_pool_with_the_reason(q, pool, monkeypatch, capfd):
    q.put("x")
    monkeypatch.setattr(pool_jobs, "gone", type(pool_jobs.work)(pool_jobs.work.__code__, globals(), "gone"), raising=False)
    pool_jobs.gone.__module__, pool_jobs.gone.__qualname__ = "pool_jobs", "gone"
    with pytest.raises(PoolError, match="ended with exit code 1 before they had done anything"):
        pool(pool_jobs.gone).run()
    assert "Can't get attribute 'gone'" in capfd.readouterr().err
    assert q.reserve(timeout=0).deliveries == 1


def test_a_pool_sweeps_the_stories_of_letters_that_are_gone(q, pool, monkeypatch):
    q.put("x")
    failures.reject(q, q.reserve(timeout=0), "old")
    q.redrive()
    monkeypatch.setattr(failures, "FRESH", 0.0)
    pool().run(until_empty=True)
    assert failures.latest(q, next(iter(q.dead_letters.ids()), "none")) is None
    with open(f"{q.path}-failures") as file:
        assert "old" not in file.read()
