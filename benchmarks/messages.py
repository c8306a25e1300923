"""Messages that can be told apart, and the verdict on those that arrived: each once, and intact.

A message is `bytes` of a given size: a head of 16 characters (producer and number, in hexadecimal) and a body. There are a
few different bodies, chosen by the number, so that the bytes of another message in the place of its own do not pass for it.
Messages are made before the clock runs.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterable

STOP = b"stop"
"""Each producer puts one after its messages, and each of as many consumers ends with one."""
DAMAGED = b"damaged"
"""What `head` makes of a message that is not as it was put."""

_HEAD = 16
_BODIES = 4


@functools.cache
def _body(size: int, which: int) -> bytes:
    return random.Random(which).randbytes(size - _HEAD)


def message(producer: int, number: int, size: int) -> bytes:
    """One message."""
    return b"%08x%08x" % (producer, number) + _body(size, number % _BODIES)


def make(producer: int, count: int, size: int) -> list[bytes]:
    """The messages of one producer."""
    return [message(producer, number, size) for number in range(count)]


def head(arrived: object, size: int) -> bytes:
    """What tells a message from all others, or DAMAGED."""
    if not isinstance(arrived, bytes) or len(arrived) != size:
        return DAMAGED
    try:
        number = int(arrived[8:_HEAD], 16)
    except ValueError:
        return DAMAGED
    return arrived[:_HEAD] if arrived.endswith(_body(size, number % _BODIES)) else DAMAGED


def verdict(heads: Iterable[bytes], producers: int, count: int) -> str:
    """What is wrong with what arrived, in words; empty if every producer's `count` messages arrived once and intact."""
    arrived = Counter(heads)
    damaged = arrived.pop(DAMAGED, 0)
    expected = {b"%08x%08x" % (producer, n) for producer in range(producers) for n in range(count)}
    wrong = {
        "lost": len(expected - arrived.keys()),
        "more than once": sum(times - 1 for one, times in arrived.items() if one in expected),
        "never put": sum(times for one, times in arrived.items() if one not in expected),
        "damaged": damaged,
    }
    return ", ".join(f"{number} {what}" for what, number in wrong.items() if number)
