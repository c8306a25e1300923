"""One lent item in the hands of whoever reserved it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from durableq._headers import headers_of
from durableq._leases import Taken
from durableq._record import TAG_HEADERS
from durableq.errors import StaleDeliveryError


class Lender(Protocol):
    """What lends items and takes them back: a spool's Store, or an engine elsewhere.

    An item is named by its position, the index of its entry and its count of deliveries, as `take` has given them. What
    returns a bool says whether the item was still ours; if not, nothing was changed.
    """

    path: str

    def name(self, position: int, /) -> str:
        """See `Delivery.id`."""

    def ack(self, position: int, index: int, count: int, /) -> bool:
        """It is done."""

    def ack_oldest(self, dead: bool, /) -> bool:
        """The oldest item that was lent by `get` is done; False if there is none. `dead`: of the dead letters."""

    def nack(self, position: int, index: int, count: int, /, delay: float = 0.0) -> bool:
        """Give it back."""

    def release(self, position: int, index: int, count: int, /) -> bool:
        """Give it back uncounted."""

    def reject(self, position: int, index: int, count: int, /) -> bool:
        """Put it with the dead letters."""

    def extend(self, position: int, index: int, count: int, seconds: float, /) -> bool:
        """Keep it for so long."""

    def went_away(self, position: int, index: int, again: bool, /) -> bool:
        """Asked right after an ack said no: does somebody else have it, or have done it? `again`: it was acked before."""

    def untake(self, box: list[Taken], dead_letter: bool = False, was_dead: bool = False) -> None:
        """Give back what was taken by mistake."""

    def told(self, done: bool, count: int, /) -> None:
        """So many were taken by the compiled take, if there is one."""

    def reap(self) -> bool:
        """Return what the dead held, now; whether there was anything."""


@dataclass(frozen=True)
class Peeked:
    """An item that was looked at and not taken."""

    id: str
    """What its `Delivery.id` is."""
    item: Any
    """What was put; if it cannot be decoded, the DecodeError that says why."""
    deliveries: int
    """How often it was delivered so far."""
    enqueued_at: float
    """Unix time of the put."""
    pid: int | None = None
    """The process that has it, if it is lent."""


class Delivery:
    """An item taken with `reserve`, to be settled once: `ack`, `nack`, `release` or `reject`.

    As a context manager it acks when the block ends and nacks when it ends by an exception, unless it was settled in
    the block. If its process dies, or its lease runs out and somebody else takes the item, it is stale: settling it then
    raises StaleDeliveryError and changes nothing. Settle it in the process that reserved it, in any thread.
    """

    __slots__ = ("_count", "_index", "_position", "_settled", "_store", "deliveries", "enqueued_at", "headers", "item")

    def __init__(self, store: Lender, taken: Taken, item: Any) -> None:
        self._store = store
        self._position, self._index, self._count = taken[:3]
        self._settled = False
        self.item: Any = item
        """What was put."""
        self.deliveries: int = taken[2] & 0x7FFF
        """How often the item was delivered, this time included."""
        self.enqueued_at: float = taken[4] / 1e6
        """Unix time of the put."""
        self.headers: dict[str, str] = headers_of(taken[5]) if taken[3] & TAG_HEADERS else {}
        """What was sent along with the item: the trace context, if its producer is instrumented for that."""

    @property
    def id(self) -> str:
        """Names the item for good: the same each time it is delivered, in every process, and no other item's.

        Of this spool; a consumer behind the queue can tell by it that it has seen an item before.
        """
        return self._store.name(self._position)

    def ack(self) -> None:
        """The item is done."""
        self._settle(self._store.ack, "ack")

    def nack(self, delay: float = 0) -> None:
        """Give the item back, to be delivered again before all that waits, or after `delay` seconds."""
        if not delay >= 0:
            raise ValueError("'delay' must be a non-negative number")
        self._settle(partial(self._store.nack, delay=delay), "nack")

    def release(self) -> None:
        """Give the item back as if it had not been delivered: for who has to leave, and nothing was wrong with the item."""
        self._settle(self._store.release, "release")

    def reject(self) -> None:
        """Put the item with the dead letters."""
        self._settle(self._store.reject, "reject")

    def extend(self, seconds: float) -> None:
        """Keep the item for `seconds` from now, whatever the queue's lease says."""
        if math.isnan(seconds):
            raise ValueError("'seconds' must be a number")
        if self._settled or not self._store.extend(self._position, self._index, self._count, seconds):
            self._raise_stale("extend")

    def _settle(self, change: Callable[[int, int, int], bool], what: str) -> None:
        if self._settled or not change(self._position, self._index, self._count):
            self._raise_stale(what)
        self._settled = True

    def _raise_stale(self, what: str) -> None:
        why = "it was settled before" if self._settled else "the item has gone to somebody else"
        raise StaleDeliveryError(f"{self._store.path}: {what}() came too late, {why}; nothing was changed")

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if not self._settled:
            if kind is None:
                self.ack()
            else:
                self.nack()

    def __repr__(self) -> str:
        state = "settled" if self._settled else "lent"
        return f"<Delivery {self.item!r} {state}, delivery {self.deliveries}>"
