"""A handle on a queue that is driven from outside: in this process, or in another one over its pipes.

Run as a program it forks a process for each pair of hands that is asked for. Calls and answers are pickled; an answer is
what the call returned, or the name of the exception that it raised.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import durableq

LONG = 3600.0
"""A delay that does not end while a test runs."""


class Hands:
    """One handle and the deliveries that it holds, by number."""

    def __init__(self) -> None:
        self.q: Any = None
        self.deliveries: dict[int, Any] = {}

    def open(self, path: str, options: dict[str, Any]) -> None:
        self.q = durableq.DurableQueue(path, **options)

    def close(self) -> None:
        self.q.close()

    def put(self, value: object) -> None:
        self.q.put(value, block=False)

    def put_at_once(self, value: object) -> None:
        self.q.put(value, block=False, delay=0)

    def put_later(self, value: object) -> None:
        self.q.put(value, block=False, delay=LONG)

    def put_many(self, values: list[object]) -> None:
        self.q.put_many(values, block=False)

    def get(self) -> object:
        return self.q.get(block=False)

    def get_many(self, count: int) -> list[object]:
        return self.q.get_many(count, block=False)

    def reserve(self, number: int) -> tuple[object, int]:
        delivery = self.q.reserve(block=False)
        self.deliveries[number] = delivery
        return delivery.item, delivery.deliveries

    def reserve_many(self, number: int, count: int) -> list[tuple[object, int]]:
        got = self.q.reserve_many(count, block=False)
        self.deliveries.update(enumerate(got, number))
        return [(delivery.item, delivery.deliveries) for delivery in got]

    def settle(self, number: int, how: str) -> None:
        delivery = self.deliveries[number]
        if how == "nack later":
            delivery.nack(delay=LONG)
        else:
            getattr(delivery, how)()

    def ack_many(self, numbers: list[int]) -> int:
        deliveries = [self.deliveries[number] for number in numbers]
        return self.q._store.ack_many([(d._position, d._index, d._count, 0, 0, b"") for d in deliveries])

    def task_done(self) -> None:
        self.q.task_done()

    def bury(self) -> object:
        """Take one dead letter and be done with it."""
        with self.q.dead_letters.reserve(block=False) as delivery:
            return delivery.item

    def dead(self) -> list[object]:
        return self.q.dead_letters.peek(10_000)

    def peek(self, count: int) -> list[object]:
        return self.q.peek(count)

    def purge(self) -> int:
        return self.q.purge()

    def redrive(self) -> int:
        return self.q.redrive()

    def compact(self) -> None:
        self.q.compact()

    def sync(self) -> None:
        self.q.sync()

    def join(self) -> None:
        self.q.join()

    def look_around(self) -> None:
        """What every get does now and then: return what the dead held. Here at once, so that the test need not wait."""
        self.q._store.reap()

    def counts(self) -> dict[str, int]:
        stats = self.q.stats()
        names = ("ready", "delayed", "lent", "dead", "unfinished", "puts", "damaged")
        return {"qsize": self.q.qsize(), **{name: getattr(stats, name) for name in names}}


class Here:
    """Hands in this process."""

    def __init__(self) -> None:
        self._hands = Hands()

    def __call__(self, name: str, *args: object) -> tuple[str, Any]:
        return answer(self._hands, name, args)

    def kill(self) -> None:
        raise AssertionError("that would be the end of the test")

    def dispose(self) -> None:
        if self._hands.q is not None:
            self._hands.q.close()


class There:
    """Hands in another process, forked from one that has the package imported but never opened a queue."""

    _nursery: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        nursery = There._nursery
        if nursery is None or nursery.poll() is not None:
            command = [sys.executable, __file__]
            nursery = There._nursery = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert nursery.stdin is not None and nursery.stdout is not None
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.join(folder, "s"))
            server.listen()
            nursery.stdin.write(os.path.join(folder, "s").encode() + b"\n")
            nursery.stdin.flush()
            self._pid = int(nursery.stdout.readline())
            connection, _ = server.accept()
        with connection:
            self._line = connection.makefile("rwb")

    def __call__(self, name: str, *args: object) -> tuple[str, Any]:
        pickle.dump((name, args), self._line)
        self._line.flush()
        answered: tuple[str, Any] = pickle.load(self._line)
        return answered

    def kill(self) -> None:
        """SIGKILL; it is dead when this returns."""
        end = os.pidfd_open(self._pid)
        os.kill(self._pid, signal.SIGKILL)
        select.select([end], [], [])  # it is not our child, the nursery's kernel buries it
        os.close(end)
        self._line.close()

    dispose = kill

    @classmethod
    def end(cls) -> None:
        """End the nursery."""
        nursery, cls._nursery = cls._nursery, None
        if nursery is not None:
            nursery.kill()
            nursery.communicate()


def answer(hands: Hands, name: str, args: tuple[object, ...]) -> tuple[str, Any]:
    """Do one call: ("ok", what it returned) or (name of the exception, its text)."""
    method: Callable[..., object] = getattr(hands, name)
    try:
        return "ok", method(*args)
    except Exception as error:
        return type(error).__name__, str(error)


def serve(address: str) -> None:
    """Do the calls that come over a socket until it is closed."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    hands, calls = Hands(), line.makefile("rwb")
    while True:
        try:
            name, args = pickle.load(calls)
        except EOFError:
            return
        pickle.dump(answer(hands, name, args), calls)
        calls.flush()


def main() -> None:
    """For each line, an address, fork a pair of hands that listens there, and say its pid."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for address in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve(address.strip())
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
