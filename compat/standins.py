"""Our queues under the standard names, and a count of how many of them are built.

The count is kept in a file, one byte for each queue, because some are built by a child or by a manager's server.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import types
from typing import Any

import durableq

from . import broken

COUNT = "DURABLEQ_COMPAT_COUNT"
PATCH = "DURABLEQ_COMPAT_PATCH"


def note() -> None:
    """Count one queue."""
    where = os.environ.get(COUNT)
    if where:
        fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"q")
        os.close(fd)


def built() -> int:
    """How many were built so far, by all processes of this run."""
    try:
        return os.stat(os.environ[COUNT]).st_size
    except FileNotFoundError:
        return 0


class Counted:
    """Counts each queue that is built; not those that a child gets from its parent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        note()
        super().__init__(*args, **options)


_queue, _joinable, _simple = broken.classes(os.environ.get(broken.HOW, ""))


class MpQueue(Counted, _queue):  # type: ignore[valid-type, misc]
    """In place of `multiprocessing.Queue`."""


class MpJoinableQueue(Counted, _joinable):  # type: ignore[valid-type, misc]
    """In place of `multiprocessing.JoinableQueue`."""


class MpSimpleQueue(Counted, _simple):  # type: ignore[valid-type, misc]
    """In place of `multiprocessing.SimpleQueue`."""


class Queue(Counted, _joinable):  # type: ignore[valid-type, misc]
    """In place of `queue.Queue`, which has `task_done` and `join`; its tests want the class to have this very name."""


PlainQueue = type("Queue", (MpQueue,), {})
"""The other one that may come in its place: who changes `from queue import Queue` to `from durableq import Queue` gets it."""


def queue_module(cls: type) -> types.SimpleNamespace:
    """What stands for the module `queue` with this class for its Queue, for tests that keep the module in an attribute."""
    return types.SimpleNamespace(
        Queue=cls, SimpleQueue=queue.SimpleQueue, Empty=queue.Empty, Full=queue.Full, ShutDown=durableq.ShutDown
    )


def patch() -> None:
    """Put our queues where the tests look for the standard ones, for the rest of this process."""
    # First those who subclass the standard queue for their own use, they are not under test.
    for module in ("concurrent.futures.process", "multiprocessing.managers", "multiprocessing.pool"):
        importlib.import_module(module)
    multiprocessing.Queue = MpQueue
    multiprocessing.JoinableQueue = MpJoinableQueue
    multiprocessing.SimpleQueue = MpSimpleQueue
    # Where `get_context().Queue()` looks. Its SimpleQueue stays: Pool writes into the pipe of one, past its methods.
    queues = importlib.import_module("multiprocessing.queues")
    queues.Queue, queues.JoinableQueue = MpQueue, MpJoinableQueue
    queue.Queue = Queue


def patch_in_child() -> None:
    """The same in a process that was started by spawn or forkserver, where nothing is inherited but the environment."""
    if os.environ.get(PATCH):
        patch()
