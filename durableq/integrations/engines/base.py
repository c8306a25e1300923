"""What a queue asks of an engine elsewhere, and what all engines have in common: the list of what is lent to this process.

An engine implements the methods with an underscore at the end of this list; the others, which the reading half of a queue
calls, are made of them here.

    append(bodies, delay)       put them, in order; how many (fewer: there is no room for the rest)
    waiting, unfinished         counts, for qsize and join
    purge, redrive, peek        as in DurableQueue
    _fetch(limit, done, wait)   take items, at once or within `wait` seconds; `done`: for good
    _ack, _nack, _release, _reject, _extend    settle one; False if it is no longer ours, and then nothing was changed
    _beat()                     called every `beat` seconds as long as anything is lent: give a sign of life
    _abandon()                  after a fork, in the child: what belongs to the parent is left to it

A token is what the engine itself calls the delivery. Positions, which stand for tokens above, are numbers of this process. What
was fetched and not noted down (the process was interrupted in between) is lent to nobody: the engine gives it to
another as it would after our death.

Every call may raise UnreachableError: then it may or may not have happened, as with any network. An item can so be put
twice by who tries again, and be delivered twice; its id (`Delivery.id`) tells.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from durableq._headers import with_headers
from durableq._leases import MAX_COUNT, Taken
from durableq._record import TAG_HEADERS
from durableq._wakeup import Deadline
from durableq.errors import ClosedError, DurableQError, UnsupportedError

__all__ = ["Body", "Engine", "Fetched", "as_text", "number"]


class Body(NamedTuple):
    """An item on its way in."""

    payload: bytes
    tag: int
    """Of its serializer."""
    enqueued: int
    """Microseconds since 1970."""
    id: str = ""
    """Its name, if it has one already."""

    def carrying(self, headers: Mapping[str, str]) -> Body:
        """With headers that travelled beside it, for `Delivery.headers`."""
        if not headers or self.tag & TAG_HEADERS:
            return self
        return self._replace(payload=with_headers(headers, self.payload), tag=self.tag | TAG_HEADERS)


class Fetched(NamedTuple):
    """An item that was taken."""

    token: Any
    id: str
    deliveries: int
    body: Body


def number(value: Any) -> int | None:
    """A number in a message; None if there is none, or something else, since somebody else has sent it."""
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found < 1 << 63 else None


def as_text(value: Any) -> str:
    """What stands in a message, as text, whatever it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Held(NamedTuple):
    token: Any
    id: str
    reserved: bool


