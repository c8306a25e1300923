"""Owner slots: who has the queue open, known by a kernel lock that vanishes with its holder.

Every handle holds the lock of one byte of the control file for as long as it lives. That it is free proves its holder
gone: no heartbeat, no guess about pids. What a slot records beside it (pid) is for people and for `task_done`.

The lock belongs to the open file description, so two things must not keep a dead holder's lock alive: a forked child
closes the descriptors it inherited at once (`Handle.after_fork`, `_fork`), and the control words are mapped through a
descriptor of their own, because a mapping, which children inherit, holds on to its open file description as a descriptor does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from durableq import _os
from durableq._leases import owner_code
from durableq._ledger import Ledger
from durableq._state import (
    DIRTY,
    DIRTY_FOR_ANOTHER,
    GET_WAITERS,
    JOIN_WAITERS,
    LETTER_WAITERS,
    NAMESPACE,
    OWNER_DIRTY,
    OWNER_GET,
    OWNER_JOIN,
    OWNER_LENT,
    OWNER_LETTER,
    OWNER_OFFSET,
    OWNER_PID,
    OWNER_PUT,
    OWNER_SIZE,
    OWNER_SLOTS,
    OWNER_TOKEN,
    PUT_WAITERS,
    SLOTS,
    Control,
    owner_word,
)
from durableq.errors import TooManyOwnersError

_SLEEPERS = {
    OWNER_GET: GET_WAITERS,
    OWNER_PUT: PUT_WAITERS,
    OWNER_JOIN: JOIN_WAITERS,
    OWNER_LETTER: LETTER_WAITERS,
}
"""Where a slot says how many sleep through it, and where all slots together."""


@dataclass(frozen=True)
class Owner:
    """A process that has the queue open, for people."""

    pid: int
    command: str
    started: float
    """Unix time at which the process started; 0.0 if it cannot be seen from here (another container)."""
    lent: int
    waiting: bool
    """Whether it sleeps in get, put or join, of the queue or of its dead letters."""


class Owners:
    """The owner slots as one handle sees them; all methods under the head lock, unless they say otherwise."""

    def __init__(self, control: Control, fd: int, path: str) -> None:
        self._words = control.words
        self._fd = fd
        self._path = path
        self.slot = -1
        self.owes_sync = False
        """Whether one of those buried here had written what it had not synced yet."""

    def note_namespace(self) -> int:
        """Before this handle takes any lock but the cold one: tell the others its pid namespace, and return it."""
        own = _os.pid_namespace()
        if self.alone():
            self._words[NAMESPACE] = own
        elif self._words[NAMESPACE] != own:
            self._words[NAMESPACE] = 0
        return own

    def claim(self, ledger: Ledger) -> None:
        """Take a free slot; what a dead predecessor in it still held goes back to the queue first."""
        for slot in range(OWNER_SLOTS):
            if _os.try_lock_byte(self._fd, _byte(slot)):
                self._bury(slot, ledger)
                self._words[SLOTS] = max(self._words[SLOTS], slot + 1)
                word = owner_word(slot)
                self._words[word + OWNER_TOKEN] = _token()
                self._words[word + OWNER_PID] = os.getpid()
                self.slot = slot
                return
        raise TooManyOwnersError(
            f"{self._path}: all {OWNER_SLOTS} owner slots are taken; close handles that are no longer used"
        )

    def release(self, ledger: Ledger) -> int:
        """Give back all that this handle holds, and its slot; how many items went back."""
        self._words[owner_word(self.slot) + OWNER_DIRTY] = 0
        returned = self._bury(self.slot, ledger)
        slot, self.slot = self.slot, -1
        _os.unlock_byte(self._fd, _byte(slot))
        return returned

    def reap(self, ledger: Ledger) -> int:
        """Return what the dead held; how many items. Only slots that may hold something or are counted as sleepers."""
        return sum(self._bury(slot, ledger) for slot in self._missed())

    def any_matters(self) -> bool:
        """Whether anybody, dead or alive, has lent items or is to sync. Much cheaper than to see who died; needs no lock."""
        words = self._words
        first, end, step = owner_word(0), owner_word(words[SLOTS]), OWNER_SIZE // 8
        return any(words[first + OWNER_LENT : end : step]) or any(words[first + OWNER_DIRTY : end : step])

    def someone_died(self) -> bool:
        """Whether somebody is gone who had lent items, owed a sync, or is counted as a sleeper; cheap, and needs no lock."""
        return any(True for _ in self._missed())

    def pay_syncs(self, sync: Callable[[], None]) -> None:
        """Sync for those buried here who had written what they had not synced yet. Needs no lock."""
        if not self.owes_sync:
            return
        self.owes_sync = False  # before: who is buried meanwhile may have written what this one misses
        try:
            sync()
        except BaseException:
            self.owes_sync = True
            raise
        own = owner_word(self.slot) + OWNER_DIRTY
        if self._words[own] == DIRTY_FOR_ANOTHER and not self.owes_sync:
            self._words[own] = 0

    def _missed(self) -> Iterator[int]:
        # Their locks are looked at and not taken: an interrupt might keep them, and then they would count as alive.
        return (slot for slot in self._others() if self._matters(slot) and not _os.byte_is_locked(self._fd, _byte(slot)))

    def alone(self) -> bool:
        """Whether no other live handle has the queue open."""
        return not any(_os.byte_is_locked(self._fd, _byte(slot)) for slot in self._others())

    def of_this_process(self) -> list[int]:
        """The slots of all handles of this process on this queue, the own one first."""
        token = _token()
        return [self.slot, *(s for s in self._others() if self._words[owner_word(s) + OWNER_TOKEN] == token)]

    def census(self, ledger: Ledger) -> list[tuple[int, int, bool]]:
        """Of each live owner: pid, how many items it has, and whether it sleeps. For `describe`."""
        codes = ledger.codes()
        found = []
        for slot in sorted([self.slot, *self._others()]):
            if slot != self.slot and not _os.byte_is_locked(self._fd, _byte(slot)):
                continue
            word = owner_word(slot)
            pid = self._words[word + OWNER_PID]
            lent = codes.count(owner_code(slot).to_bytes(2, "little"))
            waiting = any(self._words[word + offset] for offset in _SLEEPERS)
            found.append((pid, lent, waiting))
        return found

    def holders(self) -> list[tuple[int, int]]:
        """Pid and owner code of everybody here, the dead too as long as nobody has buried them."""
        slots = sorted([self.slot, *self._others()])
        return [(self._words[owner_word(slot) + OWNER_PID], owner_code(slot)) for slot in slots]

    def count_waiters(self) -> None:
        """Derive the numbers of sleepers from the slots."""
        words = self._words
        slots = [owner_word(slot) for slot in range(words[SLOTS])]
        for offset, waiters in _SLEEPERS.items():
            words[waiters] = sum(words[w + offset] for w in slots)

    def _others(self) -> list[int]:
        words = self._words
        return [s for s in range(words[SLOTS]) if words[owner_word(s) + OWNER_PID] and s != self.slot]

    def _matters(self, slot: int) -> bool:
        words, word = self._words, owner_word(slot)
        return any(words[word + OWNER_LENT : word + OWNER_JOIN + 1]) or any(words[word + OWNER_DIRTY : word + OWNER_LETTER + 1])

    def _bury(self, slot: int, ledger: Ledger) -> int:
        returned = ledger.give_back(slot)
        word = owner_word(slot)
        self._words[word + OWNER_LENT] = 0
        if self._words[word + OWNER_DIRTY]:
            # First it is our debt, and only then no longer theirs: if we are killed before it is paid, who buries us pays it.
            own = (word if self.slot < 0 else owner_word(self.slot)) + OWNER_DIRTY
            self.owes_sync = True
            if self.slot < 0 or self._words[own] != DIRTY:
                self._words[own] = DIRTY_FOR_ANOTHER
            if own != word + OWNER_DIRTY:
                self._words[word + OWNER_DIRTY] = 0
        if any(self._words[word + offset] for offset in _SLEEPERS):
            for offset in _SLEEPERS:
                self._words[word + offset] = 0
            self.count_waiters()
        self._words[word + OWNER_PID] = 0
        return returned


_own_token = (0, 0)


def _token() -> int:
    """A number of this process alone: pids are not, in containers that share a queue."""
    global _own_token
    if _own_token[0] != os.getpid():
        _own_token = os.getpid(), int.from_bytes(os.urandom(8), "little") >> 1 | 1
    return _own_token[1]


def _byte(slot: int) -> int:
    return OWNER_OFFSET + slot * OWNER_SIZE


def describe(census: list[tuple[int, int, bool]]) -> tuple[Owner, ...]:
    """The owners with names, by psutil. Under no lock: to import it takes longer than a thousand puts."""
    return tuple(Owner(pid, *_describe_process(pid), lent, waiting) for pid, lent, waiting in census)


def _describe_process(pid: int) -> tuple[str, float]:
    import psutil

    try:
        process = psutil.Process(pid)
        return " ".join(process.cmdline()) or process.name(), process.create_time()
    except psutil.Error:
        return "?", 0.0
