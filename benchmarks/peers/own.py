"""durableq, as its users would open it: what is not named here are its default options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import durableq
from benchmarks.peers import Peer


class Queue(Peer):
    """As `durableq.Queue(path=...)`: an item is done when it is taken."""

    name = "durableq"
    options: ClassVar[dict[str, Any]] = {"ack": "get"}

    def __init__(self, place: Path, room: int) -> None:
        self.queue = queue = durableq.DurableQueue(place / "q.dq", **self.options)
        self.put, self.get, self.done = queue.put, queue.get, queue.task_done
        self.put_many, self.get_many = queue.put_many, queue.get_many

    def connect(self) -> None:
        self.queue.qsize()  # the first call in a forked process opens the files again: others connect before the clock runs too

    def close(self) -> None:
        self.queue.close()

    remove = close


class Unsynced(Queue):
    name = "durableq (sync=None)"
    options: ClassVar[dict[str, Any]] = {"ack": "get", "sync": None}


class Batches(Queue):
    name = "durableq (batches)"
    batch = 100


class Acknowledged(Queue):
    """As `durableq.DurableQueue(path)`: lent until `task_done`."""

    name = "durableq (task_done)"
    options: ClassVar[dict[str, Any]] = {}


class Durable(Queue):
    """Each put returns when the disk has it."""

    name = "durableq (sync=0)"
    options: ClassVar[dict[str, Any]] = {"sync": 0}
