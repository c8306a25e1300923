"""Commands at work on items: started, listened to, timed and killed. That none is left behind is the guard's part (`_guard`).

A job is a process group of its own, so that what it starts in turn ends with it, and so that a Ctrl-C at the terminal is for
us to deal with. Its stdin is the item, in memory, so nobody has to feed it. Its stderr comes through a pipe and is passed on
in whole lines; the end of it is kept. The end of its process is a descriptor (pidfd), to be polled with the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from durableq._delivery import Delivery
from durableq.cli._guard import MARK, Guard

PLACE = "{}"
"""In a command, where the item goes; without one it goes to stdin."""
_KEPT = 16 << 10
"""Bytes of stderr that are kept."""
_LONGEST = 64 << 10
"""Bytes of stderr without a newline that are passed on all the same: a line has to end some time."""
_PIPE = 64 << 10
"""Bytes that a pipe holds unless it is told otherwise: so many a command can have left behind when it ends."""
_PATIENCE = 5.0
"""Seconds that a job has after SIGTERM until SIGKILL."""
_NO_SUCH_COMMAND = frozenset(
    (
        *(errno.E2BIG, errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELIBBAD, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOENT, errno.ENOEXEC, errno.ENOTDIR, errno.EPERM, errno.ETXTBSY),
    )
)
"""What `execve` says of its arguments. All else that it or `fork` says is about the machine."""


class UnstartableError(Exception):
    """There is no such command with this item: it is too long, say, or has a zero byte in it."""


class Job:
    """A command at work on one item. Raises UnstartableError, and OSError if something is wanting that is not the item's fault.

    Then nothing is left of it.
    """

    def __init__(
        self,
        delivery: Delivery,
        command: Sequence[str],
        *,
        guard: Guard,
        collect: bool,
        timeout: float | None,
    ) -> None:
        self.delivery = delivery
        self.reason: str | None = None
        """Why it is being ended, if we do that."""
        self.output: IO[bytes] | None = None
        """What it prints, if that is collected."""
        self._guard = guard
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._signals = [signal.SIGKILL, signal.SIGTERM]
        self._line = b""
        self._tail = b""
        with contextlib.ExitStack() as undo:
            if collect:
                self.output = undo.enter_context(tempfile.TemporaryFile())
            self._process = self._start(delivery.item, command)
            self._group = self._process.pid
            assert self._process.stderr is not None
            self._stderr = undo.enter_context(self._process.stderr)
            undo.callback(self._process.wait)
            undo.callback(self.kill)
            os.set_blocking(self._stderr.fileno(), False)
            self.errors = self._stderr.fileno()
            """Readable when there is something on its stderr, or nobody has it open any more."""
            self.end = os.pidfd_open(self._group)
            """Readable when the process has ended."""
            undo.pop_all()

    def _start(self, item: bytes, command: Sequence[str]) -> subprocess.Popen[bytes]:
        in_place = any(PLACE in word for word in command)
        with _opened(None if in_place else item) as stdin:
            try:
                return subprocess.Popen(
                    [word.replace(PLACE, os.fsdecode(item)) for word in command] if in_place else list(command),
                    stdin=stdin,
                    stdout=self.output,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    env={
                        **os.environ,
                        MARK: self._guard.mark,
                        "DURABLEQ_ID": self.delivery.id,
                        "DURABLEQ_DELIVERIES": str(self.delivery.deliveries),
                    },
                )
            except ValueError as error:  # a zero byte
                raise UnstartableError(str(error)) from error
            except OSError as error:
                if error.errno in _NO_SUCH_COMMAND:
                    raise UnstartableError(str(error)) from error
                raise

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(self) -> bool:
        """Pass on what is on its stderr now; False if nothing will ever come again.

        One read and no more: who writes all the time would keep us here for ever, and there is more to look after.
        """
        try:
            data = self._stderr.read(_PIPE)
        except OSError:
            return False
        if data is None:
            return True
        self._tail = (self._tail + data)[-_KEPT:]
        *lines, self._line = (self._line + data).split(b"\n")
        if self._line and (not data or len(self._line) > _LONGEST):
            lines, self._line = [*lines, self._line], b""
        if lines:
            _say(b"\n".join([*lines, b""]))
        return bool(data)

    @property
    def told(self) -> str:
        """The end of what it said on stderr."""
        return self._tail.decode(errors="replace")

    # -- ending --------------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether its process has ended. Until `close` that is a zombie, so its group's number is nobody else's."""
        return os.waitid(os.P_PID, self._group, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def seconds_left(self, now: float) -> float:
        """Seconds until `look_at_clock` has something to do."""
        return float("inf") if self._ends_at is None or self.ended else max(0.0, self._ends_at - now)

    def look_at_clock(self, now: float) -> None:
        """End it if its time is up, more firmly each time."""
        if self._ends_at is None or now < self._ends_at or not self._signals or self.ended:
            return
        self.reason = self.reason or f"timed out after {self._timeout:g} s"
        self._signal(self._signals.pop())
        self._ends_at = now + _PATIENCE if self._signals else None

    def stop(self, reason: str) -> None:
        """Have it end now, unless it has or is about to: SIGTERM, and SIGKILL a little later."""
        if self.reason is None and not self.ended:
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
        if self.reason is not None:
            self.kill()  # of what it started, those that did not mind a SIGTERM
        code = self._process.wait()
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


@contextlib.contextmanager
def _opened(item: bytes | None) -> Iterator[int]:
    """A descriptor to read an item or nothing from, for as long as the block lasts."""
    fd = os.open(os.devnull, os.O_RDONLY) if item is None else os.memfd_create("durableq-item", os.MFD_CLOEXEC)
    try:
        view = memoryview(item or b"")
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _say(lines: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        view = memoryview(lines)
        while view:
            try:
                view = view[os.write(2, view) :]
            except BlockingIOError:
                select.select([], [2], [])
