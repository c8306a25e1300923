"""Many cuts of many runs, for the command line and for pytest."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .judge import check_state
from .recorder import Entry, Recorder
from .workload import Worker, small_distances


def record(seed: int, steps: int, where: Path) -> list[Entry]:
    """The log of one process that works on a queue through several handles."""
    path = where / "q.dq"
    recorder = Recorder(path)
    with small_distances(), recorder.installed():
        worker = Worker(recorder, path, seed)
        for _ in range(steps):
            worker.step()
        if seed % 2:
            worker.close()
        log = recorder.entries()
    worker.close()
    return log


def states(count: int, seed: int = 0, per_run: int = 40, steps: int = 150) -> Iterator[tuple[int, list[Entry], int, int]]:
    """`count` quadruples (run, log, cut, seed) from as many runs as it takes."""
    rng = random.Random(seed)
    with scratch() as where:
        done = 0
        run = seed * 1_000_003
        while done < count:
            for old in where.glob("q.dq*"):
                old.unlink()
            run += 1
            log = record(run, steps, where)
            for _ in range(min(per_run, count - done)):
                yield run, log, rng.randint(0, len(log)), rng.randrange(1 << 30)
                done += 1


def simulate(count: int, seed: int = 0) -> tuple[int, Counter[str], list[str]]:
    """Check `count` states; how many, what the logs held, and every failure in words."""
    failures: list[str] = []
    seen: Counter[str] = Counter()
    last: list[Entry] = []
    with scratch() as where:
        for run, log, cut, number in states(count, seed):
            if log is not last:
                seen.update(entry[0] for entry in log if entry[0] in "wtpc" or entry[0] == "se")
                last = log
            try:
                check_state(log, cut, number, where)
            except AssertionError as exc:
                failures.append(f"run {run}: {exc}")
    return count, seen, failures


class scratch:
    """A directory in memory, if there is one: thousands of spools are laid out in it."""

    def __enter__(self) -> Path:
        memory = Path("/dev/shm")
        self._path = Path(tempfile.mkdtemp(prefix="durableq-cut-", dir=memory if memory.is_dir() else None))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
