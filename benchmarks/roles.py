"""What the processes of a run do, as roles (see `stage`): put, take, put and take, ping and pong.

The loops are as bare as they can be: what they cost is measured with every peer, and pulls all ratios towards 1.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import messages
from benchmarks.messages import STOP
from benchmarks.peers import Peer

Acting = Generator[None, None, Any]
Role = Callable[[Peer], Acting]

_LARGE = 4096
"""Bytes from which on messages are checked as they come, as a reader would read them; others when the clock has stopped."""


def producer(number: int, count: int, size: int) -> Role:
    """Puts its messages and a STOP."""

    def role(peer: Peer) -> Acting:
        put, wares = _putting(peer, messages.make(number, count, size))
        yield
        for ware in wares:
            put(ware)
        yield

    return role


def consumer(size: int, *, done: bool = False, stops: int = 1) -> Role:
    """Takes messages until so many STOPs have come, and if `done` says so of each. Returns their heads."""

    def role(peer: Peer) -> Acting:
        taken: list[bytes] = []
        yield
        for _ in range(stops):
            _take(peer, size, done, taken)
        yield
        return _heads(taken, size)

    return role


def hoarder(count: int, size: int, *, done: bool = False) -> Role:
    """Puts all its messages, then takes them all. Returns their heads."""

    def role(peer: Peer) -> Acting:
        put, wares = _putting(peer, messages.make(0, count, size))
        taken: list[bytes] = []
        yield
        for ware in wares:
            put(ware)
        _take(peer, size, done, taken)
        yield
        return _heads(taken, size)

    return role


def _putting(peer: Peer, wares: list[bytes]) -> tuple[Callable[[Any], Any], list[Any]]:
    """What to call, and with what: each message and a STOP, or batches of them."""
    wares.append(STOP)
    if not peer.batch:
        return peer.put, wares
    return peer.put_many, [wares[n : n + peer.batch] for n in range(0, len(wares), peer.batch)]


def _take(peer: Peer, size: int, done: bool, taken: list[bytes]) -> None:
    """Take what comes before the next STOP."""
    if peer.batch:
        while not taken or taken[-1] != STOP:
            taken.extend(peer.get_many(peer.batch))
        taken.pop()
        return
    arriving: Iterator[bytes] = iter(peer.get, STOP)
    if size >= _LARGE:
        arriving = (messages.head(message, size) for message in arriving)
    if done:
        finish = peer.done
        for message in arriving:
            taken.append(message)
            finish()
        finish()  # the STOP
    else:
        taken.extend(arriving)


def _heads(taken: list[bytes], size: int) -> list[bytes]:
    return taken if size >= _LARGE else [messages.head(message, size) for message in taken]


class Both(Peer):
    """Two queues of a kind, one for either direction, as `there` and `back`."""

    def __init__(self, subject: type[Peer], place: Path, room: int) -> None:
        (place / "there").mkdir()
        (place / "back").mkdir()
        self.there, self.back = subject(place / "there", room), subject(place / "back", room)

    def connect(self) -> None:
        self.there.connect()
        self.back.connect()

    def close(self) -> None:
        self.there.close()
        self.back.close()

    def remove(self) -> None:
        self.there.remove()
        self.back.remove()


def pinger(count: int, size: int) -> Role:
    """Of Both: puts messages there, each when the one before is back. Returns the seconds that each took, and the heads."""

    def role(peer: Peer) -> Acting:
        assert isinstance(peer, Both)
        wares, taken, times = messages.make(0, count, size), [], []
        put, get, clock = peer.there.put, peer.back.get, time.perf_counter
        yield
        for message in wares:
            begin = clock()
            put(message)
            answer = get()
            times.append(clock() - begin)
            taken.append(answer)
        put(STOP)
        yield
        return times, _heads(taken, size)

    return role


def echo() -> Role:
    """Of Both: puts back what was put there."""

    def role(peer: Peer) -> Acting:
        assert isinstance(peer, Both)
        put, get = peer.back.put, peer.there.get
        yield
        for message in iter(get, STOP):
            put(message)
        yield

    return role


def keeper(count: int, size: int, place: Path) -> Role:
    """Puts, looks what that takes in memory and on disk, takes all of it, looks again. Returns the three looks and the heads.

    A message is made when it is put, and forgotten: who keeps it in memory pays for it.
    """

    def role(peer: Peer) -> Acting:
        parties = [psutil.Process()]
        if (server := peer.served_by()) is not None:
            parties.append(psutil.Process(server))

        def look() -> tuple[int, int]:
            gc.collect()
            files = (file.lstat() for file in place.rglob("*"))
            return sum(party.memory_info().rss for party in parties), sum(file.st_blocks for file in files) * 512

        put = peer.put
        looks = [look()]
        yield
        for n in range(count):
            put(messages.message(0, n, size))
        put(STOP)
        looks.append(look())
        heads = [messages.head(message, size) for message in iter(peer.get, STOP)]
        yield
        looks.append(look())
        return looks, heads

    return role
