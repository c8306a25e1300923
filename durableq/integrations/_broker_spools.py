"""The spools that one connection to a broker directory has open: what it puts into, takes from, claims and listens to."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from durableq import DurableQueue
from durableq._watch import GET, Call, Watch
from durableq.integrations._broker_directory import BrokerDirectory, Claim, Facts

_IDLE = 32
"""Most spools that stay open only because something was put into them once: a reply goes to a queue of its own."""
_SWEEP = 1.0
"""Seconds between two looks for queues that nobody uses any more."""


class Spools:
    """Open spools by the name of their queue."""

    def __init__(self, path: str, **options: Any) -> None:
        """`options`: of DurableQueue."""
        self.directory = BrokerDirectory(path, **options)
        self.bell = Bell()
        self._open: dict[str, DurableQueue] = {}  # that which was used last is last
        self._claims: dict[str, Claim] = {}
        self._taken_from: set[str] = set()
        self._calls: dict[str, tuple[Watch, Call]] = {}
        self._next_sweep = 0.0

    # -- opening and closing -------------------------------------------------------------------------------------------

    def get(self, queue: str, *, create: bool) -> DurableQueue | None:
        """The spool of a queue; None if it is not there and is not to be created."""
        spool = self._open.pop(queue, None) or self.directory.open(queue, create=create)
        if spool is not None:
            self._keep(queue, spool)
        return spool

    def declare(self, queue: str, facts: Facts) -> None:
        """Create a queue if it is not there; one that does not outlive its users is claimed until `close`."""
        if queue not in self._open or (facts and queue not in self._claims):
            spool, claim = self.directory.declare(queue, facts)
            if queue in self._open:  # what is lent through the one that is open must not go back
                spool.close()
            else:
                self._keep(queue, spool)
            if claim:
                self._claims[queue] = claim

    def consume(self, queue: str) -> None:
        """The queue is going to be taken from, over and over."""
        self._taken_from.add(queue)
        if self.directory.facts(queue) is not None:
            if queue not in self._claims and (claim := self.directory.claim(queue)):
                self._claims[queue] = claim
            self.directory.consumed(queue)

    def take_from(self, queue: str) -> DurableQueue | None:
        """As `get`, and the spool stays open, for what is lent through it goes back when it is closed."""
        spool = self.get(queue, create=False)
        if spool is not None:
            self._taken_from.add(queue)
        return spool

    def forget(self, queue: str) -> None:
        """Close the spool of a queue that was or will be deleted, or that is to be opened anew."""
        self._hush(queue, used=False)
        if spool := self._open.pop(queue, None):
            spool.close()
        if claim := self._claims.pop(queue, None):
            claim.release()

    def delete(self, queue: str) -> None:
        """Delete a queue."""
        self.forget(queue)
        self.directory.remove(queue)

    def sweep(self) -> None:
        """Now and then, delete the queues that nobody uses any more."""
        if monotonic() > self._next_sweep:
            self._next_sweep = monotonic() + _SWEEP
            self.directory.sweep()

    def close(self) -> None:
        """Close all spools, delete the queues that end with this."""
        self.hush(used=False)
        while self._open:
            self._open.popitem()[1].close()
        claimed = bool(self._claims)
        while self._claims:
            self._claims.popitem()[1].release()
        if claimed:
            self.directory.sweep()

    def _keep(self, queue: str, spool: DurableQueue) -> None:
        self._open[queue] = spool
        if len(self._open) > _IDLE:
            oldest = next((name for name in self._open if name not in self._taken_from and name not in self._claims), queue)
            if oldest != queue:
                self._open.pop(oldest).close()

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(self, queues: Iterable[str]) -> bool:
        """Have the bell rung when there may be something in one of these queues; False if that is now."""
        wanted = set(queues)
        for queue in self._calls.keys() - wanted:
            self._hush(queue, used=False)
        for queue in wanted - self._calls.keys():
            spool = self.take_from(queue)
            if spool is None:
                continue
            store = spool._store
            if store.may_take():
                return False
            watch, call = Watch(store, GET), Call(self.bell.ring, store.may_take)
            armed = watch.arm(call)
            self._calls[queue] = watch, call
            if not armed:
                return False
        return True

    def hush(self, used: bool) -> None:
        """End `listen`; `used`: something was taken since."""
        for queue in list(self._calls):
            self._hush(queue, used)

    def _hush(self, queue: str, used: bool) -> None:
        if found := self._calls.pop(queue, None):
            watch, call = found
            watch.disarm(call, used)


class Bell:
    """A file descriptor that can be read when it was rung, from any thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Make the descriptor readable."""
        with self._lock:  # not while it is closed: the number may be another file's by then
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def quiet(self) -> None:
        """Undo all rings."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def wait(self, seconds: float | None) -> None:
        """Until it is rung, or so long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)

    def close(self) -> None:
        """Give back the descriptor."""
        with self._lock:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close
