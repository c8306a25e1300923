"""What one thread has taken with `get` and not yet acked, oldest first: 14 bytes an item, for there may be millions.

The usual thread has one at a time. That one lies in a variable, and the arrays stay empty.
"""

from __future__ import annotations

from array import array


class Unacked:
    """A queue of (position, index, count), for one thread."""

    def __init__(self) -> None:
        self._oldest: tuple[int, int, int] | None = None
        """Older than all in the arrays: it is only filled when they are empty."""
        self._clear()

    def _clear(self) -> None:
        self._first = 0
        self._positions = array("Q")
        self._indexes = array("I")
        self._counts = array("H")

    def push(self, position: int, index: int, count: int) -> None:
        """Note an item that was taken."""
        if self._oldest is None and not self._positions:
            self._oldest = position, index, count
            return
        self._positions.append(position)
        self._indexes.append(index)
        self._counts.append(count)

    def pop(self) -> tuple[int, int, int] | None:
        """Forget the oldest item and return it; None if there is none."""
        oldest = self._oldest
        if oldest is not None:
            self._oldest = None
            return oldest
        first = self._first
        if first == len(self._positions):
            return None
        oldest = self._positions[first], self._indexes[first], self._counts[first]
        first += 1
        if first == len(self._positions):
            self._clear()
        elif first >= 4096 and first * 2 > len(self._positions):
            del self._positions[:first], self._indexes[:first], self._counts[:first]
            self._first = 0
        else:
            self._first = first
        return oldest
