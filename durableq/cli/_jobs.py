"""Commands at work on items: started, listened to, timed and killed. That none is left behind is the guard's part (`_guard`).

A job is a process group of its own, so that what it starts in turn ends with it, and so that a Ctrl-C at the terminal is for
us to deal with. Its stdin is the item, in memory, so nobody has to feed it. Its stderr comes through a pipe and is passed on
in whole lines; the end of it is kept. The end of its process is a descriptor (pidfd), to be polled with the others.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from durableq._delivery import Delivery
from durableq.cli._guard import MARK, Guard

PLACE = "{}"
"""In a command, where the item goes; without one it goes to stdin."""
_KEPT = 16 << 10
"""Bytes of stderr that are kept."""
_PATIENCE = 5.0
"""Seconds that a job has after SIGTERM until SIGKILL."""


class Job:
    """A command at work on one item. Raises OSError if it cannot be started."""

    def __init__(
        self,
        delivery: Delivery,
        item: bytes,
        command: Sequence[str],
        *,
        guard: Guard,
        collect: bool,
        timeout: float | None,
    ) -> None:
        self.delivery = delivery
        self._guard = guard
        self.reason: str | None = None
        """Why it is being ended, if we do that."""
        self.output: IO[bytes] | None = tempfile.TemporaryFile() if collect else None  # noqa: SIM115, closed by `close`
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._signals = [signal.SIGKILL, signal.SIGTERM]
        self._line = b""
        self._tail = b""
        in_place = any(PLACE in word for word in command)
        text = os.fsdecode(item)
        stdin = os.open(os.devnull, os.O_RDONLY) if in_place else _file_in_memory(item)
        try:
            self._process = subprocess.Popen(
                [word.replace(PLACE, text) for word in command] if in_place else list(command),
                stdin=stdin,
                stdout=self.output,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                env={
                    **os.environ,
                    MARK: guard.mark,
                    "DURABLEQ_ID": delivery.id,
                    "DURABLEQ_DELIVERIES": str(delivery.deliveries),
                },
            )
        finally:
            os.close(stdin)
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._group = self._process.pid
        self.end = os.pidfd_open(self._group)
        """Readable when the process has ended."""
        self.errors = self._stderr.fileno()
        """Readable when there is something on its stderr, or nobody has it open any more."""

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(self) -> bool:
        """Pass on what is on its stderr; False if nothing will ever come again."""
        while True:
            try:
                data = self._stderr.read(1 << 16)
            except OSError:
                return False
            if data is None:
                return True
            self._tail = (self._tail + data)[-_KEPT:]
            *lines, self._line = (self._line + data).split(b"\n")
            if not data:
                lines, self._line = ([self._line] if self._line else []), b""
            if lines:
                _say(b"\n".join([*lines, b""]))
            if not data:
                return False

    @property
    def told(self) -> str:
        """The end of what it said on stderr."""
        return self._tail.decode(errors="replace")

    # -- ending --------------------------------------------------------------------------------------------------------

    def seconds_left(self, now: float) -> float:
        """Seconds until `look_at_clock` has something to do."""
        return float("inf") if self._ends_at is None else max(0.0, self._ends_at - now)

    def look_at_clock(self, now: float) -> None:
        """End it if its time is up, more firmly each time."""
        if self._ends_at is None or now < self._ends_at or not self._signals:
            return
        self.reason = self.reason or f"timed out after {self._timeout:g} s"
        self._signal(self._signals.pop())
        self._ends_at = now + _PATIENCE if self._signals else None

    def stop(self, reason: str) -> None:
        """Have it end now: SIGTERM, and SIGKILL a little later."""
        self.reason = reason
        self._ends_at = 0.0

    def kill(self) -> None:
        """End it and what it has started at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        self._guard.is_wanted = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, number)

    def close(self) -> str | None:
        """It has ended: None if it did well, else what was wrong, in one line."""
        code = self._process.wait()
        if self.reason is not None:
            self.kill()  # of what it started, those that did not mind a SIGTERM
        self.listen()
        if self._line:
            _say(self._line + b"\n")
        self._stderr.close()
        os.close(self.end)
        if code == 0 and self.reason is None:
            return None
        if self.reason is not None:
            return self.reason
        if code > 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"


def _file_in_memory(data: bytes) -> int:
    """A descriptor to read `data` from."""
    fd = os.memfd_create("durableq-item", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _say(lines: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        view = memoryview(lines)
        while view:
            try:
                view = view[os.write(2, view) :]
            except BlockingIOError:
                select.select([], [2], [])
