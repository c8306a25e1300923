"""A spool file as a map, to scale: what lies where, what is still on disk, and what was given back.

The map has cells, each for as many bytes of the file, in lines as a book has letters. A cell shows the most remarkable thing
that lies in it, in the order of `Kind`: one dead letter among a thousand items that wait is what one would want to see. What
is done is not told from what was never used: it is there on the disk, or it is a hole.

`survey` looks at a queue and `Map` lays it out; `as_text` draws it for a terminal and `durableq._map_svg` for a browser.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from durableq._leases import DELAYED_CODE, NOBODY, RETURNED_CODE, is_dead_letter
from durableq._picture import coverage, human, read_extents
from durableq._progress import printable
from durableq._queue import DurableQueue
from durableq._spool import SUPERBLOCK

_BLOCK = 4096


class Kind(Enum):
    """What a cell shows: its sign in ASCII, its sign in Unicode, its colour in a terminal, and what it is called."""

    DEAD = "X", "X", "31", "dead letters"
    LENT = "L", "L", "33", "lent"
    BACK = "D", "D", "35", "given back or delayed"
    WAITING = "#", "\u2588", "32", "waiting"
    SUPERBLOCK = "S", "S", "36", "superblock"
    SPARE = "-", "\u2592", "90", "done or spare, still on disk"
    HOLE = ".", "\u00b7", "90", "given back to the disk"

    @property
    def ascii(self) -> str:
        """Its sign where there is nothing better."""
        return str(self.value[0])

    @property
    def sign(self) -> str:
        """Its sign."""
        return str(self.value[1])

    @property
    def colour(self) -> str:
        """Its colour in a terminal: the number of an SGR sequence."""
        return str(self.value[2])

    @property
    def label(self) -> str:
        """What it is called."""
        return str(self.value[3])


HEAD, TAIL, BOTH = ">", "<", "|"
"""The signs of the places where items are taken, where they are put, and of both in one cell."""

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a file, in bytes from its front."""

    path: str
    size: int
    on_disk: int
    live: int
    """Bytes of records that are not done."""
    head: int
    tail: int
    places: dict[Kind, Ranges]
    counts: dict[Kind, int]
    """Items of each kind."""


def survey(queue: DurableQueue) -> Layout:
    """Look at a queue; others may be at work on it."""
    found = queue._store.survey()
    stats = queue.stats()
    extents = read_extents(queue.path)
    places: dict[Kind, Ranges] = {kind: [] for kind in Kind}
    counts: Counter[Kind] = Counter()
    for position, size, code in zip(found.positions, found.sizes, found.codes, strict=True):
        if code == NOBODY or position >= found.head:
            continue
        kind = Kind.DEAD if is_dead_letter(code) else Kind.BACK if code in (RETURNED_CODE, DELAYED_CODE) else Kind.LENT
        _add(places[kind], position - found.base, position - found.base + (size << 3))
        counts[kind] += 1
    head, tail = found.head - found.base, found.tail - found.base
    if tail > head:
        places[Kind.WAITING].append((head, tail))
    places[Kind.SUPERBLOCK].append((0, SUPERBLOCK))
    places[Kind.SPARE] = list(extents.data)
    counts[Kind.WAITING] = max(0, stats.unfinished + stats.dead - sum(counts.values()))
    return Layout(queue.path, max(extents.size, tail), extents.on_disk, stats.bytes_live, head, tail, places, dict(counts))


def _add(ranges: Ranges, start: int, stop: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = ranges[-1][0], stop
    else:
        ranges.append((start, stop))


@dataclass(frozen=True)
class Map:
    """A file in cells."""

    layout: Layout
    cell: int
    """Bytes of the file that a cell stands for."""
    kinds: list[Kind]
    head: int
    """The cell of the head."""
    tail: int

    @classmethod
    def of(cls, layout: Layout, most: int) -> Map:
        """A map of up to `most` cells, each for a power of two of bytes and for a block at least."""
        cell = _BLOCK
        while layout.size > cell * most:
            cell *= 2
        width = max(1, -(-layout.size // cell))
        span = width * cell
        kinds = [Kind.HOLE] * width
        for kind in reversed(Kind):  # the most remarkable last
            for n, covered in enumerate(coverage(layout.places[kind], width, span)):
                if covered:
                    kinds[n] = kind
        last = width - 1
        return cls(layout, cell, kinds, min(last, layout.head // cell), min(last, layout.tail // cell))

    def mark(self, n: int) -> str | None:
        """The sign of the head or the tail if it is in cell `n`."""
        if n == self.head == self.tail:
            return BOTH
        return HEAD if n == self.head else TAIL if n == self.tail else None

    def sizes(self) -> str:
        """The size of the file, and of a cell."""
        layout = self.layout
        sizes = f"{human(layout.size)} long, {human(layout.on_disk)} on disk, {human(layout.live)} live"
        return f"{sizes}; a cell is {human(self.cell)}"

    def legend(self) -> list[tuple[Kind, str]]:
        """The kinds and what they are called, with the numbers of items."""
        counts = self.layout.counts
        items = (Kind.DEAD, Kind.LENT, Kind.BACK, Kind.WAITING)
        return [(k, _counted(counts.get(k, 0), k) if k in items else k.label) for k in Kind]


def _counted(number: int, kind: Kind) -> str:
    return f"{number} {kind.label.removesuffix('s') if number == 1 else kind.label}"


def as_text(map: Map, columns: int, *, unicode: bool, colours: bool) -> list[str]:
    """The map in lines of up to `columns` characters."""

    def painted(sign: str, colour: str) -> str:
        return f"\x1b[{colour}m{sign}\x1b[0m" if colours else sign

    def sign(n: int) -> str:
        kind = map.kinds[n]
        mark = map.mark(n)
        if mark is not None:
            return painted(mark, "1;97")
        return painted(kind.sign if unicode else kind.ascii, kind.colour)

    width = text_width(columns)
    lines = [printable(map.layout.path), map.sizes()]
    lines = [line if len(line) <= columns else "..." + line[-(columns - 3) :] for line in lines]
    for start in range(0, len(map.kinds), width):
        cells = "".join(sign(n) for n in range(start, min(start + width, len(map.kinds))))
        lines.append(f"{human(start * map.cell):>{_LABEL}}  {cells}")
    entries = [(painted(k.sign if unicode else k.ascii, k.colour), k.sign, label) for k, label in map.legend()]
    entries += [(painted(HEAD, "1;97"), HEAD, "head: taken here"), (painted(TAIL, "1;97"), TAIL, "tail: put here")]
    return lines + _legend_lines(entries, columns)


_LABEL = 10


def text_width(columns: int) -> int:
    """Cells in a line of text: a round number, so that lines begin at round places."""
    return max(8, (columns - _LABEL - 3) & -16)


def _legend_lines(entries: Sequence[tuple[str, str, str]], columns: int) -> list[str]:
    lines: list[str] = []
    room = 0
    for painted, sign, label in entries:
        needed = len(sign) + 1 + len(label) + 3
        if needed > room:
            lines.append(" " * _LABEL)
            room = columns - _LABEL
        lines[-1] += f"  {painted} {label}"
        room -= needed
    return lines
