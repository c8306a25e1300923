"""Starts `durableq work`, kills its workers and itself at random, and starts it again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from durableq import DurableQueue

from .job import HANG, SEGFAULT

ROOT = Path(__file__).resolve().parent.parent.parent
RESTARTS = 3


@dataclass
class Deaths:
    """How many got a SIGKILL from us."""

    pools: int = 0
    workers: int = 0


def sources() -> list[str]:
    """The files of the standard library."""
    found = Path(sysconfig.get_path("stdlib")).rglob("*.py")
    return sorted(str(path) for path in found if "site-packages" not in path.parts)


def items(count: int) -> Iterator[tuple[int, str]]:
    """`count` items; among them, a tenth and two tenths of the way in, the two bad ones."""
    files = sources()
    for number in range(count):
        yield number, {count // 10: SEGFAULT, count // 5: HANG}.get(number, files[number % len(files)])


class Governor:
    """One run, from a queue that is full to one that is empty."""

    def __init__(self, folder: Path, count: int, workers: int, kill_every: float, seed: int, *, until: float) -> None:
        self.jobs, self.results = folder / "jobs.dq", folder / "results.dq"
        self.log = folder / "log"
        self.deaths = Deaths()
        self._count = count
        self._workers = workers
        self._kill_every = kill_every
        self._random = random.Random(seed)
        self._until = until

    def run(self) -> None:
        """Fill, work, kill, start again, until everything is done. Raises TimeoutError, and RuntimeError."""
        with DurableQueue(self.jobs, sync=None) as jobs:
            jobs.put_many(items(self._count))
            # The pool is killed when so much is done: somewhere in each quarter but the last.
            marks = [self._count * (n + self._random.random()) / (RESTARTS + 1) for n in range(RESTARTS)]
            for mark in [*marks, None]:
                self._live(jobs, None if mark is None else int(mark))

    def _live(self, jobs: DurableQueue, dies_at: int | None) -> None:
        """One life of the pool: until it is killed, at that number of items done, or ends by itself."""
        pool = self._start()
        try:
            strike = time.monotonic() + self._random.expovariate(1 / self._kill_every)
            while pool.poll() is None:
                if time.monotonic() > self._until:
                    raise TimeoutError(f"not done in time: {jobs.stats()}; its log: {self.log}")
                if dies_at is not None and self._count - jobs.unfinished_tasks >= dies_at:
                    crew = self._crew(pool)
                    pool.kill()
                    self.deaths.pools += 1
                    pool.wait()
                    _, left = psutil.wait_procs(crew, timeout=20)
                    if left:
                        raise RuntimeError(f"the pool was killed, and these live on: {left}")
                    return
                if time.monotonic() >= strike:
                    strike = time.monotonic() + self._random.expovariate(1 / self._kill_every)
                    self._kill_one_of(self._crew(pool))
                time.sleep(0.01)
        finally:
            if pool.poll() is None:
                pool.kill()
                pool.wait()
        # Its exit code is 1 if it was the one that sent items to the dead letters.
        if dies_at is not None or pool.returncode not in (0, 1):
            raise RuntimeError(f"the pool ended by itself with {pool.returncode}; its log: {self.log}")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "durableq", "work", str(self.jobs), "tests.pool_run.job:handle"]
        command += ["-j", str(self._workers), "--results", str(self.results), "--until-empty", "--sync", "none"]
        command += ["--timeout", "1", "--backoff", "100ms"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log)

    def _crew(self, pool: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            return psutil.Process(pool.pid).children()
        except psutil.NoSuchProcess:
            return []

    def _kill_one_of(self, crew: list[psutil.Process]) -> None:
        try:
            workers = [process for process in crew if "spawn_main" in " ".join(process.cmdline())]
            if workers:
                os.kill(self._random.choice(workers).pid, signal.SIGKILL)
                self.deaths.workers += 1
        except (psutil.Error, ProcessLookupError):
            pass  # it was quicker
