"""From evidence to verdict: deriving the control words from the spool alone.

Runs under the cold lock, with nobody else on the queue, when the control file is missing, damaged, foreign or of another
boot. It trusts records, and takes checkpoints for hints where to look:

    evidence                                            verdict
    a readable header whose position fits its place     a record; its state byte says which
    records at the front imply another base             the geometry changed after the checkpoint: the larger base holds
    zeros                                               given back, or never reached the disk: nothing to deliver
    bytes that are no record, with records behind       lost before they were synced, or damage: passed over, never guessed at
    nothing readable behind                             the torn tail: cut here, so that appends meet no stale bytes
    not done, before the head of the checkpoint         was lent: returned
    not done, behind the last done record               waiting

It never moves, joins or repairs payloads, and it never takes a byte for done that does not say so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from durableq import _os
from durableq._checkpoint import mark_head, mark_tail
from durableq._leases import DEAD_CODE, DELAYED_CODE, RETURNED_CODE, Ledger
from durableq._record import (
    DEAD,
    DONE,
    DONE_BYTE,
    HEADER_SIZE,
    MAGIC_BYTES,
    READY,
    STATE_OFFSET,
    TAG_PAD,
    Header,
    crc32,
    decode,
    decode_due,
    unpack_header,
)
from durableq._spool import HEAD_SECTOR, SUPERBLOCK, TAIL_SECTOR, Checkpoint, Spool
from durableq._state import (
    BASE,
    DAMAGED,
    DAMAGED_BYTES,
    DROPS,
    EPOCH,
    H_GEN,
    MAXSIZE,
    NEVER,
    NEXT_DUE,
    PUNCHED,
    T_GEN,
    Control,
)

_WINDOW = 256 << 10


class Reader:
    """Reads records in order from a spool whose base is known. No locks: the caller keeps the geometry still."""

    def __init__(self, fd: int, salt: int, base: int) -> None:
        self._fd = fd
        self._salt = salt
        self.base = base
        self._buffer = b""
        self._at = 0

    def header(self, position: int) -> Header | None:
        """The header at a position, or None if no record begins there."""
        offset = position - self._at
        if offset < 0 or offset + HEADER_SIZE > len(self._buffer):
            self._buffer = _os.pread(self._fd, _WINDOW, position - self.base)
            self._at = position
            offset = 0
        return decode(self._buffer, offset, position, self._salt)

    def payload(self, header: Header) -> bytes | None:
        """The payload of a record, or None if it is damaged or cut off."""
        start = header.position + HEADER_SIZE
        offset = start - self._at
        data = self._buffer[offset : offset + header.length] if offset >= 0 else b""
        if len(data) != header.length:
            data = _os.pread(self._fd, header.length, start - self.base)
        return data if len(data) == header.length and crc32(data) == header.sum else None

    def following(self, position: int, end: int) -> int:
        """Position of the first record at or after `position` and before `end`; `end` if there is none."""
        while position < end:
            physical = position - self.base
            skip = _os.seek_data(self._fd, physical, end - self.base)
            if skip != physical:
                position = skip + self.base
                continue
            data = _os.pread(self._fd, min(_WINDOW, end - position), physical)
            if not data:
                return end
            at = data.find(MAGIC_BYTES)
            while at >= 0:
                if not at & 7:
                    found = _os.pread(self._fd, HEADER_SIZE, physical + at)
                    header = decode(found, 0, position + at, self._salt)
                    if header and position + at + header.size <= end:
                        return position + at
                at = data.find(MAGIC_BYTES, at + 1)
            position += max(len(data) - len(MAGIC_BYTES) & -8, 8)  # a magic may lie across the border
        return end

    def walk(self, position: int, end: int) -> Iterator[Header]:
        """All records in [position, end), pads left out."""
        while position < end:
            header = self.header(position)
            if header is None or position + header.size > end:
                position = self.following(position + 8, end)
                continue
            if header.tag != TAG_PAD:
                yield header
            position += header.size


def rebuild(spool: Spool, control: Control, ledger: Ledger, size: int) -> None:
    """Fill fresh control words and an empty ledger from a spool of `size` bytes; makes EPOCH non-zero last."""
    words = control.words
    tail_mark = spool.read_checkpoint(TAIL_SECTOR) or Checkpoint()
    head_mark = spool.read_checkpoint(HEAD_SECTOR) or Checkpoint()
    base = max(tail_mark.base, head_mark.base, _base_of_front(spool, size))
    front, end = base + SUPERBLOCK, base + size
    if not (front <= tail_mark.position <= end and head_mark.position <= head_mark.limit):
        tail_mark = Checkpoint(tail_mark.generation, position=front, sequence=0)
        head_mark = Checkpoint(head_mark.generation, position=front, limit=end)
    if head_mark.position < front:
        head_mark = Checkpoint(head_mark.generation, position=front, limit=front, sequence=tail_mark.sequence)
    reader = Reader(spool.fd, spool.salt, base)

    tail, tail_sequence = _find_tail(spool, reader, tail_mark, end)
    words[BASE] = base
    words[PUNCHED] = front
    words[NEXT_DUE] = NEVER
    words[MAXSIZE] = spool.options.maxsize
    words[T_GEN], words[H_GEN] = tail_mark.generation, head_mark.generation
    words[DROPS], words[DAMAGED], words[DAMAGED_BYTES] = head_mark.drops, head_mark.damaged, head_mark.damaged_bytes

    control.set_tail(tail, tail_sequence)
    head, head_sequence = min(head_mark.position, tail), head_mark.sequence
    now = time.time_ns() // 1_000_000
    for header in reader.walk(front, head):
        _enter(ledger, header, now)
    passed = list(reader.walk(head, min(head_mark.limit, tail)))
    while passed and passed[-1].state == READY:
        passed.pop()
    for header in passed:
        _enter(ledger, header, now)
        head, head_sequence = header.position + header.size, head_sequence + 1
    if head >= tail or head_sequence > tail_sequence:
        head_sequence = tail_sequence
    control.set_head(head, head_sequence)
    _os.ftruncate(spool.fd, tail - base)
    mark_tail(spool, control)
    mark_head(spool, control)
    words[EPOCH] = 2


def _base_of_front(spool: Spool, size: int) -> int:
    """The base that the first readable record of the file implies; 0 if there is none."""
    offset = SUPERBLOCK
    while offset < size:
        offset = _os.seek_data(spool.fd, offset, size)
        data = _os.pread(spool.fd, _WINDOW, offset)
        if not data:
            break
        at = data.find(MAGIC_BYTES)
        while at >= 0:
            found = _os.pread(spool.fd, HEADER_SIZE, offset + at)
            if len(found) == HEADER_SIZE:
                position: int = unpack_header(found)[4]
                if decode(found, 0, position, spool.salt):
                    return position - offset - at
            at = data.find(MAGIC_BYTES, at + 1)
        offset += max(len(data) - len(MAGIC_BYTES), 8)
    return 0


def _find_tail(spool: Spool, reader: Reader, mark: Checkpoint, end: int) -> tuple[int, int]:
    """(position, sequence) of the end of the last whole record, looking from a checkpoint on."""
    tail, sequence = mark.position, mark.sequence
    broken: list[Header] = []
    for header in reader.walk(mark.position, end):
        if header.state == READY and reader.payload(header) is None:
            broken.append(header)
            continue
        for torn in broken:  # the power failed while it was on its way: its put never returned as durable
            _os.pwrite(spool.fd, DONE_BYTE, torn.position - reader.base + STATE_OFFSET)
        sequence += len(broken) + 1
        broken.clear()
        tail = header.position + header.size
    return tail, sequence


def _enter(ledger: Ledger, header: Header, now: int) -> None:
    due = decode_due(header.due)
    if header.state == DEAD:
        ledger.append(header.position, header.size, header.deliveries, NEVER, DEAD_CODE)
    elif header.state != DONE and due > now:
        ledger.append(header.position, header.size, header.deliveries, due, DELAYED_CODE)
    elif header.state != DONE:
        ledger.append(header.position, header.size, header.deliveries, NEVER, RETURNED_CODE)
