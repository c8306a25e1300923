"""Taking items: what the queue and its dead letters have in common."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from durableq._delivery import Delivery, Lender, Peeked
from durableq._leases import MAX_COUNT, RESERVED, Taken
from durableq._serializers import Codec
from durableq._unacked import Unacked
from durableq._wakeup import Deadline
from durableq.errors import DecodeError, Empty, StaleDeliveryError


class _ThisThread(threading.local):
    def __init__(self, is_lent: Callable[[int, int, int], bool] | None = None) -> None:
        self.is_lent = is_lent
        self.unacked = Unacked(is_lent)
        _in_use.add(self)


_in_use: weakref.WeakSet[_ThisThread] = weakref.WeakSet()


def _forget_after_fork() -> None:
    # What the parent's thread has taken is not the child's to finish, not even when the parent is dead.
    for this_thread in list(_in_use):
        this_thread.unacked = Unacked(this_thread.is_lent)


os.register_at_fork(after_in_child=_forget_after_fork)


class ItemReader(ABC):
    """Blocking and decoding around `take`. The store's part never blocks; here is only the waiting."""

    _store: Lender
    _codec: Codec
    _take: Callable[[list[Taken], int, bool, int], bool]
    _fast_take: Callable[[list[Taken], int, bool, int, bool], int] | None = None
    _done: bool
    _dead = False
    _this_thread: _ThisThread
    _delivery: type[Delivery] = Delivery

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item and return it.

        Under `ack="task_done"` it is lent until `task_done()` is called, and goes back to the queue if this process dies
        first; under `ack="get"` it is done. An item that was given back comes before all that waits.

        block, timeout: as in `queue.Queue`; `timeout` is in seconds. Raises Empty, ShutDown, ValueError (negative timeout;
        closed queue), DecodeError (the item is with the dead letters now), OSError from the disk.
        """
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        box: list[Taken] = []
        try:
            if self._fast_take is not None and (did := self._fast_take(box, 1, self._done, 0, block)):
                if did > 1:
                    self._store.told(self._done, 1)
            elif not self._take(box, 1, self._done, 0):
                self._wait_and_take(box, 1, block, timeout, self._done, 0)
            position, index, count, tag, _, payload = box[0]
            try:
                item = self._codec.loads[tag](payload)
            except Exception:
                item = self._codec.decode(tag, payload, self._store.path, position)  # the same once more, for its error
                if tag in self._codec.loads:
                    raise  # it was not the item's, but that of a signal handler: a time limit, say
            if index >= 0:
                self._this_thread.unacked.push(position, index, count)
            return item
        except BaseException as exc:
            self._give_back(box, exc)
            raise

    def get_nowait(self) -> Any:
        """As `get(False)`."""
        return self.get(False)

    def get_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Wait for one item, then take up to `max_items` in one go, oldest first. Raises as `get`.

        An item that cannot be decoded goes to the dead letters and the others are returned; DecodeError if there are none.
        """
        box: list[Taken] = []
        try:
            taken, items = self._take_many(box, max_items, block, timeout, self._done, 0)
            if not self._done:
                push = self._this_thread.unacked.push
                for position, index, count, *_ in taken:
                    push(position, index, count)
            return items
        except BaseException as exc:
            self._give_back(box, exc)
            raise

    def reserve(self, block: bool = True, timeout: float | None = None) -> Delivery:
        """Take the oldest item on loan, whatever the `ack` option, and return its Delivery. Raises as `get`."""
        return self.reserve_many(1, block, timeout)[0]

    def reserve_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[Delivery]:
        """Wait for one item, then take up to `max_items` on loan in one go, oldest first. Raises as `get`."""
        box: list[Taken] = []
        try:
            taken, items = self._take_many(box, max_items, block, timeout, False, RESERVED)
            store, delivery = self._store, self._delivery
            return [delivery(store, entry, item) for entry, item in zip(taken, items, strict=True)]
        except BaseException:
            self._store.untake(box, was_dead=self._dead)
            raise

    def reserve_sealed(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[Delivery]:
        """As `reserve_many`, but nothing is decoded: each delivery's `item` is there after `unseal(delivery)`.

        For who must note what it has in hand first: decoding can run code of the item, and so end the process.
        """
        box: list[Taken] = []
        try:
            self._take_some(box, max_items, block, timeout, False, RESERVED)
            return [self._delivery(self._store, entry, entry) for entry in box]
        except BaseException:
            self._store.untake(box, was_dead=self._dead)
            raise

    def unseal(self, delivery: Delivery) -> None:
        """Decode the item of a delivery from `reserve_sealed`, once. Raises DecodeError, and leaves it lent then."""
        position, _, _, tag, _, payload = delivery.item
        delivery.item = self._codec.decode(tag, payload, self._store.path, position)

    def task_done(self) -> None:
        """The oldest item that `get` lent to this thread is done.

        If this thread has none, the oldest of this process is; if that has none, the oldest of the queue. Raises
        ValueError if nothing is lent: called too many times; StaleDeliveryError (a ValueError) if the lease of the item
        ended and it went to somebody else: then nothing is changed, and the next call is about the next item.
        """
        unacked = self._this_thread.unacked
        while (oldest := unacked.oldest()) is not None:
            again, unacked.acking = unacked.acking == oldest, oldest
            was_ours = self._store.ack(*oldest)
            unacked.drop()  # only now: an interrupted call may be made again, and is about the same item
            unacked.acking = None
            if was_ours:
                return
            if self._store.went_away(*oldest[:2], again):
                raise StaleDeliveryError(
                    f"{self._store.path}: the lease of item {self._store.name(oldest[0])} ended before task_done(), and it "
                    f"went to somebody else; give the queue a longer lease, or reserve() the item and extend() it"
                )
            if again:
                return
            # Another thread has acked it, which had none of its own.
        if not self._store.ack_oldest(self._dead):
            hint = '; under ack="get" an item is done when it is taken' if self._done else ""
            raise ValueError(f"task_done() called too many times{hint}")

    def peek(self, n: int = 1) -> list[Any]:
        """Up to `n` items that would be taken next, oldest first, without taking them."""
        return [self._codec.decode(tag, data, self._store.path, at) for at, _, _, tag, _, data in self._peek(n)]

    def peek_deliveries(self, n: int = 1) -> list[Peeked]:
        """As `peek`, with each item's id and how often it was delivered; what cannot be decoded is told, not raised."""
        return [self._peeked(taken) for taken in self._peek(n)]

    def _peeked(self, taken: Taken, pid: int | None = None) -> Peeked:
        position, _, count, tag, enqueued, payload = taken
        try:
            item = self._codec.decode(tag, payload, self._store.path, position)
        except DecodeError as error:
            item = error
        return Peeked(self._store.name(position), item, count & MAX_COUNT, enqueued / 1e6, pid)

    def empty(self) -> bool:
        """Whether nothing waits. By the time it returns another process may have changed that."""
        return self.qsize() == 0

    @abstractmethod
    def qsize(self) -> int:
        """How many items wait. By the time it returns another process may have changed that."""

    @abstractmethod
    def _wait(self, deadline: Deadline) -> None: ...

    @abstractmethod
    def _peek(self, n: int) -> list[Taken]: ...

    def _wait_and_take(
        self, box: list[Taken], limit: int, block: bool, timeout: float | None, done: bool, reserved: int
    ) -> None:
        deadline = Deadline(timeout if block else 0)
        while not self._take(box, limit, done, reserved):
            if deadline.left() > 0:
                self._wait(deadline)
            elif not self._store.reap():  # a holder's death counts at once, even for who does not wait
                raise Empty

    def _take_some(
        self, box: list[Taken], max_items: int, block: bool, timeout: float | None, done: bool, reserved: int
    ) -> None:
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        if max_items < 1:
            raise ValueError("'max_items' must be at least 1")
        if not self._take(box, max_items, done, reserved):
            self._wait_and_take(box, max_items, block, timeout, done, reserved)

    def _take_many(
        self, box: list[Taken], max_items: int, block: bool, timeout: float | None, done: bool, reserved: int
    ) -> tuple[list[Taken], list[Any]]:
        self._take_some(box, max_items, block, timeout, done, reserved)
        loads = self._codec.loads
        try:
            return box, [loads[entry[3]](entry[5]) for entry in box]
        except Exception:
            taken = len(box)
            items = self._decode_each(box)
            if len(box) == taken and all(entry[3] in loads for entry in box):
                raise  # as in `get`
            return box, items

    def _decode_each(self, box: list[Taken]) -> list[Any]:
        """One by one; what cannot be decoded is a dead letter now, and no longer in the box. Raises if that was all."""
        items = []
        for entry in list(box):
            try:
                items.append(self._codec.decode(entry[3], entry[5], self._store.path, entry[0]))
            except DecodeError:
                self._store.untake([entry], dead_letter=True, was_dead=self._dead)
                box.remove(entry)
                if not box:
                    raise
        return items

    def _give_back(self, box: list[Taken], exc: BaseException) -> None:
        if box:
            self._this_thread.unacked.forget(box)  # else `task_done` would be about what somebody else has
            self._store.untake(box, isinstance(exc, DecodeError), was_dead=self._dead)
