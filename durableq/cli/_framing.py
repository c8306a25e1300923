"""Where one item ends and the next begins in a stream of bytes. Pure.

    line    an item ends with a newline, which is not part of it; at the end of the stream the last one may lack it
    nul     the same with a zero byte, for items that hold newlines (`find -print0`, `xargs -0`)
    length  4 bytes, big-endian, say how many bytes of the item follow: for any items at all
    block   pieces of a given size, cut without looking at them: for a stream that is one piece of data
    whole   the stream is one item

Split and joined again by the same of `line`, `nul` and `length` the items come out as they went in, if they do not hold the
separator. What was cut into blocks is put together by writing the blocks one after the other, with nothing in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

FRAMINGS = ("line", "nul", "length", "block", "whole")
SEPARATORS = {"line": b"\n", "nul": b"\0"}
FEW = 128 << 10


class Splitter(ABC):
    """Cuts a stream into items as it comes."""

    patient = True
    """Whether what is not complete waits for the rest however long it takes; else it is an item when it has waited enough."""

    wants = FEW
    """Bytes that are best fed next: much at a time would only take room in the processor's cache."""

    @abstractmethod
    def feed(self, data: bytes) -> list[bytes]:
        """The items that are complete with these bytes."""

    @abstractmethod
    def rest(self) -> list[bytes]:
        """The stream has ended, or paused for one that is not patient: what there is as items. Raises ValueError."""

    @property
    @abstractmethod
    def held(self) -> int:
        """Bytes of an item that is not complete."""


def splitter(framing: str, size: int) -> Splitter:
    """The splitter of that name; `size`: of blocks."""
    if framing in SEPARATORS:
        return _Separated(SEPARATORS[framing])
    return _Blocks(size) if framing == "block" else _Lengths() if framing == "length" else _Whole()


class _Separated(Splitter):
    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._pieces: list[bytes] = []  # of the item that is not complete: a long one is joined once

    def feed(self, data: bytes) -> list[bytes]:
        items = data.split(self._separator)
        last = items.pop()
        if items and self._pieces:
            items[0] = b"".join([*self._pieces, items[0]])
            self._pieces.clear()
        if last:
            self._pieces.append(last)
        return items

    def rest(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return [b"".join(pieces)] if pieces else []

    @property
    def held(self) -> int:
        return sum(map(len, self._pieces))


class _Lengths(Splitter):
    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        items = []
        at = 0
        while (end := at + 4 + int.from_bytes(buffer[at : at + 4], "big")) <= len(buffer) and at + 4 <= len(buffer):
            items.append(bytes(buffer[at + 4 : end]))
            at = end
        del buffer[:at]
        return items

    def rest(self) -> list[bytes]:
        if self._buffer:
            raise ValueError(f"the input ends inside an item, {len(self._buffer)} bytes after its beginning")
        return []

    @property
    def held(self) -> int:
        return len(self._buffer)


class _Blocks(Splitter):
    patient = False

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: list[bytes] = []
        self._held = 0

    @property
    def wants(self) -> int:  # type: ignore[override]
        # Of large blocks exactly one, which is then an item as it was read and need not be copied.
        return max(self._size, FEW // 2 // self._size * self._size) - self._held

    def feed(self, data: bytes) -> list[bytes]:
        if len(data) == self._size and not self._held:
            return [data]
        if self._held + len(data) < self._size:
            self._pieces.append(data)
            self._held += len(data)
            return []
        first = self._size - self._held
        items = [b"".join([*self._pieces, data[:first]])]
        whole = first + (len(data) - first) // self._size * self._size
        items += [data[at : at + self._size] for at in range(first, whole, self._size)]
        self._pieces = [data[whole:]] if whole < len(data) else []
        self._held = len(data) - whole
        return items

    def rest(self) -> list[bytes]:
        pieces, self._pieces, self._held = self._pieces, [], 0
        return [b"".join(pieces)] if pieces else []

    @property
    def held(self) -> int:
        return self._held


class _Whole(Splitter):
    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        self._pieces.append(data)
        return []

    def rest(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return [b"".join(pieces)]  # also if it is empty: then the item is

    @property
    def held(self) -> int:
        return sum(map(len, self._pieces))


class Joiner:
    """Writes items into a stream so that the splitter of that name finds them again. `raw`: with nothing in between."""

    def __init__(self, framing: str) -> None:
        self._lengths = framing == "length"
        self._separator = SEPARATORS.get(framing, b"")
        self.overhead = 4 if self._lengths else len(self._separator)
        """Bytes that each item takes beside its own."""

    def pieces(self, items: Sequence[bytes]) -> list[bytes]:
        """Bytes to be written one after the other."""
        if self._lengths:
            return [b"".join([piece for item in items for piece in (len(item).to_bytes(4, "big"), item)])]
        if self._separator:
            return [self._separator.join(items), self._separator] if items else []
        return list(items)
