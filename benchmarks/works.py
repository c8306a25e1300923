"""Kinds of work: what is done in one run, and what is measured of it.

Every run is on a new queue in a directory of its own, and its messages are checked: each has to arrive once, and intact.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import growth, messages, roles
from benchmarks.common import Failed, Figures, percentile
from benchmarks.peers import Peer
from benchmarks.stage import Role, Run, play

MOST_BYTES = 1 << 30
"""Of messages in one run: they are made before the clock runs, and lie in memory."""
LEAST, MOST = 50, 1_000_000
"""Messages of one producer in one run; of large ones there may be fewer, down to a few MiB."""
_MIB = 1 << 20
_ROOM = 1_000_000
"""Bytes that a bounded queue has between processes, unless a dozen messages need more."""


@dataclass(frozen=True, eq=False)
class Work:
    """One piece of work and who does it. A run has `count` messages of each producer."""

    group: str
    name: str
    subjects: tuple[type[Peer], ...]
    size: int = 100
    producers: int = 1

    key: ClassVar[str] = "rate"  #: the figure by which subjects are compared
    more_is_better: ClassVar[bool] = True
    steady: ClassVar[bool] = False  #: what else the machine does has no part in it, or is taken out: one round is enough

    @property
    def most(self) -> int:
        """The largest count of a run."""
        return min(MOST, MOST_BYTES // self.size // self.producers)

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        """One run. Raises Failed."""
        raise NotImplementedError

    def count_for(self, subject: type[Peer], directory: Path, seconds: float) -> int:
        """The count that keeps a subject busy for so long. The runs to find out are its warm-up. Raises Failed."""
        count = max(1, min(LEAST, 8 * _MIB // self.size))
        while True:
            wall = self.run(subject, directory, count)["wall"]
            fitting = max(1, min(self.most, int(count * seconds / wall)))
            if wall > seconds / 4 or fitting <= 2 * count:
                return fitting
            count = fitting // 2

    def _check(self, heads: Iterable[bytes], count: int) -> None:
        wrong = messages.verdict(heads, self.producers, count)
        if wrong:
            raise Failed(f"of {count * self.producers} messages: {wrong}")

    def _costs(self, run: Run, count: int) -> Figures:
        total = count * self.producers
        return {"rate": total / run.wall, "cpu": run.cpu / total * 1e6, "wall": run.wall}


@contextmanager
def opened(directory: Path, make: Callable[..., Any], room: int) -> Iterator[tuple[Any, Path]]:
    """A peer for one run, and the directory that it is alone in."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=directory) as place:
        peer = make(Path(place), room)
        try:
            yield peer, Path(place)
        finally:
            peer.remove()


@dataclass(frozen=True, eq=False)
class Passing(Work):
    """So many producers and as many consumers at the same time; `done`: with acknowledgement."""

    done: bool = False
    shortest: float = 0.0  #: seconds of a run, at least

    def count_for(self, subject: type[Peer], directory: Path, seconds: float) -> int:
        return super().count_for(subject, directory, max(seconds, self.shortest))

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        producers: list[Role] = [roles.producer(number, count, self.size) for number in range(self.producers)]
        consumers: list[Role] = [roles.consumer(self.size, done=self.done) for _ in range(self.producers)]
        with opened(directory, subject, max(_ROOM, 12 * self.size)) as (peer, _):
            run = play(peer, producers + consumers)
        self._check((head for heads in run.results[self.producers :] for head in heads), count)
        return self._costs(run, count)


@dataclass(frozen=True, eq=False)
class Hoarding(Work):
    """One process that puts everything and then takes everything; `done`: with acknowledgement."""

    done: bool = False

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        with opened(directory, subject, 2 * self.size * (count + LEAST)) as (peer, _):
            run = play(peer, [roles.hoarder(count, self.size, done=self.done)])
        self._check(run.results[0], count)
        return self._costs(run, count)


@dataclass(frozen=True, eq=False)
class Putting(Work):
    """Puts of so many producers. What they put is taken, and checked, when the clock has stopped."""

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        with opened(directory, subject, _ROOM) as (peer, _):
            run = play(peer, [roles.producer(number, count, self.size) for number in range(self.producers)])
            audit = play(peer, [roles.consumer(self.size, stops=self.producers)])
        self._check(audit.results[0], count)
        return self._costs(run, count)


@dataclass(frozen=True, eq=False)
class RoundTrip(Work):
    """There and back between two processes, over two queues, one message at a time."""

    key: ClassVar[str] = "median"
    more_is_better: ClassVar[bool] = False

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        def both(place: Path, room: int) -> Peer:
            return roles.Both(subject, place, room)

        with opened(directory, both, _ROOM) as (peer, _):
            run = play(peer, [roles.pinger(count, self.size), roles.echo()])
        times, heads = run.results[0]
        self._check(heads, count)
        figures = self._costs(run, count)
        return {
            "median": statistics.median(times) * 1e6,
            "p99": percentile(times, 0.99) * 1e6,
            "cpu": figures["cpu"],
            "wall": run.wall,
        }


@dataclass(frozen=True, eq=False)
class Keeping(Work):
    """What waiting messages take in memory and on disk, and what is left on disk when they have been taken."""

    key: ClassVar[str] = "memory"
    more_is_better: ClassVar[bool] = False
    steady: ClassVar[bool] = True

    def count_for(self, subject: type[Peer], directory: Path, seconds: float) -> int:
        return 20_000 if seconds >= 1 else 10_000  # the same for all; litequeue takes the longer, the more wait

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        with opened(directory, subject, 2 * self.size * (count + LEAST)) as (peer, place):
            run = play(peer, [roles.keeper(count, self.size, place)])
        (before, full, drained), heads = run.results[0]
        self._check(heads, count)
        memory, disk, left = full[0] - before[0], full[1], drained[1]
        return {"waiting": count, "memory": memory / _MIB, "disk": disk / _MIB, "left": left / _MIB}


class Waiting(Peer):
    name = "durableq (2 million wait)"


class Nothing(Peer):
    name = "durableq (nothing waits)"


_SCENARIOS: dict[type[Peer], str] = {Waiting: "waiting", Nothing: "empty"}
"""What they are called in `benchmarks.growth`."""


@dataclass(frozen=True, eq=False)
class Backlog(Work):
    """What put, get and task_done take behind a backlog, in ratio to an empty queue beside it; see `benchmarks.growth`."""

    key: ClassVar[str] = "slowest"
    more_is_better: ClassVar[bool] = False
    steady: ClassVar[bool] = True

    def count_for(self, subject: type[Peer], directory: Path, seconds: float) -> int:
        return 2_000_000

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        with tempfile.TemporaryDirectory(prefix="run-", dir=directory) as place:
            command = [sys.executable, growth.__file__, "--measure", _SCENARIOS[subject], "--dir", place, "--rounds", "5"]
            command += ["--scale", str(count / growth.MILLION / 5)]  # that scenario has 5 million at full scale
            search = os.pathsep.join(path or os.curdir for path in sys.path)  # what is measured here is measured there
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search})
        if done.returncode:
            raise Failed((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
        found = growth.Found(**json.loads(done.stdout))
        ratios = {name: found.costs["grown"][name] / found.costs["empty"][name] for name in growth.OPERATIONS}
        return {**ratios, "slowest": max(ratios.values()), "resident": found.resident / 1e6}
