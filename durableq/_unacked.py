"""What one thread has taken with `get` and not yet acked, oldest first: 16 bytes an item, for there may be millions.

The usual thread has one at a time. That one lies in a variable, and the array stays empty.
"""

from __future__ import annotations

from array import array

_COUNT_BITS = 16


class Unacked:
    """A queue of (position, index, count), for one thread. An interrupt leaves it as it was or as it was to be."""

    def __init__(self) -> None:
        self._one: tuple[int, int, int] | None = None
        """Older than all in the array: it is only filled when that is empty."""
        self.acking: tuple[int, int, int] | None = None
        """The item that the last ack was about. If that was interrupted, the next one finds it here again, and maybe done."""
        self._first = 0
        self._words = array("Q")  # two for each: position, and index << 16 | count

    def push(self, position: int, index: int, count: int) -> None:
        """Note an item that was taken."""
        if self._one is None and not self._words:
            self._one = position, index, count
        else:
            self._words.extend((position, index << _COUNT_BITS | count))

    def oldest(self) -> tuple[int, int, int] | None:
        """The oldest item; None if there is none."""
        if self._one is not None:
            return self._one
        first = self._first
        if first == len(self._words):
            return None
        rest = self._words[first + 1]
        return self._words[first], rest >> _COUNT_BITS, rest & (1 << _COUNT_BITS) - 1

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
