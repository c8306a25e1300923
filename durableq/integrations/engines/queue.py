"""The queue on top of an engine: DurableQueue's methods, for as far as the engine goes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

from durableq._delivery import Delivery, Peeked
from durableq._leases import MAX_COUNT, Taken
from durableq._reader import ItemReader, _ThisThread
from durableq._serializers import Codec, Serializer
from durableq._wakeup import Deadline
from durableq.errors import Empty, Full
from durableq.integrations.engines.base import Body, Engine, Fetched

__all__ = ["EngineQueue"]

_PART = 500
"""Most items put in one go."""
_SLICE = 0.5
"""Seconds that a waiting get leaves between two looks at what is due, given back, or left behind by the dead."""
_SHORTEST, _LONGEST = 0.01, 0.25
"""Seconds between two looks of who waits in `join` or for room."""


class _EngineDelivery(Delivery):
    __slots__ = ("_name",)

    def __init__(self, store: Engine, taken: Taken, item: Any) -> None:
        super().__init__(store, taken, item)
        self._name = store.name(taken[0])

    @property
    def id(self) -> str:
        """See `Delivery.id`."""
        return self._name


class _EngineReader(ItemReader):
    """What the queue and its dead letters have in common."""

    _store: Engine
    _delivery = _EngineDelivery

    def _attach(self, engine: Engine, codec: Codec, done: bool) -> None:
        self._store = engine
        self._codec = codec
        self._done = done
        self._take = engine.take
        self._this_thread = _ThisThread()

    def qsize(self) -> int:
        """How many items wait, ready or delayed, without those that are lent. Others may change that at any time."""
        self._store.check()
        return self._store.waiting()

    def _wait_and_take(
        self, box: list[Taken], limit: int, block: bool, timeout: float | None, done: bool, reserved: int
    ) -> None:
        deadline = Deadline(timeout if block else 0)
        while not self._store.take(box, limit, done, reserved, max(0.0, min(deadline.left(), _SLICE))):
            if deadline.left() <= 0:
                raise Empty

    def _wait(self, deadline: Deadline) -> None:
        raise NotImplementedError  # the engine itself waits, in `_wait_and_take`

    def _peek(self, n: int) -> list[Taken]:
        self._store.check()
        return [_seen(fetched) for fetched in self._store.peek(n)]

    def peek_deliveries(self, n: int = 1) -> list[Peeked]:
        """As `peek`, with each item's id and how often it was delivered; what cannot be decoded is told, not raised."""
        self._store.check()
        return [replace(self._peeked(_seen(fetched)), id=fetched.id) for fetched in self._store.peek(n)]


def _seen(fetched: Fetched) -> Taken:
    payload, tag, enqueued, _ = fetched.body
    return (0, -1, min(fetched.deliveries, MAX_COUNT), tag, enqueued, payload)


class EngineDeadLetters(_EngineReader):
    """The dead letters of a queue, as a queue to take from. What its taker does not ack goes back to them."""

    def __init__(self, engine: Engine, codec: Codec, done: bool) -> None:
        self._attach(engine, codec, done)


