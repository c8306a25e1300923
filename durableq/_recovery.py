"""From evidence to verdict: deriving the control words from the spool alone.

Runs under the cold lock, with nobody else on the queue, when the control file is missing, damaged, foreign, or of another
boot or mount. It trusts records; checkpoints say where to look, and what was on the disk when they were written:

    evidence                                            verdict
    a readable header whose position fits its place     a record; its state byte says which
    a collapse was announced                            the records' own positions say whether it was done
    behind the tail checkpoint: broken, and it lacks
      whole sectors                                     an append that the power cut short: padded over, no damage
    nothing readable behind                             the torn tail: cut here, so that appends meet no stale bytes
    broken, and no power cut does that                  damage: kept aside, counted, padded over or cut off
    not done, before the head of the checkpoint         was lent: returned
    not done, but delivered before                      was lent or given back: returned
    not done, behind the last of all these              waiting
    before the head: zeros, or broken off at a block    given back; if a record, its done mark did not reach the disk
    before the head: bytes that are no record           damage: kept aside, counted, padded over

After an orderly close (a head checkpoint whose limit is its position) nothing is under way, and nothing is explained away:
what is broken from the head on is left to be found as damage when its turn comes.

It never moves, joins or repairs payloads, and it never takes a byte for done that does not say so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from durableq import _os
from durableq._checkpoint import DISTANCE, mark_head, mark_tail_synced
from durableq._leases import DEAD_CODE, DELAYED_CODE, RETURNED_CODE
from durableq._ledger import Ledger
from durableq._record import DEAD, DONE, DONE_BYTE, HEADER_SIZE, READY, STATE_OFFSET, TAG_PAD, Header, decode_due
from durableq._scan import Reader, Span, first_base, newest_base
from durableq._spool import CHECKPOINT_SECTORS, HEAD_SECTOR, SUPERBLOCK, TAIL_SECTOR, Checkpoint, Spool
from durableq._state import (
    BASE,
    COVERED,
    DAMAGED,
    DAMAGED_BYTES,
    DROPS,
    EPOCH,
    H_GEN,
    MAXSIZE,
    MOUNT,
    NEVER,
    NEXT_DUE,
    PUNCHED,
    SYNCED,
    T_GEN,
    T_ROOM,
    Control,
)


def rebuild(spool: Spool, control: Control, ledger: Ledger, size: int) -> None:
    """Fill fresh control words and an empty ledger from a spool of `size` bytes; makes EPOCH non-zero last."""
    words = control.words
    recovery = Recovery(spool, size)
    recovery.find_tail()
    recovery.find_head()
    words[BASE] = recovery.base
    words[PUNCHED] = recovery.front
    words[COVERED] = 1  # by pads over what was torn; and nothing was ever written over in a new file, see `is_torn`
    words[NEXT_DUE] = NEVER
    words[MAXSIZE] = spool.options.maxsize
    words[MOUNT] = _os.mount_id(spool.fd)
    words[T_GEN], words[H_GEN] = recovery.tail_mark.generation, recovery.head_mark.generation
    words[DROPS] = recovery.head_mark.drops
    words[DAMAGED], words[DAMAGED_BYTES] = recovery.damaged, recovery.damaged_bytes
    control.set_tail(recovery.tail, recovery.tail_sequence)
    control.set_head(recovery.head, recovery.head_sequence)
    now = time.time_ns() // 1_000_000
    for header in recovery.behind:
        due = decode_due(header.due)
        if header.state == DEAD:
            ledger.append(header.position, header.size, header.deliveries, NEVER, DEAD_CODE)
        elif due > now:
            ledger.append(header.position, header.size, header.deliveries, due, DELAYED_CODE)
        else:
            ledger.append(header.position, header.size, header.deliveries, NEVER, RETURNED_CODE)
    _os.ftruncate(spool.fd, recovery.tail - recovery.base)
    # Should the power fail again: what the head's checkpoint passes over was mended on the disk before it, and what is told
    # by looking behind the tail's old checkpoint is on the disk before the new one.
    spool.sync()
    words[SYNCED] = words[T_ROOM] = recovery.tail
    mark_head(spool, control)
    spool.sync()
    mark_tail_synced(spool, control)
    spool.sync()  # an older one may name a place behind the end of the file: it must not come into force when that has grown
    words[EPOCH] = 2


class Recovery:
    """What a spool says about itself. Mends what it passes over unless it is only looking."""

    def __init__(self, spool: Spool, size: int, looking: bool = False) -> None:
        self._spool = spool
        self._looking = looking
        tail_mark, head_mark = spool.read_checkpoint(TAIL_SECTOR), spool.read_checkpoint(HEAD_SECTOR)
        self.tail_mark, self.head_mark = tail_mark or Checkpoint(), head_mark or Checkpoint()
        self.damaged, self.damaged_bytes = self.head_mark.damaged, self.head_mark.damaged_bytes
        self.orderly = head_mark is not None and head_mark.position == head_mark.limit
        self.base = base = self._find_base(tail_mark, head_mark, size)
        self.front, self._end = base + SUPERBLOCK, max(base + size, base + SUPERBLOCK)
        self.reader = Reader(spool.fd, spool.salt, base)
        self._exact = tail_mark is not None and head_mark is not None
        self.cut_off = 0
        """Where the records had ended, if the file was cut off since; else 0."""
        if self.tail_mark.position > self._end and self.tail_mark.base == base and self.orderly:
            self.cut_off = self.tail_mark.position
            self._damage(self._end, self.cut_off)
        if not self.front <= self.tail_mark.position <= self._end or tail_mark is None:
            self.tail_mark = replace(self.tail_mark, position=self.front)
            self._exact = False
        if head_mark is None or head_mark.position < self.front:
            limit = self._end if head_mark is None else self.front + DISTANCE
            self.head_mark = replace(self.head_mark, position=self.front, limit=limit)
            self._exact = self.orderly = False
        self.tail = self.head = self.front
        self.tail_sequence = self.head_sequence = 0
        self.behind_mark: list[tuple[int, int]] = []
        """What is damaged behind the tail checkpoint, from where to where."""
        self._gaps: list[tuple[int, int]] = []
        """What is no record behind the tail checkpoint and before another, from where to where."""
        self.behind: list[Header] = []
        """Records before the head that are not done."""

    def _find_base(self, tail_mark: Checkpoint | None, head_mark: Checkpoint | None, size: int) -> int:
        marks = [mark for mark in (tail_mark, head_mark) if mark is not None]
        base = max((mark.base for mark in marks), default=0)
        if not marks or any(map(self._spool.is_bad_checkpoint, CHECKPOINT_SECTORS)):  # the last one may be among the lost
            base = max(base, newest_base(self._spool.fd, self._spool.salt, size))
        # A rewind or a collapse that was carried out and marked is on the disk; one that was only announced may be.
        pending = tuple(base + mark.pending for mark in marks if mark.pending and mark.base == base)
        if pending:
            return first_base(self._spool.fd, self._spool.salt, size, (base, *pending)) or base
        return base

    # -- the tail ------------------------------------------------------------------------------------------------------

    def find_tail(self) -> None:
        """The end of the last whole record. What is torn behind the checkpoint and before it was never promised."""
        mark = self.tail_mark
        self.tail, self.tail_sequence = mark.position, mark.sequence
        broken: list[Span] = []
        for position, end, header in self.reader.spans(mark.position, self._end):
            if header is None or end > self._end or (header.state != DONE and self.reader.payload(header) is None):
                broken.append((position, end, header))
                continue
            for low, high, found in broken:
                self._judge(low, high, found)
                if found is None:
                    self._gaps.append((low, high))
                else:
                    self._cover(low, high)
            broken.clear()
            self.tail = end
            self.tail_sequence += header.tag != TAG_PAD
        for position, end, header in broken:
            self._judge(position, end if header else self.reader.end_of_data(position, end), header)

    def _judge(self, low: int, high: int, header: Header | None) -> None:
        if not self.is_torn(low, high, header):
            self.behind_mark.append((low, high))
            self._damage(low, high)

    def is_torn(self, low: int, high: int, header: Header | None) -> bool:
        """Whether what is broken behind the tail checkpoint can be an append that the power cut short, or something dead.

        In a file that was started anew at its front (its base is not 0) a lost sector may read as anything that lay there.
        """
        if self.base or high > self._end:
            return True
        if header is not None:
            return self.reader.lacks_sector(low, high) or self.reader.is_given_back(header)
        return (
            high - low < HEADER_SIZE
            or self.reader.lacks_sector(low, low + HEADER_SIZE)
            or self.reader.is_half_a_pad(low, high)
            or self.reader.is_remains(low, high)
        )

    # -- the head ------------------------------------------------------------------------------------------------------

    def find_head(self) -> None:
        """The first record that nobody had taken, and what lies behind it undone."""
        mark = self.head_mark
        self.head, self.head_sequence = self.front, mark.sequence
        seen: list[Header] = []
        # A later checkpoint may be lost while a mark that it allowed is on the disk: so look on for as far as it reached.
        limit = max(mark.limit, mark.position) + (0 if self.orderly else DISTANCE)
        for header in self._survey(self.front, self.tail):
            if header.position >= limit and (self.orderly or header.position < self.tail_mark.position):
                break
            is_pad = header.tag == TAG_PAD
            end = header.position + header.size
            if header.position < mark.position:
                self.head = end
                self.behind += [] if header.state == DONE else [header]
                self._exact &= end <= mark.position  # what was lost reaches over the head
                continue
            if is_pad:
                self._exact = False  # how many records lay there, nobody knows
            else:
                seen.append(header)
            untouched = header.state == READY and not header.deliveries
            if untouched or (is_pad and header.position >= self.tail_mark.position):
                continue
            # Dead, done or delivered before, so the head was here. The checkpoint that let it come so far may not have
            # reached the disk.
            self.head, limit = end, max(limit, end + DISTANCE)
            self.head_sequence += len(seen)
            self.behind += [h for h in seen if h.state != DONE]
            seen.clear()
        self.head = min(max(self.head, mark.position), self.tail)
        for low, high in self._gaps:
            if high > self.head:  # before it lies a hole, maybe, and the disk may have no block for a pad in it
                self._cover(low, high)
        if not self._exact or self.head > self.tail_mark.position:
            waiting = sum(1 for _ in self.reader.walk(self.head, self.tail))
            # Numbers go on from both checkpoints: should the power fail again, one old and one new one still agree.
            self.head_sequence = max(self.head_sequence, self.tail_sequence - waiting)
            self.tail_sequence = self.head_sequence + waiting
        self.head_sequence = min(self.head_sequence, self.tail_sequence)

    def _survey(self, position: int, end: int) -> Iterator[Header]:
        """The records in a range that the head may have passed, after a verdict on all that is broken; a gap is a pad."""
        for low, high, header in self.reader.spans(position, end):
            if header is None:
                if not self.reader.is_remains(low, high):
                    if high - low >= HEADER_SIZE and low < self.tail_mark.position:  # a record was there
                        self._damage(low, high)
                    self._cover(low, high)
                yield Header(low, DONE, 0, 0, high - low - HEADER_SIZE, 0, 0, TAG_PAD)
            elif header.state == DONE or self.orderly or self.reader.payload(header) is not None:
                yield header
            elif self.reader.is_given_back(header):
                self._write(low + STATE_OFFSET, DONE_BYTE)
                yield header._replace(state=DONE)
            else:
                yield header  # damage: found when its turn comes

    # -- mending -------------------------------------------------------------------------------------------------------

    def _damage(self, low: int, high: int) -> None:
        self.damaged += 1
        self.damaged_bytes += high - low
        if not self._looking:
            self._spool.set_aside(low, low - self.base, high - low)

    def _cover(self, low: int, high: int) -> None:
        if not self._looking:
            self._spool.cover(low, high, self.base)
            self.reader.forget()

    def _write(self, position: int, data: bytes) -> None:
        if not self._looking:
            _os.pwrite_all(self._spool.fd, data, position - self.base)
            self.reader.forget()
