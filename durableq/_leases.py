"""The region: the table of what is lent as it lies in the control file. What is done with it is in `_ledger`.

It holds one entry for each record behind the head that is not done, as columns, so that searching and counting run at the
speed of C:

    words 0-2      END: entries in use; HINT: no entry below it is RETURNED; FIRST: no entry below it is live
    column         for each
    due     u64    1,024 entries   no UNTIL among them is earlier (may be too early, never too late)
    dead    u64    1,024 entries   bytes that died there since they were last swept (a trigger for `_reclaim`)
    position u64   entry           of the record
    until   u64    entry           milliseconds since 1970 at which a lease or a delay ends, or NEVER
    size    u32    entry           of the record, in units of 8 bytes
    owner   u16    entry           who has it: a code, see below; 0: nobody, the entry is free
    count   u16    entry           deliveries so far; top bit: taken with `reserve`, so `task_done` leaves it alone

Owner codes have a low byte of 1..127 and a high byte of 128..255. So a search for two bytes cannot match across two
neighbours, `bytes.replace` can give a million entries back in a millisecond, and a zero byte means a free entry.

Invariants: `position` rises strictly over [0, END). A region is never changed in place in a way that a kill could leave
half done and unnoticed: single entries change by one store, the counts are recounted after a death, and a rebuild
writes a new region and then flips one word.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress

from durableq import _os
from durableq._state import (
    BUSY,
    EPOCH,
    H_STATE,
    LEDGER_OFFSET,
    LIVE,
    NEVER,
    REGION,
    SPECIAL,
    Control,
)

NOBODY = 0
RETURNED_CODE = 0xFF7F
DELAYED_CODE = 0xFF7E
DEAD_CODE = 0xFF7D
RESERVED = 0x8000
MAX_COUNT = 0x7FFF

_LOW_CODES = 120
DEAD_LENT = 0x4000
CHUNK_LOG2 = 10
MIN_LOG2 = 12
END, HINT, FIRST = 0, 1, 2

Taken = tuple[int, int, int, int, int, bytes]
"""An item that was taken: position, index of its ledger entry (-1: done at once), count (deliveries including this one,
and the RESERVED bit: what the ledger says as long as it is ours), tag, microseconds of its put, payload."""

Finder = Callable[[bytes], Iterator[re.Match[bytes]]]
live_runs: Finder = re.compile(rb"[^\0]+").finditer
"""Runs of entries that are not free, in the bytes of an owner column."""


def owner_code(slot: int) -> int:
    """The code under which an owner slot holds lent items."""
    return 1 + slot % _LOW_CODES | 128 + slot // _LOW_CODES << 8


def slot_of(code: int) -> int | None:
    """The owner slot of a code, or None if nobody holds the entry."""
    low, high = code & 0xFF, code >> 8 & ~(DEAD_LENT >> 8)
    if not 1 <= low <= _LOW_CODES or high < 128:
        return None
    return (high - 128) * _LOW_CODES + low - 1


def is_dead_letter(code: int) -> bool:
    """Whether the entry is a dead letter, lent to somebody or not."""
    return code == DEAD_CODE or 0xC000 <= code < 0xE000


def packed(code: int) -> bytes:
    """An owner code as its column has it."""
    return code.to_bytes(2, "little")


def _region_bytes(log2: int) -> int:
    chunks = 1 << log2 - CHUNK_LOG2
    size = 64 + 16 * chunks + (24 << log2)
    return (size + _os.BLOCK - 1) & -_os.BLOCK


def region_fits(region: int, size: int) -> bool:
    """Whether a region, as its control word names it, lies within a control file of `size` bytes."""
    log2, offset = region & (_os.BLOCK - 1), region & -_os.BLOCK
    return MIN_LOG2 <= log2 < 40 and offset >= LEDGER_OFFSET and offset + _region_bytes(log2) <= size


def read_counts(fd: int, region: int) -> Iterator[tuple[int, int]]:
    """(position, deliveries so far) of the entries in the region of a control file that nobody uses, whatever is in it."""
    log2, offset = region & (_os.BLOCK - 1), region & -_os.BLOCK
    with mmap.mmap(fd, _region_bytes(log2), offset=offset, access=mmap.ACCESS_READ) as view:
        end = min(int.from_bytes(view[8 * END : 8 * END + 8], "little"), 1 << log2)
        at = 64 + (16 << log2 - CHUNK_LOG2)
        positions = memoryview(view[at : at + 8 * end]).cast("Q")
        owners_at = at + (20 << log2)
        owners = memoryview(view[owners_at : owners_at + 2 * end]).cast("H")
        counts_at = owners_at + (2 << log2)
        counts = memoryview(view[counts_at : counts_at + 2 * end]).cast("H")
    return ((positions[i], counts[i] & MAX_COUNT) for i in range(end) if owners[i])


class Region:
    """The columns as one handle has them mapped. Every method wants the head lock."""

    def __init__(self, control: Control, fd: int) -> None:
        self._words = control.words
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._views: tuple[memoryview, ...] = ()
        self._region = 0
        """The region whose columns are all there; 0: none, or an interrupt came while they were being mapped or unmapped."""
        self._shift = 0
        self.place = (0, 0)
        """The region that is mapped, as its control word names it, and the address at which it is mapped."""

    # -- mapping -------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Map the region in force; called whenever the epoch changed."""
        region = self._words[REGION]
        if region != self._region:
            self.detach()
            self._bind(region)

    def detach(self) -> None:
        """Unmap the region."""
        self._region = 0  # first, as it is last in `_bind`
        for view in self._views:
            view.release()
        if self._map is not None:
            with suppress(BufferError):  # the traceback of an interrupt may hold a view: the mapping goes with that
                self._map.close()
            self._map = None

    def _bind(self, region: int) -> None:
        log2, offset = region & (_os.BLOCK - 1), region & -_os.BLOCK
        self.capacity = capacity = 1 << log2
        self._map = mmap.mmap(self._fd, _region_bytes(log2), offset=offset)
        self.place = region, ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        view = memoryview(self._map)
        self._meta = view[:64].cast("Q")
        at = 64
        chunks = capacity >> CHUNK_LOG2
        self._due = view[at : at + 8 * chunks].cast("Q")
        at += 8 * chunks
        self._dead = view[at : at + 8 * chunks].cast("Q")
        at += 8 * chunks
        self.position = view[at : at + 8 * capacity].cast("Q")
        at += 8 * capacity
        self._until = view[at : at + 8 * capacity].cast("Q")
        at += 8 * capacity
        self._size = view[at : at + 4 * capacity].cast("I")
        at += 4 * capacity
        self._owners_at = at
        self.owner = view[at : at + 2 * capacity].cast("H")
        at += 2 * capacity
        self.count = view[at : at + 2 * capacity].cast("H")
        self._views = (self._meta, self._due, self._dead, self.position, self._until, self._size, self.owner, self.count)
        self._region = region

    @staticmethod
    def create(fd: int, words: memoryview) -> None:
        """Lay an empty region into a fresh control file."""
        size = _region_bytes(MIN_LOG2)
        _os.allocate(fd, LEDGER_OFFSET, size)
        _clear_due(fd, LEDGER_OFFSET, MIN_LOG2)
        words[REGION] = LEDGER_OFFSET | MIN_LOG2

    # -- looking -------------------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether the next `append` has to rebuild the region first."""
        return self._meta[END] == self.capacity

    def codes(self) -> bytes:
        """The owner column as it is now."""
        assert self._map is not None
        return self._map[self._owners_at : self._owners_at + 2 * self._meta[END]]

    @staticmethod
    def _runs(kind: Finder, codes: bytes, first: int) -> Iterator[tuple[int, int]]:
        for match in kind(codes):
            yield first + match.start() // 2, first + match.end() // 2

    # -- starting anew -------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._meta[END] = self._meta[HINT] = self._meta[FIRST] = 0
        self._dead[0] = 0
        if self.capacity > 1 << MIN_LOG2 + 2:
            with suppress(OSError):  # a full disk puts it off: what came before is done all the same
                self.rebuild()

    def rebuild(self, insert: tuple[int, int, int] | None = None) -> None:
        """Copy the live entries into a new region of fitting size and flip to it; `insert` adds a RETURNED-like entry.

        `insert` is (position, size, code) of a record behind the head that is to be in the ledger again.
        Raises OSError (ENOSPC) when the control file cannot grow; the old region is then still in force.
        """
        codes = self.codes()
        live = self._words[LIVE] + (insert is not None)
        log2 = max(MIN_LOG2, (2 * live - 1).bit_length() if live else 0)
        offset, old_log2 = self._region & -_os.BLOCK, self._region & (_os.BLOCK - 1)
        size, old_size = _region_bytes(log2), _region_bytes(old_log2)
        # The new region goes below the old one if it fits there, else behind it: so the file stays about as long as
        # the last two regions together, and the old one is intact until the flip.
        place = LEDGER_OFFSET if LEDGER_OFFSET + size <= offset else offset + old_size
        _os.allocate(self._fd, place, size)
        _clear_due(self._fd, place, log2)
        fresh = Region.__new__(Region)
        fresh._words, fresh._fd, fresh._map, fresh._shift = self._words, self._fd, None, 0
        fresh._bind(place | log2)
        end = 0
        for a, b in self._runs(live_runs, codes, 0):
            if insert is not None and insert[0] < self.position[b - 1]:
                cut = bisect_left(self.position, insert[0], a, b)
                end = fresh._copy(self, a, cut, end)
                end = fresh._place(insert, end)
                a, insert = cut, None
            end = fresh._copy(self, a, b, end)
        if insert is not None:
            end = fresh._place(insert, end)
        fresh._meta[END] = end
        for chunk in range((end + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2):
            fresh._due[chunk] = min(fresh._until[chunk << CHUNK_LOG2 : min(chunk + 1 << CHUNK_LOG2, end)], default=NEVER)
        self._words[REGION] = place | log2  # from here on the new region is the ledger
        self.detach()
        self.__dict__.update(fresh.__dict__)
        words = self._words
        if words[EPOCH]:  # else this is recovery: there are no others, and what is 0 tells the next one to begin once more
            words[EPOCH] += 2  # the others map it anew; after a kill before this line the recount does it
        words[H_STATE] = words[EPOCH] << 2 | SPECIAL | words[H_STATE] & BUSY  # whoever has the head next looks closer
        _os.punch(self._fd, offset, old_size)

    def _copy(self, source: Region, a: int, b: int, end: int) -> int:
        to = end + b - a
        self.position[end:to] = source.position[a:b]
        self._until[end:to] = source._until[a:b]
        self._size[end:to] = source._size[a:b]
        self.owner[end:to] = source.owner[a:b]
        self.count[end:to] = source.count[a:b]
        return to

    def _place(self, entry: tuple[int, int, int], end: int) -> int:
        self.position[end], size, self.owner[end] = entry
        self._size[end] = size >> 3
        self._until[end] = NEVER
        self.count[end] = 1
        return end + 1


def _clear_due(fd: int, offset: int, log2: int) -> None:
    chunks = 1 << log2 - CHUNK_LOG2
    header = bytes(64) + NEVER.to_bytes(8, "little") * chunks + bytes(8 * chunks)
    _os.pwrite_all(fd, header, offset)
