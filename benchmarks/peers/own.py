"""durableq, as its users would open it: all other options are the default ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import durableq
from benchmarks.peers import Peer


class DurableQ(Peer):
    """`durableq.Queue(path=...)`: an item is done when it is taken."""

    name = "durableq"
    options: dict[str, Any] = {"ack": "get"}  # noqa: RUF012

    def __init__(self, place: Path, room: int) -> None:
        self.queue = queue = durableq.DurableQueue(place / "q.dq", **self.options)
        self.put, self.get, self.done = queue.put, queue.get, queue.task_done
        self.put_many, self.get_many = queue.put_many, queue.get_many
        self.close = self.remove = queue.close


class TaskDone(DurableQ):
    """`durableq.DurableQueue(path)`: lent until `task_done`."""

    name = "durableq, task_done"
    options = {}  # noqa: RUF012
