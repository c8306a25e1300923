"""WorkerPool: workers that die, hang, are stopped or grow; and the pool that is killed itself."""

from __future__ import annotations

import os
import signal

import pool_jobs
import psutil
import pytest
from pool_jobs import told
from processes import alive, until

from durableq import Delivery, DurableQueue

NEVER = 600
"""Seconds that no test waits for."""


# -- workers that die --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (("kill", signal.SIGKILL), "killed by SIGKILL"),
        (("segfault", None), "killed by SIGSEGV"),
        (("exit", 0), "ended with exit code 0"),
        (("exit", 3), "ended with exit code 3"),
    ],
    ids=["SIGKILL", "segfault", "_exit(0)", "_exit(3)"],
)
def test_an_item_that_kills_its_worker_each_time_is_a_dead_letter_and_the_others_are_done(q, pool, item, reason):
    q.put_many([1, item, 2, 3])
    running = pool(max_deliveries=3)
    tally = running.run(until_empty=True)
    assert (tally.done, tally.dead, tally.deaths) == (3, 1, 3)
    (story,) = running.failures()
    assert (story.reason, story.deliveries, story.item) == (reason, 3, repr(item))
    assert q.dead_letters.ids() == {story.id}
    assert story.pid != os.getpid()


def test_an_item_that_ends_the_process_that_decodes_it_is_a_dead_letter_as_well(q, pool):
    q.put_many([pool_jobs.Bomb(), 1])
    running = pool(max_deliveries=4)
    tally = running.run(until_empty=True)
    assert (tally.done, tally.deaths) == (1, 4)
    (story,) = running.failures()
    assert (story.reason, story.deliveries, story.item) == ("ended with exit code 9", 4, "an item that was not decoded")


def test_an_item_whose_decoding_hangs_is_a_dead_letter_as_well(q, pool):
    q.put_many([pool_jobs.Tar(), 1])
    running = pool(max_deliveries=1, timeout=0.5)
    assert running.run(until_empty=True).done == 1
    assert running.failures()[0].reason == "killed after 0.5 s (timeout)"


def test_the_story_of_a_segfault_says_where_in_the_function_it_was(q, pool):
    q.put(("segfault", None))
    running = pool(max_deliveries=1)
    running.run(until_empty=True)
    details = running.failures()[0].details
    assert details.startswith("Fatal Python error: Segmentation fault")
    assert "in do_segfault" in details and "durableq/pool" not in details


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_worker_that_dies_is_replaced_and_its_item_goes_to_another(q, pool, tmp_path, start_method):
    q.put(("die_once", tmp_path / "told"))
    tally = pool(start_method=start_method).run(until_empty=True)
    assert (tally.done, tally.deaths) == (1, 1)
    first, second = told(tmp_path / "told")
    assert first != second


def test_a_queue_that_counts_itself_buries_the_item_of_a_dead_worker_and_its_story_is_there(open_queue, pool):
    q = open_queue(max_deliveries=1)
    q.put(("exit", 9))
    running = pool(max_deliveries=None)
    running.run(until_empty=True)
    assert [story.reason for story in running.failures()] == ["ended with exit code 9"]


def test_idle_workers_that_are_killed_are_replaced(q, pool):
    with pool(processes=2) as running:
        until(lambda: len([o for o in q.stats().owners if o.waiting]) == 2)
        for owner in q.stats().owners:
            if owner.waiting:
                os.kill(owner.pid, signal.SIGKILL)
        q.put_many([1, 2, 3])
        until(lambda: running.tally().done == 3)
    assert running.tally().deaths == 2


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "where"), [("sleep", "in do_sleep"), ("backtrack", "in do_backtrack")])
def test_an_item_that_takes_too_long_costs_its_worker_and_is_a_dead_letter_that_says_where_it_hung(q, pool, what, where):
    q.put_many([(what, NEVER), 1])
    running = pool(max_deliveries=2, timeout=0.5)
    tally = running.run(until_empty=True)
    assert (tally.done, tally.dead) == (1, 1) and tally.deaths >= 2
    (story,) = running.failures()
    assert (story.reason, story.deliveries) == ("killed after 0.5 s (timeout)", 2)
    assert where in story.details


def test_the_time_limit_is_for_each_item_and_not_for_the_worker(q, pool):
    q.put_many([("sleep", 0.5)] * 6)
    tally = pool(timeout=2.0).run(until_empty=True)
    assert (tally.done, tally.deaths) == (6, 0)


def test_the_programs_that_a_hung_item_has_started_are_killed_with_it(q, pool, tmp_path):
    q.put(("start_child", tmp_path / "pid"))
    with pool(max_deliveries=None, timeout=1.0, grace=0):
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        child = int((tmp_path / "pid").read_text())
        until(lambda: not alive(child))


def test_a_worker_is_replaced_after_max_items(q, pool, tmp_path):
    q.put_many([("tell", tmp_path / "told")] * 6)
    tally = pool(max_items=2).run(until_empty=True)
    assert (tally.done, tally.deaths) == (6, 0)
    a, b, c = told(tmp_path / "told")[::2]
    assert told(tmp_path / "told") == [a, a, b, b, c, c] and len({a, b, c}) == 3


