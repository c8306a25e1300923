"""Queues at work, for the recorder."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from durableq import Delivery, DurableQueue, Empty

from .recorder import Recorder

SMALL = {
    "BATCH": 16 << 10,
    "REWIND": 12 << 10,
    "KEEP": 24 << 10,
    "COLLAPSE_AT": 32 << 10,
    "COLLAPSE_BEHIND": 64 << 10,
    "DISTANCE": 64 << 10,
}
"""The queue's distances, made small: in a few hundred calls everything happens that takes gigabytes otherwise."""

_CALLS = "put put_many get ack nack later reject delay purge redrive compact sync drain".split()  # noqa: SIM905
LATER = 1_000_000.0
"""Seconds of a delay: the judge turns the clock to see what is behind it."""


@contextmanager
def small_distances() -> Iterator[None]:
    """Everything happens sooner, in all modules that know the distance."""
    changed: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("durableq."):
            for constant, value in SMALL.items():
                if isinstance(getattr(module, constant, None), int):
                    changed.append((module, constant, getattr(module, constant)))
                    setattr(module, constant, value)
    from durableq import _checkpoint

    defaults = _checkpoint.mark_head.__defaults__
    _checkpoint.mark_head.__defaults__ = (SMALL["DISTANCE"],)
    try:
        yield
    finally:
        _checkpoint.mark_head.__defaults__ = defaults
        for module, constant, value in changed:
            setattr(module, constant, value)


def payload(number: int, size: int) -> bytes:
    """What item `number` looks like; no part of it is zeros."""
    return struct.pack("<QI", number, size) + random.Random(number).randbytes(size).replace(b"\0", b"\1")


def number_of(data: bytes) -> int:
    """The number of an item, which must be exactly as it was put."""
    number, size = struct.unpack_from("<QI", data)
    assert data == payload(number, size), f"item {number} is not what was put"
    return int(number)


class Worker:
    """Does random things to a queue through several handles, tells the recorder what it was promised."""

    def __init__(self, recorder: Recorder, path: Path, seed: int, first: int = 0, alone: bool = True) -> None:
        self._recorder = recorder
        self._rng = rng = random.Random(seed)
        self._next = first
        kinds = rng.choice([(0, 0), (0, None), (None, None, 0), (None, None)])
        self._handles = [(DurableQueue(path, sync=s, serializer="bytes"), s == 0) for s in kinds]
        self._held: list[tuple[Delivery, bool]] = []
        moods = {
            "mixed": (30, 8, 25, 22, 3, 2, 2, 2, 1, 1, 1, 3, 2),
            "drained": (20, 3, 20, 25, 1, 0, 0, 1, 0, 0, 0, 3, 15),
            "growing": (30, 20, 10, 8, 2, 1, 2, 2, 0, 1, 1, 3, 0),
            "taking": (25, 0, 30, 30, 1, 0, 0, 0, 0, 0, 1, 4, 5),
        }
        self._weights = list(moods[rng.choice(list(moods))])
        if not alone:  # what a purge or a redrive is about, only one who works alone can tell
            self._weights = [0 if _CALLS[n] in ("purge", "redrive") else w for n, w in enumerate(self._weights)]
        self._largest = rng.choice((60, 300, 300, 3000))

    def step(self) -> None:
        """One call."""
        name = self._rng.choices(_CALLS, self._weights)[0]
        queue, synced = self._rng.choice(self._handles)
        getattr(self, f"_{name}")(queue, synced)

    def close(self) -> None:
        """Close all handles in order."""
        for queue, _ in self._handles:
            queue.close()

    def _new(self, n: int) -> tuple[list[int], list[bytes]]:
        numbers = list(range(self._next, self._next + n))
        self._next += n
        largest = self._largest if self._rng.random() < 0.9 else 9_000
        return numbers, [payload(i, self._rng.randint(0, largest)) for i in numbers]

    def _put(self, queue: DurableQueue, synced: bool) -> None:
        ids, items = self._new(1)
        with self._recorder.call("put", ids, synced):
            queue.put(items[0])

    def _put_many(self, queue: DurableQueue, synced: bool) -> None:
        ids, items = self._new(self._rng.randint(2, 12))
        with self._recorder.call("put", ids, synced):
            queue.put_many(items)

    def _delay(self, queue: DurableQueue, synced: bool) -> None:
        ids, items = self._new(1)
        with self._recorder.call("delayed put", ids, synced):
            queue.put(items[0], delay=LATER)

    def _get(self, queue: DurableQueue, synced: bool) -> None:
        if len(self._held) > 12:
            return self._ack(queue, synced)
        with suppress(Empty):
            self._held += [(d, synced) for d in queue.reserve_many(self._rng.choice((1, 1, 4)), block=False)]

    def _settle(self, kind: str, method: str, *args: Any) -> None:
        if self._held:
            at = self._rng.choice((0, 0, self._rng.randrange(len(self._held))))
            delivery, synced = self._held.pop(at)
            with self._recorder.call(kind, [number_of(delivery.item)], synced):
                getattr(delivery, method)(*args)

    def _ack(self, queue: DurableQueue, synced: bool) -> None:
        for _ in range(self._rng.choice((1, 1, 5))):
            self._settle("done", "ack")

    def _nack(self, queue: DurableQueue, synced: bool) -> None:
        self._settle("back", "nack")

    def _later(self, queue: DurableQueue, synced: bool) -> None:
        self._settle("delayed", "nack", LATER)

    def _reject(self, queue: DurableQueue, synced: bool) -> None:
        self._settle("rejected", "reject")

    def _purge(self, queue: DurableQueue, synced: bool) -> None:
        # Which ones it is about to remove: nobody else is at work in between.
        ids = [number_of(item) for item in queue.peek(1 << 20)]
        dead = {number_of(item) for item in queue.dead_letters.peek(1 << 20)}
        held = {number_of(delivery.item) for delivery, _ in self._held}
        others = [i for i in range(self._next) if i not in dead | held]
        with self._recorder.call("purged", ids, True), self._recorder.call("purged, if it waited", others, False):
            queue.purge()

    def _redrive(self, queue: DurableQueue, synced: bool) -> None:
        ids = [number_of(item) for item in queue.dead_letters.peek(1 << 20)]
        with self._recorder.call("redriven", ids, synced):
            queue.redrive()

    def _compact(self, queue: DurableQueue, synced: bool) -> None:
        queue.compact()

    def _sync(self, queue: DurableQueue, synced: bool) -> None:
        queue.sync()

    def _drain(self, queue: DurableQueue, synced: bool) -> None:
        """Take and finish everything, some of it as `ack="get"` does."""
        while self._held:
            self._settle("done", "ack")
        while True:
            with self._recorder.call("done", [], synced) as ids:
                if self._rng.random() < 0.5:
                    box: list[Any] = []
                    queue._store.take(box, 8, True)
                    ids += [number_of(taken[5]) for taken in box]
                else:
                    try:
                        for delivery in queue.reserve_many(8, block=False):
                            ids.append(number_of(delivery.item))
                            delivery.ack()
                    except Empty:
                        pass
            if not ids:
                return
