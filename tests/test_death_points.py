"""Operations killed at a sample of their byte codes, alone and in pairs; all of them: `python -m tests.death --all`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from death import trial
from death.cases import CASES
from death.shape import Case, Found, ready
from death.steps import tells_all
from death.trial import Wrong, die_at, points

from durableq import DurableQueue

pytestmark = pytest.mark.skipif(not tells_all(), reason="this Python does not tell of each byte code (3.13.0)")

by_name = {case.name: case for case in CASES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where each try makes its queue."""
    return tmp_path / "queue"


@pytest.mark.parametrize("name", by_name)
def test_an_operation_killed_at_any_point_is_there_or_not_and_nothing_else_changes(name, folder):
    case = by_name[name]
    n = points(case, folder)
    tries = 3 if case.coarse else 5
    for k in range(tries):
        die_at(case, folder, 1 + (n - 1) * k // (tries - 1))


@pytest.mark.parametrize("name", by_name)
def test_a_second_death_in_the_repair_of_the_first_changes_nothing_either(name, folder):
    case = by_name[name]
    n = points(case, folder)
    for at, second in ((n // 2 or 1, 60), (n - 1 or 1, 400)):
        die_at(case, folder, at, second)


def test_a_loss_would_be_noticed(folder):
    case = Case("put", lambda q, _: q.put("b1"), Found(), Found(ready("another")))
    with pytest.raises(Wrong):
        die_at(case, folder, points(case, folder))


def test_a_lock_that_is_kept_would_be_noticed(folder, monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE", 1)
    case = by_name["put"]
    survivor, _ = trial._prepare(case, folder)
    try:
        survivor._store._tail.hold(lambda: None)
        with pytest.raises(Wrong, match="for ever"), trial._patience("somebody waits for ever"):
            survivor._store._tail.hold(lambda: survivor._store._tail.hold(lambda: None))
    finally:
        survivor.close()


def test_the_points_of_an_operation_cover_the_stores_that_publish_it(folder):
    # Before the last point of a put the item is not there, after it it is: both sides are among the points.
    case = by_name["put"]
    sides = set()
    for at in range(1, points(case, folder), 9):
        survivor, path = trial._prepare(case, folder)
        trial._in_child(case, path, at)
        sides.add(survivor.qsize())
        survivor.close()
    assert sides == {1, 2}
    assert os.path.exists(path)


def test_a_batch_whose_producer_was_killed_is_never_found_in_part(folder):
    case = by_name["put many"]
    wrong = 0
    for at in range(1, points(case, folder), 40):
        survivor, path = trial._prepare(case, folder)
        trial._in_child(case, path, at)
        found = survivor.qsize()
        survivor.put("e1")  # of the size of the batch's items: it covers the first of them exactly
        survivor.close()
        os.unlink(path + "-shm")
        with DurableQueue(path) as q:
            wrong += q.qsize() != found + 1
    assert wrong == 0
