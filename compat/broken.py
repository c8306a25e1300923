"""Queues that are broken on purpose: the harness is worth something only if it notices."""

from __future__ import annotations

import contextlib
import queue
from typing import Any

import durableq

HOW = "DURABLEQ_COMPAT_BROKEN"


class Lifo:
    """Delivers the newest item first."""

    def get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
        older = []
        with contextlib.suppress(queue.Empty):
            while len(self.peek(2)) > 1:
                older.append(self.reserve(block=False))
        try:
            return super().get(block, timeout)  # type: ignore[misc]
        finally:
            for delivery in older:
                delivery.nack()

    def get_nowait(self) -> Any:
        return self.get(False)


class Silent:
    """Never raises when task_done is called too often."""

    def task_done(self) -> None:
        with contextlib.suppress(ValueError):
            super().task_done()  # type: ignore[misc]


class Lossy:
    """Loses one item in a thousand."""

    _puts = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        Lossy._puts += 1
        if Lossy._puts % 1000:
            super().put(item, block, timeout)  # type: ignore[misc]

    def put_nowait(self, item: Any) -> None:
        self.put(item, False)


class LifoQueue(Lifo, durableq.Queue): ...


class LifoJoinableQueue(Lifo, durableq.JoinableQueue): ...


class SilentJoinableQueue(Silent, durableq.JoinableQueue): ...


class LossyQueue(Lossy, durableq.Queue): ...


class LossyJoinableQueue(Lossy, durableq.JoinableQueue): ...


WAYS: dict[str, tuple[type, type]] = {
    "lifo": (LifoQueue, LifoJoinableQueue),
    "task_done never raises": (durableq.Queue, SilentJoinableQueue),
    "loses one in 1,000": (LossyQueue, LossyJoinableQueue),
}


def classes(how: str) -> tuple[type, type, type]:
    """What stands for Queue, JoinableQueue and SimpleQueue: sound without `how`, else broken in that way."""
    plain, joinable = WAYS[how] if how else (durableq.Queue, durableq.JoinableQueue)
    return plain, joinable, durableq.SimpleQueue
