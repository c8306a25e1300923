"""Bytes to a descriptor, and how many of them have come through.

A pipe holds what its reader has not read yet: when the reader dies, that is gone, although every write of it succeeded. The
kernel tells how much it is (FIONREAD, also when the reader is gone), so for a pipe only what was read has come through.
Elsewhere what the kernel has accepted has; what goes to a file is on the disk after a `flush`.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Sequence

from durableq.cli._command import Failure
from durableq.cli._pipe import enlarge_pipe, unread
from durableq.cli._signals import Signals

_MOST_PIECES = 1024  # of one write: IOV_MAX


class Outlet:
    """Writes to a descriptor without ever being stuck in a write that a signal should end."""

    def __init__(self, fd: int, signals: Signals, *, durable: bool = False) -> None:
        """`durable`: what goes to a file has to reach the disk; `flush` sees to it."""
        self._fd = fd
        self._signals = signals
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            raise self._error(error) from error
        self.is_pipe = stat.S_ISFIFO(mode)
        if self.is_pipe:
            enlarge_pipe(fd)
        self.is_file = stat.S_ISREG(mode)
        self._durable = durable and self.is_file
        self._lost: Failure | None = None
        self._may_block = self.is_pipe or stat.S_ISSOCK(mode)
        self.accepted = 0
        """Bytes that the kernel has taken."""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._gone = select.poll()
        self._gone.register(fd, 0)

    def write(self, pieces: Sequence[bytes], meanwhile: Callable[[], float | None] | None = None) -> None:
        """Write all of it. Raises BrokenPipeError, Stopped, and Failure for what else goes wrong (a full disk).

        `meanwhile` is for who has more to look after: it is called before each wait for the reader, and says how many
        milliseconds that may last. Such a wait is ended by a second signal only.
        """
        left = [memoryview(piece) for piece in pieces if piece]
        while left:
            try:
                written = self._write_some(left[:_MOST_PIECES])
            except BlockingIOError:
                self._signals.poll(self._poll, meanwhile and meanwhile(), deaf=meanwhile is not None)
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                raise self._error(error) from error
            self.accepted += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def _write_some(self, pieces: list[memoryview]) -> int:
        if not self._may_block:
            return os.writev(self._fd, pieces)
        try:
            return os.pwritev(self._fd, pieces, -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ESPIPE, errno.EINVAL):
                raise
        # An older kernel: write no more than fits into the least room there is, if there is any.
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.write(self._fd, pieces[0][: select.PIPE_BUF])

    def through(self) -> int:
        """Bytes that have come through."""
        return max(0, self.accepted - unread(self._fd)) if self.is_pipe else self.accepted

    def flush(self) -> None:
        """Return once the disk has what a file has accepted. Raises Failure, and from then on always.

        After a failed sync the kernel may say ok to the next one although the bytes are gone.
        """
        if self._lost is not None:
            raise self._lost
        if not self._durable:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS):  # a file on no disk: one under /proc or /sys
                self._durable = False
                return
            self._lost = self._error(error)
            raise self._lost from error

    def wait_for_reader(self, seconds: float, *, deaf: bool = False) -> None:
        """Wait so long, or until the reader is gone: then BrokenPipeError. Raises Stopped; `deaf`: at a second signal only."""
        if self._signals.poll(self._gone, seconds * 1000, deaf=deaf):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    @staticmethod
    def _error(error: OSError) -> Failure:
        if error.errno == errno.EBADF:
            return Failure("stdout is closed, so nothing was taken; redirect it to a file or a pipe")
        return Failure(f"cannot write the output: {error.strerror}; what it does not have is still in the queue")
