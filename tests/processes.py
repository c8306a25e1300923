"""Other Python processes for the tests: told and heard by lines, so that no test has to sleep for one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence

import psutil

PATIENCE = 30.0
"""Seconds after which something that should have happened will not: generous, for machines under load."""

PRELUDE = """
import os, signal, sys, threading, time
import durableq
from durableq import DurableQueue

def say(*words):
    print(*words, flush=True)

def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(3)
    return line.rstrip("\\n")

path = sys.argv[1] if len(sys.argv) > 1 else None
"""


class Child:
    """A process that runs `code` after the prelude above; its arguments are in `sys.argv`, the first one in `path`."""

    def __init__(self, code: str, *args: object, env: dict[str, str] | None = None, wrapper: Sequence[str] = ()) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by dispose()
        self._heard = b""
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(env or {})},
        )
        self.pid = self.process.pid

    def hear(self, patience: float = PATIENCE) -> str:
        """The next line the child says."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._heard:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"the child said nothing for {patience} s\n{self._complaint()}")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                self.process.wait(PATIENCE)
                raise AssertionError(f"the child ended ({self.process.returncode})\n{self._complaint()}")
            self._heard += more
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode()

    def expect(self, line: str, patience: float = PATIENCE) -> None:
        """Wait for the child to say exactly this."""
        heard = self.hear(patience)
        assert heard == line, f"{heard!r} instead of {line!r}\n{self._complaint()}"

    def tell(self, line: str = "go") -> None:
        """Send the child a line for its `hear()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def finish(self) -> None:
        """Wait for an orderly end."""
        code = self.process.wait(PATIENCE)
        assert code == 0, f"the child ended with {code}\n{self._complaint()}"

    def dispose(self) -> None:
        """End it in any case and give back its pipes."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._errors.close()

    def _complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie (whose other threads may have a moment to live yet)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(holds: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait for a condition that nobody announces, such as `another process waits in get()`."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"this did not come true within {patience} s: {holds}"
        time.sleep(0.005)
