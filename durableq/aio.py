"""The queue for asyncio and trio: the methods of DurableQueue, awaited where they may have to wait.

    async with AsyncDurableQueue("jobs.dq") as jobs:
        await jobs.put({"resize": "cat.png"})
        with await jobs.reserve() as delivery:
            await handle(delivery.item)

    1. The task itself takes, in the thread of its event loop, and nothing is awaited between that and the return. So a
       `get` that is cancelled has taken nothing. The same goes for `put`, but under `sync=0`: see there.
    2. What is awaited is only the news that another try may succeed. One thread sleeps for it on behalf of all tasks of
       this handle (`_watch`), so a waiting task costs no thread and, idle, no time.
    3. Who finds items without end lets other tasks run every few milliseconds all the same.

Taking and putting touch memory and the page cache, for microseconds. They hold up the loop as long as another process
holds the queue's lock, or the disk does not keep up.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from time import monotonic, time_ns
from types import TracebackType
from typing import Any, TypeVar, cast

from durableq._delivery import Delivery
from durableq._inspect import Stats
from durableq._queue import DurableQueue
from durableq._reader import _ThisThread
from durableq._record import due_after, encode_due
from durableq._unacked import Unacked
from durableq._wakeup import Deadline
from durableq._watch import GET, JOIN, PUT, Call, Watch
from durableq.errors import Empty, Full
from durableq.integrations._extras import needed

with needed("anyio", "aio"):
    import anyio
    from anyio.lowlevel import checkpoint
    from anyio.to_thread import run_sync

T = TypeVar("T")

_TURN = 0.005
"""Seconds for which a task that need not wait keeps the loop."""
_PART = 1 << 20
"""Bytes that `put_many` writes at a time."""


class _Unfinished(Exception):
    pass


class AsyncDurableQueue:
    """A DurableQueue whose waits are awaited: see the module, and DurableQueue for the options and what the methods mean.

    Any number of tasks may use it, of one event loop or of several. Opening is a matter of milliseconds, but for a long
    queue that has to be recovered after a power cut. `queue` is the DurableQueue beneath, for everything that does not
    wait: `peek`, `dead_letters`, `redrive`, `purge`, `sync` and so on.
    """

    def __init__(self, path: str | os.PathLike[str], maxsize: int = 0, **options: Any) -> None:
        self.queue = queue = DurableQueue(path, maxsize, **options)
        self._store = store = queue._store
        queue._this_thread = _ThisTask(store.is_lent)  # type: ignore[assignment]
        queue._letters_of_this_thread = _ThisTask(store.is_lent)  # type: ignore[assignment]
        self._waits_for_disk = options.get("sync") == 0
        self._items, self._room, self._end = Watch(store, GET), Watch(store, PUT), Watch(store, JOIN)
        self._turn_ends = 0.0

    # -- taking --------------------------------------------------------------------------------------------------------

    async def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item and return it, as `DurableQueue.get`. Cancelled, it has taken nothing.

        Prefer `timeout` to `asyncio.wait_for`, which before Python 3.12 gets in a task of its own: see `task_done`.
        """
        return await self._take(self.queue.get_nowait, block, timeout)

    def get_nowait(self) -> Any:
        """As `DurableQueue.get_nowait`."""
        return self.queue.get_nowait()

    async def get_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Wait for one item, then take up to `max_items`, as `DurableQueue.get_many`. Cancelled, it has taken nothing."""
        return await self._take(partial(self.queue.get_many, max_items, False), block, timeout)

    async def reserve(self, block: bool = True, timeout: float | None = None) -> Delivery:
        """Take the oldest item on loan, as `DurableQueue.reserve`. Cancelled, it has taken nothing."""
        return await self._take(partial(self.queue.reserve, False), block, timeout)

    async def reserve_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[Delivery]:
        """Wait for one item, then take up to `max_items` on loan, as `DurableQueue.reserve_many`. Cancelled: as `get`."""
        return await self._take(partial(self.queue.reserve_many, max_items, False), block, timeout)

    def task_done(self) -> None:
        """The oldest item that `get` lent to this task is done.

        If this task has none, the oldest of this process is; if that has none, the oldest of the queue. Raises ValueError
        if nothing is lent.
        """
        self.queue.task_done()

    # -- putting -------------------------------------------------------------------------------------------------------

    async def put(self, item: Any, block: bool = True, timeout: float | None = None, *, delay: float = 0) -> None:
        """Append an item, as `DurableQueue.put`. Cancelled, it has put nothing.

        Under `sync=0` a worker thread waits for the disk, so that one sync serves the puts of many tasks and the loop goes
        on. Who cancels it in that moment cannot know whether the item was put.
        """
        if not delay >= 0:
            raise ValueError("'delay' must be a non-negative number")
        due = encode_due(due_after(time_ns() // 1_000_000, delay)) if delay else 0
        await self._append([self._encode(item)], due, block, timeout)

    def put_nowait(self, item: Any) -> None:
        """As `DurableQueue.put_nowait`; under `sync=0` it waits for the disk."""
        self.queue.put_nowait(item)

    async def put_many(self, items: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:
        """Append items in order, as `DurableQueue.put_many`. Cancelled, it has put those for which there was room."""
        before = 0
        parts = _parts([self._encode(item) for item in items])
        deadline = Deadline(timeout)
        for part in parts:
            await self._append(part, 0, block, timeout, before)
            before += len(part)
            timeout = timeout and max(0.0, deadline.left())

    async def join(self) -> None:
        """Wait until every item that was put is done, by whatever process."""
        await self._when(self._end, self._raise_if_unfinished, _Unfinished, self._is_finished, True, None)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """As `DurableQueue.qsize`."""
        return self.queue.qsize()

    def empty(self) -> bool:
        """As `DurableQueue.empty`."""
        return self.queue.empty()

    def full(self) -> bool:
        """As `DurableQueue.full`."""
        return self.queue.full()

    @property
    def maxsize(self) -> int:
        """As `DurableQueue.maxsize`."""
        return self.queue.maxsize

    @property
    def path(self) -> str:
        """As `DurableQueue.path`."""
        return self.queue.path

    @property
    def closed(self) -> bool:
        """As `DurableQueue.closed`."""
        return self.queue.closed

    def stats(self) -> Stats:
        """As `DurableQueue.stats`."""
        return self.queue.stats()

    def shutdown(self, immediate: bool = False) -> None:
        """As `DurableQueue.shutdown`: tasks that wait get ShutDown."""
        self.queue.shutdown(immediate)

    async def close(self) -> None:
        """As `DurableQueue.close`, in a worker thread, for it may wait for the disk. Tasks that wait get ClosedError."""
        with anyio.CancelScope(shield=True):
            await run_sync(self.queue.close)

    async def __aenter__(self) -> AsyncDurableQueue:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}{' closed' if self.closed else ''}>"

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def _take(self, attempt: Callable[[], T], block: bool, timeout: float | None) -> T:
        return await self._when(self._items, attempt, Empty, self._store.may_take, block, timeout)

    def _encode(self, item: Any) -> bytes:
        return self.queue._encode(*self.queue._serialize(item))

    async def _append(self, bodies: list[bytes], due: int, block: bool, timeout: float | None, before: int = 0) -> None:
        done = 0

        def attempt() -> None:
            nonlocal done
            done += self._store.append(bodies[done:], due)
            if done < len(bodies):
                raise Full(f"{before + done} items were put") if before + done else Full

        def ready() -> bool:
            return self._store.may_put(bodies[done])

        await self._when(self._room, attempt, Full, ready, block, timeout, in_thread=self._waits_for_disk)

    def _is_finished(self) -> bool:
        return not self._store._control.unfinished()

    def _raise_if_unfinished(self) -> None:
        if self._store.unfinished():
            raise _Unfinished

    async def _when(
        self,
        watch: Watch,
        attempt: Callable[[], T],
        refusal: type[Exception],
        ready: Callable[[], bool],
        block: bool,
        timeout: float | None,
        *,
        in_thread: bool = False,
    ) -> T:
        """Try, wait for news, and try again. Nothing is awaited between the try that succeeds and the return."""
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        if monotonic() > self._turn_ends:
            await checkpoint()
            self._turn_ends = monotonic() + _TURN
        try:
            return await run_sync(attempt) if in_thread else attempt()
        except refusal:
            if not block:
                raise
        with anyio.move_on_after(timeout) if timeout is not None else nullcontext():
            while True:
                news = anyio.Event()
                call = Call(partial(_call_soon(), news.set), ready)
                used = False
                try:
                    await (news.wait() if watch.arm(call) else checkpoint())
                    result = await run_sync(attempt) if in_thread else attempt()
                    used = True
                    return result
                except refusal:
                    pass
                finally:
                    watch.disarm(call, used)
        return await run_sync(attempt) if in_thread else attempt()  # the last one, and what it raises


class _ThisTask:
    """What each task has taken with `get` and not yet acked. Outside of tasks, each thread."""

    def __init__(self, is_lent: Callable[[int, int, int], bool]) -> None:
        self._is_lent = is_lent
        self._this_thread = _ThisThread(is_lent)
        self._tasks: weakref.WeakKeyDictionary[object, Unacked] = weakref.WeakKeyDictionary()

    @property
    def unacked(self) -> Unacked:
        """What is not acked of the task that asks."""
        task = _current_task()
        if task is None:
            return self._this_thread.unacked
        try:
            return self._tasks[task]
        except KeyError:
            return self._tasks.setdefault(task, Unacked(self._is_lent))


def _trio_task() -> object | None:
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):  # imported, but not what runs here
            return cast(object, trio.lowlevel.current_task())
    return None


def _current_task() -> object | None:
    with suppress(RuntimeError):  # no event loop runs here
        return _trio_task() or asyncio.current_task()
    return None


def _call_soon() -> Callable[[Callable[[], object]], object]:
    """How another thread has something called in the event loop that runs here."""
    if _trio_task():
        return cast(Callable[[Callable[[], object]], object], sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon)
    return asyncio.get_running_loop().call_soon_threadsafe


def _parts(bodies: list[bytes]) -> Iterator[list[bytes]]:
    """In pieces of which each is one write of about a MiB."""
    first = size = 0
    for n, body in enumerate(bodies, 1):
        size += len(body)
        if size >= _PART or n == len(bodies):
            yield bodies[first:n]
            first, size = n, 0
