"""The real run: 20,000 items, workers and pool killed at random, bad items; see `tests.pool_run`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(300)  # it takes some twenty seconds; on a slow machine the run itself finds a hang, and says where
def test_no_item_of_a_real_job_is_lost_when_workers_and_pools_are_killed_at_random(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pool_run", "--seconds", "240", "--folder", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    sums = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", run.stdout.splitlines()[-1])}
    assert (sums["items"], sums["wrong"], sums["pools_killed"]) == (20_000, 0, 3)
    assert sums["done"] + sums["dead"] >= 20_000, "an item may be both: done by a worker that died before its ack, in the end"
    assert sums["workers_killed"] > 0
