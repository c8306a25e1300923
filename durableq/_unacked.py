"""What one thread has taken with `get` and not yet acked, oldest first: 16 bytes an item, for there may be millions.

The usual thread has one at a time. That one lies in a variable, and the array stays empty.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from durableq._leases import Taken

_COUNT_BITS = 16
_CROWD = 2048
"""Words before it is worth a look whether other threads have acked the oldest items: those that have none of their own."""


class Unacked:
    """A queue of (position, index, count), for one thread. An interrupt leaves it as it was or as it was to be."""

    def __init__(self, is_lent: Callable[[int, int, int], bool] | None = None) -> None:
        """`is_lent` tells of an item whether an ack of it would still be one; without it, all are kept until dropped."""
        self._is_lent = is_lent
        self._bound = _CROWD
        self._one: tuple[int, int, int] | None = None
        """Older than all in the array: it is only filled when that is empty."""
        self.acking: tuple[int, int, int] | None = None
        """The item that the last ack was about. If that was interrupted, the next one finds it here again, and maybe done."""
        self._first = 0
        self._words = array("Q")  # two for each: position, and index << 16 | count

    def push(self, position: int, index: int, count: int) -> None:
        """Note an item that was taken."""
        words = self._words
        if self._one is None and not words:
            self._one = position, index, count
        else:
            words.extend((position, index << _COUNT_BITS | count))
            if len(words) > self._bound:
                self._shed()

    def _shed(self) -> None:
        """Forget what other threads have acked: they begin with the oldest. At each doubling, so it costs little an item."""
        if self._is_lent is not None:
            while (oldest := self.oldest()) is not None and not self._is_lent(*oldest):
                self.drop()
            del self._words[: self._first]
            self._first = 0
        self._bound = max(_CROWD, 2 * len(self._words))

    def oldest(self) -> tuple[int, int, int] | None:
        """The oldest item; None if there is none."""
        if self._one is not None:
            return self._one
        first = self._first
        if first == len(self._words):
            return None
        rest = self._words[first + 1]
        return self._words[first], rest >> _COUNT_BITS, rest & (1 << _COUNT_BITS) - 1

    def forget(self, box: list[Taken]) -> None:
        """Forget those that were noted of what was taken last, and is given back: the newest ones."""
        for position, index, count, *_ in reversed(box):
            words = self._words
            if len(words) == self._first:
                if self._one == (position, index, count):
                    self._one = None
            elif words[-2] == position and words[-1] == index << _COUNT_BITS | count:
                del words[-2:]

    def drop(self) -> None:
        """Forget the oldest item."""
        if self._one is not None:
            self._one = None
            return
        first = self._first + 2
        if first == len(self._words) or (first >= 8192 and first * 2 > len(self._words)):
            self._words = self._words[first:]
            first = 0
        self._first = first
