"""Worker processes on a queue that survive whatever happens to them, to the pool, and to the machine.

    pool = WorkerPool("jobs.dq", handle, processes=4, results="results.dq")
    pool.run()          # until SIGTERM or Ctrl-C; start it again after anything, and it goes on where it was

Each worker reserves an item, calls the function with it, puts what it returned into the results queue, acks.

    the function raises             the item comes again, later and later (`backoff`); after `max_deliveries` deliveries it
                                    is a dead letter, with the traceback, time, host and pid beside it (`pool.failures()`)
    the worker dies, in any way     it is replaced; the item comes again, and the delivery counts: a poison item that kills
                                    its worker each time ends in the dead letters, too
    the pool dies                   the kernel kills its workers; the items come again, to the next pool
    SIGTERM, Ctrl-C, stop()         nothing more is taken; what runs has `grace` seconds to finish, then it is given back, and
                                    that delivery does not count. A second time: it is given back at once

An item is done only after its result was put, so a result may come twice and never be missed: see `Result`.

`_settings` has the small types, `_supervisor` the pool's process, `_crew` a worker as seen from it, `_worker` and `_keeper` a
worker's two threads, `_link` what lies between them.
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import IO, Any

from durableq import failures
from durableq._progress import open_display
from durableq._queue import DurableQueue
from durableq._serializers import Serializer
from durableq.errors import PoolError
from durableq.failures import Failure
from durableq.pool._settings import Backoff, OnError, Result, Settings
from durableq.pool._supervisor import Supervisor, Tally

__all__ = ["Backoff", "PoolError", "Result", "Tally", "WorkerPool"]


class WorkerPool:
    """A pool of worker processes on the queue at `path`, which is created if it is not there. See the module.

    function        called with an item, in a worker process; must be importable from there (no lambda) unless
                    start_method is "fork"
    processes       how many; None: as many as this process may use CPUs
    max_deliveries  deliveries after which an item that fails, or kills its worker, is a dead letter; None: never. It holds
                    whatever the queue was created with; if the queue has a smaller one, that counts. Only the queue's own
                    counts deliveries across a reboot of the machine
    backoff         `Backoff` or any function: the number of the failed delivery -> seconds before the next
    lease           seconds after which an item of a hung worker goes to another one; extended while the worker lives, unless
                    it is stopped or never gives up the GIL. Its late ack then changes nothing. None: the queue's own, if any
    on_error        called in the worker as on_error(delivery, exception) after each failure; a true return value sends the
                    item to the dead letters at once
    results         a path or a DurableQueue: gets a `Result(id, value)` for each item. By its path it is opened with
                    sync=0 unless `sync` is None, so that no power cut leaves an item done without its result; and with
                    the pool's `serializer`, but "pickle" instead of "bytes", for a result has two parts
    batch           the function gets a list of up to so many items (and returns as many results). What failed comes
                    again alone
    timeout         seconds for one call; then the worker is killed and replaced, and the delivery counts
    max_memory      bytes of resident memory above which a worker is replaced after its item
    max_items       items after which a worker is replaced
    grace           seconds for what runs to finish when the pool is to stop
    start_method    "spawn", "forkserver" or "fork"
    progress        a stream that shows what the pool is doing, if it is a terminal (`sys.stderr`, say)
    sync, serializer  of the queue, as for DurableQueue

    One line for each event goes to the logger "durableq.pool", and what workers log goes to the pool's handlers; what is not
    built in among its extras (an exception, say) goes there as its repr.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        function: Callable[[Any], Any],
        processes: int | None = None,
        *,
        max_deliveries: int | None = 5,
        backoff: Callable[[int], float] | None = None,
        lease: float | None = None,
        on_error: OnError | None = None,
        results: str | os.PathLike[str] | DurableQueue | None = None,
        batch: int | None = None,
        timeout: float | None = None,
        max_memory: int | None = None,
        max_items: int | None = None,
        grace: float = 30.0,
        start_method: str = "spawn",
        progress: IO[str] | None = None,
        sync: float | None = 1.0,
        serializer: str | Serializer = "pickle",
    ) -> None:
        _check_function(function)
        limits = {"processes": processes, "max_deliveries": max_deliveries, "lease": lease, "batch": batch}
        limits |= {"timeout": timeout, "max_memory": max_memory, "max_items": max_items}
        for name, value in limits.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value!r} must be None or positive")
        if grace < 0:
            raise ValueError(f"grace={grace!r} must be a non-negative number of seconds")
        self._context = multiprocessing.get_context(start_method)
        for name, part in (("function", function), ("on_error", on_error), ("backoff", backoff), ("serializer", serializer)):
            _check_that_it_travels(name, part, start_method)
        self._path, self._function = os.path.realpath(path), function
        self._processes = processes or len(os.sched_getaffinity(0))
        self._max_deliveries, self._lease = max_deliveries, lease
        self._backoff, self._on_error = backoff or Backoff(), on_error
        self._results = results
        self._batch, self._max_memory, self._max_items = batch, max_memory, max_items
        self._timeout, self._grace = timeout, grace
        self._progress = progress
        self._sync, self._serializer = sync, serializer
        self._supervisor: Supervisor | None = None
        self._tally = Tally()
        self._stops = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if results is not None and self._path == os.path.realpath(_path_of(results)):
            raise ValueError(f"{self._path}: the results cannot go to the queue that they come from")

    def run(self, *, until_empty: bool = False) -> Tally:
        """Work until the pool is told to stop; what was done. In the main thread, signals tell it: see the module.

        until_empty: also stop when everything is done, and nothing is lent or delayed.
        Raises PoolError, and what opening the queues raises.
        """
        with ExitStack() as open_files:
            display = open_files.enter_context(open_display(self._progress))
            queue = open_files.enter_context(self._open(self._path, self._sync, self._serializer))
            results = self._results
            if results is not None and not isinstance(results, DurableQueue):
                serializer = "pickle" if self._serializer == "bytes" else self._serializer
                results = open_files.enter_context(self._open(results, None if self._sync is None else 0, serializer))
            failures.sweep(queue)
            supervisor = Supervisor(
                self._settings(queue, results),
                self._context,
                processes=self._processes,
                timeout=self._timeout,
                grace=self._grace,
                until_empty=until_empty,
                display=display,
            )
            with self._lock:
                if self._supervisor is not None:
                    raise RuntimeError("this pool is running already")
                self._supervisor = supervisor
                for _ in range(self._stops):  # it was told to before it was there
                    supervisor.stop()
            try:
                return supervisor.run()
            finally:
                with self._lock:
                    self._tally = supervisor.tally()
                    self._supervisor = None
                    self._stops = 0

    def stop(self) -> None:
        """Take no more items, finish what runs, end; called a second time, give back at once what runs. Does not wait.

        From any thread. A pool that does not run yet ends as soon as it does.
        """
        with self._lock:
            self._stops += 1
            if self._supervisor is not None:
                self._supervisor.stop()

    def tally(self) -> Tally:
        """What the running pool has done so far, or has done in its last run."""
        with self._lock:
            return self._supervisor.tally() if self._supervisor is not None else self._tally

    def failures(self) -> list[Failure]:
        """What happened to the dead letters that are there now, the latest last."""
        with self._open(self._path, None, self._serializer) as queue:
            return list(failures.read(queue).values())

    def __enter__(self) -> WorkerPool:
        """Run in a thread of its own until the block ends, which stops the pool and waits for it."""
        self._error = None
        self._thread = threading.Thread(target=self._run_aside, name="durableq-pool")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._thread is not None
        self.stop()
        self._thread.join()
        if self._error is not None and exc is None:
            raise self._error

    def _run_aside(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._error = error

    @staticmethod
    def _open(path: str | os.PathLike[str], sync: float | None, serializer: str | Serializer) -> DurableQueue:
        return DurableQueue(path, sync=sync, serializer=serializer)

    def _settings(self, queue: DurableQueue, results: DurableQueue | None) -> Settings:
        bounds = [bound for bound in (self._max_deliveries, queue.max_deliveries) if bound is not None]
        return Settings(
            queue=queue,
            function=self._function,
            results=results,
            batch=self._batch,
            max_deliveries=min(bounds, default=None),
            backoff=self._backoff,
            lease=self._lease or queue.lease,
            on_error=self._on_error,
            max_memory=self._max_memory,
            max_items=self._max_items,
            log_level=logging.getLogger().level,
        )


def _path_of(results: str | os.PathLike[str] | DurableQueue) -> str:
    return results.path if isinstance(results, DurableQueue) else os.fspath(results)


def _check_function(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"function={function!r} cannot be called")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise TypeError(f"function={function!r} is a coroutine function: give a function that calls asyncio.run() with it")


def _check_that_it_travels(name: str, part: Any, start_method: str) -> None:
    if start_method == "fork":
        return
    try:
        ForkingPickler.dumps(part)
    except Exception as error:
        raise TypeError(
            f"{name}={part!r} cannot be sent to a worker process ({error}): define it at the top level of a module, "
            f'or use start_method="fork"'
        ) from error
