"""The standard library's own signatures: a program changes the import, and the rest stays as it is.

The files of an anonymous queue go when its creator closes it. But to `multiprocessing.Queue` that means no more than that this
process puts nothing more, and its documentation has producers close their queue before they join its consumers. So while child
processes run that may have been given the queue, the files stay, at the longest until this process has joined its children at
its end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import GenericAlias
from typing import Any, ClassVar

from durableq._queue import DurableQueue
from durableq.errors import ClosedError


class _ClosedOSError(ClosedError, OSError):
    """What `empty` of multiprocessing's closed queues raises is an OSError."""


def _is_alive(child: BaseProcess) -> bool:
    try:
        return child.is_alive()
    except (ValueError, AssertionError):  # the program has joined and closed it; or, behind a fork, it is not our child
        return False


class _Files:
    """The directory of an anonymous queue."""

    kept: ClassVar[set[_Files]] = set()
    """Of queues that are closed, for children that may still use them."""
    forks: ClassVar[int] = 0

    def __init__(self, directory: str) -> None:
        self.remove_kept()
        self.directory = directory
        self.passed_on = False
        """Whether a child may have got it as an argument."""
        self._forks = _Files.forks
        self._earlier = {child.pid for child in active_children()}
        self._users: list[BaseProcess] = []
        self._at_exit: Finalize | None = None

    def remove(self) -> None:
        """Remove it, now or when no child is left that may use it."""
        self.remove_kept()
        if self.passed_on or self._forks != _Files.forks:
            self._users = [child for child in active_children() if self.passed_on or child.pid not in self._earlier]
        if self._users:
            _Files.kept.add(self)
            self._at_exit = Finalize(None, self._remove_now, exitpriority=-20)
        else:
            self._remove_now()

    @classmethod
    def remove_kept(cls) -> None:
        """Remove what was kept for children that have ended."""
        for files in list(cls.kept):
            if not any(map(_is_alive, files._users)):
                files._remove_now()

    def _remove_now(self) -> None:
        if self._at_exit is not None:
            self._at_exit.cancel()
        _Files.kept.discard(self)
        shutil.rmtree(self.directory, ignore_errors=True)

    @classmethod
    def note_fork(cls) -> None:
        """In the parent."""
        cls.forks += 1

    @classmethod
    def forget(cls) -> None:
        """In a forked child: they are its parent's to remove."""
        cls.kept.clear()


os.register_at_fork(after_in_parent=_Files.note_fork, after_in_child=_Files.forget)


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
        self._files = files = _Files(tempfile.mkdtemp(prefix="durableq-"))
        directory = files.directory
        # Bound to this process: a child that inherits the object, or unpickles it, is not its creator. At exit it runs after
        # the children have ended and the handles that are still open have been left (priority -10).
        self._remove = Finalize(self, files.remove, exitpriority=-20)
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

    def __getstate__(self) -> tuple[Any, ...]:
        files = self.__dict__.get("_files")
        if files is not None:
            files.passed_on = True
        return super().__getstate__()


class Queue(_DropIn):
    """`multiprocessing.Queue` on a file: an item is done when it is taken.

    Without a path it is anonymous: a private file in the directory for temporary files, not synced, that goes when its
    creator closes it or ends, and its children that were given it have ended. `ctx` is taken because
    `multiprocessing.queues.Queue` insists on it, and not needed: a handle travels under every start method. Other options are
    those of DurableQueue.
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