def test_a_worker_that_has_grown_too_much_is_replaced_after_its_item(q, pool, tmp_path):
    q.put_many([("tell", tmp_path / "told"), ("grow", 300 << 20), ("tell", tmp_path / "told")])
    tally = pool(max_memory=250 << 20).run(until_empty=True)
    assert (tally.done, tally.deaths) == (3, 0)
    first, second = told(tmp_path / "told")
    assert first != second


def test_a_worker_that_is_too_big_from_the_start_does_an_item_before_it_is_replaced(q, pool, tmp_path):
    q.put_many([("tell", tmp_path / "told")] * 2)
    tally = pool(max_memory=1).run(until_empty=True)
    assert (tally.done, tally.deaths) == (2, 0)
    first, second = told(tmp_path / "told")
    assert first != second


# -- leases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"of_pool": 0.3, "of_queue": None}, {"of_pool": None, "of_queue": 0.3}], ids=str)
def test_a_lease_is_extended_while_its_worker_lives(open_queue, pool, tmp_path, monkeypatch, options):
    extend = Delivery.extend

    def told_extend(delivery, seconds):
        extend(delivery, seconds)
        with open(tmp_path / "extended", "a") as file:
            file.write(f"{seconds}\n")

    monkeypatch.setattr(Delivery, "extend", told_extend)
    q = open_queue(lease=options["of_queue"])
    q.put(("meet", tmp_path / "told"))
    with pool(lease=options["of_pool"], start_method="fork") as running:
        until(lambda: (tmp_path / "extended").exists() and len((tmp_path / "extended").read_text().split()) > 5)
        (tmp_path / "told-go").touch()
        until(lambda: running.tally().done == 1)
    assert set((tmp_path / "extended").read_text().split()) == {"0.3"}


def test_the_item_of_a_stopped_worker_goes_to_another_and_its_late_ack_changes_nothing(q, pool, tmp_path, caplog):
    q.put(("meet", tmp_path / "told"))
    with pool(processes=2, lease=0.5) as running:
        until(lambda: told(tmp_path / "told"))
        stopped = psutil.Process(told(tmp_path / "told")[0])
        stopped.suspend()
        try:
            until(lambda: len(told(tmp_path / "told")) == 2)
            (tmp_path / "told-go").touch()
            until(lambda: running.tally().done == 1)
        finally:
            stopped.resume()
        until(lambda: "came too late" in caplog.text)
        assert running.tally().done == 1 and q.stats().unfinished == 0


def test_the_item_of_a_worker_that_never_gives_up_the_gil_goes_to_another_when_its_lease_ends(q, pool):
    q.put(("hog", NEVER))
    with pool(processes=2, lease=0.5, grace=0):
        until(lambda: [lent.deliveries for lent in q.peek_lent()] == [2])


# -- the pool is killed ------------------------------------------------------------------------------------------------

POOL = """
import pool_jobs
from durableq import WorkerPool
if __name__ == "__main__":
    WorkerPool(path, pool_jobs.work, 2, start_method=sys.argv[2], lease=60).run()
"""


@pytest.mark.parametrize("start_method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("what", ["meet", "hog"])
def test_a_killed_pool_leaves_no_worker_and_its_items_go_to_the_next_pool(q, start, path, pool, tmp_path, start_method, what):
    q.put(("meet", tmp_path / "told") if what == "meet" else ("hog", NEVER))
    q.put(("meet", tmp_path / "told"))
    child = start(POOL, path, start_method, env={"PYTHONPATH": os.path.dirname(__file__)})
    until(lambda: len(q.peek_lent()) == 2)
    workers = [lent.pid for lent in q.peek_lent()]
    child.kill()
    until(lambda: not any(alive(pid) for pid in workers))
    until(lambda: [peeked.deliveries for peeked in q.peek_deliveries(5)] == [1, 1])
    (tmp_path / "told-go").touch()
    if what == "meet":
        assert pool().run(until_empty=True).done == 2


def test_stories_that_cannot_be_read_cost_no_worker_and_their_item_is_a_dead_letter_all_the_same(q, path, pool):
    path.with_name("q.dq-failures").mkdir()
    q.put("x")
    for _ in range(2):
        q.reserve().nack()
    assert pool(max_deliveries=2).run(until_empty=True).dead == 1
    assert q.stats().dead == 1


def test_what_the_workers_of_killed_pools_could_not_tell_is_told_by_the_next(q, start, path, pool):
    q.put(("hog", NEVER))
    for _ in range(2):
        child = start(POOL, path, "spawn", env={"PYTHONPATH": os.path.dirname(__file__)})
        until(lambda: q.peek_lent())
        child.kill()
        until(lambda: not q.peek_lent())
    running = pool(max_deliveries=2)
    running.run(until_empty=True)
    (story,) = running.failures()
    assert story.reason == "delivered 2 times, and nobody lived to tell what happened"
    with DurableQueue(path) as again:
        assert again.stats().dead == 1
