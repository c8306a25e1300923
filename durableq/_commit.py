"""When a change is on the disk: the sync policies.

    sync=0      the call returns once the disk has it
    sync=s      a thread of this process syncs at most `s` seconds after the first change that is not on the disk yet
    sync=None   left to the operating system

One `fdatasync` covers everything that was written before it began, by whatever process. So whoever needs one joins the next
group: one process leads, syncs for all who have written by then, and wakes those who waited; who wrote after it began needs
the group after that. On a slow disk (more than a millisecond) it is better that everybody syncs at once: a group that forms
while another's sync is under way would wait for nearly two, and the kernel merges what is under way together.

The word OWNER_DIRTY (`dirty`) of a handle tells the others that its thread owes a sync: who finds that its process was killed
syncs in its place.

After a failed sync the kernel may say ok to the next one although the data is gone, so it is never retried: the handle is
poisoned (PostgreSQL learned this in 2018) and its owner must open the queue again.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from durableq import _os
from durableq._locks import HotLock
from durableq._spool import Spool
from durableq._state import DIRTY, DIRTY_IN_SYNC, SYNC_BEGUN, SYNC_DONE, SYNCED, Control
from durableq.errors import PoisonedError

_SLOW = 0.001
"""Seconds of a sync from which on the disk is slow."""
_WAIT = 0.01
_PATIENCE = 5
"""Waits of so many seconds for a leader, who may have been killed or stopped, before one syncs alone."""
_EVERYBODY = 1 << 30
THREAD_NAME = "durableq-sync"


class Committer:
    """The sync policy of one handle. `armed` is True while nobody has to call `wrote`."""

    def __init__(
        self,
        spool: Spool,
        control: Control,
        lock: HotLock,
        dirty: int,
        sync: float | None,
        poison: weakref.WeakMethod[Callable[[PoisonedError], None]],
    ) -> None:
        self._spool = spool
        self._lock = lock
        self._dirty = dirty
        self._slow_disk = False
        self._control = control
        self._sync = sync
        self._poison = poison
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.armed = sync is None

    def wrote(self) -> None:
        """Something was written: make it durable in time.

        Raises OSError if the disk refuses under `sync=0`; under `sync=s` the next write of this handle raises.
        """
        if self._sync and (self._thread or self._started()):
            with self._guard:
                # In this order: the compiled calls go by the word, the others by `armed`, and neither may be told that the
                # thread is awake before it is. An interrupt in between costs another call.
                self._wanted.set()
                if self._sync:  # else it is to end meanwhile: see `hurry`
                    self._control.words[self._dirty] = DIRTY
                    self.armed = True
                    return
        self.sync_now()

    def hurry(self) -> None:
        """The process is about to end, and with it the thread: sync now, and from now on with every write."""
        self.close()
        if self._sync is None:
            return
        words = self._control.words
        with self._guard:  # first: what others write during the sync, they sync themselves
            self._sync, self.armed = 0, False
            words[self._dirty] = DIRTY_IN_SYNC
        self.sync_now()
        with self._guard:
            if words[self._dirty] == DIRTY_IN_SYNC:
                words[self._dirty] = 0

    def sync_now(self) -> None:
        """Return once all that was written before this call, by whatever process, is on the disk."""
        words = self._control.words
        needed = words[SYNC_BEGUN] + 1  # the first that begins after what we have written
        patience = _PATIENCE
        while words[SYNC_DONE] < needed:
            if self._slow_disk or not patience:
                self._sync_alone()
                return
            seen = words[SYNC_DONE]
            if self._lock.hold_if_free(self._lead):
                _os.futex_wake(self._control.address + 8 * SYNC_DONE, _EVERYBODY)
            elif words[SYNC_DONE] < needed:
                _os.futex_wait(self._control.address + 8 * SYNC_DONE, seen & 0xFFFFFFFF, _WAIT)
                patience -= 1

    def _lead(self) -> bool:
        """Under the sync lock: one sync for all who have written by now. Its number first: who writes later needs the next."""
        words = self._control.words
        words[SYNC_BEGUN] = number = words[SYNC_BEGUN] + 1
        self._sync_alone()
        words[SYNC_DONE] = number
        return True

    def _sync_alone(self) -> None:
        covered, _ = self._control.tail()
        began = time.perf_counter()
        try:
            self._spool.sync()
        except PoisonedError as exc:
            poison = self._poison()
            if poison is not None:
                poison(exc)
            raise
        self._slow_disk = time.perf_counter() - began > _SLOW
        words = self._control.words
        if words[SYNCED] < covered:
            words[SYNCED] = covered

    def idle(self) -> bool:
        """Whether there is no thread that will sync."""
        return self._thread is None

    def close(self) -> None:
        """Stop the thread; whoever closes syncs what is left."""
        self._stop.set()
        self._wanted.set()
        with self._guard:  # another thread's first put may be about to start it
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _started(self) -> bool:
        """Start the thread; False if there can be none: too many already, or the interpreter is on its way out."""
        with self._guard:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        assert self._sync
        while True:
            self._wanted.wait()
            self._stop.wait(self._sync)
            if self._stop.is_set():
                return
            # Disarm first: what is written from here on may miss this sync and asks for the next one.
            with self._guard:
                self._wanted.clear()
                self._control.words[self._dirty] = DIRTY_IN_SYNC
                self.armed = False
            try:
                self.sync_now()
            except OSError:
                return
            with self._guard:
                if self._control.words[self._dirty] == DIRTY_IN_SYNC:  # else there is something new
                    self._control.words[self._dirty] = 0