class EngineQueue(_EngineReader):
    """A queue on an engine elsewhere, from `durableq.connect`: the methods of DurableQueue, with the same meaning.

    What the engine cannot do raises UnsupportedError, and an engine that does not answer UnreachableError (a
    ConnectionError). Then what was asked of it may have been done or not: who puts again may put twice, and a consumer may be
    given an item a second time. `Delivery.id` is the same each time.
    """

    def __init__(self, engine: Engine, ack: str, serializer: str | Serializer) -> None:
        if ack not in ("task_done", "get"):
            raise ValueError(f'ack={ack!r} is unknown; take "task_done" or "get"')
        self._attach(engine, Codec(serializer), ack == "get")
        self._letters: EngineDeadLetters | None = None
        self._origin: tuple[Any, ...] = ()
        """What `connect` was called with, for pickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self._origin

    # -- putting -------------------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None, *, delay: float = 0) -> None:
        """Append an item; when this returns the engine has it. Raises as `DurableQueue.put`, and UnreachableError."""
        if not delay >= 0:
            raise ValueError("'delay' must be a non-negative number")
        self._put([item], block, timeout, delay)

    def put_nowait(self, item: Any) -> None:
        """As `put(item, False)`."""
        self.put(item, False)

    def put_many(self, items: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:
        """Append items in order; much cheaper than as many puts. Raises as `put`; Full says how many were put."""
        self._put(items, block, timeout, 0)

    def _put(self, items: Iterable[Any], block: bool, timeout: float | None, delay: float) -> None:
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        engine = self._store
        engine.check()
        tag, dumps, now = self._codec.tag, self._codec.dumps, time.time_ns() // 1000
        bodies = [Body(dumps(item), tag, now) for item in items]
        deadline = Deadline(timeout if block else 0)
        done, pause = 0, _SHORTEST
        while done < len(bodies):
            appended = engine.append(bodies[done : done + _PART], delay)
            done += appended
            if not appended:
                if deadline.left() <= 0:
                    raise Full(f"{done} items were put") if done else Full
                engine.wait_for_room(deadline, pause)
                pause = min(2 * pause, _LONGEST)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Wait until every item that was put is done, by whatever process. Dead letters do not count."""
        pause = _SHORTEST
        while self.unfinished_tasks:
            self._store.wait_for_room(Deadline(None), pause)
            pause = min(2 * pause, _LONGEST)

    @property
    def unfinished_tasks(self) -> int:
        """How many items `join` waits for: waiting or lent, of all processes."""
        self._store.check()
        return self._store.unfinished()

    def full(self) -> bool:
        """Whether `maxsize` items wait. Others may change that at any time."""
        return 0 < self.maxsize <= self.qsize()

    @property
    def maxsize(self) -> int:
        """Most items that may wait, for all handles; 0: no bound."""
        self._store.check()
        return self._store.maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._store.check()
        self._store.maxsize = max(0, value)

    @property
    def max_deliveries(self) -> int | None:
        """After so many deliveries without success an item goes to the dead letters; None: never, or the engine's to say."""
        return self._store.max_deliveries

    @property
    def lease(self) -> float | None:
        """Seconds after which a lent item returns although its holder lives; None: only when the holder is gone."""
        return self._store.lease

    def purge(self) -> int:
        """Remove everything that waits, but not what is lent or dead; how many items."""
        self._store.check()
        return self._store.purge()

    @property
    def dead_letters(self) -> EngineDeadLetters:
        """The items that were rejected, delivered too often, or could not be decoded, as a queue to take from."""
        self._store.check()
        if self._letters is None or self._letters._store.closed:
            self._letters = EngineDeadLetters(self._store.dead_letters(), self._codec, self._done)
        return self._letters

    def redrive(self) -> int:
        """Put all dead letters back into the queue, as if they had never been delivered; how many."""
        box: list[Taken] = []
        letters = self.dead_letters._store
        count = 0
        while letters.take(box, 1, False):
            position, index, deliveries, tag, enqueued, payload = box.pop()
            self._store.append([Body(payload, tag, enqueued, letters.name(position))])
            # After that, for killed in between it is there twice, and not lost.
            letters.ack(position, index, deliveries)
            count += 1
        return count

    def close(self) -> None:
        """Close this handle: what it holds un-acked returns to the queue. Everything else then raises ValueError."""
        if self._letters is not None:
            self._letters._store.close()
        self._store.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._store.closed

    @property
    def url(self) -> str:
        """Which queue of which engine, without a password."""
        return self._store.path

    def join_thread(self) -> None:
        """Nothing to wait for: `put` returns when the engine has the item."""

    def cancel_join_thread(self) -> None:
        """Nothing to cancel: `put` returns when the engine has the item."""

    def __enter__(self) -> EngineQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url!r}{' closed' if self.closed else ''}>"

    # -- what only a file can do ---------------------------------------------------------------------------------------

    def shutdown(self, immediate: bool = False) -> None:
        """Raises UnsupportedError: nobody could say when the last of all machines has left."""
        raise self._store.unsupported(
            "shutdown() cannot reach the other machines", "end your consumers with an item that they know for it"
        )

    @property
    def is_shutdown(self) -> bool:
        """Always false: see `shutdown`."""
        return False

    @property
    def path(self) -> str:
        """Raises UnsupportedError: there is no file; `url` names the queue."""
        raise self._store.unsupported("path is that of a file", "url names this queue")

    def stats(self) -> Any:
        """Raises UnsupportedError: ask the engine itself."""
        raise self._store.unsupported("stats() tells of a file", "qsize() is here, and the engine has more")

    def sync(self) -> None:
        """Raises UnsupportedError: it is the engine's to say what it keeps on its disk."""
        raise self._store.unsupported("sync() is for a file", "what a confirmed put survives is set in the engine")

    def compact(self) -> int:
        """Raises UnsupportedError: the engine minds its own space."""
        raise self._store.unsupported("compact() is for a file", "the engine minds its own space")
