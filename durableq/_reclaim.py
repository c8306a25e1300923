"""Space: punching what is dead, rewinding what is drained, collapsing what lies in front.

Dead records are given back in four ways, all under the head lock:

    floor     everything below the lowest live record, up to the block boundary below it
    sweep     dead runs between live records, so that a stuck item pins its block and no more
    rewind    the queue is drained: the next record goes to the front of the file again, over pages that are already there
              (records carry their position, so what lies there stale never passes for a record)
    collapse  the hole in front is cut out of a file that is never drained, where the file system can do it

Invariant: after a punch every byte between the front of the file and the tail is in a record (in whatever state), in a
pad, or zero. Punching frees whole blocks only, so the last, shared block keeps the end of a dead record: a pad is written
over it first, so that a reader who comes out of the hole finds a header and not the middle of somebody's payload.

A rewind or a collapse changes BASE for everybody. It holds both locks and makes EPOCH odd first and even last; who finds
it odd knows that its author died in between and calls `settle`.

Neither begins while BUSY is set in T_STATE: at its end all is said to be in order at the tail, and then nobody would cut off
what a producer wrote there and died before it was published. A collapse would leave it in its place behind the tail, where the
next boot finds it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from durableq import _os
from durableq._checkpoint import mark_head, mark_tail_synced
from durableq._ledger import Ledger
from durableq._locks import HotLock
from durableq._record import DONE_BYTE, HEADER_SIZE, STATE_OFFSET
from durableq._scan import Reader
from durableq._spool import SECTOR, SUPERBLOCK, Spool
from durableq._state import (
    BASE,
    BUSY,
    COVERED,
    EPOCH,
    H_STATE,
    LIVE,
    PENDING,
    PENDING_BASE,
    PENDING_SIZE,
    PUNCHED,
    SPECIAL,
    T_ROOM,
    T_STATE,
    UNPUNCHED,
    Control,
)

BATCH = 1 << 20
"""Bytes that die before space is given back: a punch costs as much for a block as for a megabyte."""
REWIND = 1 << 20
"""How far into the file a drained queue goes before it starts at the front again: small enough to stay in the cache."""
KEEP = 5 << 18
"""Bytes of a drained file that are kept for reuse rather than truncated."""
FOLIO = 2 << 20
"""What the kernel may keep as one piece of its cache, at most. A done mark through a mapped page gives blocks to all of the
piece that the page is in, also to the part that was punched."""
COLLAPSE_AT = 64 << 20
COLLAPSE_BEHIND = 16 << 20
"""Collapse a hole of at least the first with at most the second behind it: with thousands of extents behind the hole a
power cut left xfs with a half-shifted file, and the call first writes back all that is dirty there."""


class Reclaimer:
    """Gives space back for one handle."""

    def __init__(self, spool: Spool, control: Control, ledger: Ledger, tail_lock: HotLock) -> None:
        self._spool = spool
        self._control = control
        self._words = control.words
        self._ledger = ledger
        self._tail_lock = tail_lock
        self._can_punch = True
        self._can_collapse = True

    def run(self) -> None:
        """Give back what died since the last time; called once for each `BATCH` of dead bytes."""
        # The checkpoint first: what is punched above the head that recovery starts from could not be counted any more.
        mark_head(self._spool, self._control)
        self._words[UNPUNCHED] = 0
        self.punch_floor()
        dead = self._ledger.dead_bytes()
        if dead >= BATCH:
            self.sweep(BATCH // 64 if dead < 2 * BATCH else _os.BLOCK * 4)

    def trim(self) -> None:
        """Collapse the hole in front if it has become long, and no producer is at work this moment. Without the tail lock."""
        words = self._words
        hole = words[PUNCHED] - words[BASE] - SUPERBLOCK
        if hole >= COLLAPSE_AT and self._control.tail()[0] - words[PUNCHED] <= COLLAPSE_BEHIND:
            self._tail_lock.hold_if_free(self.collapse)

    def punch_floor(self) -> int:
        """Punch everything below the lowest live record; how many bytes."""
        words = self._words
        floor, before = self._ledger.floor(self._control.head()[0]), words[PUNCHED]
        if floor - before < _os.BLOCK:
            return 0
        # What marks above the last punch gave blocks to again is punched once more.
        low = max(before - FOLIO, words[BASE] + SUPERBLOCK)
        # It begins on a block boundary, as all punches end on one, so this is where it ends.
        words[PUNCHED] = max(before, low + self.punch(low, floor))
        return words[PUNCHED] - before

    def sweep(self, least: int) -> int:
        """Punch the dead runs between live records in the parts of the ledger where `least` bytes died; how many."""
        return sum(self.punch(low, high) for low, high in self._ledger.dead_ranges(least, self._control.head()[0]))

    def punch(self, low: int, high: int) -> int:
        """Punch the whole blocks within the dead positions [low, high), where a record or the tail begins at `high`."""
        base = self._words[BASE]
        start = low - base + _os.BLOCK - 1 & -_os.BLOCK
        end = high - base & -_os.BLOCK
        if end <= start or not self._can_punch:
            return 0
        if 0 < high - base - end < HEADER_SIZE:
            end -= _os.BLOCK  # too little is left there for a pad
        if end <= start:
            return 0
        if high - base > end:
            self._spool.cover(end + base, high, base)
        self._can_punch = _os.punch(self._spool.fd, start, end - start)
        return end - start if self._can_punch else 0

    def bury(self, low: int, high: int) -> None:
        """Make all records in the positions [low, high) dead at once: a pad over all of them."""
        self._words[COVERED] = 1
        base = self._words[BASE]
        reader = Reader(self._spool.fd, self._spool.salt, base)
        # A pad must be in one sector, or a power cut could leave half of it: no record, and none of the next is found.
        while low < high and (low - base) % SECTOR > SECTOR - HEADER_SIZE:
            header = reader.header(low)
            if header is None:
                break
            _os.pwrite(self._spool.fd, DONE_BYTE, low - base + STATE_OFFSET)
            low += header.size
        if low < high:
            self._spool.cover(low, high, base)
        # A later punch may end at either of the last block boundaries and take this pad's header with it, while its own pad
        # is not on the disk yet: what lies behind them must be dead by itself, or a power cut brings it back.
        last = (high - base & -_os.BLOCK) + base
        for boundary in (last, last - _os.BLOCK):
            if boundary > low and high - boundary >= HEADER_SIZE:
                self._spool.cover(boundary, high, base)

    def cut_tail(self) -> None:
        """End the file at the tail: nothing exists past it, not even for the next boot. Under the tail lock.

        On a disk that refuses this the bytes stay, past the tail all the same.
        """
        words = self._words
        tail = words[T_ROOM] = self._control.tail()[0]
        with suppress(OSError):
            _os.ftruncate(self._spool.fd, tail - words[BASE])

    def rewind(self) -> bool:
        """Start at the front of the file again, if the queue is drained and no producer is at work this moment.

        Without the tail lock.
        """
        return bool(self._tail_lock.hold_if_free(self._rewind))

    def _rewind(self) -> bool:
        words = self._words
        tail, _ = self._control.tail()
        if words[LIVE] or tail != self._control.head()[0] or words[EPOCH] & 1 or words[T_STATE] & BUSY:
            return False
        length = tail - words[BASE]
        pages = words[T_ROOM] - words[BASE]
        words[EPOCH] += 1
        words[BASE] = tail - SUPERBLOCK
        words[PUNCHED] = tail
        words[UNPUNCHED] = 0
        self._finish()
        words[COVERED] = 0
        if length > KEEP:
            pages = SUPERBLOCK + KEEP
            _os.ftruncate(self._spool.fd, pages)
        words[T_ROOM] = max(words[BASE] + pages, tail)
        return True

    def collapse(self) -> int:
        """Cut the hole in front out of the file; how many bytes it is shorter. Under both locks."""
        words = self._words
        base = words[BASE]
        length = words[PUNCHED] - base - SUPERBLOCK & -_os.BLOCK
        size = os.fstat(self._spool.fd).st_size
        if length <= 0 or SUPERBLOCK + length >= size or not self._can_collapse or words[T_STATE] & BUSY:
            return 0
        words[EPOCH] += 1
        words[PENDING_SIZE] = size
        words[PENDING_BASE] = base + length
        words[PENDING] = length
        # The intention must be on the disk before the deed: after a power cut the records' own positions tell which
        # side of the collapse the disk is on, and these checkpoints name the two sides. All that the tail's vouches for
        # must be there before it.
        self._spool.sync()
        mark_tail_synced(self._spool, self._control)
        mark_head(self._spool, self._control)
        self._spool.sync()
        self._can_collapse = _os.collapse(self._spool.fd, SUPERBLOCK, length)
        self._finish()
        return length if self._can_collapse else 0

    def settle(self) -> bool:
        """End a change of geometry whose author died in the middle, if there is one; under both locks. True."""
        if self._words[EPOCH] & 1:
            self._finish()
        return True

    def _finish(self) -> None:
        words = self._words
        collapsed = words[PENDING]
        if collapsed:
            # The size tells whether the collapse was done: nobody could append while both locks were held.
            if os.fstat(self._spool.fd).st_size <= words[PENDING_SIZE] - words[PENDING]:
                words[BASE] = words[PENDING_BASE]
            # The deed must be on the disk before the checkpoints that take it for done.
            self._spool.sync()
            words[PENDING] = 0
        # Of a rewind that got no further than BASE: a punch from below the new front would take the superblock.
        words[PUNCHED] = max(words[PUNCHED], words[BASE] + SUPERBLOCK)
        mark_tail_synced(self._spool, self._control)  # after a rewind nothing alive lies before it
        mark_head(self._spool, self._control)
        if words[COVERED] and not collapsed:
            # Before anybody writes here again, so before EPOCH is even. If the power fails and this rewind is not on the
            # disk, but what was written after it is, then pads may be gone, and records come back that were dead by them. And
            # a file whose checkpoint has base 0 must be one that was never written over: recovery takes for damage what no
            # power cut does to it.
            self._spool.sync()
        words[EPOCH] += 1
        self._control.settle_tail_state()
        words[H_STATE] = words[EPOCH] << 2 | SPECIAL | words[H_STATE] & BUSY  # whoever has the head looks closer
