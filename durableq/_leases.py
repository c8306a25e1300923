"""The ledger: every record behind the head that is not done, sorted by position.

The head passes a record either because it is done at once, or because it gets an entry here: lent to an owner, given
back, waiting for its time, or a dead letter. Entries are appended as the head moves, so they are sorted without sorting,
and the lowest entry that was given back is the oldest item of the queue. All of it is under the head lock.

A region of the control file holds the table as columns, so that searching and counting run at the speed of C:

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

from durableq import _os
from durableq._record import DEAD as STATE_DEAD
from durableq._record import DONE
from durableq._state import (
    BUSY,
    DEAD,
    DELAYED,
    EPOCH,
    H_STATE,
    LEDGER_OFFSET,
    LIVE,
    LIVE_BYTES,
    NEVER,
    NEXT_DUE,
    REGION,
    RETURNED,
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
_DEAD_LENT_BYTES = [bytes([high]) for high in range(0xC0, 0xE0)]

_Finder = Callable[[bytes], Iterator[re.Match[bytes]]]
_live_runs: _Finder = re.compile(rb"[^\0]+").finditer
_dead_runs: _Finder = re.compile(rb"\0+").finditer
_first_live = re.compile(rb"[^\0]").search
_letters: _Finder = re.compile(rb"\x7d\xff|[\x01-\x78][\xc0-\xdf]").finditer  # dead letters that nobody has, or somebody


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


def _packed(code: int) -> bytes:
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


class Ledger:
    """One handle's view of the ledger. Every method wants the head lock."""

    def __init__(self, control: Control, fd: int) -> None:
        self._words = control.words
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._region = 0
        self._shift = 0
        self.place = (0, 0)
        """The region that is mapped, as its control word names it, and the address at which it is mapped."""

    # -- mapping -------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Map the region in force; called whenever the epoch changed."""
        region = self._words[REGION]
        if region != self._region or self._map is None:
            self.detach()
            self._bind(region)

    def detach(self) -> None:
        """Unmap the region."""
        if self._map is not None:
            for view in (self._meta, self._due, self._dead, self.position, self._until, self._size, self.owner, self.count):
                view.release()
            self._map.close()
            self._map = None

    def _bind(self, region: int) -> None:
        log2, offset = region & (_os.BLOCK - 1), region & -_os.BLOCK
        self._region = region
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

    @staticmethod
    def create(fd: int, words: memoryview) -> None:
        """Lay an empty region into a fresh control file."""
        size = _region_bytes(MIN_LOG2)
        _os.allocate(fd, LEDGER_OFFSET, size)
        _clear_due(fd, LEDGER_OFFSET, MIN_LOG2)
        words[REGION] = LEDGER_OFFSET | MIN_LOG2

    # -- one entry -----------------------------------------------------------------------------------------------------

    def append(self, position: int, size: int, count: int, until: int, code: int) -> int:
        """Enter a record that the head is about to pass; returns the index of its entry.

        It counts from the moment the head has passed it: an entry at or past the head is dropped by `recount`.
        """
        i = self._meta[END]
        if i == self.capacity:
            self.rebuild()
            i = self._meta[END]
        self.position[i] = position
        self._size[i] = size >> 3
        self.count[i] = count
        self._until[i] = NEVER
        self.owner[i] = code
        self._meta[END] = i + 1
        words = self._words
        words[LIVE] += 1
        words[LIVE_BYTES] += size
        if until != NEVER:
            self.set_until(i, until)
        if code >= DEAD_CODE:
            if code == RETURNED_CODE:
                words[RETURNED] += 1
            elif code == DELAYED_CODE:
                words[DELAYED] += 1
            else:
                words[DEAD] += 1
        return i

    def find(self, position: int, hint: int) -> int:
        """The index of the entry of a record, or -1; `hint` is where it was when it was lent."""
        end = self._meta[END]
        i = hint
        if i >= end or self.position[i] != position:
            i = hint - self._shift  # a rebuild moved it, most likely as far as the last one that was looked for
            if not 0 <= i < end or self.position[i] != position:
                i = bisect_left(self.position, position, 0, end)
                if i == end or self.position[i] != position:
                    return -1
                self._shift = hint - i
        return i if self.owner[i] else -1

    def size(self, i: int) -> int:
        """Bytes of the record of an entry."""
        return self._size[i] << 3

    def free(self, i: int) -> int:
        """Strike out a record that is done; returns its size in bytes."""
        words = self._words
        code = self.owner[i]
        if code >= 0xC000:
            self._uncount(code)
        size: int = self._size[i] << 3
        self.owner[i] = NOBODY
        words[LIVE_BYTES] -= size
        live = words[LIVE] - 1
        words[LIVE] = live
        if live:
            self._dead[i >> CHUNK_LOG2] += size
            if i == self._meta[FIRST]:
                self._meta[FIRST] = i + 1
        else:
            self._reset()
        return size

    def change(self, i: int, code: int) -> None:
        """Put an entry into other hands and keep the counts."""
        self._uncount(self.owner[i])
        self.owner[i] = code
        words = self._words
        if code == RETURNED_CODE:
            words[RETURNED] += 1
            if i < self._meta[HINT]:
                self._meta[HINT] = i
        elif code == DELAYED_CODE:
            words[DELAYED] += 1
        elif code >= 0xC000:
            words[DEAD] += 1

    def _uncount(self, code: int) -> None:
        if code == RETURNED_CODE:
            self._words[RETURNED] -= 1
        elif code == DELAYED_CODE:
            self._words[DELAYED] -= 1
        elif code >= 0xC000:
            self._words[DEAD] -= 1

    def set_until(self, i: int, until: int) -> None:
        """Set when the lease or delay of an entry ends, in milliseconds since 1970."""
        # The lower bounds first: a kill after them costs a look too many, a kill before them would cost the item.
        chunk = i >> CHUNK_LOG2
        if until < self._due[chunk]:
            self._due[chunk] = until
        if until < self._words[NEXT_DUE]:
            self._words[NEXT_DUE] = until
        self._until[i] = until

    # -- searching -----------------------------------------------------------------------------------------------------

    def next_returned(self) -> int:
        """Index of the oldest entry that was given back, or -1."""
        i = self._meta[HINT]
        if i < self._meta[END] and self.owner[i] == RETURNED_CODE:
            return i
        i = self.search(RETURNED_CODE, i)
        self._meta[HINT] = i if i >= 0 else self._meta[END]
        return i

    def next_dead(self, start: int = 0) -> int:
        """Index of the oldest dead letter that nobody has, from index `start` on, or -1."""
        return self.search(DEAD_CODE, start)

    def next_owned(self, slot: int) -> int:
        """Index of the oldest entry that an owner took with `get`, or -1."""
        code = owner_code(slot)
        i = self.search(code, self._meta[FIRST])
        while i >= 0 and self.count[i] & RESERVED:
            i = self.search(code, i + 1)
        return i

    def next_lent(self) -> int:
        """Index of the oldest entry that anybody took with `get`, or -1. Looks at every entry: for the last resort."""
        for i in range(self._meta[FIRST], self._meta[END]):
            if slot_of(self.owner[i]) is not None and not self.count[i] & RESERVED and not is_dead_letter(self.owner[i]):
                return i
        return -1

    def search(self, code: int, start: int = 0) -> int:
        """Index of the first entry from `start` on that has this very code, or -1."""
        assert self._map is not None
        at = self._owners_at
        found = self._map.find(_packed(code), at + 2 * start, at + 2 * self._meta[END])
        return found - at >> 1 if found >= 0 else -1

    def letters(self) -> list[int]:
        """The positions of all dead letters, also of those that somebody has."""
        return [self.position[match.start() // 2] for match in _letters(self.codes())]

    def codes(self) -> bytes:
        """The owner column as it is now."""
        assert self._map is not None
        return self._map[self._owners_at : self._owners_at + 2 * self._meta[END]]

    def floor(self, head: int) -> int:
        """The position below which every record is done."""
        assert self._map is not None
        at = self._owners_at
        found = _first_live(self._map, at + 2 * self._meta[FIRST], at + 2 * self._meta[END])
        return self.position[found.start() - at >> 1] if found else head

    # -- many entries --------------------------------------------------------------------------------------------------

    def give_back(self, slot: int) -> int:
        """Return all that an owner holds, dead letters to the dead letters; how many. At the speed of a memory copy."""
        assert self._map is not None
        total = 0
        start = self._owners_at
        end = start + 2 * self._meta[END]
        code = owner_code(slot)
        for old, new in ((code, RETURNED_CODE), (code | DEAD_LENT, DEAD_CODE)):
            at = self._map.find(_packed(old), start, end)
            while at >= 0:
                stop = min(at + 0x10000, end)
                piece = self._map[at:stop]
                if new == RETURNED_CODE:
                    found = piece.count(_packed(old))
                    total += found
                    self._words[RETURNED] += found
                    self._meta[HINT] = min(self._meta[HINT], at - start >> 1)
                self._map[at:stop] = piece.replace(_packed(old), _packed(new))
                at = self._map.find(_packed(old), stop, end)
        return total

    def expire(self, now: int) -> int:
        """Return what is due at `now` (milliseconds since 1970): ended delays and ended leases; how many."""
        total = 0
        end = self._meta[END]
        used = (end + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2
        for chunk in range(used):
            if self._due[chunk] > now:
                continue
            first, last = chunk << CHUNK_LOG2, min(chunk + 1 << CHUNK_LOG2, end)
            earliest = NEVER
            for i in range(first, last):
                until = self._until[i]
                if until == NEVER:
                    continue
                code = self.owner[i]
                if until > now and code:
                    earliest = min(earliest, until)
                    continue
                self._until[i] = NEVER
                if code == DELAYED_CODE or (slot_of(code) is not None and not is_dead_letter(code)):
                    self.change(i, RETURNED_CODE)
                    total += 1
                elif code >= 0xC000 and code != DEAD_CODE and code != RETURNED_CODE:
                    self.change(i, DEAD_CODE)
            self._due[chunk] = earliest
        self._words[NEXT_DUE] = min(self._due[:used], default=NEVER)
        return total

    def recount(self, head: int) -> None:
        """Derive every count from the columns, after a death in the middle of a change."""
        end = self._meta[END]
        while end and self.position[end - 1] >= head:  # entered, but the head had not passed it yet: still waiting
            end -= 1
        self._meta[END] = end
        self._meta[HINT] = self._meta[FIRST] = 0
        codes = self.codes()
        words = self._words
        words[LIVE] = end - codes.count(0) // 2
        words[LIVE_BYTES] = 8 * sum(sum(self._size[a:b]) for a, b in self._runs(_live_runs, codes, 0))
        words[RETURNED] = codes.count(_packed(RETURNED_CODE))
        words[DELAYED] = codes.count(_packed(DELAYED_CODE))
        words[DEAD] = codes.count(_packed(DEAD_CODE)) + sum(codes.count(high) for high in _DEAD_LENT_BYTES)
        used = (end + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2
        words[NEXT_DUE] = min(self._due[:used], default=NEVER)

    def agree(self, state_of: Callable[[int], int]) -> None:
        """After a recount: make every entry say what its record (at a position) says; the record is written first."""
        for i in range(self._meta[END]):
            code = self.owner[i]
            if not code:
                continue
            state = state_of(self.position[i])
            if state == DONE:
                self.free(i)
            elif (state == STATE_DEAD) != is_dead_letter(code):
                self.change(i, DEAD_CODE if state == STATE_DEAD else RETURNED_CODE)
            if not self._words[LIVE]:
                break

    def holds(self, code: int) -> bool:
        """Whether an owner has anything, dead letters included."""
        return self.search(code) >= 0 or self.search(code | DEAD_LENT) >= 0

    @staticmethod
    def _runs(kind: _Finder, codes: bytes, first: int) -> Iterator[tuple[int, int]]:
        for match in kind(codes):
            yield first + match.start() // 2, first + match.end() // 2

    def dead_ranges(self, least: int, head: int) -> Iterator[tuple[int, int]]:
        """Position ranges between live records, from chunks in which at least `least` bytes died; marks them swept."""
        end = self._meta[END]
        codes = self.codes()
        done = 0
        for chunk in range((end + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2):
            if self._dead[chunk] < least:
                continue
            self._dead[chunk] = 0
            first = chunk << CHUNK_LOG2
            for a, b in self._runs(_dead_runs, codes[2 * first : 2 * (chunk + 1 << CHUNK_LOG2)], first):
                previous = _previous_live(codes, a)
                # A run goes on over the border of its chunk, so it reaches up to its live neighbours, once. What is
                # dead below the first live entry is not ours: the floor takes it.
                if previous < 0 or self.position[previous] < done:
                    continue
                following = _first_live(codes, 2 * b)
                done = self.position[following.start() // 2] if following else head
                yield self.position[previous] + self.size(previous), done

    def dead_bytes(self) -> int:
        """Bytes that died between live records since they were last swept."""
        return sum(self._dead[: (self._meta[END] + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2])

    # -- the region ----------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._meta[END] = self._meta[HINT] = self._meta[FIRST] = 0
        self._dead[0] = 0
        if self.capacity > 1 << MIN_LOG2 + 2:
            self.rebuild()

    def is_full(self) -> bool:
        """Whether the next `append` has to rebuild the region first."""
        return self._meta[END] == self.capacity

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
        fresh = Ledger.__new__(Ledger)
        fresh._words, fresh._fd, fresh._map, fresh._shift = self._words, self._fd, None, 0
        fresh._bind(place | log2)
        end = 0
        for a, b in self._runs(_live_runs, codes, 0):
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
        words[EPOCH] += 2  # the others map it anew; after a kill before this line the recount does it
        words[H_STATE] = words[EPOCH] << 2 | SPECIAL | words[H_STATE] & BUSY  # whoever has the head next looks closer
        _os.punch(self._fd, offset, old_size)

    def _copy(self, source: Ledger, a: int, b: int, end: int) -> int:
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


def _previous_live(codes: bytes, i: int) -> int:
    """Index of the last live entry before `i`, or -1, looking at no more of the column than it must."""
    stop = 2 * i
    while stop > 0:
        start = max(0, stop - 4096)
        piece = codes[start:stop].rstrip(b"\0")
        if piece:
            return (start + len(piece)) // 2 - 1
        stop = start
    return -1


def _clear_due(fd: int, offset: int, log2: int) -> None:
    chunks = 1 << log2 - CHUNK_LOG2
    header = bytes(64) + NEVER.to_bytes(8, "little") * chunks + bytes(8 * chunks)
    _os.pwrite_all(fd, header, offset)
