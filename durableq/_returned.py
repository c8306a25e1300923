"""The consumers' end, for what came back: taking once more what was given back or fell due, and taking dead letters.

All of it has a ledger entry, and it is the entry that changes hands: the head does not move. Also the pieces of which every
path of the consumers' end is made: a record's state, damage set aside, sorting out what an interrupt left, and telling whom it
concerns. See `_store` for the invariants.
"""

from __future__ import annotations

import time
from contextlib import suppress

from durableq import _os
from durableq._compiled import crc32
from durableq._handle import Handle
from durableq._leases import DEAD_CODE, DEAD_LENT, MAX_COUNT, RETURNED_CODE, Taken
from durableq._reclaim import BATCH
from durableq._record import DEAD as STATE_DEAD
from durableq._record import (
    DONE,
    DONE_BYTE,
    DUE_OFFSET,
    HEADER_SIZE,
    MAGIC,
    STATE_OFFSET,
    encode_due,
    settle_state,
    unpack_header,
)
from durableq._state import (
    DAMAGED,
    DAMAGED_BYTES,
    GET_WAITERS,
    JOIN_WAITERS,
    NEVER,
    NEXT_DUE,
    PUT_WAITERS,
    RETURNED,
    SHUTDOWN,
    UNPUNCHED,
)
from durableq._stepping import at_head
from durableq._wakeup import EVERYBODY, GET, JOIN, PUT
from durableq.errors import ClosedError, ShutDown

WINDOW = 64 << 10
"""Bytes read ahead. Published records do not change (but for their state, which is READY behind the head)."""


