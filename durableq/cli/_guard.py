"""What takes our commands along when we are killed, and leaves alone what they leave behind when all has gone well."""

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

    What is sent to our process group (Ctrl-\\, `timeout -s KILL`) does not reach it: it has a session of its own. Nor does
    anybody wait for it who reads what we and our jobs print: it has nothing open but its end of a line to us.
    """

    def __init__(self) -> None:
        around = os.environ.get(MARK)
        self.mark = f"{around}:{secrets.token_hex(8)}" if around else secrets.token_hex(8)
        """The value of the environment variable MARK that jobs must have."""
        self.is_wanted = False
        """Whether a job had to be killed. What it has started may have left its group: that is to be killed at the end too."""
        listening, self._line = os.pipe()
        if os.fork() == 0:
            try:
                os.setsid()
                # Whatever signal is meant for us is none for it: it ends when we do.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                os.dup2(listening, 0)
                os.closerange(1, 1 + max(map(int, os.listdir("/proc/self/fd"))))
                if not os.read(0, 1):  # we are gone, and were not done
                    _kill_marked(self.mark.encode())
            finally:
                os._exit(0)
        os.close(listening)

    def dismiss(self) -> None:
        """All jobs have ended by themselves: what they leave running in the background may go on, unless it `is_wanted`."""
        if not self.is_wanted:
            with contextlib.suppress(BrokenPipeError):  # somebody has killed it
                os.write(self._line, b"\0")


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
