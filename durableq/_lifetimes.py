"""What becomes of the handles that this process has open when it forks, and when it ends.

    fork    the child leaves them at once, before anything else runs in it
    end     they are left in order: what they hold goes back, before the children are joined, who may wait for it; and
            when these have ended, what they wrote is synced

Through multiprocessing's finalizers, for its children leave by `os._exit`, where `atexit` does not run, and forget at their
start what was registered before the fork. Other threads may be at work with a handle to the very end: daemon threads, and in
children of multiprocessing's, whose finalizers run before they are joined, the others too. None may find its queue closed by
nobody. And an `atexit` handler that was registered early comes when all this is over.
"""

from __future__ import annotations

import os
import threading
import weakref
from multiprocessing.util import Finalize
from typing import Protocol

from durableq._commit import THREAD_NAME
from durableq._fork import leave_behind


class Held(Protocol):
    """A handle that is open in this process."""

    def give_back(self) -> None:
        """The process ends as soon as its children have."""

    def leave(self) -> None:
        """The process ends."""

    def after_fork(self) -> None:
        """This is a forked child."""


_held: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
_registered_by = 0
_leaving = False


def hold(handle: Held) -> None:
    """From now on a handle is told of forks and of the end."""
    global _registered_by
    _held[id(handle)] = handle
    if _registered_by != os.getpid():
        _registered_by = os.getpid()
        Finalize(None, _give_back_all, exitpriority=10)
        # Negative, so that it comes after the children have ended: to them this process may be who keeps the queue open.
        Finalize(None, _leave_all, exitpriority=-10)


def is_leaving() -> bool:
    """Whether this process is at its end: there is no time left for a thread of ours to sync."""
    return _leaving


def is_last_thread() -> bool:
    """Whether no other thread may be at work with a handle. Our own only sync."""
    others = (thread for thread in threading.enumerate() if thread is not threading.current_thread())
    return all(thread.name == THREAD_NAME for thread in others)


def _give_back_all() -> None:
    for handle in list(_held.values()):
        handle.give_back()


def _leave_all() -> None:
    global _leaving
    _leaving = True
    for handle in list(_held.values()):
        handle.leave()


def _after_fork_in_child() -> None:
    global _leaving
    _leaving = False
    for handle in list(_held.values()):
        handle.after_fork()
    leave_behind()


os.register_at_fork(after_in_child=_after_fork_in_child)
