"""A real Celery app on a directory of spools: no broker, no result server, workers that are killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE, until

from durableq import DurableQueue

pytest.importorskip("celery", reason="python -m pip install 'durableq[celery]'")


@pytest.fixture
def app(directory, monkeypatch):
    """The app, as a program that sends tasks has it."""
    monkeypatch.setenv("BROKER", str(directory))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.delitem(sys.modules, "celery_app", raising=False)
    import celery_app

    yield celery_app
    celery_app.app.close()


@pytest.fixture
def worker(start, directory):
    """`worker(*arguments)` starts a Celery worker and waits until it is ready."""
    count = 0

    def starter(*arguments, ready=True):
        nonlocal count
        count += 1
        code = f"""
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import celery_app
            celery_app.app.worker_main(["--quiet", "worker", "-n", "w{count}@here", "--loglevel=ERROR", *sys.argv[1:]])
            """
        child = start(code, *(arguments or ("--pool=solo",)), env={"BROKER": str(directory)})
        if ready:
            child.expect("ready")
        return child

    return starter


def kill_all(child):
    """SIGKILL to a worker and to the processes of its pool: what a reboot of its container does."""
    processes = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    for process in processes:
        process.kill()


def jobs(directory):
    return DurableQueue(directory / "celery.dq", serializer="bytes")


def test_tasks_are_done_by_a_pool_and_their_results_come_back(app, worker):
    worker("--pool=prefork", "--concurrency=2")
    results = [app.add.delay(n, n) for n in range(50)]
    assert [result.get(timeout=PATIENCE) for result in results] == [2 * n for n in range(50)]


def test_a_task_whose_worker_is_killed_in_the_middle_is_done_by_the_next(app, worker, directory, tmp_path):
    first = worker()
    result = app.hold.delay("job", until=str(tmp_path / "go"))
    first.expect("holds job first")
    second = worker()
    assert jobs(directory).stats().lent == 1
    first.kill()
    second.expect("holds job again")
    (tmp_path / "go").touch()
    assert result.get(timeout=PATIENCE) == "job"
    until(lambda: jobs(directory).stats().unfinished == 0)


def test_a_pool_that_is_killed_loses_nothing_of_what_it_ran_and_had_prefetched(app, worker, directory, tmp_path):
    first = worker("--pool=prefork", "--concurrency=2", "--prefetch-multiplier=3")
    results = [app.hold.delay(n, until=str(tmp_path / "go")) for n in range(10)]
    began = {first.hear(), first.hear()}
    assert began <= {f"holds {n} first" for n in range(10)}
    until(lambda: jobs(directory).stats().lent == 6)
    kill_all(first)
    (tmp_path / "go").touch()
    worker("--pool=prefork", "--concurrency=2")
    assert sorted(result.get(timeout=PATIENCE) for result in results) == list(range(10))
    until(lambda: jobs(directory).stats().unfinished == 0)


def test_a_worker_takes_no_more_than_its_prefetch_and_leaves_the_rest_to_others(app, worker, directory, tmp_path):
    first = worker()
    results = [app.hold.delay(name, until=str(tmp_path / name)) for name in "abc"]
    first.expect("holds a first")
    assert (jobs(directory).stats().lent, jobs(directory).stats().ready) == (1, 2)
    second = worker()
    second.expect("holds b first")
    for name in "bc":
        (tmp_path / name).touch()
    second.expect("holds c first")
    (tmp_path / "a").touch()
    assert [result.get(timeout=PATIENCE) for result in results] == ["a", "b", "c"]


def test_a_task_with_an_eta_survives_the_worker_that_waited_with_it(app, worker, directory):
    first = worker()
    app.hold.apply_async(("later",), countdown=3600)
    until(lambda: jobs(directory).stats().lent == 1)
    first.kill()
    worker()
    until(lambda: jobs(directory).stats().lent == 1)
    assert jobs(directory).stats().unfinished == 1


def test_a_task_with_an_eta_runs_no_sooner(app, worker):
    eta = time.time() + 1
    result = app.hold.apply_async(("later",), countdown=1)
    worker().expect("holds later first")
    assert time.time() >= eta - 0.1
    assert result.get(timeout=PATIENCE) == "later"


def test_a_task_that_kills_every_worker_ends_with_the_dead_letters(app, worker, directory):
    app.die.delay()
    for _ in range(3):
        child = worker(ready=False)
        assert {child.hear(), child.hear()} <= {"ready", "dies"}
        child.process.wait(PATIENCE)
    until(lambda: jobs(directory).stats().dead == 1)


def test_workers_answer_remote_control_and_leave_no_mailbox_behind(app, worker, directory, tmp_path):
    killed, *workers = [worker("--pool=prefork", "--concurrency=1", ready=False) for _ in range(3)]
    for child in (killed, *workers):
        child.expect("ready")
    control = app.app.control
    assert len(control.ping(timeout=PATIENCE, limit=3)) == 3
    kill_all(killed)
    first, second = workers
    held = [app.hold.delay(name, until=str(tmp_path / "go")) for name in "ab"]
    revoked = app.hold.delay("never")
    control.revoke(revoked.id)
    until(lambda: len(control.inspect(timeout=1, limit=2).revoked() or {}) == 2)
    (tmp_path / "go").touch()
    assert sorted(result.get(timeout=PATIENCE) for result in held) == ["a", "b"]
    control.shutdown()
    for child in workers:
        child.finish()
    assert "never" not in first._heard.decode() + second._heard.decode()
    app.app.control.ping(timeout=0.1)
    assert not [name for name in os.listdir(directory) if "pidbox" in name], os.listdir(directory)


def test_events_of_workers_reach_who_listens(app, worker):
    seen = []
    with app.app.connection() as connection:
        receiver = app.app.events.Receiver(connection, handlers={"task-succeeded": seen.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            worker("--pool=solo", "-E")
            result = app.add.delay(2, 3)
            until(lambda: listening.drain_events(timeout=PATIENCE) or seen)
    assert (seen[0]["uuid"], seen[0]["result"]) == (result.id, "5")
