"""The two hot locks and the cold one.

A hot lock excludes the other processes by `flock` on a descriptor of its own and the other threads of this handle by a
`threading.Lock`: threads share the open file description, so to `flock` they are one. The kernel drops it with its
holder. The three busiest paths take it in line, in this form and no other:

    with lock.mutex:
        try:
            flock(lock.fd, LOCK_EX)
            ...
        finally:
            flock(lock.fd, LOCK_UN)

The `try` comes before the lock is taken, because a KeyboardInterrupt can land between any two byte codes: unlocking what
we do not hold does nothing (nobody else uses this descriptor while we have the mutex), not unlocking would hang everybody.

Locks nest in one order only: tail, then head. Who has the head and wants the tail may only try.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from durableq import _os


class HotLock:
    """A mutex over the threads of this handle and a file lock over the processes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mutex = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock, for paths that are not hot."""
        with self.mutex:
            try:
                _os.flock(self.fd, _os.LOCK_EX)
                yield
            finally:
                _os.flock(self.fd, _os.LOCK_UN)

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """The lock if it is free at this moment; yields whether it is held."""
        if not self.mutex.acquire(blocking=False):
            yield False
            return
        try:
            try:
                _os.flock(self.fd, _os.LOCK_EX | _os.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            _os.flock(self.fd, _os.LOCK_UN)
            self.mutex.release()


@contextmanager
def cold_lock(path: str) -> Iterator[None]:
    """The lock for create, recover, repair, collapse and close of the queue at `path`; among all processes."""
    import filelock  # where it is used: the hot path never does, and it brings asyncio with it

    lock = filelock.FileLock(f"{path}-lock", timeout=60, mode=0o600)
    try:
        with lock:
            yield
    except filelock.Timeout:
        raise TimeoutError(
            f"{path}: another process has held {path}-lock for a minute; find it with `fuser {path}-lock`"
        ) from None
