"""Which work is done by whom, and what durableq is held to.

To add a peer, write its adapter (see `peers`) and name it here.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common import Figures
from benchmarks.peers import Peer, floors, memory, own, redis, sqlite
from benchmarks.works import Backlog, Hoarding, Keeping, Nothing, Passing, Putting, RoundTrip, Waiting, Work

KIB, MIB = 1 << 10, 1 << 20

_ACROSS = (own.Queue, memory.Queue, memory.SimpleQueue, memory.FasterFifo, redis.RedisEverysec)
_LARGE = (own.Queue, own.Unsynced, memory.Queue, memory.SimpleQueue, memory.FasterFifo)
_JOINABLE = (own.Acknowledged, memory.JoinableQueue)
_BATCHES = (own.Queue, own.Batches, memory.FasterFifo, memory.FasterFifoBatches)
_SHARED = (sqlite.LiteQueue, sqlite.DiskCache, sqlite.Huey, redis.RedisEverysecAck, redis.RedisAlwaysAck)
_DURABLE = (sqlite.PersistFile, sqlite.PersistSQLite, sqlite.PersistAck, *_SHARED)
_FULL = (sqlite.PersistSQLite, sqlite.LiteQueueFull, sqlite.DiskCacheFull, sqlite.Huey)
_SYNCED = (own.Durable, floors.Synced, *_FULL, redis.RedisAlways)

ONE = Passing("fifo", "1 to 1, 100 B", (*_ACROSS, floors.Pipe))
FOUR = Passing("fifo", "4 to 4, 100 B", _ACROSS, producers=4)
ONE_KIB = Passing("fifo", "1 to 1, 1 KiB", (*_ACROSS, floors.Pipe), KIB)
FOUR_KIB = Passing("fifo", "4 to 4, 1 KiB", _ACROSS, KIB, producers=4)
ONE_64 = Passing("large", "1 to 1, 64 KiB", (*_LARGE, floors.Spool, floors.Pipe), 64 * KIB)
FOUR_64 = Passing("large", "4 to 4, 64 KiB", _LARGE, 64 * KIB, producers=4)
# A producer that ends makes what is left of its items durable, once; in a tenth of a second that would be all that is seen.
ONE_MIB = Passing("large", "1 to 1, 1 MiB", (*_LARGE, floors.Spool, floors.Pipe), MIB, shortest=0.4)
FOUR_MIB = Passing("large", "4 to 4, 1 MiB", _LARGE, MIB, producers=4)
DRAIN = Hoarding("drain", "fill, then drain, 100 B", (own.Queue, memory.Queue, memory.FasterFifo, floors.Spool))
ONE_DONE = Passing("joinable", "1 to 1, 100 B, task_done", _JOINABLE, done=True)
FOUR_DONE = Passing("joinable", "4 to 4, 100 B, task_done", _JOINABLE, producers=4, done=True)
BATCHES = Passing("batches", "1 to 1, 100 B, batches of 100", _BATCHES)
BATCHES_DRAIN = Hoarding("batches", "fill, then drain, 100 B, batches of 100", _BATCHES)
TRIP = RoundTrip("roundtrip", "round trip, 100 B", (*_ACROSS, floors.Pipe))
ACK = Hoarding("ack", "fill, then drain with ack, 100 B", (own.Acknowledged, *_DURABLE), done=True)
ACK_ONE = Passing("ack", "1 to 1 with ack, 100 B", (own.Acknowledged, *_SHARED), done=True)
PUT_ONE = Putting("durable", "durable puts, 1 producer, 100 B", _SYNCED)
PUT_EIGHT = Putting("durable", "durable puts, 8 producers, 100 B", _SYNCED, producers=8)
BACKLOG = Backlog("backlog", "behind a backlog, ratio to an empty queue", (Waiting, Nothing))
SPACE = Keeping(
    "space",
    "space of what waits, 100 B",
    (own.Queue, memory.Queue, sqlite.LiteQueue, sqlite.DiskCache, redis.RedisEverysec),
)

WORKS: tuple[Work, ...] = (
    *(ONE, FOUR, ONE_KIB, FOUR_KIB, ONE_64, FOUR_64, ONE_MIB, FOUR_MIB, DRAIN, ONE_DONE, FOUR_DONE),
    *(BATCHES, BATCHES_DRAIN, TRIP, ACK, ACK_ONE, PUT_ONE, PUT_EIGHT, BACKLOG, SPACE),
)
GROUPS = tuple(dict.fromkeys(work.group for work in WORKS))
DURABILITY: dict[type[Peer], str] = {own.Acknowledged: "synced within 1 s"} | {peer: peer.durability for peer in _DURABLE}


@dataclass(frozen=True)
class Target:
    """What durableq is held to: a figure of `ours`, over the best one of `theirs`, is at least (or at most) `bound`."""

    work: Work
    what: str
    theirs: tuple[type[Peer], ...]
    bound: float
    key: str = "rate"
    ours: type[Peer] = own.Queue
    at_most: bool = False

    def ratio(self, figures: dict[type[Peer], Figures]) -> tuple[float, type[Peer]] | None:
        """The ratio to the best of theirs, and whose it is; None unless ours and all of theirs were measured."""
        if any(peer not in figures for peer in (self.ours, *self.theirs)):
            return None
        best = (min if self.at_most else max)(self.theirs, key=lambda peer: figures[peer][self.key])
        return figures[self.ours][self.key] / figures[best][self.key], best

    def reached(self, ratio: float) -> bool:
        """Whether that is enough."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


