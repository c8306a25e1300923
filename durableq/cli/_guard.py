"""What takes our commands along when we are killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time

MARK = "DURABLEQ_RUN"
"""The environment variable by which a job is known to be ours."""


class Guard:
    """A process that kills our jobs when we are killed. Start it before there are threads, and before the queue is open.

    It knows them by a mark in their environment. So there is no moment at which a job runs and is not known, and what a job has
    started in its turn is known as well.
    """

    def __init__(self) -> None:
        around = os.environ.get(MARK)
        self.mark = f"{around}:{secrets.token_hex(8)}" if around else secrets.token_hex(8)
        """The value of the environment variable MARK that jobs must have."""
        listening, self._line = os.pipe()
        if os.fork() == 0:
            try:
                os.close(self._line)
                # Whatever signal is meant for us is none for it: it ends when we do.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                os.read(listening, 1)  # nobody writes: it returns when we are gone
                _kill_marked(self.mark.encode())
            finally:
                os._exit(0)
        os.close(listening)


def _kill_marked(mark: bytes) -> None:
    """Kill all processes with this mark, and the groups they lead, until there are no more."""
    for _ in range(50):
        found = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if mark in _environment(pid)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # also if none was found: one may be about to become what it is


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
