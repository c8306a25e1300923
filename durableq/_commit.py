"""When a change is on the disk: the sync policies.

    sync=0      the call returns once the disk has it
    sync=s      a thread of this process syncs at most `s` seconds after the first change that is not on the disk yet
    sync=None   left to the operating system

One `fdatasync` covers everything that was written before it began, by whatever process; the word `SYNCED` tells how far the
published records are known to be on the disk, so that a put which another one's sync has covered need not sync again.

After a failed sync the kernel may say ok to the next one although the data is gone, so it is never retried: the handle is
poisoned (PostgreSQL learned this in 2018) and its owner must open the queue again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from durableq import _os
from durableq._state import SYNCED, Control


class Committer:
    """The sync policy of one handle. `armed` is True while nobody has to call `wrote`."""

    def __init__(
        self, fd: int, control: Control, sync: float | None, poison: weakref.WeakMethod[Callable[[OSError], None]]
    ) -> None:
        self._fd = fd
        self._control = control
        self._sync = sync
        self._poison = poison
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.armed = sync is None

    def wrote(self, position: int | None = None) -> None:
        """Something was written (up to `position`, if it was appended): make it durable in time.

        Raises OSError if the disk refuses under `sync=0`; under `sync=s` the next write of this handle raises.
        """
        if self._sync:
            self.armed = True
            if self._thread is None:
                self._start()
            self._wanted.set()
        elif position is None or self._control.words[SYNCED] < position:
            self.sync_now()

    def sync_now(self) -> None:
        """Sync all that was written before this call, now."""
        covered, _ = self._control.tail()
        try:
            _os.fdatasync(self._fd)
        except OSError as exc:
            poison = self._poison()
            if poison is not None:
                poison(exc)
            raise
        words = self._control.words
        if words[SYNCED] < covered:
            words[SYNCED] = covered

    def close(self) -> None:
        """Stop the thread; whoever closes syncs what is left."""
        self._stop.set()
        self._wanted.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="durableq-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        assert self._sync
        while True:
            self._wanted.wait()
            self._stop.wait(self._sync)
            if self._stop.is_set():
                return
            # Disarm first: what is written from here on may miss this sync and asks for the next one.
            self._wanted.clear()
            self.armed = False
            try:
                self.sync_now()
            except OSError:
                return