_QUEUE, _JOINABLE_QUEUE = (memory.Queue,), (memory.JoinableQueue,)
TARGETS = (
    Target(ONE, "messages/s", _QUEUE, 1.5),
    Target(FOUR, "messages/s", _QUEUE, 1.5),
    Target(ONE_DONE, "messages/s", _JOINABLE_QUEUE, 1.3, ours=own.Acknowledged),
    Target(FOUR_DONE, "messages/s", _JOINABLE_QUEUE, 1.3, ours=own.Acknowledged),
    Target(DRAIN, "messages/s", _QUEUE, 1.5),
    Target(ONE_64, "messages/s", (floors.Spool,), 0.8),
    Target(ONE_64, "messages/s, sync=None", _QUEUE, 1.0, ours=own.Unsynced),
    Target(ONE_MIB, "messages/s", (floors.Spool,), 0.8),
    Target(ONE_MIB, "messages/s, sync=None", _QUEUE, 1.0, ours=own.Unsynced),
    Target(TRIP, "median time", _QUEUE, 0.2, "median", at_most=True),
    Target(BATCHES, "messages/s", (memory.FasterFifoBatches,), 1.0, ours=own.Batches),
    Target(BATCHES, "messages/s", (own.Queue,), 3.0, ours=own.Batches),
    Target(BATCHES_DRAIN, "messages/s", (memory.FasterFifoBatches,), 1.0, ours=own.Batches),
    Target(BATCHES_DRAIN, "messages/s", (own.Queue,), 3.0, ours=own.Batches),
    Target(ACK, "messages/s", _DURABLE, 5.0, ours=own.Acknowledged),
    Target(ACK_ONE, "messages/s", _SHARED, 5.0, ours=own.Acknowledged),
    Target(PUT_EIGHT, "puts/s", _FULL, 3.0, ours=own.Durable),
    Target(PUT_EIGHT, "puts/s", (redis.RedisAlways,), 1.0, ours=own.Durable),
    Target(BACKLOG, "time of put, get or task_done", (Nothing,), 1.15, "slowest", ours=Waiting, at_most=True),
    Target(BACKLOG, "resident memory", (Nothing,), 1.05, "resident", ours=Waiting, at_most=True),
    *(
        Target(work, "CPU seconds", theirs, 1.0, "cpu", ours=ours, at_most=True)
        for work, theirs, ours in (
            (ONE, _QUEUE, own.Queue),
            (FOUR, _QUEUE, own.Queue),
            (DRAIN, _QUEUE, own.Queue),
            (ONE_DONE, _JOINABLE_QUEUE, own.Acknowledged),
            (FOUR_DONE, _JOINABLE_QUEUE, own.Acknowledged),
        )
    ),
)
