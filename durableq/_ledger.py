"""The ledger: every record behind the head that is not done, sorted by position.

The head passes a record either because it is done at once, or because it gets an entry here: lent to an owner, given
back, waiting for its time, or a dead letter. Entries are appended as the head moves, so they are sorted without sorting,
and the lowest entry that was given back is the oldest item of the queue. All of it is under the head lock.

How the entries lie in the control file, and what a kill can leave of them, is told in `_leases`. The counts are words of
`_state`; every method that changes an entry keeps them, and `recount` derives them anew after who died in between.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator

from durableq._leases import (
    CHUNK_LOG2,
    DEAD_CODE,
    DEAD_LENT,
    DELAYED_CODE,
    END,
    FIRST,
    HINT,
    NOBODY,
    RESERVED,
    RETURNED_CODE,
    Finder,
    Region,
    is_dead_letter,
    live_runs,
    owner_code,
    packed,
    slot_of,
)
from durableq._record import DEAD as STATE_DEAD
from durableq._record import DONE
from durableq._state import DEAD, DELAYED, LIVE, LIVE_BYTES, NEVER, NEXT_DUE, RETURNED

_DEAD_LENT_BYTES = [bytes([high]) for high in range(0xC0, 0xE0)]
_dead_runs: Finder = re.compile(rb"\0+").finditer
_first_live = re.compile(rb"[^\0]").search
_letters: Finder = re.compile(rb"\x7d\xff|[\x01-\x78][\xc0-\xdf]").finditer  # dead letters that nobody has, or somebody


class Ledger(Region):
    """One handle's view of the ledger. Every method wants the head lock."""

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

    def next_owned(self, slot: int, dead: bool) -> int:
        """Index of the oldest entry that an owner took with `get`, from the dead letters or else from the queue; or -1."""
        code = owner_code(slot) | DEAD_LENT if dead else owner_code(slot)
        i = self.search(code, self._meta[FIRST])
        while i >= 0 and self.count[i] & RESERVED:
            i = self.search(code, i + 1)
        return i

    def next_lent(self, dead: bool) -> int:
        """As `next_owned`, that anybody took. Looks at every entry: for the last resort."""
        for i in range(self._meta[FIRST], self._meta[END]):
            code = self.owner[i]
            if slot_of(code) is not None and not self.count[i] & RESERVED and is_dead_letter(code) == dead:
                return i
        return -1

    def search(self, code: int, start: int = 0) -> int:
        """Index of the first entry from `start` on that has this very code, or -1."""
        assert self._map is not None
        at = self._owners_at
        found = self._map.find(packed(code), at + 2 * start, at + 2 * self._meta[END])
        return found - at >> 1 if found >= 0 else -1

    def letters(self) -> list[int]:
        """The positions of all dead letters, also of those that somebody has."""
        return [self.position[match.start() // 2] for match in _letters(self.codes())]

    def floor(self, head: int) -> int:
        """The position below which every record is done."""
        assert self._map is not None
        at = self._owners_at
        found = _first_live(self._map, at + 2 * self._meta[FIRST], at + 2 * self._meta[END])
        self._meta[FIRST] = first = found.start() - at >> 1 if found else self._meta[END]
        return self.position[first] if found else head

    # -- many entries --------------------------------------------------------------------------------------------------

    def give_back(self, slot: int) -> int:
        """Return all that an owner holds, dead letters to the dead letters; how many. At the speed of a memory copy."""
        assert self._map is not None
        total = 0
        start = self._owners_at
        end = start + 2 * self._meta[END]
        code = owner_code(slot)
        for old, new in ((code, RETURNED_CODE), (code | DEAD_LENT, DEAD_CODE)):
            at = self._map.find(packed(old), start, end)
            while at >= 0:
                stop = min(at + 0x10000, end)
                piece = self._map[at:stop]
                if new == RETURNED_CODE:
                    found = piece.count(packed(old))
                    total += found
                    self._words[RETURNED] += found
                    self._meta[HINT] = min(self._meta[HINT], at - start >> 1)
                self._map[at:stop] = piece.replace(packed(old), packed(new))
                at = self._map.find(packed(old), stop, end)
        return total

    def expire(self, now: int, end_lease: Callable[[int], None]) -> None:
        """Return what is due at `now` (milliseconds since 1970): ended delays and ended leases.

        `end_lease`: puts an item, by its index, from its holder to where it belongs now. Dead letters go to the dead letters.
        """
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
                if code == DELAYED_CODE:
                    self.change(i, RETURNED_CODE)
                elif slot_of(code) is not None:
                    if is_dead_letter(code):
                        self.change(i, DEAD_CODE)
                    else:
                        end_lease(i)
                # Behind the change: a delay without an end, which is what a kill between the two would leave, never ends.
                self._until[i] = NEVER
            self._due[chunk] = earliest
        self._words[NEXT_DUE] = min(self._due[:used], default=NEVER)

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
        words[LIVE_BYTES] = 8 * sum(sum(self._size[a:b]) for a, b in self._runs(live_runs, codes, 0))
        words[RETURNED] = codes.count(packed(RETURNED_CODE))
        words[DELAYED] = codes.count(packed(DELAYED_CODE))
        words[DEAD] = codes.count(packed(DEAD_CODE)) + sum(codes.count(high) for high in _DEAD_LENT_BYTES)
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

    def dead_ranges(self, least: int, head: int) -> Iterator[tuple[int, int]]:
        """Position ranges between live records, from chunks in which at least `least` bytes died; marks them swept."""
        end = self._meta[END]
        codes = self.codes()
        covered = self._meta[FIRST]  # what is dead below the first live entry is not ours: the floor takes it
        for chunk in self._chunks_with_live():
            if self._dead[chunk] < least:
                continue
            self._dead[chunk] = 0
            first = chunk << CHUNK_LOG2
            for a, b in self._runs(_dead_runs, codes[2 * first : 2 * (chunk + 1 << CHUNK_LOG2)], first):
                # A run goes on over the border of its chunk, so it reaches up to its live neighbours, once.
                if a < covered:
                    continue
                previous = _previous_live(codes, a)
                if previous < 0:
                    continue
                following = _first_live(codes, 2 * b)
                covered = following.start() // 2 if following else end
                yield self.position[previous] + self.size(previous), self.position[covered] if following else head

    def dead_bytes(self) -> int:
        """Bytes that died between live records since they were last swept; after `floor`."""
        chunks = self._chunks_with_live()
        return sum(self._dead[chunks.start : chunks.stop])

    def _chunks_with_live(self) -> range:
        return range(self._meta[FIRST] >> CHUNK_LOG2, (self._meta[END] + (1 << CHUNK_LOG2) - 1) >> CHUNK_LOG2)


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
