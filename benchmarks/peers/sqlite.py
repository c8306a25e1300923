"""Queues in a SQLite database, and persist-queue's in plain files: each with its own default durability, if not `Full`.

`Full` stands for `PRAGMA synchronous=FULL`: what was put is on the disk when the call returns.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers import POLL, Peer

_PATIENCE = 60
"""Seconds that a connection waits for the others' locks before it gives up."""


class _InFiles(Peer):
    """What is opened in each process by `open(place)`, and closed there."""

    durability = ""

    def __init__(self, place: Path, room: int) -> None:
        self.place = str(place)
        self.open().close()  # whoever comes first makes the tables: better one that is alone

    def open(self) -> Any:
        raise NotImplementedError

    def connect(self) -> None:
        self.queue = self.open()

    def close(self) -> None:
        self.queue.close()


class PersistFile(_InFiles):
    """For one process: another one never learns what was put or taken."""

    name = "persist-queue Queue"
    module = "persistqueue"
    remedy = "pip install persist-queue"
    durability = "not synced, but for every hundredth put"

    def __init__(self, place: Path, room: int) -> None:
        self.place = str(place)

    def connect(self) -> None:
        import persistqueue

        self.queue = queue = persistqueue.Queue(self.place, tempdir=self.place)
        self.put, self.get, self.done = queue.put, queue.get, queue.task_done

    def close(self) -> None:
        """It has no such method."""


class PersistSQLite(_InFiles):
    """Its makers do not support several processes; that they put into one file works."""

    name = "persist-queue SQLiteQueue"
    module = "persistqueue"
    remedy = "pip install persist-queue"
    durability = "synced at each commit"

    def open(self) -> Any:
        import persistqueue

        return persistqueue.SQLiteQueue(self.place, timeout=_PATIENCE)

    def connect(self) -> None:
        super().connect()
        self.put, self.get, self.done = self.queue.put, self.queue.get, self.queue.task_done


class PersistAck(PersistSQLite):
    name = "persist-queue SQLiteAckQueue"

    def open(self) -> Any:
        import persistqueue

        return persistqueue.SQLiteAckQueue(self.place, timeout=_PATIENCE)

    def get(self) -> bytes:
        message = self.queue.get(raw=True)
        self.lent = message["pqid"]
        return message["data"]

    def connect(self) -> None:
        _InFiles.connect(self)
        self.put = self.queue.put

    def done(self) -> None:
        self.queue.ack(id=self.lent)


class LiteQueue(_InFiles):
    """It takes text only, so that is what the bytes become."""

    name = "litequeue"
    module = "litequeue"
    remedy = "pip install litequeue"
    durability = "synced at checkpoints"

    def open(self) -> Any:
        import litequeue

        return litequeue.LiteQueue(f"{self.place}/queue.db", timeout=_PATIENCE)

    def put(self, message: bytes) -> None:
        self.queue.put(message.decode("latin-1"))

    def get(self) -> bytes:
        while (message := self.queue.pop()) is None:
            time.sleep(POLL)
        self.lent = message
        return message.data.encode("latin-1")

    def done(self) -> None:
        claim = {"claim_id": self.lent.claim_id} if hasattr(self.lent, "claim_id") else {}  # newer releases want it
        self.queue.done(self.lent.message_id, **claim)


class LiteQueueFull(LiteQueue):
    name = "litequeue (FULL)"

    def open(self) -> Any:
        queue = super().open()
        queue.conn.execute("PRAGMA synchronous=FULL")
        return queue


class DiskCache(_InFiles):
    name = "diskcache.Deque"
    module = "diskcache"
    remedy = "pip install diskcache"
    durability = "synced at checkpoints, no ack"
    settings: ClassVar[dict[str, Any]] = {}

    def open(self) -> Any:
        import diskcache

        return diskcache.Cache(self.place, eviction_policy="none", timeout=_PATIENCE, **self.settings)

    def connect(self) -> None:
        import diskcache

        super().connect()
        self.deque = diskcache.Deque.fromcache(self.queue)
        self.put = self.deque.append

    def get(self) -> bytes:
        while True:
            try:
                return self.deque.popleft()
            except IndexError:
                time.sleep(POLL)

    def done(self) -> None:
        """It was done when it was taken."""


class DiskCacheFull(DiskCache):
    name = "diskcache.Deque (FULL)"
    settings: ClassVar[dict[str, Any]] = {"sqlite_synchronous": 2}


class Huey(_InFiles):
    name = "huey SqliteStorage"
    module = "huey"
    remedy = "pip install huey"
    durability = "synced at each commit, no ack"

    def open(self) -> Any:
        from huey.storage import SqliteStorage

        return SqliteStorage(filename=f"{self.place}/huey.db", timeout=_PATIENCE)

    def connect(self) -> None:
        super().connect()
        self.put = self.queue.enqueue

    def get(self) -> bytes:
        while (message := self.queue.dequeue()) is None:
            time.sleep(POLL)
        return message

    def done(self) -> None:
        """It was done when it was taken."""
