"""The two hot locks and the cold one.

A hot lock is a robust mutex of the C library in the mapped control file. It excludes threads and processes alike, costs no
system call while nobody else wants it (0.25 microseconds where an `flock` and a `threading.Lock` took 1.5 together), and
the kernel passes it on when its holder dies, by whatever signal: the next one is told (EOWNERDEAD) and looks after what
was left half done. The three busiest paths take it in line, in this form and no other:

    try:
        if code := mutex_try(lock.address):
            lock.wait(code)
        ...
    except BaseException:
        words[lock.state] |= BUSY
        raise
    finally:
        mutex_unlock(lock.address)

A holder that dies or is interrupted leaves BUSY in the state word of its lock (T_STATE, H_STATE): the next one knows that a
change may be half done. The `try` comes before the lock is taken, because a KeyboardInterrupt can land between any two byte
codes: unlocking what this thread does not hold does nothing, not unlocking would hang everybody. A forked child does not hold what its parent's
thread held, and cannot unlock it. As with `queue.Queue`, a signal handler must not put or get on the very queue whose put
or get it interrupted.

Locks nest in one order only: tail, then head. Who has the head and wants the tail may only try.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from durableq import _os
from durableq._state import BUSY, Control

_SLICE = 0.1
"""Seconds after which a wait for the lock gives Python a chance to run signal handlers."""


class HotLock:
    """One of the two mutexes in the control file."""

    def __init__(self, control: Control, mutex: int, state: int, path: str) -> None:
        self.address = control.address + mutex
        self.state = state
        self._words = control.words
        self._path = path

    def wait(self, code: int) -> None:
        """Take the lock after `mutex_try` gave this code: not 0. What a dead holder left half done, `_see_*` looks after."""
        while code:
            if code == errno.EOWNERDEAD:  # taken
                self._mend()
                return
            if code == errno.ENOTRECOVERABLE:
                self._renew()
            code = _os.mutex_wait(self.address, _SLICE)

    def _mend(self) -> None:
        # First the sign, then the mending: if we die in between, the next one gets EOWNERDEAD again. An unlock without
        # the mending would make the lock useless for ever.
        self._words[self.state] |= BUSY
        _os.mutex_mend(self.address)

    def _renew(self) -> None:
        """Nobody holds it and nobody can: an interrupt came between EOWNERDEAD and the mending. Make it anew."""
        with cold_lock(self._path):
            if _os.mutex_try(self.address) == errno.ENOTRECOVERABLE:
                _os.mutex_create(self.address)
            else:
                _os.mutex_unlock(self.address)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock, for paths that are not hot."""
        try:
            if code := _os.mutex_try(self.address):
                self.wait(code)
            yield
        except BaseException:
            self._words[self.state] |= BUSY
            raise
        finally:
            _os.mutex_unlock(self.address)

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """The lock if it is free at this moment; yields whether it is held. Never for a thread that holds it already."""
        try:
            code = _os.mutex_try(self.address)
            if code == errno.EOWNERDEAD:
                self._mend()
                code = 0
            yield code == 0
        except BaseException:
            self._words[self.state] |= BUSY
            raise
        finally:
            _os.mutex_unlock(self.address)


@contextmanager
def cold_lock(path: str) -> Iterator[None]:
    """The lock for create, recover, repair, compact and close of the queue at `path`; among all processes."""
    import filelock  # where it is used: the hot path never does, and it brings asyncio with it

    lock = filelock.FileLock(f"{path}-lock", timeout=60, mode=0o600)
    try:
        with lock:
            yield
    except filelock.Timeout:
        raise TimeoutError(
            f"{path}: another process has held {path}-lock for a minute; find it with `fuser {path}-lock`"
        ) from None