class Engine(ABC):
    """A connection to a queue of an engine. See the module."""

    path: str
    """Which queue of which engine, for people: no password."""
    max_deliveries: int | None = None
    lease: float | None = None
    """As of DurableQueue, where the engine has them."""
    beat = 0.0
    """Seconds between two signs of life; 0: none are needed."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._held: dict[int, _Held] = {}
        self._serial = 0
        self._lost = 0
        """The last item that was found to be held by somebody else."""
        self._beater: threading.Thread | None = None
        self._ended = threading.Event()
        _in_use.add(self)

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, box: list[Taken], limit: int, done: bool, reserved: int = 0, wait: float = 0.0) -> bool:
        """As `Store.take`; may wait up to `wait` seconds for the first item."""
        self.check()
        for token, id, deliveries, (payload, tag, enqueued, _) in self._fetch(limit, done, wait):
            with self._guard:
                position = self._serial = self._serial + 1
                if not done:
                    self._held[position] = _Held(token, id, bool(reserved))
            box.append((position, -1 if done else 0, min(deliveries, MAX_COUNT) | reserved, tag, enqueued, payload))
        if self._held and self.beat and self._beater is None:
            self._start_beating()
        return bool(box)

    def untake(self, box: list[Taken], dead_letter: bool = False, was_dead: bool = False) -> None:
        """As `Store.untake`; the engine of dead letters has its own for its own."""
        for position, index, count, tag, enqueued, payload in box:
            if index < 0 and dead_letter and not was_dead:
                with closing(self.dead_letters()) as letters:
                    letters.append([Body(payload, tag, enqueued)])
            elif index < 0:
                self.append([Body(payload, tag, enqueued)])
            elif dead_letter:
                self.reject(position, index, count)
            else:
                self.release(position, index, count)

    def told(self, done: bool, count: int) -> None:
        """Never called: engines have no compiled take."""
        raise NotImplementedError

    def reap(self) -> bool:
        """Nothing to do here: the engine itself looks after the dead, or `_fetch` does."""
        return False

    def name(self, position: int) -> str:
        """The id of an item that is lent to this process; of others it knows none."""
        held = self._held.get(position)
        return held.id if held else ""

    # -- settling ------------------------------------------------------------------------------------------------------

    def ack(self, position: int, index: int, count: int) -> bool:
        """It is done."""
        return self._settle(position, self._ack)

    def went_away(self, position: int, index: int, again: bool) -> bool:
        """As `Store.went_away`."""
        return self._lost == position

    def ack_oldest(self, dead: bool = False) -> bool:
        """The oldest item that was lent by `get` to this process is done; False if there is none.

        `dead` is false here: the dead letters have an engine of their own.
        What another process has is not ours to finish: no engine lets it.
        """
        self.check()
        with self._guard:
            mine = [position for position, held in self._held.items() if not held.reserved]
        return any(self.ack(position, 0, 0) for position in mine)

    def nack(self, position: int, index: int, count: int, delay: float = 0.0) -> bool:
        """Give it back."""
        return self._settle(position, lambda token: self._nack(token, delay))

    def release(self, position: int, index: int, count: int) -> bool:
        """Give it back uncounted."""
        return self._settle(position, self._release)

    def reject(self, position: int, index: int, count: int) -> bool:
        """Put it with the dead letters."""
        return self._settle(position, self._reject)

    def extend(self, position: int, index: int, count: int, seconds: float) -> bool:
        """Keep it for `seconds` from now."""
        self.check()
        held = self._held.get(position)
        return held is not None and self._extend(held.token, seconds)

    def _settle(self, position: int, change: Callable[[Any], bool]) -> bool:
        self.check()
        held = self._held.get(position)
        done = held is not None and change(held.token)
        if held is not None and not done:
            self._lost = position
        self._held.pop(position, None)  # after the change: it may raise, and can then be tried again
        return done

    def held(self) -> list[Any]:
        """The tokens of all that is lent to this process."""
        with self._guard:
            return [held.token for held in self._held.values()]

    # -- signs of life -------------------------------------------------------------------------------------------------

    def _start_beating(self) -> None:
        with self._guard:
            if self._beater is None:
                self._ended = threading.Event()
                self._beater = threading.Thread(
                    target=_keep_beating, args=(weakref.ref(self), self._ended, self.beat), name="durableq-beat", daemon=True
                )
                self._beater.start()

    def _after_fork(self) -> None:
        self._guard = threading.RLock()  # another thread of the parent may have held it
        self._held = {}  # what the parent has is the parent's to finish
        self._beater = None
        self._abandon()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait_for_room(self, deadline: Deadline, pause: float) -> None:
        """Wait for another process to take something."""
        self._ended.wait(min(pause, deadline.left()))
        self.check()

    # -- closing -------------------------------------------------------------------------------------------------------

    closed = False

    def check(self) -> None:
        """Raises ClosedError after `close`."""
        if self.closed:
            raise ClosedError(f"{self.path}: the queue is closed; connect again to go on")

    def close(self) -> None:
        """Give back what this process holds and leave. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self._ended.set()
            _in_use.discard(self)
            with suppress(DurableQError):  # if the engine is away, it gives all this back by itself
                self._leave()

    def unsupported(self, what: str, remedy: str = "") -> UnsupportedError:
        """The error for what this engine cannot do."""
        return UnsupportedError(f"{self.path}: {what}{f'; {remedy}' if remedy else ''}")

    # -- what an engine does -------------------------------------------------------------------------------------------

    @abstractmethod
    def append(self, bodies: Sequence[Body], delay: float = 0.0) -> int:
        """Put items in order; how many there was room for."""

    @abstractmethod
    def waiting(self) -> int:
        """Items that wait, ready or delayed."""

    def unfinished(self) -> int:
        """Items that wait or are lent, to whatever process."""
        raise self.unsupported("this engine does not tell how many items are lent, so nobody can wait for all to be done")

    def peek(self, n: int) -> list[Fetched]:
        """The first items, without taking them."""
        raise self.unsupported("this engine shows no item to who does not take it")

    @abstractmethod
    def purge(self) -> int:
        """Remove what waits; how many."""

    @abstractmethod
    def dead_letters(self) -> Engine:
        """The queue of the dead letters."""

    @property
    @abstractmethod
    def maxsize(self) -> int:
        """Most items that may wait; 0: no bound."""

    @maxsize.setter
    @abstractmethod
    def maxsize(self, value: int) -> None: ...

    @abstractmethod
    def _fetch(self, limit: int, done: bool, wait: float) -> list[Fetched]: ...

    @abstractmethod
    def _ack(self, token: Any) -> bool: ...

    @abstractmethod
    def _nack(self, token: Any, delay: float) -> bool: ...

    def _release(self, token: Any) -> bool:
        return self._nack(token, 0.0)

    @abstractmethod
    def _reject(self, token: Any) -> bool: ...

    @abstractmethod
    def _extend(self, token: Any, seconds: float) -> bool: ...

    @abstractmethod
    def _beat(self) -> None: ...

    @abstractmethod
    def _abandon(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...


def _keep_beating(reference: weakref.ref[Engine], ended: threading.Event, beat: float) -> None:
    """The life of the thread that gives signs of life. It holds no queue alive that its program has forgotten."""
    while not ended.wait(beat):
        engine = reference()
        if engine is None:
            return
        try:
            engine._beat()
        except DurableQError:
            pass  # the next beat tries again; who uses the queue is told
        except Exception:
            if not ended.is_set():  # else `close` has taken the connection from under us
                raise
        del engine


_in_use: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_in_use):
        engine._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
