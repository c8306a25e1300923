"""The standard library's own signatures: a program changes the import, and the rest stays as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from types import GenericAlias
from typing import Any, ClassVar

from durableq._queue import DurableQueue
from durableq.errors import ClosedError


class _ClosedOSError(ClosedError, OSError):
    """What `empty` of multiprocessing's closed queues raises is an OSError."""


class _DropIn(DurableQueue):
    _ack: str
    _used = False

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)  # `jobs: Queue[int]`, as with `queue.Queue`

    def __init__(
        self, maxsize: int = 0, *, path: str | os.PathLike[str] | None = None, ctx: Any = None, **options: Any
    ) -> None:
        options.setdefault("ack", self._ack)
        if path is not None:
            super().__init__(path, maxsize, **options)
            return
        options.setdefault("sync", None)  # nobody could find it again after a power cut
        directory = tempfile.mkdtemp(prefix="durableq-")
        # Bound to this process: a child that inherits the object, or unpickles it, is not its creator. Runs after the
        # handles that are still open at exit have been closed (priority 10).
        self._remove = Finalize(self, shutil.rmtree, args=(directory, True), exitpriority=5)
        super().__init__(os.path.join(directory, "anonymous.dq"), maxsize, **options)

    def put(  # multiprocessing calls the first parameter so
        self, obj: Any, block: bool = True, timeout: float | None = None, *, delay: float = 0
    ) -> None:
        """As `DurableQueue.put`."""
        self._used = True
        super().put(obj, block, timeout, delay=delay)

    def put_nowait(self, obj: Any) -> None:
        """As `put(obj, False)`."""
        self.put(obj, False)

    def empty(self) -> bool:
        """As `DurableQueue.empty`. On a closed handle as `multiprocessing.Queue`: OSError, but True if nothing was ever put."""
        if self.closed and self._used:
            raise _ClosedOSError(f"{self.path}: the queue is closed; open it again to go on")
        return self.closed or super().empty()

    def close(self) -> None:
        """Close this handle, as `DurableQueue.close`; the files of an anonymous queue go when its creator does this."""
        super().close()
        remove = self.__dict__.get("_remove")
        if remove is not None:
            remove()


class Queue(_DropIn):
    """`multiprocessing.Queue` on a file: an item is done when it is taken.

    Without a path it is anonymous: a private file in the directory for temporary files, not synced, that goes when its
    creator closes it or ends. `ctx` is taken because `multiprocessing.queues.Queue` insists on it, and not needed: a
    handle travels under every start method. Other options are those of DurableQueue.
    """

    _ack = "get"

    def task_done(self) -> None:
        """Count off an item that this handle's `get` returned; in the file it is done already.

        `multiprocessing.Queue` has no `task_done` and no `join`, but programs for `queue.Queue` (the listener of `logging`
        is one) call them: from the first `task_done` on `join` also waits until all that was taken through this handle is
        counted off. A death forgets the count. Raises ValueError if it is called more often than items were taken.
        """
        if not self._done:
            super().task_done()
        elif not self._store.count_off():
            raise ValueError("task_done() called too many times")


class JoinableQueue(_DropIn):
    """`multiprocessing.JoinableQueue` (and `queue.Queue`) on a file: an item is lent until `task_done`.

    Without a path it is anonymous, and `ctx` is taken, as in Queue. Other options are those of DurableQueue.
    """

    _ack = "task_done"


class SimpleQueue:
    """`multiprocessing.SimpleQueue` on a file: an item is done when it is taken.

    Without a path it is anonymous, and `ctx` is taken, as in Queue.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    def __init__(self, *, path: str | os.PathLike[str] | None = None, ctx: Any = None) -> None:
        self._reader = self._writer = Queue(path=path)

    def get(self) -> Any:
        """Wait for the oldest item, take it and return it. Raises as `DurableQueue.get`."""
        return self._reader.get()

    def put(self, obj: Any) -> None:
        """Append an item. Raises as `DurableQueue.put`."""
        self._writer.put(obj)

    def empty(self) -> bool:
        """Whether nothing waits. By the time it returns another process may have changed that.

        Raises OSError on a closed handle, as `multiprocessing.SimpleQueue`.
        """
        if self._reader.closed:
            raise _ClosedOSError(f"{self._reader.path}: the queue is closed; open it again to go on")
        return self._reader.empty()

    def close(self) -> None:
        """Close this handle."""
        self._reader.close()
