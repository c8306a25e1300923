"""The two hot locks and the cold one.

A hot lock is a robust mutex of the C library in the mapped control file. It excludes threads and processes alike, costs no
system call while nobody else wants it (0.25 microseconds where an `flock` and a `threading.Lock` took 1.5 together), and
the kernel passes it on when its holder dies, by whatever signal: the next one is told (EOWNERDEAD) and looks after what
was left half done. The three busiest paths take it in line, in this form and no other:

    at, code = lock.address, UNKNOWN
    try:
        code = mutex_try(at)
        if code:
            code = lock.wait(code)
        ...
    except BaseException:
        words[lock.state] |= BUSY
        mutex_mend(at)
        if code not in TAKEN and words[NAMESPACE] != lock.namespace:
            at = NOBODYS
        raise
    finally:
        mutex_unlock(at)

A holder that dies or is interrupted leaves BUSY in the state word of its lock (T_STATE, H_STATE): the next one knows that a
change may be half done. A KeyboardInterrupt can land behind any call, so also between taking the lock and noting that: the
unlock is tried all the same, and does nothing if this thread is not the holder; so does the mending, which is for an
interrupt behind EOWNERDEAD: an unlock without it would make the lock useless for ever.

No interrupt, and no second one that follows it, may find a way around the unlock. So `finally` begins with it: Python 3.10
looks for signals at every jump. So there is no `while` in such a `try`: from 3.12 on the jump back to its condition, where
Python looks for signals, is not covered by the `finally` (CPython issue 130279). And so the locks are no context managers,
and nothing on the way to the unlock is a function of Python's, which can be interrupted before its first line.

The C library knows a holder by its thread id. Containers that share a queue may have equal ones, and then an unlock by the
wrong one would be believed; so once owners of different pid namespaces have met (NAMESPACE is 0), only who knows that it
holds the lock unlocks it, and an interrupt at the worst moment keeps it until its thread ends.

A forked child does not hold what its parent's thread held. As with `queue.Queue`, a signal handler must not put or get on the
very queue whose put or get it interrupted.

Locks nest in one order only: tail, then head. Who has the head and wants the tail may only try.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from durableq import _os
from durableq._fork import at_work
from durableq._state import BUSY, NAMESPACE, Control
from durableq.errors import DamagedError

T = TypeVar("T")

UNKNOWN = -1
"""In place of a code of `mutex_try`: it was not called, or it was and an interrupt came before its answer was noted."""

TAKEN = (0, errno.EOWNERDEAD)
"""The codes of `mutex_try` that tell who called it that it holds the lock."""

_nobodys = ctypes.create_string_buffer(_os.MUTEX_SIZE)
NOBODYS = ctypes.addressof(_nobodys)
"""A mutex that nobody holds: for who must not unlock the one that it may not hold."""
_os.mutex_create(NOBODYS)

_SLICE = 0.1
"""Seconds after which a wait for the lock gives Python a chance to run signal handlers."""


_OWNER_DIED = 1 << 30 | 1 << 62
"""The kernel's FUTEX_OWNER_DIED, where glibc and where musl keeps the word that the kernel sets it in."""


class HotLock:
    """One of the two mutexes in the control file."""

    def __init__(self, control: Control, mutex: int, state: int, path: str, namespace: int) -> None:
        """`namespace` is the pid namespace of this process, as in NAMESPACE: within it thread ids tell holders apart."""
        self.address = control.address + mutex
        self.state = state
        self.namespace = namespace
        self._words = control.words
        self._word = mutex >> 3
        self._path = path

    def holder_died(self) -> bool:
        """Whether the last holder died and nobody has had the lock since."""
        return bool(self._words[self._word] & _OWNER_DIED)

    def wait(self, code: int) -> int:
        """Take the lock after `mutex_try` gave this code: not 0. Returns 0. `_see_*` looks after what a dead holder left."""
        while code:
            if code == errno.EOWNERDEAD:  # taken
                self._mend()
                return 0
            if code == errno.ENOTRECOVERABLE:  # by damage: none of us unlocks it without the mending
                raise DamagedError(
                    f"{self._path}-shm: is damaged; stop the processes that use it (`fuser {self._path}`) and delete it: "
                    f"it is made anew, and nothing is lost"
                )
            code = _os.mutex_wait(self.address, _SLICE)
        return 0

    def _mend(self) -> None:
        # First the sign, then the mending: if we die in between, the next one gets EOWNERDEAD again. An unlock without
        # the mending would make the lock useless for ever.
        self._words[self.state] |= BUSY
        _os.mutex_mend(self.address)

    def hold(self, work: Callable[[], T]) -> T:
        """Do `work` under the lock."""
        at, code = self.address, UNKNOWN
        try:
            code = _os.mutex_try(at)
            if code:
                code = self.wait(code)
            return work()
        except BaseException:
            self._words[self.state] |= BUSY
            _os.mutex_mend(at)
            if code not in TAKEN and self._words[NAMESPACE] != self.namespace:
                at = NOBODYS
            raise
        finally:
            _os.mutex_unlock(at)

    def hold_if_free(self, work: Callable[[], T]) -> T | None:
        """Do `work` under the lock if it is free at this moment, else return None. Never for who holds it already."""
        at, code = self.address, UNKNOWN
        try:
            code = _os.mutex_try(at)
            if code not in TAKEN:
                at = NOBODYS
                return None
            if code:
                self._mend()
            return work()
        except BaseException:
            self._words[self.state] |= BUSY
            _os.mutex_mend(at)
            if code not in TAKEN and self._words[NAMESPACE] != self.namespace:
                at = NOBODYS
            raise
        finally:
            _os.mutex_unlock(at)


def under_cold_lock(path: str, work: Callable[[], T], mode: int = 0o600) -> T:
    """Do `work` under the lock for create, open, recover, repair, compact and close of the queue at `path`.

    Whoever may write to the spool may lock it; `mode` is what a spool that is not there yet will have.
    """
    with suppress(OSError):
        spool = os.stat(path)
        mode = spool.st_mode
        os.close(_os.create_beside(spool, f"{path}-lock"))  # else it would be root's, and lock the owner out
    return at_work(path, lambda: _locked_cold(path, work, mode & 0o666))


def _locked_cold(path: str, work: Callable[[], T], mode: int) -> T:
    import filelock  # where it is used: the hot path never does, and it brings asyncio with it

    # It tells the root logger of every lock. A program that logs through a queue of ours would log about its own logging.
    logger = logging.getLogger("filelock")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    lock = filelock.FileLock(f"{path}-lock", timeout=60, mode=mode)
    try:
        # It polls: workers that are forked together open the queue together, each in a few milliseconds.
        lock.acquire(poll_interval=0.002)
        return work()
    except filelock.Timeout:
        raise TimeoutError(
            f"{path}: another process has held {path}-lock for a minute; find it with `fuser {path}-lock`"
        ) from None
    finally:
        try:
            try:
                lock.release(force=True)
            finally:
                lock.release(force=True)  # an interrupt may come before the first line of the first; else this does nothing
        finally:
            lock.release(force=True)  # and another one before the first line of the second
