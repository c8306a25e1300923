"""The states in which a disk may be found after a power cut.

What a sync covered is there. Of what came later:

    data        each 4 KiB page is there in any of its later versions or in none, and each of its 512-byte sectors apart
    size        as it was at any moment since
    metadata    truncates, punches and collapses: the first few of them, in order, as a journal has it
    a page whose hole is there but whose later data is not reads as zeros; one that is written after a punch that is not
    there has the new data all the same; a write behind a collapse that is not there lands where the block still is
"""

from __future__ import annotations

import random

from .recorder import Entry

PAGE = 4096
SECTOR = 512
SUPERBLOCK = 4096


class _Volatile:
    """A file as its users see it."""

    def __init__(self, image: bytes) -> None:
        self.data = bytearray(image)

    def apply(self, entry: Entry) -> None:
        data = self.data
        if entry[0] == "w":
            _, offset, piece = entry
            if len(data) < offset + len(piece):
                data.extend(bytes(offset + len(piece) - len(data)))
            data[offset : offset + len(piece)] = piece
        elif entry[0] == "t":
            del data[entry[1] :]
            data.extend(bytes(entry[1] - len(data)))
        elif entry[0] == "p":
            stop = min(entry[1] + entry[2], len(data))
            data[entry[1] : stop] = bytes(max(0, stop - entry[1]))
        elif entry[0] == "c":
            del data[entry[1] : entry[1] + entry[2]]


def covered(log: list[Entry], cut: int) -> int:
    """How many entries at the front of the log a finished sync covers when the power fails after `cut` entries."""
    begun: dict[str, int] = {}
    most = 0
    for i, entry in enumerate(log[:cut]):
        if entry[0] == "sb":
            begun[entry[1]] = i
        elif entry[0] == "se":
            most = max(most, begun[entry[1]])
    return most


STYLES = ("old", "new", "pages", "times", "one lost", "one there", "superblock", "no superblock")


def after_cut(log: list[Entry], cut: int, rng: random.Random, style: str, image: bytes = b"") -> bytes:
    """One legal state of the disk when the power fails after `cut` entries of the log, from `image` on."""
    safe = covered(log, cut)
    cache = _Volatile(image)
    for entry in log[:safe]:
        cache.apply(entry)
    return bytes(_Aftermath(cache, safe, cut, rng, style).run(log[safe:cut]))


class _Aftermath:
    def __init__(self, cache: _Volatile, first: int, cut: int, rng: random.Random, style: str) -> None:
        self._cache = cache
        self._disk = bytearray(cache.data)
        self._size = len(self._disk)
        self._shift = 0
        self._rng, self._style = rng, style
        self._first, self._last = first, cut
        self._until: dict[int, list[int]] = {}
        self._odd_page: int | None = None
        self._metadata_until = self._moment(style == "times")
        self._size_until = self._moment(style == "times")

    def run(self, pending: list[Entry]) -> bytearray:
        written = [e[1] // PAGE for e in pending if e[0] == "w"]
        self._odd_page = self._rng.choice(written) if written else None
        for at, entry in enumerate(pending, self._first):
            if entry[0] == "c" and at <= self._metadata_until:
                self._disk = bytearray(self._cache.data)  # it writes back first what is dirty
                self._size = len(self._disk)
            self._cache.apply(entry)
            if entry[0] == "w":
                self._write(at, entry[1], len(entry[2]))
            elif entry[0] in "tpc":
                self._change(at, entry)
        del self._disk[self._size :]
        self._disk.extend(bytes(self._size - len(self._disk)))
        return self._disk

    def _moment(self, any_time: bool = False) -> int:
        """Up to when something is on the disk."""
        if self._style == "old":
            return -1
        if self._style in ("new", "one lost"):
            return self._last
        if any_time:
            return self._rng.randint(self._first - 1, self._last)
        return self._rng.choice((-1, self._last))

    def _sectors(self, page: int) -> list[int]:
        """Up to when each sector of a page is on the disk."""
        if page not in self._until:
            style = self._style
            if style == "one lost":
                until = -1 if page == self._odd_page else self._last
            elif style == "one there":
                until = self._last if page == self._odd_page else -1
            elif style == "superblock":
                until = self._last if page == 0 else -1
            elif style == "no superblock":
                until = -1 if page == 0 else self._last
            else:
                until = self._moment(style == "times")
            sectors = [until] * (PAGE // SECTOR)
            if style in ("pages", "times", "one lost", "one there") and self._rng.random() < 0.3:
                other = self._moment(True)
                sectors = [self._rng.choice((until, other)) for _ in sectors]
            self._until[page] = sectors
        return self._until[page]

    def _write(self, at: int, offset: int, length: int) -> None:
        shift = self._shift if offset >= SUPERBLOCK else 0
        if at <= self._size_until:
            self._size = max(self._size, offset + length + shift)
        for page in range(offset // PAGE, (offset + length + PAGE - 1) // PAGE):
            for n, until in enumerate(self._sectors(page)):
                if at <= until:
                    start = page * PAGE + n * SECTOR
                    piece = bytes(self._cache.data[start : start + SECTOR])
                    place = start + shift
                    if len(self._disk) < place + len(piece):
                        self._disk.extend(bytes(place + len(piece) - len(self._disk)))
                    self._disk[place : place + len(piece)] = piece

    def _change(self, at: int, entry: Entry) -> None:
        if at > self._metadata_until:
            if entry[0] == "c":
                self._shift += entry[2]
            return
        disk = _Volatile(b"")
        disk.data = self._disk
        disk.apply(entry)
        if entry[0] == "t":
            self._size = entry[1]
        elif entry[0] == "c":
            self._size -= entry[2]