class Returned(Handle):
    """How consumers take what came back, and the pieces of all that they do."""

    _max_deliveries = 0
    _lease_ms = 0

    # -- taking --------------------------------------------------------------------------------------------------------

    def _take_returned(self, box: list[Taken], limit: int, done: bool, reserved: int) -> None:
        """Take what was given back or fell due, oldest first: it is older than everything at the head."""
        words, ledger = self._words, self._ledger
        self._let_fall_due()
        while words[RETURNED] and len(box) < limit:
            i = ledger.next_returned()
            if i < 0:
                ledger.recount(self._control.head()[0])
                continue
            self._take_entry(i, box, done, reserved, self._own_code)
        if words[UNPUNCHED] >= BATCH:
            self._tidy()

    def is_due(self) -> bool:
        """Whether a delay or a lease may have ended that nobody has looked after yet."""
        due: int = self._words[NEXT_DUE]
        return due != NEVER and due <= time.time_ns() // 1_000_000

    def _let_fall_due(self) -> None:
        """Under the head lock: what is due is back now, or a dead letter."""
        if self.is_due():
            self._ledger.expire(time.time_ns() // 1_000_000, self._end_lease)
            self._letters_came()

    def _end_lease(self, i: int) -> None:
        # At once and one by one, not by `_retire`: that looks at all that was given back, and something may fall due at any
        # time. When a delay ends there is nothing to retire: the nack has looked.
        if self._max_deliveries and self._ledger.count[i] & MAX_COUNT >= self._max_deliveries:
            self._bury_letter(i)
        else:
            self._ledger.change(i, RETURNED_CODE)

    def take_dead(self, box: list[Taken], limit: int, done: bool, reserved: int = 0) -> bool:
        """As `take`, from the dead letters. Raises ShutDown if there is none and the queue was shut down."""
        self._check()
        self._take_letters(box, limit, done, reserved)
        if done and box:
            self._is_done()
            if self._words[UNPUNCHED] >= BATCH:
                self._tidy_up()
        if not box and self._words[SHUTDOWN]:
            raise ShutDown
        return bool(box)

    @at_head
    def _take_letters(self, box: list[Taken], limit: int, done: bool, reserved: int) -> None:
        try:
            self._fill_letters(box, limit, done, reserved)
        except BaseException:
            self._sort_out(box, bytes([STATE_DEAD]))
            raise

    def _fill_letters(self, box: list[Taken], limit: int, done: bool, reserved: int) -> None:
        self._let_fall_due()
        i = self._ledger.next_dead()
        while i >= 0 and len(box) < limit:
            self._take_entry(i, box, done, reserved, self._own_code | DEAD_LENT)
            i = self._ledger.next_dead(i + 1)

    def _take_entry(self, i: int, box: list[Taken], done: bool, reserved: int, code: int) -> None:
        ledger = self._ledger
        position, size = ledger.position[i], ledger.size(i)
        at = position - self._back_at
        if at < 0 or at + size > len(self._back):
            ahead = min(WINDOW, self._control.head()[0] - position)
            self._back = _os.pread(self._fd, max(size, ahead), position - self._head_base).ljust(HEADER_SIZE, b"\0")
            self._back_at = position
            at = 0
        magic, state, _, tie, found, _, length, total, enqueued, tag, _, check = unpack_header(self._back, at)
        payload = self._back[at + HEADER_SIZE : at + HEADER_SIZE + length]
        if (
            magic != MAGIC
            or found != position
            or crc32(self._back[at + 24 : at + 44], self._salt) != check
            or tie != check & 0xFFFF
            or crc32(payload) != total
        ):
            self._set_aside(position, position + size)
            self._write_state(position, DONE_BYTE)
            ledger.free(i)
            return
        # What was read ahead may be older than its return: so look at the mark itself before believing it.
        if settle_state(state) == DONE and settle_state(self._read_state(position)) == DONE:
            ledger.free(i)  # its holder died between the mark and the entry
            return
        count = (ledger.count[i] & MAX_COUNT) + 1
        if self._max_deliveries:
            if not code & DEAD_LENT and count > self._max_deliveries:
                self._bury_letter(i)
                self._letters_came()
                return
            # In the file as well: an item that brings the machine down must not get all its chances again each time.
            _os.pwrite(self._fd, bytes([min(count, 255)]), position - self._head_base + STATE_OFFSET + 1)
        count = min(count, MAX_COUNT)
        if done:
            box.append((position, -1, count, tag, enqueued, payload))
            self._write_state(position, DONE_BYTE)
            self._words[UNPUNCHED] += ledger.free(i)
        else:
            box.append((position, i, count | reserved, tag, enqueued, payload))
            ledger.count[i] = count | reserved
            # Without a lease too: who had it before may have extended his.
            ledger.set_until(i, time.time_ns() // 1_000_000 + self._lease_ms if self._lease_ms else NEVER)
            self._words[self._lent_word] = 1
            ledger.change(i, code)

    def _sort_out(self, box: list[Taken], state: bytes, begun: int = 0) -> None:
        """Interrupted, and still under the lock: keep in the box what was taken, undo what was not; others may take it next.

        `begun`: so many were taken before under the lock, and nothing is to be sorted out about them. Who was interrupted on
        the way to the lock has put in no others, and may not look into the ledger.
        """
        if len(box) == begun:
            return
        head = self._control.head()[0]
        kept, others = [], []
        for taken in box[begun:]:
            position, index = taken[:2]
            i = self._ledger.find(position, max(index, 0)) if position < head else -1
            if index >= 0:
                if i >= 0 and self._ledger.owner[i] & ~DEAD_LENT == self._own_code:
                    kept.append(taken)
            elif i >= 0 or position >= head:
                others.append(position)
            else:
                kept.append(taken)
        box[begun:] = kept
        for position in others:  # it may be marked, but it has its place in the queue
            with suppress(OSError):  # a disk that refuses this has refused the mark
                self._write_state(position, state)

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Enough has died to give space back."""
        if not self._reclaimer.rewind():
            self._reclaimer.run()
            self._reclaimer.trim()
        self._leave_head()

    def _tidy_up(self) -> None:
        """Enough has died to give space back. Not in the step that made it done: what the disk refuses here, and may leave half
        done for the next one under the lock to mend, changes nothing about that.
        """
        with suppress(OSError, ClosedError):  # a sync that failed has barred this handle; another thread may have closed it
            self._tidy_locked()

    @at_head
    def _tidy_locked(self) -> None:
        if self._words[UNPUNCHED] >= BATCH:
            self._tidy()

    def _bury_letter(self, i: int) -> None:
        self._write_state(self._ledger.position[i], bytes([STATE_DEAD]))
        self._ledger.change(i, DEAD_CODE)

    def _write_state(self, position: int, state: bytes) -> None:
        _os.pwrite(self._fd, state, position - self._head_base + STATE_OFFSET)

    def _read_state(self, position: int) -> int:
        return _os.pread(self._fd, 1, position - self._head_base + STATE_OFFSET)[0]

    def _write_due(self, position: int, due: int) -> None:
        _os.pwrite(self._fd, encode_due(due).to_bytes(8, "little"), position - self._head_base + DUE_OFFSET)

    def _set_aside(self, position: int, end: int) -> int:
        """Keep damaged bytes in `q.dq-damaged` and count them; 0 if there is no room for a record in them: no damage."""
        if end - position < HEADER_SIZE:
            return 0
        self._spool.set_aside(position, position - self._head_base, end - position)
        self._words[DAMAGED] += 1
        self._words[DAMAGED_BYTES] += end - position
        return 1

    def _is_done(self, count: int = 1) -> None:
        """So many items are done: tell who waits for that, and make it durable by the policy."""
        words = self._words
        if words[PUT_WAITERS]:
            self._wakeup.wake(PUT, count)
        if words[JOIN_WAITERS] and not self._control.unfinished():
            self._wakeup.wake(JOIN, EVERYBODY)
        if not self._committer.armed:
            self._committer.wrote()

    def _news(self) -> None:
        """Something may be ready that was not, or finished: wake whom it concerns."""
        if self._words[GET_WAITERS]:
            self._wakeup.wake(GET, EVERYBODY)
        self._letters_came()
        self._is_done()
