"""Queues that live in memory or in a pipe, and die with their processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from benchmarks.peers import Peer

FORK = multiprocessing.get_context("fork")


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
    """A ring buffer in shared memory, with a lock and two conditions, in C++."""

    name = "faster-fifo"
    module = "faster_fifo"
    remedy = "pip install faster-fifo"

    def __init__(self, place: Path, room: int) -> None:
        import faster_fifo

        self.queue = queue = faster_fifo.Queue(room)
        self.put, self.get, self.put_many = queue.put, queue.get, queue.put_many

    def get_many(self, most: int) -> list[bytes]:
        messages: list[bytes] = self.queue.get_many(max_messages_to_get=most)
        return messages


class FasterFifoBatches(FasterFifo):
    name = "faster-fifo, batches"
    batch = 100
