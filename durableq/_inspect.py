"""Looking at a queue: how many, which ones, where they lie. Nothing is taken, and no item changes.

What a dead process held counts at once, also for who only looks: it is given back first, unless that would mean waiting for a
lock. What is told of several words or records at a time was seen under the head lock; producers go on meanwhile.
"""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import dataclass, replace

from durableq._leases import DEAD_CODE, RETURNED_CODE, Taken
from durableq._owner import Owner, describe
from durableq._record import READY, Header, decode_due
from durableq._scan import Reader
from durableq._state import (
    BASE,
    BUSY,
    DAMAGED,
    DAMAGED_BYTES,
    DEAD,
    DELAYED,
    DROPS,
    GET_WAITERS,
    H_STATE,
    LIVE,
    PUT_DELAYED,
    RETURNED,
    SEEN_DELAYED,
    SHUTDOWN,
)
from durableq._stepping import at_head
from durableq._tail import TailEnd
from durableq._wakeup import GET


@dataclass(frozen=True)
class Stats:
    """A queue at one moment. Counts are exact when nobody works on it, and close when somebody does."""

    path: str
    ready: int
    """Items that can be taken now."""
    lent: int
    """Items that were taken and are not done yet."""
    delayed: int
    """Items that wait for their time."""
    dead: int
    """Dead letters."""
    unfinished: int
    """Items that `join` waits for: ready, delayed and lent."""
    puts: int
    """Items ever put (counted from the last recovery that had no checkpoint)."""
    drops: int
    """Items dropped under `on_full="drop_oldest"`."""
    damaged: int
    """Damaged records found so far; their bytes are in `PATH-damaged`."""
    damaged_bytes: int
    bytes_live: int
    """Bytes of all records that are not done."""
    bytes_logical: int
    """Size of the file as `ls -l` shows it."""
    bytes_on_disk: int
    """Bytes of disk that the file takes, as `du` shows it."""
    oldest: float | None
    """Unix time of the put of the oldest ready item."""
    owners: tuple[Owner, ...]
    """The processes that have the queue open."""


@dataclass(frozen=True)
class Survey:
    """Where the records of a queue lie, in logical positions."""

    base: int
    """The position of the front of the file."""
    head: int
    """All records from here up to the tail wait to be taken for the first time."""
    tail: int
    positions: array[int]
    """Of the records behind the head that are not done; with free entries in between, whose code is 0."""
    sizes: array[int]
    """In units of 8 bytes."""
    codes: array[int]
    """Who has them: see `_leases`."""


