"""A worker process as its pool sees it: started, told, watched, killed, and described when it is dead."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from durableq._progress import Holder
from durableq.pool._keeper import HELD_BACK
from durableq.pool._link import ASK, Cell, receive, socket_pair
from durableq.pool._settings import Settings
from durableq.pool._worker import main


class Member:
    """One worker."""

    def __init__(self, context: BaseContext, settings: Settings, number: int) -> None:
        self.number = number
        self.cell = Cell()
        self.started = time.monotonic()
        self.verdict = ""
        """Why the pool kills it; empty: it does not."""
        self._asked = 0.0
        self._words_from = 0
        self.end, theirs = socket_pair()
        self.deaf = False
        """Whether its end of the socket is closed."""
        method = context.get_start_method()
        lifeline: Connection | None = None
        self._lifeline: Connection | None = None
        if method == "forkserver":
            lifeline, self._lifeline = context.Pipe(duplex=False)
        arguments = (settings, self.cell, theirs, lifeline, os.getpid())
        name = f"durableq-worker-{number}"
        # `Process` is there in every context, though BaseContext does not say so.
        self.process = context.Process(target=main, args=arguments, name=name, daemon=False)  # type: ignore[attr-defined]
        try:
            with _signals_held_back(method):
                self.process.start()
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            if lifeline is not None:
                lifeline.close()

    # -- what it does --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.process.pid or 0)

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.number} (pid {self.pid})"

    @property
    def busy_since(self) -> float:
        """Monotonic time at which it began with what it has in hand; 0.0: nothing."""
        return float(self.cell.fields.since)

    @property
    def works(self) -> bool:
        """Whether it has shown that it can do its work: it had an item, or stood ready for a while."""
        fields = self.cell.fields
        if fields.since or fields.done or fields.failed or fields.dead:
            return True
        return bool(fields.ready and time.monotonic() - self.started > 5.0)

    def holder(self, now: float) -> Holder:
        """What it is on, for a display."""
        since = self.busy_since
        if not since:
            return Holder(self.pid, f"worker {self.number}", None, 0, 0.0)
        return Holder(self.pid, f"worker {self.number}", self.cell.item, self.cell.fields.deliveries, now - since)

    def messages(self) -> Iterator[bytes]:
        """What it has sent since the last time: log records, for `unpacked`."""
        while not self.deaf:
            message = receive(self.end)
            if message is None:
                return
            self.deaf = not message
            if message:
                yield message

    # -- what is done to it --------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Tell it; a dead one does not mind."""
        with suppress(OSError):
            self.end.send(message, socket.MSG_DONTWAIT)

    def judge(self, now: float, timeout: float) -> None:
        """Kill it if it has been busy with the same thing for too long, but let it first say where it hangs."""
        since = self.busy_since
        if not since or now - since <= timeout:
            self._asked = 0.0
        elif not self._asked:
            self._asked = now
            self._words_from = self.cell.size()
            with suppress(ProcessLookupError):
                os.kill(self.pid, ASK)
        elif now - self._asked > 0.2:
            self.verdict = f"killed after {timeout:g} s (timeout)"
            self.kill()

    def kill(self) -> None:
        """SIGKILL, to it and to the programs that it has started."""
        import psutil

        family = []
        with suppress(psutil.Error):
            family = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    def ended_in_order(self) -> bool:
        """Of a dead one: whether it came to its end, rather than that a function ended the process under it."""
        return bool(self.process.exitcode == 0 and self.cell.fields.ended)

    def how_it_ended(self) -> str:
        """Of a dead one."""
        if self.verdict:
            return self.verdict
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def last_words(self) -> str:
        """Of a dead one: the Python stack at its end, if it left one."""
        return self.cell.last_words(self._words_from)

    def bury(self) -> None:
        """Give back all that a dead one needed."""
        self.process.join()
        self.process.close()
        self._close()

    def _close(self) -> None:
        self.end.close()
        self.cell.close()
        if self._lifeline is not None:
            self._lifeline.close()


@contextmanager
def _signals_held_back(method: str) -> Iterator[None]:
    """A worker inherits this mask and lifts it when its handlers are in place: a Ctrl-C in between is no traceback."""
    if method != "fork":
        resource_tracker.ensure_running()  # it would be started in the middle of this, and lifts the mask when it is
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
