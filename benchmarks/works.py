"""The matrix: which pieces of work there are, who does them, and what is measured."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import messages, roles
from benchmarks.common import Failed, Figures
from benchmarks.peers import Peer, own, standard
from benchmarks.stage import Role, play

MOST_BYTES = 1 << 30
"""Of messages in one run: they are made before the clock runs, and lie in memory."""
LEAST, MOST = 100, 1_000_000
"""Messages of one producer in one run."""


@dataclass(frozen=True)
class Work:
    """One piece of work, and who does it. `cast(count)` are its roles when each producer has `count` messages."""

    group: str
    name: str
    size: int
    subjects: tuple[type[Peer], ...]
    cast: Callable[[int], list[Role]]
    producers: int = 1

    @property
    def most(self) -> int:
        """Messages of one producer that a run may have."""
        return min(MOST, MOST_BYTES // self.size // self.producers)

    def run(self, subject: type[Peer], directory: Path, count: int) -> Figures:
        """One run on a new queue; each producer has `count` messages. Raises Failed."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=directory) as place:
            peer = subject(Path(place), 2 * self.size * count * self.producers)
            try:
                run = play(peer, self.cast(count))
            finally:
                peer.remove()
        taken = itertools.chain.from_iterable(result for result in run.results if result is not None)
        wrong = messages.verdict(taken, self.producers, count)
        if wrong:
            raise Failed(f"of {count * self.producers} messages: {wrong}")
        total = count * self.producers
        return {"rate": total / run.wall, "cpu": run.cpu / total * 1e6, "wall": run.wall}

    def count_for(self, subject: type[Peer], directory: Path, seconds: float) -> int:
        """How many messages of each producer keep this subject busy for so long. The runs to find out are its warm-up."""
        count = min(LEAST, self.most)
        while True:
            wall = self.run(subject, directory, count)["wall"]
            fitting = max(1, min(self.most, int(count * seconds / wall)))
            if wall > seconds / 4 or fitting <= 2 * count:
                return fitting
            count = fitting // 2


def passing(
    group: str, ends: int, size: int, label: str, subjects: tuple[type[Peer], ...], *, done: bool = False
) -> Work:
    """So many producers and as many consumers, at the same time."""

    def cast(count: int) -> list[Role]:
        producers = [roles.producer(number, count, size) for number in range(ends)]
        return producers + [roles.consumer(size, done=done) for _ in range(ends)]

    return Work(group, f"{ends} to {ends}, {label}", size, subjects, cast, ends)


def hoarding(group: str, name: str, subjects: tuple[type[Peer], ...], *, done: bool = False) -> Work:
    """One process that puts everything and then takes everything."""
    return Work(group, name, 100, subjects, lambda count: [roles.hoarder(count, 100, done=done)])


_FIFO = (own.DurableQ, standard.Queue, standard.SimpleQueue)
_JOINABLE = (own.TaskDone, standard.JoinableQueue)

WORKS = [
    *(passing("fifo", ends, size, label, _FIFO) for size, label in ((100, "100 B"), (1024, "1 KiB")) for ends in (1, 4)),
    *(
        passing("large", ends, size, label, _FIFO)
        for size, label in ((1 << 16, "64 KiB"), (1 << 20, "1 MiB"))
        for ends in (1, 4)
    ),
    hoarding("drain", "fill, then drain, 100 B", (own.DurableQ, standard.Queue)),
    *(passing("joinable", ends, 100, "100 B, task_done", _JOINABLE, done=True) for ends in (1, 4)),
]
GROUPS = list(dict.fromkeys(work.group for work in WORKS))
