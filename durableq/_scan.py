"""Reading a spool for evidence: records, gaps between them, and what a gap or a broken record looks like.

Nothing here writes or decides. These kinds of evidence matter when a record cannot be read:

    torn            what a power cut left out of an append is whole sectors, and they read as zeros
    given back      punches start and end at block boundaries, and put a pad at their end: a dead record that reaches into
                    a hole, or lies across the end of one, breaks off at a block boundary into zeros or a pad
    another turn    a record with a sum of this spool but a position that does not fit its place was written before the file
                    was started anew at its front, or after it, and the power failed in between; what lies near one of
                    after it was dead and may have been written over
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from durableq import _os
from durableq._record import (
    HEADER_SIZE,
    MAGIC_BYTES,
    TAG_PAD,
    Header,
    crc32,
    decode,
    encode_pad,
    unpack_header,
)
from durableq._spool import SECTOR, SUPERBLOCK

_WINDOW = 256 << 10
_ZEROS = bytes(_os.BLOCK)

Span = tuple[int, int, "Header | None"]
"""(position, end, header) of a record, or of a gap: no header."""


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

    def forget(self) -> None:
        """What was read before may have been written over."""
        self._buffer = b""

    def payload(self, header: Header) -> bytes | None:
        """The payload of a record, or None if it is damaged or cut off."""
        start = header.position + HEADER_SIZE
        offset = start - self._at
        data = self._buffer[offset : offset + header.length] if offset >= 0 else b""
        if len(data) != header.length:
            data = _os.pread(self._fd, header.length, start - self.base)
        return data if len(data) == header.length and crc32(data) == header.sum else None

    def bytes_at(self, position: int, length: int) -> bytes:
        """What lies at a position, as far as the file goes."""
        return _os.pread(self._fd, length, position - self.base)

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

    def spans(self, position: int, end: int) -> Iterator[Span]:
        """All of [position, end): records, pads and the gaps between them. The last record may reach over the end."""
        while position < end:
            header = self.header(position)
            stop = self.following(position + 8, end) if header is None else position + header.size
            yield position, stop, header
            position = stop

    def walk(self, position: int, end: int) -> Iterator[Header]:
        """All records in [position, end), pads left out."""
        for _, stop, header in self.spans(position, end):
            if header is not None and stop <= end and header.tag != TAG_PAD:
                yield header

    # -- evidence ------------------------------------------------------------------------------------------------------

    def is_given_back(self, header: Header) -> bool:
        """Whether a record whose payload does not check breaks off at a block boundary, as the dead do beside a hole, or a
        later turn of the file came there."""
        end = header.position + header.size
        boundary = self._boundary(header.position + 1)
        while boundary < end:
            if self._is_hole(boundary, min(end, boundary + _os.BLOCK)) or self.pad_end(boundary):
                return True
            boundary += _os.BLOCK
        return self._was_reached(header.position, end)

    def is_remains(self, position: int, end: int) -> bool:
        """Whether a gap is zeros, or what lies beside a hole, or of another turn of the file: nothing that was alive."""
        boundary = self._boundary(position)
        if any(self.pad_end(boundary - n * _os.BLOCK) >= end for n in (1, 2)):
            return True  # its hole did not reach the disk, so what we read before is the dead record that it lies across
        if boundary > position and self._is_hole(position, min(end, boundary)):
            return True  # zeros; or a hole ends there whose pad did not reach the disk
        while boundary < end:
            if self._is_hole(boundary, min(end, boundary + _os.BLOCK)):
                return True
            boundary += _os.BLOCK
        return self._has_other_turn(position, end) or self._was_reached(position, end)

    def lacks_sector(self, position: int, end: int) -> bool:
        """Whether a sector reads as zeros in the part of it that lies in a range: an append that was not on the disk."""
        while position < end:
            stop = min(end, (position - self.base + SECTOR & -SECTOR) + self.base)
            if stop - position >= 8 and not any(self.bytes_at(position, stop - position)):  # a record ends in seven at most
                return True
            position = stop
        return False

    def is_half_a_pad(self, position: int, end: int) -> bool:
        """Whether one sector of two has its part of a pad's header: what was torn was covered, and the power failed again."""
        first = SECTOR - (position - self.base) % SECTOR
        found, pad = self.bytes_at(position, HEADER_SIZE), encode_pad(position, end - position, self._salt)
        return first < HEADER_SIZE and (found[:first] == pad[:first] or found[first:] == pad[first:])

    def end_of_data(self, position: int, end: int) -> int:
        """Where the zeros begin that a range ends in."""
        while position < end:
            start = max(position, end - _WINDOW)
            data = self.bytes_at(start, end - start).rstrip(b"\0")
            if data:
                return start + len(data)
            end = start
        return end

    def _boundary(self, position: int) -> int:
        return (position - self.base + _os.BLOCK - 1 & -_os.BLOCK) + self.base

    def _is_hole(self, position: int, end: int) -> bool:
        data = self.bytes_at(position, end - position)
        return data == _ZEROS[: len(data)]

    def pad_end(self, position: int) -> int:
        """Where the pad ends that begins at a position; 0 if none does."""
        header = decode(self.bytes_at(position, HEADER_SIZE), 0, position, self._salt) if position > self.base else None
        return position + header.size if header is not None and header.tag == TAG_PAD else 0

    def _has_other_turn(self, position: int, end: int) -> bool:
        return any(base != self.base for base in _bases(self._fd, self._salt, position - self.base, end - self.base))

    def _was_reached(self, position: int, end: int) -> bool:
        """Whether records around here tell of a turn of the file whose beginning did not reach the disk."""
        low = max(SUPERBLOCK, position - self.base - _WINDOW)
        high = end - self.base + _os.BLOCK - 1 & -_os.BLOCK
        # Near it, and at the front, where every turn begins.
        places = ((low, high), (SUPERBLOCK, min(low, SUPERBLOCK + _WINDOW)))
        return any(base > self.base for place in places for base in _bases(self._fd, self._salt, *place))


def _bases(fd: int, salt: int, offset: int, end: int) -> Iterator[int]:
    """The base that each readable header in a range of the file implies."""
    while offset < end:
        offset = _os.seek_data(fd, offset, end)
        data = _os.pread(fd, min(_WINDOW, end - offset), offset)
        if not data:
            return
        at = data.find(MAGIC_BYTES)
        while at >= 0:
            found = _os.pread(fd, HEADER_SIZE, offset + at)
            if len(found) == HEADER_SIZE:
                position: int = unpack_header(found)[4]
                if decode(found, 0, position, salt):
                    yield position - offset - at
            at = data.find(MAGIC_BYTES, at + 1)
        offset += max(len(data) - len(MAGIC_BYTES), 8)


def first_base(fd: int, salt: int, size: int, candidates: tuple[int, ...]) -> int | None:
    """Which of the candidates the first record implies that implies any of them; None if none does."""
    for base in _bases(fd, salt, SUPERBLOCK, size):
        if base in candidates:
            return base
    return None


def newest_base(fd: int, salt: int, size: int) -> int:
    """The base of the latest turn that the records at the front of the file tell of: for when checkpoints are lost.

    Bases only grow, and behind the few records of a turn lie many of the one before. A single record does not count if it
    tells of more than one turn after that: bits of its position may have flipped.
    """
    votes: Counter[int] = Counter()
    for base in _bases(fd, salt, SUPERBLOCK, size):
        if base >= 0:
            votes[base] += 1
            if sum(votes.values()) >= 256:
                break
    usual = max(votes, key=lambda base: (votes[base], base), default=0)
    return max((base for base, count in votes.items() if count > 1 or base <= usual + size), default=0)
