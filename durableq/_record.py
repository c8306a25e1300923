"""Bytes to record and back. Pure: no file, no lock, no clock.

A record is a 48-byte header and a payload, padded with zeros to a multiple of 8. Little-endian, in this order:

    offset  size  field       written
    0       4     magic       once           never zero: a hole reads as zeros and must not decode
    4       1     state       in place       READY, DONE or DEAD; four bits apart, so that one flipped bit is seen through
    5       1     deliveries  in place       how often it had been lent when it was last lent again (stops at 255)
    6       2     tie         once           the low half of the header sum: a header lies in two sectors at times, and when
                                             the power fails one of them may be of another record that lay here before
    8       8     position    once           logical offset of this header in the queue's whole life: bytes read at a wrong
                                             place (a collapse, a rewind, a swapped block) do not pass for a record
    16      8     due         in place       0, or the time before which it is not delivered: 48 bits of milliseconds since
                                             1970 and 16 bits that check them; if they do not check, it is due
    24      4     length      once           of the payload
    28      4     sum         once           crc32 of the payload
    32      8     enqueued    once           microseconds since 1970, for people; nothing is ordered by it
    40      2     tag         once           which serializer wrote the payload, and whether headers precede it
    42      2     zero
    44      4     header sum  once           crc32 of bytes 24 to 44, seeded with the spool's salt, so that a payload cannot
                                             forge a record (whoever put it there does not know the salt)

The sum of the header is checked before its length is believed. What is written in place lies outside of both sums and
is never needed to find the next record. (Zero is reserved and everything is bounded, as in LevelDB's log format.)
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

MAGIC = 0x71D5A10C
MAGIC_BYTES = struct.pack("<I", MAGIC)
READY = 0x0F
DONE = 0xF0
DEAD = 0x3C
DONE_BYTE = bytes([DONE])

HEADER_SIZE = 48
HEAD_SIZE = 24
"""Bytes at the front of a header that depend on its position or are written in place; the body of a record is the rest."""
STATE_OFFSET = 4
DELIVERIES_OFFSET = 5
DUE_OFFSET = 16
MAX_LENGTH = 0x7FE0_0000
"""Of a payload. Linux reads and writes a little less than 2 GiB at a time, and what it takes only in part does not fit."""

TAG_PICKLE = 1
TAG_JSON = 2
TAG_BYTES = 3
TAG_CUSTOM = 4
TAG_HEADERS = 0x100
"""Set beside the serializer's number: the payload begins with headers (see `_headers`)."""
TAG_PAD = 0xFFFF
"""A pad is a DONE record without content: it covers what is left of dead records behind a hole."""

_pack_head = struct.Struct("<IBBHQQ").pack
_pack_body = struct.Struct("<IIQHH").pack
_pack_u32 = struct.Struct("<I").pack
unpack_header = struct.Struct("<IBBHQQIIQHHI").unpack_from
crc32 = zlib.crc32

_ZEROS = bytes(8)
_STATES = (READY, DONE, DEAD)
_LATEST = (1 << 48) - 1


class Header(NamedTuple):
    """The fields of one record's header that passed its checks."""

    position: int
    state: int
    deliveries: int
    due: int
    length: int
    sum: int
    enqueued: int
    tag: int

    @property
    def size(self) -> int:
        """Bytes of the whole record: header, payload and padding."""
        return record_size(self.length)


def record_size(length: int) -> int:
    """Bytes that a record with `length` bytes of payload takes."""
    return (HEADER_SIZE + 7 + length) & ~7


def encode_head(body: bytes, position: int, due: int = 0) -> bytes:
    """What comes before a body that `encode_body` made, at this position; `due` as `encode_due` made it."""
    return _pack_head(MAGIC, READY, 0, body[20] | body[21] << 8, position, due)


def encode_body(payload: bytes, tag: int, enqueued: int, salt: int) -> bytes:
    """All of a record that does not depend on its position: outside the lock. `encode_head(...)` + this is the record."""
    length = len(payload)
    body = _pack_body(length, crc32(payload), enqueued, tag, 0)
    return b"".join((body, _pack_u32(crc32(body, salt)), payload, _ZEROS[: -length & 7]))


def encode_pad(position: int, size: int, salt: int) -> bytes:
    """The header of a pad that covers `size` bytes from `position` on."""
    body = _pack_body(size - HEADER_SIZE, 0, 0, TAG_PAD, 0)
    check = crc32(body, salt)
    return _pack_head(MAGIC, DONE, 0, check & 0xFFFF, position, 0) + body + _pack_u32(check)


def decode(buffer: bytes, offset: int, position: int, salt: int) -> Header | None:
    """The header at `offset` of `buffer`, or None if there is no record of this spool for this very position."""
    if len(buffer) - offset < HEADER_SIZE:
        return None
    magic, state, deliveries, tie, found, due, length, total, enqueued, tag, _, check = unpack_header(buffer, offset)
    if magic != MAGIC or found != position or crc32(buffer[offset + 24 : offset + 44], salt) != check or tie != check & 0xFFFF:
        return None
    return Header(found, settle_state(state), deliveries, due, length, total, enqueued, tag)


def settle_state(state: int) -> int:
    """The state nearest to what was read: one flipped bit of the state byte decides nothing."""
    if state in _STATES:
        return state
    return min(_STATES, key=lambda s: bin(s ^ state).count("1"))


def due_after(now: int, seconds: float) -> int:
    """The time so many seconds after `now`, in milliseconds since 1970; not later than a header can say: in the year 10889."""
    return int(min(max(0.0, now + seconds * 1000), _LATEST))


def encode_due(milliseconds: int) -> int:
    """A due time (of `due_after`) with its check, as the header keeps it; 0 stays 0 (due at once)."""
    if milliseconds <= 0:
        return 0
    return milliseconds | _due_check(milliseconds) << 48


def decode_due(field: int) -> int:
    """Milliseconds since 1970 before which the item is not delivered; 0 if none or if the field does not check."""
    milliseconds = field & _LATEST
    return milliseconds if field >> 48 == _due_check(milliseconds) else 0


def _due_check(milliseconds: int) -> int:
    return crc32(milliseconds.to_bytes(6, "little")) & 0xFFFF or 1
