"""The ledger, for entries that follow each other: what `Ledger` does to one of them, column by column.

Items that were taken together have such entries. The order of the stores matters as little as it does for one entry, and for
the same reason: who dies in between leaves BUSY behind, and all counts are derived from the columns.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from itertools import accumulate

from durableq._leases import CHUNK_LOG2, END, FIRST, RETURNED_CODE, Finder, packed
from durableq._ledger import Ledger
from durableq._state import LIVE, LIVE_BYTES

_returned_runs: Finder = re.compile(b"(?:%b)+" % re.escape(packed(RETURNED_CODE))).finditer


class RunLedger(Ledger):
    """A ledger that looks at, and strikes out, many entries at once. Every method wants the head lock."""

    def find_run(self, positions: list[int], hint: int, count: int, code: int) -> int:
        """The index of the first of entries that follow each other, all with this count and this owner; -1 if they do not."""
        i = self.find(positions[0], hint)
        n = len(positions)
        if i < 0 or i + n > self._meta[END]:
            return -1
        same = (
            self.owner[i : i + n] == array("H", [code]) * n
            and self.count[i : i + n] == array("H", [count]) * n
            and self.position[i : i + n] == array("Q", positions)
        )
        return i if same else -1

    def first_behind(self, position: int) -> int:
        """The index of the first entry behind a position."""
        return bisect_right(self.position, position, 0, self._meta[END])

    def copy(self) -> tuple[array[int], array[int], array[int]]:
        """The positions, sizes (in units of 8 bytes) and owner codes of all entries as they are now."""
        end = self._meta[END]
        return array("Q", self.position[:end].tobytes()), array("I", self._size[:end].tobytes()), array("H", self.codes())

    def returned_bytes(self) -> int:
        """Bytes of the records that were given back."""
        return 8 * sum(sum(self._size[a:b].tolist()) for a, b in self._runs(_returned_runs, self.codes(), 0))

    def run_sizes(self, i: int, n: int) -> list[int]:
        """Bytes of the records of `n` entries from index `i` on."""
        # A list first: a view that an interrupt leaves in some traceback would keep the map from being closed.
        return [size << 3 for size in self._size[i : i + n].tolist()]

    def free_run(self, i: int, sizes: list[int]) -> int:
        """Strike out entries that follow each other, of records that were lent and are done; their size in bytes."""
        words = self._words
        n, total = len(sizes), sum(sizes)
        self.owner[i : i + n] = array("H", bytes(2 * n))
        words[LIVE_BYTES] -= total
        words[LIVE] -= n
        if not words[LIVE]:
            self._reset()
            return total
        for chunk in range(i >> CHUNK_LOG2, (i + n - 1 >> CHUNK_LOG2) + 1):
            first = chunk << CHUNK_LOG2
            self._dead[chunk] += sum(sizes[max(0, first - i) : first + (1 << CHUNK_LOG2) - i])
        if i <= self._meta[FIRST] < i + n:
            self._meta[FIRST] = i + n
        return total


def side_by_side(positions: list[int], sizes: list[int]) -> bool:
    """Whether each of these records begins where the one before it ends."""
    return list(accumulate(sizes[:-1], initial=positions[0])) == positions
