"""What the processes of a run do, as roles (see `stage`): put, take, put and take, batches, ping and pong.

The loops are as bare as they can be: what they cost is measured with every peer, and pulls all ratios towards 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from benchmarks import messages
from benchmarks.messages import STOP
from benchmarks.peers import Peer

Acting = Generator[None, None, Any]

_LARGE = 4096
"""Bytes from which on a message is checked as it comes, as its reader would read it, and not kept until the clock has stopped."""


def producer(number: int, count: int, size: int) -> Callable[[Peer], Acting]:
    """Puts its messages, one by one, and a STOP."""

    def role(peer: Peer) -> Acting:
        wares, put = messages.make(number, count, size), peer.put
        yield
        for message in wares:
            put(message)
        put(STOP)
        yield

    return role


def consumer(size: int, *, done: bool = False) -> Callable[[Peer], Acting]:
    """Takes messages, one by one, until a STOP comes, and says of each that it is done. Returns their heads."""

    def role(peer: Peer) -> Acting:
        taken: list[bytes] = []
        yield
        _take(peer, size, done, taken)
        yield
        return _heads(taken, size)

    return role


def hoarder(count: int, size: int, *, done: bool = False) -> Callable[[Peer], Acting]:
    """Puts all its messages, then takes them all. Returns their heads."""

    def role(peer: Peer) -> Acting:
        wares, put = messages.make(0, count, size), peer.put
        taken: list[bytes] = []
        yield
        for message in wares:
            put(message)
        put(STOP)
        _take(peer, size, done, taken)
        yield
        return _heads(taken, size)

    return role


def _take(peer: Peer, size: int, done: bool, taken: list[bytes]) -> None:
    arriving: Iterator[bytes] = iter(peer.get, STOP)
    if size >= _LARGE:
        arriving = (messages.head(message, size) for message in arriving)
    if done:
        for message in arriving:
            taken.append(message)
            peer.done()
        peer.done()  # the STOP
    else:
        taken.extend(arriving)


def _heads(taken: list[bytes], size: int) -> list[bytes]:
    return taken if size >= _LARGE else [messages.head(message, size) for message in taken]
