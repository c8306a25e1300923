"""Sleeping until something happens, in whatever process it happens.

A condition is a pair of control words: how many sleep, and a futex word that changes with every wake. The sleeper
registers under the head lock, looks once more, and then sleeps on the value it read before that look; whoever brings the
news publishes it first and then looks at the number of sleepers. One of the two always sees the other, because a lock or
unlock (a full barrier) lies between each one's store and look. Should a wake get lost all the same (its receiver was
killed with it in hand), the bounded sleep ends by itself: milliseconds late, not never.

A put wakes one sleeper for its item, unless as many items as there are sleepers wait already: each of those had its wake (who
comes to sleep now looks first, and finds one), and a call to the system for each put would cost more than the put.

Why a sleeper on each condition wakes:
    GET     a record was published; an item was given back, fell due, or lost its holder; the queue was shut down
    PUT     an item was taken (`maxsize`) or done (`max_bytes`); the queue was purged or shut down
    JOIN    nothing is unfinished, or nothing left to count off, any more; the queue was shut down
    LETTER  an item became a dead letter; a dead letter was given back or lost its holder; the queue was shut down
"""

from __future__ import annotations

import time

from durableq import _os
from durableq._state import (
    GET_WAITERS,
    GET_WORD,
    JOIN_WAITERS,
    JOIN_WORD,
    LETTER_WAITERS,
    LETTER_WORD,
    OWNER_GET,
    OWNER_JOIN,
    OWNER_LETTER,
    OWNER_PUT,
    PUT_WAITERS,
    PUT_WORD,
    Control,
    owner_word,
)

GET = (GET_WAITERS, GET_WORD, OWNER_GET)
PUT = (PUT_WAITERS, PUT_WORD, OWNER_PUT)
JOIN = (JOIN_WAITERS, JOIN_WORD, OWNER_JOIN)
LETTER = (LETTER_WAITERS, LETTER_WORD, OWNER_LETTER)
Condition = tuple[int, int, int]

EVERYBODY = 1 << 30
RECHECK = 0.1
"""Seconds of a sleep: bounds how long a lost wake or a holder's death goes unnoticed."""

_MASK = (1 << 32) - 1


class Wakeup:
    """Sleeps and wakes of one handle."""

    def __init__(self, control: Control) -> None:
        self._words = control.words
        self._address = control.address

    def enter(self, condition: Condition, slot: int, asleep: list[Condition]) -> None:
        """Count this thread among the sleepers, and note that in `asleep`; under the head lock."""
        waiters, _, own = condition
        words, at = self._words, owner_word(slot) + own
        words[at] += 1  # no call between the three stores: an interrupt comes before all of them or behind
        words[waiters] += 1
        asleep[:] = (condition,)

    def leave(self, slot: int, asleep: list[Condition]) -> None:
        """Undo `enter`; under the head lock."""
        waiters, _, own = asleep[0]
        words, at = self._words, owner_word(slot) + own
        mine, all_of_us = max(0, words[at] - 1), max(0, words[waiters] - 1)
        words[at] = mine  # as in `enter`
        words[waiters] = all_of_us
        asleep[:] = ()

    def read(self, condition: Condition) -> int:
        """The value to sleep on; read it before the last look at what is waited for."""
        return self._words[condition[1]]

    def sleep(self, condition: Condition, value: int, seconds: float) -> None:
        """Sleep until a wake, or `seconds`; not at all if there was a wake since `value` was read."""
        _os.futex_wait(self._address + 8 * condition[1], value, seconds)

    def wake(self, condition: Condition, count: int = 1) -> None:
        """Wake up to `count` sleepers. Callers look at the number of sleepers first; without any this is never called."""
        word = condition[1]
        self._words[word] = self._words[word] + 1 & _MASK
        _os.futex_wake(self._address + 8 * word, count)


class Deadline:
    """A timeout in seconds as a moment of the monotonic clock; None: never."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        """Seconds left, infinite without a timeout; zero or less once it passed."""
        return float("inf") if self._end is None else self._end - time.monotonic()
