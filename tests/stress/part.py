"""One part of a stress test whose queue is shared with other parts, each of them run by another process of a test run.

A part has producers and consumers of its own, which are killed and replaced; but what its producers put, anybody's consumers
take. So each part answers for the items of its own producers, wherever they went: for that it reads the logs of all parts.
A consumer is killed in the end as well, for a queue that others fill never lets it come to an end of its own. Every kill is
noted in a file before it happens, as "number time", so that all can tell who was killed.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import log
from .account import Account, Key, Tally
from .governor import ROOT, STUCK_AFTER, Stuck
from .plans import SHARED

EACH = 2
"""Producers, and consumers, of a part."""
MOST = 1000
"""Processes that one part may start in its life, so that all their numbers differ."""


class Part:
    """Part `number` (no other has it) on the queue at `path`; `folder` is common to all parts."""

    def __init__(self, number: int, path: str, folder: Path) -> None:
        self._common = folder
        self._began = time.time()
        self._folder = folder / f"part-{number}"
        self._folder.mkdir(parents=True)
        (self._folder / "q.dq").symlink_to(path)
        self._first = self._next = 1 + number * MOST
        self._workers: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self._random = random.Random(number)
        self.kills = 0

    def run(self, seconds: float) -> Tally:
        """Put, take and kill for so long; then the verdict over this part's own items. Raises Stuck."""
        try:
            until = time.monotonic() + seconds
            seen: set[str] = set()
            while time.monotonic() < until or len(seen) < 2 or not self.kills:
                self._complete()
                time.sleep(self._random.expovariate(1 / 0.2))
                at_work = [number for number in self._workers if self._is_at_work(number)]
                seen |= {self._workers[number][0] for number in at_work}
                if at_work:
                    self._kill(self._random.choice(at_work))
            (self._folder / "stop-producer").touch()
            self._complete("consumer")
            self._wait(lambda: "producer" not in {role for role, _ in self._workers.values()}, "a producer does not stop")
            self._wait(self._all_done, "not all of its items get done")
        finally:
            for number in list(self._workers):
                self._kill(number)
        return self._account().close(self._killed(), [])

    def _complete(self, *roles: str) -> None:
        for role in roles or ("producer", "consumer"):
            for _ in range(EACH - sum(its == role for its, _ in self._workers.values())):
                number, self._next = self._next, self._next + 1
                command = [sys.executable, "-m", "tests.stress.worker", str(self._folder), SHARED.name, role, str(number)]
                with (self._folder / f"err-{number}").open("wb") as errors:
                    started = subprocess.Popen([*command, str(number)], cwd=ROOT, stderr=errors)
                self._workers[number] = role, started

    def _is_at_work(self, number: int) -> bool:
        """Whether it has written of ten events: it is not worth while to kill an interpreter that starts."""
        file = self._folder / f"log-{number:06d}"
        return file.exists() and file.stat().st_size >= 320

    def _kill(self, number: int) -> None:
        role, worker = self._workers.pop(number)
        with (self._folder / "killed").open("a") as file:
            file.write(f"{number} {time.monotonic_ns()}\n")
        worker.send_signal(signal.SIGKILL)
        code = worker.wait()
        self.kills += 1
        stopped = code == 0 and role == "producer" and (self._folder / "stop-producer").exists()
        assert code == -signal.SIGKILL or stopped, f"{role} {number} ended with {code}: {self._said(number)}"

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + STUCK_AFTER
        size = 0
        while not holds():
            for number, (role, worker) in list(self._workers.items()):
                code = worker.poll()
                if code is not None:
                    del self._workers[number]
                    assert (role, code) == ("producer", 0), f"{role} {number} ended with {code}: {self._said(number)}"
            # As long as anybody gets on there is hope: the items of other parts are in the way.
            if (now := sum(file.stat().st_size for file in self._common.glob("part-*/log-*"))) != size:
                size, deadline = now, time.monotonic() + STUCK_AFTER
            if time.monotonic() > deadline:
                raise Stuck(what)
            time.sleep(0.1)

    def _said(self, number: int) -> str:
        return (self._folder / f"err-{number}").read_text(errors="replace")[-6000:]

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def _all_done(self) -> bool:
        account = self._account()
        killed = self._killed()
        return all(self._is_done(account, key, killed) for key in account.returned)

    @staticmethod
    def _is_done(account: Account, key: Key, killed: dict[int, int]) -> bool:
        """Its last holder has settled it, or was killed while it did, which may have been before or after."""
        lendings = sorted(account.lendings.get(key, ()), key=lambda lending: lending.since)
        if not lendings:
            return False
        return lendings[-1].state == "done" or (lendings[-1].state == "settling" and lendings[-1].worker in killed)

    def _account(self) -> Account:
        account = Account()
        for folder in self._at_work():
            for events in log.read(str(folder)):
                account.worker(event for event in events if self._is_ours(event))
        return account

    def _at_work(self) -> list[Path]:
        """The parts that have written anything since this one began: nobody else can have had its items."""
        return [
            folder
            for folder in sorted(self._common.glob("part-*"))
            if any(file.stat().st_mtime > self._began - 1 for file in folder.glob("log-*"))
        ]

    def _is_ours(self, event: log.Event) -> bool:
        return self._first <= event.origin >> 8 < self._first + MOST

    def _killed(self) -> dict[int, int]:
        killed = {}
        for folder in self._at_work():
            file = folder / "killed"
            for line in file.read_text().splitlines() if file.exists() else []:
                number, when = line.split()
                killed[int(number)] = int(when)
        return killed
