"""The queues of the standard library's `multiprocessing`, which live in memory and in a pipe, and die with their processes."""

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
        self.close = self.remove = queue.close