class Inspector(TailEnd):
    """What anybody may ask of a queue."""

    # -- how many ------------------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Items that wait to be taken, ready or delayed."""
        self._check()
        self._bury_dead()
        return max(0, self._control.waiting())

    def _bury_dead(self) -> None:
        """What a dead process held counts at once, also for who only looks, and what is due; without waiting for a lock."""
        words = self._words
        unusual = words[H_STATE] & BUSY or self._head.holder_died() or self.is_due()
        if unusual or (words[LIVE] != words[RETURNED] + words[DELAYED] and self._owners.someone_died()):
            before = words[RETURNED]
            self._head.hold_if_free(self._reap_here)
            if words[RETURNED] > before and words[GET_WAITERS]:
                self._wakeup.wake(GET, words[RETURNED] - before)
            self._letters_came()

    def _reap_here(self) -> None:
        self._see_head()
        if self._owners.reap(self._ledger):
            self._retire()
        self._let_fall_due()
        self._leave_head()

    def unfinished(self) -> int:
        """Items that `join` waits for."""
        self._check()
        return self._control.unfinished()

    def is_shutdown(self) -> bool:
        """Whether the queue was shut down."""
        self._check()
        return self._words[SHUTDOWN] > 0

    def dead_letters(self) -> int:
        """Dead letters that nobody has."""
        self._check()
        self._bury_dead()
        return self._count_letters()

    @at_head
    def _count_letters(self) -> int:
        return self._ledger.codes().count(DEAD_CODE.to_bytes(2, "little"))

    # -- which ones ----------------------------------------------------------------------------------------------------

    def peek(self, n: int, code: int = RETURNED_CODE, after: int = -1) -> list[Taken]:
        """The first `n` items that would be taken next, without taking them; `code`: DEAD_CODE for dead letters.

        `after`: of those behind this position, which is that of the last one seen.
        """
        self._check()
        self._bury_dead()
        found: list[Taken] = []
        self._peek_locked(n, code, after, found)
        return found

    @at_head
    def _peek_locked(self, n: int, code: int, after: int, found: list[Taken]) -> None:
        reader = Reader(self._fd, self._salt, self._head_base)
        i = self._ledger.search(code, self._ledger.first_behind(after))
        while i >= 0 and len(found) < n:
            self._show(reader, reader.header(self._ledger.position[i]), self._ledger.count[i], found)
            i = self._ledger.search(code, i + 1)
        now = time.time_ns() // 1_000_000
        tail = self._control.tail()[0]
        if code == RETURNED_CODE and len(found) < n:
            for header in reader.walk(max(self._control.head()[0], after), tail):
                if header.state == READY and decode_due(header.due) <= now and header.position > after:
                    self._show(reader, header, header.deliveries, found)
                    if len(found) == n:
                        break

    @at_head
    def peek_lent(self, n: int) -> list[tuple[int, Taken]]:
        """What everybody has taken, with the pid of who has it: up to `n` items each, oldest first."""
        found: list[tuple[int, Taken]] = []
        reader = Reader(self._fd, self._salt, self._head_base)
        for pid, code in self._owners.holders():
            theirs: list[Taken] = []
            i = self._ledger.search(code)
            while i >= 0 and len(theirs) < n:
                self._show(reader, reader.header(self._ledger.position[i]), self._ledger.count[i], theirs)
                i = self._ledger.search(code, i + 1)
            found.extend((pid, taken) for taken in theirs)
        return found

    @at_head
    def letters(self) -> list[int]:
        """The positions of all dead letters, also of those that somebody has."""
        return self._ledger.letters()

    @at_head
    def survey(self) -> Survey:
        """Where everything lies."""
        positions, sizes, codes = self._ledger.copy()
        head, tail = self._control.head()[0], self._control.tail()[0]
        return Survey(self._words[BASE], head, tail, positions, sizes, codes)

    def name(self, position: int) -> str:
        """Names an item for good: see `Delivery.id`."""
        return f"{self._salt:08x}-{position:x}"

    @staticmethod
    def _show(reader: Reader, header: Header | None, count: int, found: list[Taken]) -> None:
        payload = reader.payload(header) if header else None
        if header is not None and payload is not None:
            found.append((header.position, -1, count, header.tag, header.enqueued, payload))

    # -- all at once ---------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The queue at this moment."""
        self._check()
        self._bury_dead()
        stats, census = self._stats_locked(self.peek(1))
        return replace(stats, owners=describe(census))

    @at_head
    def _stats_locked(self, first: list[Taken]) -> tuple[Stats, list[tuple[int, int, bool]]]:
        words, control = self._words, self._control
        info = os.fstat(self._fd)
        unseen = max(0, words[PUT_DELAYED] - words[SEEN_DELAYED])
        waiting = control.waiting()
        delayed = min(words[DELAYED] + unseen, waiting)
        stats = Stats(
            path=self.path,
            ready=waiting - delayed,
            lent=words[LIVE] - words[RETURNED] - words[DELAYED] - words[DEAD],
            delayed=delayed,
            dead=words[DEAD],
            unfinished=control.unfinished(),
            puts=control.tail()[1],
            drops=words[DROPS],
            damaged=words[DAMAGED],
            damaged_bytes=words[DAMAGED_BYTES],
            bytes_live=self.live_bytes(),
            bytes_logical=info.st_size,
            bytes_on_disk=info.st_blocks * 512,
            oldest=first[0][4] / 1e6 if first else None,
            owners=(),
        )
        return stats, self._owners.census(self._ledger)
