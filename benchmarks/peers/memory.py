"""Queues that live in memory or in a pipe, and die with their processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from queue import Empty, Full

from benchmarks.peers import Peer

FORK = multiprocessing.get_context("fork")

_LOOK = 0.1
"""Seconds after which a call that waits is repeated, where a wake-up may be missed."""


class Queue(Peer):
    name = "multiprocessing.Queue"

    def __init__(self, place: Path, room: int) -> None:
        self.queue = queue = FORK.Queue()
        self.put, self.get = queue.put, queue.get

    def close(self) -> None:
        self.queue.close()
        self.queue.join_thread()

    remove = close


class JoinableQueue(Queue):
    name = "multiprocessing.JoinableQueue"

    def __init__(self, place: Path, room: int) -> None:
        self.queue = queue = FORK.JoinableQueue()
        self.put, self.get, self.done = queue.put, queue.get, queue.task_done


class SimpleQueue(Peer):
    name = "multiprocessing.SimpleQueue"

    def __init__(self, place: Path, room: int) -> None:
        self.queue = queue = FORK.SimpleQueue()
        self.put, self.get = queue.put, queue.get

    def close(self) -> None:
        self.queue.close()

    remove = close


class FasterFifo(Peer):
    """A ring buffer in shared memory, with a lock and two conditions, in C++.

    With several processes at either end and the buffer full, one of them may miss its wake-up; then a call ends by its timeout.
    The timeouts are short here, and the calls repeated, as a careful user would: else such a run would have no figures.
    """

    name = "faster-fifo"
    module = "faster_fifo"
    remedy = "pip install faster-fifo"

    def __init__(self, place: Path, room: int) -> None:
        import faster_fifo

        self.queue = faster_fifo.Queue(room)
        self.put_many = self.queue.put_many

    def put(self, message: bytes) -> None:
        while True:
            try:
                return self.queue.put(message, True, _LOOK)
            except Full:
                continue

    def get(self) -> bytes:
        while True:
            try:
                return self.queue.get(True, _LOOK)
            except Empty:
                continue

    def get_many(self, most: int) -> list[bytes]:
        return self.queue.get_many(max_messages_to_get=most)


class FasterFifoBatches(FasterFifo):
    name = "faster-fifo (batches)"
    batch = 100
