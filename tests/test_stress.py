"""The stress suite in short: each of its plans for a second or two; and the proof that its account finds what is wrong.

The long run is `python -m tests.stress --minutes 10 --kills 500`, or, in ten minutes and with parts in several workers of
pytest-xdist that share a queue, `DURABLEQ_STRESS_SECONDS=150 python -m pytest -n 4 tests/test_stress.py`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stress import log
from stress.account import Account, Tally
from stress.log import Event
from stress.part import Part
from stress.plans import PLANS

from durableq import DurableQueue, check

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("DURABLEQ_STRESS_SECONDS", "1"))
PATIENCE = 110 + 6 * SECONDS
"""Far above the seconds that it takes: the round itself finds a hang, and says where."""
PARTS = 4


@pytest.mark.timeout(PATIENCE + 10)
@pytest.mark.parametrize("plan", [plan.name for plan in PLANS])
def test_nothing_is_lost_and_nothing_done_twice_when_workers_are_killed(plan: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.stress", "--seconds", str(SECONDS), "--kills", str(5 + int(SECONDS))]
    command += ["--plan", plan, "--folder", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " lost=0 twice=0 wrong=0 " in run.stdout.splitlines()[-1]


@pytest.mark.timeout(PATIENCE + 10)
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_on_a_queue_that_the_workers_of_a_test_run_share(
    part: int, durable_queue: DurableQueue, durable_queue_path: Path
) -> None:
    """Each part runs in whatever worker of pytest-xdist it is given to, and takes what the other parts put."""
    until = time.monotonic() + SECONDS
    for number in itertools.count(part, PARTS):
        one = Part(number, durable_queue.path, durable_queue_path.with_suffix(".stress"))
        tally = one.run(min(5.0, SECONDS))
        assert tally.ok, (tally.lost[:5], tally.twice[:5], tally.wrong[:5])
        assert tally.puts and one.kills
        if time.monotonic() >= until:
            break
    report = check(durable_queue_path)
    assert report.ok, report


# -- the account itself ------------------------------------------------------------------------------------------------

ORIGIN = log.origin_of(1, 0)
KILLED_AT = 50


def tell(*events: tuple[int, int, int, int], killed: bool = False, **options: bool) -> Tally:
    """Events as (worker, kind, seq, time); worker 1 produces; `killed`: worker 2 dies at time 50."""
    account = Account(**options)
    for worker in sorted({event[0] for event in events}):
        account.worker(
            Event(kind, 0, int(kind != log.GOT), worker, ORIGIN, seq, at)
            for who, kind, seq, at in events
            if who == worker
        )
    return account.close({2: KILLED_AT} if killed else {}, [])


PUT = ((1, log.INTENT, 0, 1), (1, log.RETURNED, 0, 2))
DONE_BY_2 = ((2, log.GOT, 0, 10), (2, log.SETTLING, 0, 11), (2, log.DONE, 0, 12))
DONE_BY_3 = ((3, log.GOT, 0, 60), (3, log.SETTLING, 0, 61), (3, log.DONE, 0, 62))


def test_the_account_is_content_with_an_item_that_was_put_and_done() -> None:
    assert tell(*PUT, *DONE_BY_2).ok


def test_the_account_is_content_with_a_second_delivery_after_the_holder_was_killed() -> None:
    tally = tell(*PUT, *DONE_BY_2[:2], *DONE_BY_3, killed=True)
    assert tally.ok and tally.redelivered == 1


def test_the_account_leaves_open_what_the_kill_left_open() -> None:
    assert tell(*PUT, *DONE_BY_2[:2], killed=True).ok
    assert tell(PUT[0]).ok


def test_the_account_finds_an_item_that_never_came_out() -> None:
    assert len(tell(*PUT).lost) == 1


def test_the_account_finds_an_item_that_went_with_its_holder() -> None:
    assert len(tell(*PUT, DONE_BY_2[0], killed=True).lost) == 1


def test_the_account_finds_an_item_that_came_back_after_it_was_done() -> None:
    assert len(tell(*PUT, *DONE_BY_2, *DONE_BY_3, killed=True).twice) == 1


def test_the_account_finds_an_item_that_two_living_consumers_hold() -> None:
    assert tell(*PUT, *DONE_BY_2[:2], *DONE_BY_3).twice


def test_the_account_finds_an_item_that_comes_before_its_holder_is_killed() -> None:
    early = ((3, log.GOT, 0, 40), *DONE_BY_3[1:])
    assert tell(*PUT, DONE_BY_2[0], *early, killed=True).twice


def test_the_account_finds_an_item_that_one_consumer_gets_twice() -> None:
    assert tell(*PUT, DONE_BY_2[0], *DONE_BY_2).twice


def test_the_account_finds_an_item_that_nobody_put() -> None:
    assert tell(*DONE_BY_2).wrong


def test_the_account_finds_an_item_whose_put_was_refused() -> None:
    assert tell(PUT[0], (1, log.REFUSED, 0, 2), *DONE_BY_2).wrong


def test_the_account_finds_a_second_delivery_where_at_most_one_is_allowed() -> None:
    assert tell(*PUT, DONE_BY_2[0], DONE_BY_3[0], killed=True, at_most_once=True).twice


def test_the_account_wants_a_kill_for_every_loss_where_at_most_one_delivery_is_allowed() -> None:
    assert tell(*PUT, killed=True, at_most_once=True).lost
    assert tell(*PUT, (2, log.ASK, 0, 10), killed=True, at_most_once=True).ok


def test_the_account_finds_a_broken_order() -> None:
    second = ((1, log.INTENT, 1, 3), (1, log.RETURNED, 1, 4))
    swapped = ((2, log.GOT, 1, 8), (2, log.SETTLING, 1, 8), (2, log.DONE, 1, 9), *DONE_BY_2)
    assert tell(*PUT, *second, *swapped, ordered=True).wrong
    assert tell(*PUT, *second, *swapped).ok
