"""What is in a queue before an operation is killed in it: the states that the cases begin with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from durableq import DurableQueue

LONG = 3600
BIG = "x" * 3000
kept: list[Any] = []
"""Handles that are not to be closed by their destructor while they are being watched."""


def put(*items: Any) -> Callable[[DurableQueue], None]:
    return lambda q: q.put_many(items)


def take(*items: Any, take: int = 1) -> Callable[[DurableQueue], Any]:
    def prepare(q: DurableQueue) -> Any:
        q.put_many(items)
        return q.reserve_many(take)

    return prepare


def get(*items: Any, take: int = 1) -> Callable[[DurableQueue], Any]:
    def prepare(q: DurableQueue) -> Any:
        q.put_many(items)
        return q.get_many(take)

    return prepare


def ack_many(q: DurableQueue, deliveries: list[Any]) -> int:
    return q._store.ack_many([(d._position, d._index, d._count, 0, 0, b"") for d in deliveries])


def returned(*items: Any) -> Callable[[DurableQueue], None]:
    def prepare(q: DurableQueue) -> None:
        q.put_many(items)
        q.reserve().nack()

    return prepare


def rejected(*items: Any, take: int = 1) -> Callable[[DurableQueue], None]:
    def prepare(q: DurableQueue) -> None:
        q.put_many(items)
        for delivery in q.reserve_many(take):
            delivery.reject()

    return prepare


def dead_letter_taken(q: DurableQueue) -> Any:
    rejected("a1", "b1")(q)
    return q.dead_letters.reserve()


def everything(q: DurableQueue) -> None:
    """Dead d1, returned r1, delayed y1, lent l1, waiting w1 and w2."""
    q.put_many(["d1", "r1", "y1", "l1", "w1", "w2"])
    dead, returned, delayed, _ = q.reserve_many(4)
    dead.reject()
    returned.nack()
    delayed.nack(LONG)


def fell_due(q: DurableQueue) -> None:
    q.put("d1", delay=0.001)
    q.put("w1")
    time.sleep(0.003)


def expired(q: DurableQueue) -> None:
    q.put_many(["l1", "w1"])
    q.reserve().extend(0.001)  # this one only: what is taken after the death is held
    time.sleep(0.003)


def another_died(q: DurableQueue) -> None:
    q.put_many(["l1", "w1"])
    child = os.fork()
    if child == 0:
        q.reserve()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)


def damaged(q: DurableQueue) -> None:
    q.put_many(["a1", "b1"])
    with open(q.path, "r+b") as f:
        f.seek(4096 + 24)
        f.write(b"\xff\xff\xff\xff")


def holes(q: DurableQueue) -> Any:
    """Lent items with dead ones between them, of some pages each."""
    q.put_many([f"{n}{BIG}" for n in range(8)])
    taken = q.reserve_many(8)
    for n in (1, 2, 4, 5):
        taken[n].ack()
    return taken


def hole_in_front(q: DurableQueue) -> Any:
    q.put_many([f"{n}{BIG}" for n in range(8)])
    for delivery in q.reserve_many(6):
        delivery.ack()


def undecodable(q: DurableQueue) -> None:
    with DurableQueue(q.path) as other:
        other.put("a1")
    q.put("b1")


def ignore(error: type[BaseException], call: Callable[[], object]) -> None:
    with suppress(error):
        call()


def open_handle(path: Any, _: Any) -> None:
    kept.append(DurableQueue(path))


def fork_and_die(q: DurableQueue) -> None:
    child = os.fork()
    if child == 0:
        q.reserve()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
