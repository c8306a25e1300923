"""A file's data and holes, as the file system tells them and as one line of text.

`read_extents` asks with SEEK_DATA and SEEK_HOLE which ranges of a file are backed by blocks. It opens the file for
reading only and takes no lock, so it may look at a spool that others write to. What it returns is then a moment's view:
good to show to people, no ground for a decision. `draw` turns it into cells, each for an equal share of the file:

    data in all of it   in half or more   in some   in none (given back)   past the end of the file
    U+2588 or #         U+2593 or +       U+2592 or -   U+2591 or .        space
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

__all__ = ["Extents", "coverage", "draw", "human", "legend", "read_extents", "symbols_for"]

BLOCKS = "\u2588\u2593\u2592\u2591"
ASCII = "#+-."

#: More extents than this are not worth the system calls for a line of some eighty cells: the rest counts as data.
MOST_EXTENTS = 100_000


@dataclass(frozen=True)
class Extents:
    """Where a file has data: half-open ranges in rising order, its length, and the bytes it takes on disk."""

    size: int
    on_disk: int
    data: tuple[tuple[int, int], ...]


def read_extents(path: str | os.PathLike[str]) -> Extents:
    """Ask the file system for the data ranges of the file at `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        data = tuple(_data_ranges(descriptor, status.st_size))
    finally:
        os.close(descriptor)
    return Extents(status.st_size, status.st_blocks * 512, data)


def _data_ranges(descriptor: int, size: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    position = 0
    while position < size:
        if len(ranges) == MOST_EXTENTS:
            ranges.append((position, size))
            break
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end, or the file was cut while we looked
                break
            if error.errno != errno.EINVAL:
                raise
            ranges.append((position, size))  # the file system knows no holes
            break
        if stop <= position:  # whatever it answers, the walk must end
            break
        if start < size:
            ranges.append((start, min(stop, size)))
        position = stop
    return ranges


def draw(extents: Extents, width: int, *, full_size: int = 0, symbols: str = BLOCKS) -> str:
    """One line of `width` cells. `full_size` is what the whole width stands for (at least the file's own size), so that
    lines of one file at several times can be laid under each other."""
    span = max(full_size, extents.size, 1)
    covered = coverage(extents.data, width, span)
    cells = []
    for cell, filled in enumerate(covered):
        low, high = _bounds(cell, width, span)
        inside = min(high, extents.size) - low  # the share of the cell that lies before the end of the file
        if inside <= 0:
            cells.append(" ")
        elif filled >= inside:
            cells.append(symbols[0])
        elif filled * 2 >= inside:
            cells.append(symbols[1])
        elif filled:
            cells.append(symbols[2])
        else:
            cells.append(symbols[3])
    return "".join(cells)


def coverage(ranges: Iterable[tuple[int, int]], width: int, span: int) -> list[int]:
    """How many bytes of each of `width` cells, which stand for `span` bytes together, lie in the ranges."""
    covered = [0] * width
    for start, stop in ranges:
        first, last = start * width // span, (stop - 1) * width // span
        for cell in range(first, min(last, width - 1) + 1):
            low, high = _bounds(cell, width, span)
            covered[cell] += max(0, min(stop, high) - max(start, low))
    return covered


def _bounds(cell: int, width: int, span: int) -> tuple[int, int]:
    """The bytes a cell stands for. Rounded up, to agree with the rounding down of `offset * width // span`."""
    return -(-cell * span // width), -(-(cell + 1) * span // width)


def legend(symbols: str = BLOCKS) -> str:
    """What the cells mean, in one line."""
    return f"{symbols[0]} data  {symbols[1]} half or more  {symbols[2]} some  {symbols[3]} given back to the disk"


def symbols_for(stream: IO[str]) -> str:
    """The block characters if `stream` can carry them and nobody asked for the locale C, else ASCII."""
    if os.environ.get("LC_ALL") in ("C", "POSIX"):  # where Python writes UTF-8 all the same
        return ASCII
    try:
        BLOCKS.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def human(amount: int) -> str:
    """A number of bytes with three figures or so: 0 B, 4.0 KiB, 31.5 MiB."""
    if amount < 1024:
        return f"{amount} B"
    value = float(amount)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
