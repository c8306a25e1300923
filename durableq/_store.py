"""The queue of bytes: both ends, and what concerns them both. The only place where locks nest (tail, then head).

What keeps it right when a process dies between any two lines:

    1. What is past the published tail does not exist. A put is one store (T_COMMIT) after its bytes are written.
    2. A record at or behind the head is waiting; before the head it is done, or it has a ledger entry. Taking an item is
       one store (H_COMMIT) after its entry or its done mark is written.
    3. Done is a byte in the record, written before the entry is struck out: an entry that outlives its record is noticed
       when it is taken; a record that outlived its entry would be lost, and cannot happen.
    4. Who gets a lock whose holder died is told so, and derives anew what it may have left half done.
    5. A dead owner's kernel lock is free, and all entries under its code go back to the queue before its slot is reused.

Its parts are layers of one class, each in a module of its own, from below:

    _stepping   into the locks with fresh eyes          _settle    items in hand: ack, nack, reject, redrive
    _handle     opening, closing, forking               _tail      putting
    _returned   taking what came back, dead letters     _inspect   looking
    _head       taking the oldest items                 here       waiting, and what concerns both ends

`take` and `append` return at once; the waits here only wait, and the caller tries again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from durableq._checkpoint import DISTANCE, mark_head, mark_tail_synced
from durableq._inspect import Inspector
from durableq._leases import DELAYED_CODE, RETURNED_CODE
from durableq._locks import under_cold_lock
from durableq._record import DONE_BYTE, HEAD_SIZE
from durableq._spool import Options
from durableq._state import (
    H_COMMIT,
    MAXSIZE,
    NEVER,
    NEXT_DUE,
    PUT_DELAYED,
    RETURNED,
    SEEN_DELAYED,
    SHUTDOWN,
    T_COMMIT,
)
from durableq._stepping import at_head, at_tail
from durableq._wakeup import GET, JOIN, LETTER, PUT, RECHECK, Condition, Deadline

_SPINS = 300
"""Looks before a sleep, some 30 microseconds: a round trip through the scheduler costs more than that."""

_IDLE = 1.7
"""How much longer a sleep lasts while nobody has anything whose death would matter: what is lent to somebody who is killed
within one sleep still comes back in less than 0.2 s."""
_LOOK_ANYWAY = 1.0
"""Seconds after which a sleeper looks around although nobody has lent items or owes a sync: is the path still ours?"""


class Store(Inspector):
    """A queue of bytes on a spool file. See the module."""

    def __init__(self, path: str, options: Options, **how: Any) -> None:
        super().__init__(path, options, **how)
        self.options = stored = self._spool.options
        self._max_bytes = stored.max_bytes
        self._drop_policy = stored.on_full == "drop_oldest"
        self._max_deliveries = stored.max_deliveries
        self._lease_ms = stored.lease_ms

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait_for_item(self, deadline: Deadline) -> None:
        """Sleep until an item may be ready, or none will come any more after a shutdown, or the deadline."""
        if not self.spin_for_item():
            self._wait(GET, self.may_take, deadline)

    def spin_for_item(self) -> bool:
        """Look for an item for as long as a trip through the scheduler would take; whether there may be one."""
        words = self._words
        for _ in range(_SPINS):
            if words[T_COMMIT] >> 1 != words[H_COMMIT] >> 1 or words[RETURNED]:
                return True
            if words[SHUTDOWN]:
                break
        return self._has_ended()

    def wait_for_dead_letter(self, deadline: Deadline) -> None:
        """Sleep until there may be a dead letter to take, the queue was shut down, or the deadline."""
        self._wait(LETTER, lambda: self._words[SHUTDOWN] > 0 or self.dead_letters() > 0, deadline)

    def wait_for_room(self, body: bytes, deadline: Deadline) -> None:
        """Sleep until there may be room for a record with this body, the queue was shut down, or the deadline."""
        self._wait(PUT, lambda: self.may_put(body), deadline)

    def may_put(self, body: bytes) -> bool:
        """Whether a put that found no room is worth another try. What there is counts, not what has changed: what changed
        between the try and this look would be waited for in vain.
        """
        words = self._words
        if words[SHUTDOWN]:
            return True
        if words[MAXSIZE] and self._control.waiting() >= words[MAXSIZE]:
            return False
        if not self._max_bytes or self.live_bytes() + HEAD_SIZE + len(body) <= self._max_bytes:
            return True
        return self._drop_policy and self.may_drop_for(body)

    def wait_until_finished(self) -> None:
        """Sleep until nothing is unfinished; if this handle counts off what it takes, until that has been done too."""

        def finished() -> bool:
            return not (self._control.unfinished() or (self._counts_off and self._handed_out))

        self._check()
        while not finished():
            self._wait(JOIN, finished, Deadline(None))
            self._check()

    def _wait(self, condition: Condition, ready: Callable[[], bool], deadline: Deadline) -> None:
        slot = self._owners.slot
        asleep: list[Condition] = []
        try:
            self._lie_down(condition, asleep)
            self._sleep(condition, ready, deadline)  # no loop of our own here: see `_locks` on interrupts
        finally:
            try:
                self._get_up(asleep, slot)
            except BaseException:  # interrupted in the very act
                self._get_up(asleep, slot)
                raise

    def _sleep(self, condition: Condition, ready: Callable[[], bool], deadline: Deadline) -> None:
        look_at = 0.0
        while self._barred is None:
            value = self._wakeup.read(condition)  # before the look: what comes after the look changes it
            if ready():
                break
            now, watchful = time.monotonic(), self._owners.any_matters()
            if now >= look_at or watchful:
                look_at = now + _LOOK_ANYWAY
                if self._look_around():
                    break
            if self.is_due():
                self._look_at_clock()
                continue
            due = self._words[NEXT_DUE]
            seconds = min(deadline.left(), RECHECK if watchful else _IDLE * RECHECK)
            if due != NEVER:
                seconds = min(seconds, max(0.001, due / 1000 - time.time()))
            if seconds <= 0:
                break
            self._wakeup.sleep(condition, value, seconds)

    @at_head
    def _look_at_clock(self) -> None:
        self._let_fall_due()

    @at_head
    def _lie_down(self, condition: Condition, asleep: list[Condition]) -> None:
        self._wakeup.enter(condition, self._owners.slot, asleep)
        if self._words[self._lent_word] and not self._ledger.holds(self._own_code):
            self._words[self._lent_word] = 0  # holds nothing: nobody need watch over this owner

    def _get_up(self, asleep: list[Condition], slot: int) -> None:
        if asleep and self._barred is None and self._owners.slot == slot:
            self._rise(asleep, slot)

    @at_head
    def _rise(self, asleep: list[Condition], slot: int) -> None:
        self._wakeup.leave(slot, asleep)

    def reap(self) -> bool:
        """Return what the dead held, now; whether there was anything."""
        self._check()
        return self._look_around()

    # -- both ends -----------------------------------------------------------------------------------------------------

    def shutdown(self, immediate: bool) -> None:
        """No more puts for anybody, and no more gets once nothing waits, nor for its time; `immediate`: it is emptied now."""
        self._check()
        if immediate:
            self.purge()
        self._set_shutdown(2 if immediate else 1)
        if immediate:
            self.purge()  # what was put between the two
        self._wake_everybody()

    @at_tail
    @at_head
    def _set_shutdown(self, value: int) -> None:
        self._words[SHUTDOWN] = max(self._words[SHUTDOWN], value)
        self._control.settle_tail_state()

    def purge(self) -> int:
        """Remove everything that waits, ready or delayed; durable when it returns; how many items."""
        self._check()
        removed = self._purge_locked()
        self._committer.sync_now()
        self._news()
        return removed

    @at_tail
    @at_head
    def _purge_locked(self) -> int:
        removed = self._control.waiting()
        low = self._control.head()[0]
        high, sequence = self._control.tail()
        # What is dead in the file is never behind the limit that recovery starts from, so the checkpoint comes first.
        # Then one write makes all of it dead, and only what is dead in the file too is passed by the head.
        # The tail's too: counting cannot begin at a place inside of what is buried.
        self._spool.sync()
        mark_tail_synced(self._spool, self._control)
        mark_head(self._spool, self._control, high - low + DISTANCE)
        self._spool.sync()  # the checkpoints before the pads on the disk as well
        if high > low:
            self._reclaimer.bury(low, high)
        self._control.set_head(high, sequence)
        mark_head(self._spool, self._control)
        self._reclaimer.punch(low, high)
        for code in (RETURNED_CODE, DELAYED_CODE):
            i = self._ledger.search(code)
            while i >= 0:
                self._write_state(self._ledger.position[i], DONE_BYTE)
                self._ledger.free(i)
                i = self._ledger.search(code, i + 1)
        self._words[SEEN_DELAYED] = self._words[PUT_DELAYED]
        self._reclaimer.run()
        return removed

    def compact(self) -> int:
        """Give back all space that can be given back now, and cut the hole in front out of the file; bytes given back."""
        self._check()
        return under_cold_lock(self.path, self._compact_locked)

    @at_tail
    @at_head
    def _compact_locked(self) -> int:
        before = os.fstat(self._fd).st_blocks
        mark_head(self._spool, self._control)
        self._reclaimer.punch_floor()
        self._reclaimer.sweep(1)
        self._reclaimer.collapse()
        return (before - os.fstat(self._fd).st_blocks) * 512

    def sync(self) -> None:
        """Return once everything that was put or done before this call is on the disk, whatever the policy."""
        self._check()
        self._committer.sync_now()

    @property
    def maxsize(self) -> int:
        """The bound on waiting items in force, for all handles; 0: none."""
        return self._words[MAXSIZE]

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._check()
        self._set_maxsize(max(0, value))
        self._wake_everybody()

    @at_tail
    def _set_maxsize(self, value: int) -> None:
        self._spool.store_options(replace(self._spool.options, maxsize=value))
        self._words[MAXSIZE] = value
