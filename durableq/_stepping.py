"""Stepping into the two hot locks with fresh eyes, and looking around before.

Everybody who works on a queue comes in here. What every path under a lock relies on:

    after `_see_tail` / `_see_head`   the cached base (and, at the head, the ledger's mapping) is that of the epoch in
                                      force, and nothing that a dead process left half done is left
    BUSY in T_STATE or H_STATE        is set when a holder of that lock died or was interrupted in the middle

The hot paths compare one word with the one they left (`_tail_calm`, `_calm`), and see nothing new when it is the same.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Concatenate, ParamSpec, TypeVar

from durableq import _os
from durableq._checkpoint import mark_head
from durableq._commit import Committer
from durableq._compiled import Ends
from durableq._leases import DEAD_CODE, MAX_COUNT, RETURNED_CODE
from durableq._lifetimes import is_leaving
from durableq._locks import HotLock
from durableq._owner import Owners
from durableq._reclaim import Reclaimer
from durableq._record import DEAD as STATE_DEAD
from durableq._record import DONE, STATE_OFFSET, TAG_PAD, settle_state
from durableq._runs import RunLedger
from durableq._scan import Reader
from durableq._spool import Spool
from durableq._state import BASE, BUSY, EPOCH, GET_WAITERS, H_STATE, LETTER_WAITERS, T_STATE, Control
from durableq._wakeup import EVERYBODY, GET, JOIN, LETTER, PUT, Wakeup
from durableq.errors import ClosedError, DurableQError, PoisonedError

_LOOK = 0.005
"""Seconds for which a handle that is busy believes that nobody died: so long may what a dead process held be overtaken by
what waits. A look costs a microsecond for each owner, and at most a fiftieth of the time goes into it."""

H = TypeVar("H", bound="Stepping")
P = ParamSpec("P")
T = TypeVar("T")


def at_tail(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """Run a method under the tail lock, stepped in; for paths that are not hot."""

    def locked(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def work() -> T:
            self._see_tail()
            return method(self, *args, **kwargs)

        try:
            return self._tail.hold(work)
        except OSError as exc:
            raise self._refused(exc) from exc.__cause__

    functools.update_wrapper(locked, method)
    return locked


def at_head(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """Run a method under the head lock, stepped in and out; for paths that are not hot."""

    def locked(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def work() -> T:
            self._see_head()
            result = method(self, *args, **kwargs)
            self._leave_head()
            return result

        try:
            return self._head.hold(work)
        except OSError as exc:
            raise self._refused(exc) from exc.__cause__

    functools.update_wrapper(locked, method)
    return locked


class Stepping(Ends):
    """The way into the locks of a handle that is open: `_handle` fills in what is only declared here."""

    _barred: DurableQError | None
    """What every operation raises from now on: the handle is closed or poisoned."""
    _fd: int
    _words: memoryview
    _control: Control
    _spool: Spool
    _ledger: RunLedger
    _tail: HotLock
    _head: HotLock
    _owners: Owners
    _wakeup: Wakeup
    _reclaimer: Reclaimer
    _committer: Committer

    def _check(self) -> None:
        """Raise what bars this handle from working: closed or poisoned. Reopen what a fork has left unusable."""
        raise NotImplementedError

    def _bar(self, error: DurableQError) -> None:
        if self._barred is None or isinstance(error, ClosedError):
            self._barred = error
        self._unfit = True

    def _refused(
        self, exc: BaseException, what: str = "the disk refused", changed: str = "what was done before stays done"
    ) -> BaseException:
        """What to raise for an exception that came under a lock: itself, or one that names the file if it is the disk's."""
        if isinstance(exc, PoisonedError):
            self._bar(exc)
        return self._spool.named(exc, what, changed)

    def _check_barred(self) -> None:
        if self._barred is not None:
            raise copy(self._barred)  # with its file, which the args of an OSError leave out, and without its traceback

    # -- looking around ------------------------------------------------------------------------------------------------

    def look_if_due(self) -> None:
        """Before many items are put or taken in one compiled call: it would leave all of them to its twin for a look."""
        if time.monotonic() > self._look_at and not self._unfit:
            self._look_around()

    def _look_around(self) -> bool:
        """Now and then: is the path still ours, did a holder of lent items die? Whether something was returned."""
        try:
            return self._look()
        except OSError as exc:
            if exc.errno == errno.EBADF:  # another thread closes this handle, or forked: say so
                self._check()
            raise

    def _look(self) -> bool:
        began = time.monotonic()
        if not is_leaving():  # the files of anonymous queues go before the last threads do, who need only what is open
            self._spool.check_replaced()
        died = self._owners.someone_died()
        now = time.monotonic()
        self._look_at = now + max(_LOOK, 50 * (now - began))
        returned = self._reap() if died else 0
        if returned and self._words[GET_WAITERS]:
            self._wakeup.wake(GET, returned)
        if died:
            self._letters_came()
        self._owners.pay_syncs(self._committer.sync_now)
        return returned > 0

    @at_head
    def _reap(self) -> int:
        returned = self._owners.reap(self._ledger)
        if returned:
            self._retire()
        return returned

    def _retire(self) -> None:
        """After items came back in bulk: those that were delivered often enough are dead letters now. Under the head lock.

        Who leaves the lock in order leaves none of them among what was given back. Who dies before he has come to all of them
        leaves BUSY, and so `_mend` comes here too.
        """
        most = self._spool.options.max_deliveries
        ledger = self._ledger
        i = ledger.search(RETURNED_CODE) if most else -1
        while i >= 0:
            if ledger.count[i] & MAX_COUNT >= most:
                _os.pwrite(self._fd, bytes([STATE_DEAD]), ledger.position[i] - self._words[BASE] + STATE_OFFSET)
                ledger.change(i, DEAD_CODE)
            i = ledger.search(RETURNED_CODE, i + 1)

    def _letters_came(self) -> None:
        """There may be dead letters that nobody has: wake who waits for them. Under the head lock, or after it."""
        if self._words[LETTER_WAITERS]:
            self._wakeup.wake(LETTER, EVERYBODY)

    # -- stepping in ---------------------------------------------------------------------------------------------------

    def _see_tail(self) -> None:
        """Under the tail lock: catch up with the epoch."""
        self._check_barred()
        if self._words[EPOCH] & 1:
            self._head.hold(self._reclaimer.settle)
        if self._words[T_STATE] & BUSY:
            # Cut off what was written and not published: a batch that the next put covers in part would otherwise be
            # found, in part, by the next boot.
            self._reclaimer.cut_tail()
        self._base = self._words[BASE]
        self._tail_calm = self._control.settle_tail_state()

    def _see_head(self) -> None:
        """Under the head lock: catch up with the epoch, and end what a dead process left half done."""
        self._check_barred()
        words = self._words
        while words[EPOCH] & 1:
            if self._tail.hold_if_free(self._reclaimer.settle):
                continue
            # A producer has the tail; it may want the head to settle this itself. Let it.
            _os.mutex_unlock(self._head.address)
            time.sleep(0.001)
            if code := _os.mutex_try(self._head.address):
                self._head.wait(code)
        self._ledger.attach()
        if words[H_STATE] & BUSY:
            self._mend()
            self._owners.count_waiters()
            words[EPOCH] += 2
        self._leave_head()

    def _mend(self) -> None:
        """Under the head lock, after somebody left in the middle: make head, entries and counts agree with the records."""
        words, control = self._words, self._control
        base = words[BASE]
        head, sequence = control.head()
        tail, tail_sequence = control.tail()
        position = head
        reader = Reader(self._spool.fd, self._spool.salt, base)
        # Marked as done, and the store that takes it never came: it is gone for everybody, so it must not count.
        while position < tail:
            header = reader.header(position)
            if header is None or header.state != DONE or position + header.size > tail:
                break
            position += header.size
            sequence += header.tag != TAG_PAD
        if position != head:
            control.set_head(position, sequence if position < tail else tail_sequence)
            mark_head(self._spool, control)
        self._ledger.recount(position)
        self._ledger.agree(lambda at: settle_state(_os.pread(self._spool.fd, 1, at - base + STATE_OFFSET)[0]))
        with suppress(OSError):  # who takes one of them looks once more
            self._retire()

    def _leave_head(self) -> None:
        """Under the head lock, when the change is complete: say so, and whether the next one finds something unusual."""
        self._head_base = self._words[BASE]
        self._ledger_region, self._ledger_address = self._ledger.place
        self._calm = self._control.settle_head_state()

    def _wake_everybody(self) -> None:
        for condition in (GET, PUT, JOIN, LETTER):
            if self._words[condition[0]]:
                self._wakeup.wake(condition, EVERYBODY)
