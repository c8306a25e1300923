"""The standard library's own signatures: a program changes the import, and the rest stays as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any

from durableq._queue import DurableQueue


class _DropIn(DurableQueue):
    _ack: str

    def __init__(self, maxsize: int = 0, *, path: str | os.PathLike[str] | None = None, **options: Any) -> None:
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
        super().put(obj, block, timeout, delay=delay)

    def put_nowait(self, obj: Any) -> None:
        """As `put(obj, False)`."""
        super().put(obj, False)

    def close(self) -> None:
        """Close this handle, as `DurableQueue.close`; the files of an anonymous queue go when its creator does this."""
        super().close()
        remove = self.__dict__.get("_remove")
        if remove is not None:
            remove()


class Queue(_DropIn):
    """`multiprocessing.Queue` on a file: an item is done when it is taken.

    Without a path it is anonymous: a private file in the directory for temporary files, not synced, that goes when its
    creator closes it or ends. Other options are those of DurableQueue.
    """

    _ack = "get"

    @property
    def task_done(self) -> Callable[[], None]:
        """Not there, as in `multiprocessing.Queue`, unless the queue was made with `ack="task_done"`.

        `logging.handlers.QueueListener` and others call it on every queue that has it.
        """
        if self._done:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'task_done': get() made the item done")
        return super().task_done

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name != "task_done" or not self._done]


class JoinableQueue(_DropIn):
    """`multiprocessing.JoinableQueue` (and `queue.Queue`) on a file: an item is lent until `task_done`.

    Without a path it is anonymous, as Queue is. Other options are those of DurableQueue.
    """

    _ack = "task_done"


class SimpleQueue:
    """`multiprocessing.SimpleQueue` on a file: an item is done when it is taken. Without a path it is anonymous."""

    def __init__(self, *, path: str | os.PathLike[str] | None = None) -> None:
        self._queue = Queue(path=path)

    def get(self) -> Any:
        """Wait for the oldest item, take it and return it. Raises as `DurableQueue.get`."""
        return self._queue.get()

    def put(self, obj: Any) -> None:
        """Append an item. Raises as `DurableQueue.put`."""
        self._queue.put(obj)

    def empty(self) -> bool:
        """Whether nothing waits. By the time it returns another process may have changed that."""
        return self._queue.empty()

    def close(self) -> None:
        """Close this handle."""
        self._queue.close()
