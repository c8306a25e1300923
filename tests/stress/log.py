"""What a worker writes down: one file for each process, one record of 32 bytes for each event.

A record is written with a single `os.write`, straight to the kernel, so it outlives a SIGKILL that comes right after
it. 32 divides the page size, therefore no record can straddle two pages and be torn by the kill. What is about to
happen is written before it is tried ("INTENT", "SETTLING"), what has happened only after the call returned ("RETURNED",
"DONE"): between the two lies exactly what a kill may leave undecided.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

_RECORD = struct.Struct("<BBHIQQQ")
assert 4096 % _RECORD.size == 0

# Producers.
INTENT = 1  # about to put `count` items from `seq` on
RETURNED = 2  # that put returned
REFUSED = 3  # that put raised Full or ShutDown: the item must never be seen
# Consumers.
ASK = 4  # about to get up to `count` items
GOT = 5  # an item came; `count` is Delivery.deliveries where it is known, else 0
SETTLING = 6  # about to call task_done or ack for it
DONE = 7  # that call returned
GIVING_BACK = 8  # about to nack
REJECTING = 9  # about to reject
REJECTED = 10  # that call returned
NOTHING = 11  # the get that was announced by ASK returned without an item


class Event(NamedTuple):
    kind: int
    thread: int
    count: int
    worker: int
    origin: int
    seq: int
    time: int


class Log:
    """The pen of one process; its threads share it."""

    def __init__(self, folder: str, worker: int) -> None:
        self._worker = worker
        self._fd = os.open(os.path.join(folder, f"log-{worker:06d}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, kind: int, thread: int, origin: int = 0, seq: int = 0, count: int = 1) -> None:
        # CLOCK_MONOTONIC is one clock for all processes of a machine, so events of different logs can be compared.
        os.write(self._fd, _RECORD.pack(kind, thread, count, self._worker, origin, seq, time.monotonic_ns()))

    def close(self) -> None:
        os.close(self._fd)


def origin_of(worker: int, thread: int) -> int:
    """Who puts: one thread of one process. Sequence numbers count within an origin."""
    return worker << 8 | thread


def read(folder: str) -> Iterator[list[Event]]:
    """The events of each worker, in the order in which it wrote them."""
    for name in sorted(os.listdir(folder)):
        if not name.startswith("log-"):
            continue
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        data = data[: len(data) - len(data) % _RECORD.size]
        yield [Event(*fields) for fields in _RECORD.iter_unpack(data)]


def sizes(folder: str, workers: list[int]) -> int:
    """Bytes written by these workers so far: if it does not grow, they are stuck."""
    total = 0
    for worker in workers:
        try:
            total += os.stat(os.path.join(folder, f"log-{worker:06d}")).st_size
        except FileNotFoundError:
            continue
    return total
