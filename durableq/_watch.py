"""Waiting for a queue without blocking: a thread sleeps for all who wait for the same thing through one handle.

An event loop cannot sleep on a futex, and a futex has no file descriptor. Whoever must not block arms a call here, and a
thread that sleeps as any blocking `get`, `put` or `join` would makes it.

    1. A call is armed first and the caller looks once more then: what comes before that look is seen by it, what comes
       after it finds the call armed.
    2. A call is made at most once for each arming, and promises nothing: the caller tries, and if refused arms it again.
    3. The oldest call decides when it is time. As many are made as there may be use for, and no more before those have
       answered (`disarm`), so that a thousand waiters do not all run for one item.
    4. A wake of which no use was made (who was called has gone away) is passed on to whoever sleeps elsewhere.
    5. While a call is armed the thread sleeps in the store's own wait: it notices holders that die and items that fall due
       as the others do. While none is, it does not count as a sleeper; it ends after a while, and with its handle.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from durableq._state import DELAYED, MAXSIZE
from durableq._store import Store
from durableq._wakeup import EVERYBODY, GET, JOIN, PUT, Condition, Deadline

_LINGER = 1.0
"""Seconds for which a thread without anything to do stays, and for which who was called may take to answer."""


class Call:
    """What to do once, in the thread of a Watch, when `ready` may have come true. It must not block."""

    __slots__ = ("make", "ready")

    def __init__(self, make: Callable[[], object], ready: Callable[[], bool]) -> None:
        self.make = make
        self.ready = ready


class Watch:
    """One thing that can be waited for through one handle: an item (GET), room (PUT), or the end of all work (JOIN)."""

    def __init__(self, store: Store, condition: Condition) -> None:
        self._store = store
        self._condition = condition
        self._deadline = _WhileArmed(self)
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self.armed: dict[Call, None] = {}
        self._made: set[Call] = set()
        self._thread: threading.Thread | None = None
        self._news = threading.Condition()

    def arm(self, call: Call) -> bool:
        """Have a call made when its time comes; False if that is now, and there is nothing to wait for.

        Raises OSError (EAGAIN) if the system has no room for the thread; the call is not armed then.
        """
        with self._news:
            if self._thread is None:
                self._thread = self._started()
            self.armed[call] = None
            self._news.notify()
        return not call.ready()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="durableq-watch", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # Python's word for it; a fork that is refused says it so
            raise OSError(errno.EAGAIN, str(exc)) from exc
        return thread

    def disarm(self, call: Call, used: bool) -> None:
        """The call need not be made any more, or it was made and this is the answer; `used`: something was taken or put."""
        with self._news:
            was_made = call in self._made
            self._made.discard(call)
            self.armed.pop(call, None)
            others = bool(self.armed)
            if others:
                self._news.notify()
        if was_made and not used and not others:
            self._pass_on()

    def _run(self) -> None:
        while self._is_wanted():
            count = EVERYBODY
            with suppress(Exception):  # all are called then, and each gets it from a try of its own
                if self._condition is not GET or not self._store.spin_for_item():
                    self._store._wait(self._condition, self._is_time, self._deadline)
                count = max(1, self._useful())
            self._make(count)

    def _is_wanted(self) -> bool:
        with self._news:
            return self._has_call()

    def _has_call(self) -> bool:
        while self._made or not self.armed:
            if not self._news.wait(_LINGER):
                self._made.clear()
                if not self.armed:
                    self._thread = None
                    return False
        return True

    def _is_time(self) -> bool:
        with self._news:
            oldest = next(iter(self.armed), None)
        return oldest is not None and oldest.ready()

    def _useful(self) -> int:
        """How many may find what they wait for."""
        words, control = self._store._words, self._store._control
        if self._store._barred is not None or self._condition is JOIN:
            return EVERYBODY
        if self._condition is PUT:
            return words[MAXSIZE] - control.waiting()
        return control.waiting() - words[DELAYED]

    def _make(self, count: int) -> None:
        with self._news:
            calls = list(islice(self.armed, count))
            for call in calls:
                del self.armed[call]
            self._made.update(calls)
        if not calls:
            self._pass_on()
        for call in calls:
            try:
                call.make()
            except Exception:  # such as of an event loop that has ended
                self.disarm(call, used=False)

    def _pass_on(self) -> None:
        if self._store._words[self._condition[0]]:
            self._store._wakeup.wake(self._condition)


class _WhileArmed(Deadline):
    """A wait that ends when nobody wants it any more."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.proxy(watch)

    def left(self) -> float:
        return float("inf") if self._watch.armed else 0.0


_all: weakref.WeakSet[Watch] = weakref.WeakSet()


def _forget_after_fork() -> None:
    # Who waits in the parent does not wait here, and the thread did not come along.
    for watch in list(_all):
        watch._forget()


os.register_at_fork(after_in_child=_forget_after_fork)

__all__ = ["GET", "JOIN", "PUT", "Call", "Watch"]
