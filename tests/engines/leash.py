"""Servers that live as long as the tests, and not longer.

`python leash.py COMMAND...` runs the command in a process group of its own and kills the group when its own stdin ends: when
the tests close it, and when they are killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

MARK = "DURABLEQ_TESTS_KEEP"
"""In the environment of a server that serves more tests than the one that started it."""
BOOT_PATIENCE = 50.0


def installed(program: str, package: str) -> str:
    """The path of a program, or the test is skipped."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        import pytest  # not at the top: this file is a program as well

        pytest.skip(f"{program} is not here; install it: apt-get install {package}")
    return found


def free_port() -> int:
    """A loopback port that nobody listens on, from below those that the kernel gives to connections meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Leashed:
    """A server on a leash, with its output in a file."""

    def __init__(self, command: list[str], output: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.output = output
        with output.open("ab") as log:
            self._leash = subprocess.Popen(
                [sys.executable, __file__, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=cwd,
            )
        assert self._leash.stdout is not None
        self.pid = int(self._leash.stdout.readline())

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for the server to come up."""
        deadline = time.monotonic() + BOOT_PATIENCE
        while not ready():
            assert self._leash.poll() is None, f"the server ended\n{self.output.read_text(errors='replace')}"
            assert time.monotonic() < deadline, f"the server did not come up\n{self.output.read_text(errors='replace')}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.pid, number)

    def stop(self) -> None:
        """SIGTERM to all of it; returns when it has ended by itself, or after a while has been killed."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._leash.wait(BOOT_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all of it; returns when it is gone."""
        assert self._leash.stdin is not None and self._leash.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._leash.stdin.close()
        self._leash.wait()
        self._leash.stdout.close()


def _main() -> None:
    server = subprocess.Popen(sys.argv[1:], start_new_session=True, stdin=subprocess.DEVNULL, stdout=2)
    print(server.pid, flush=True)

    def hold() -> None:
        while os.read(0, 4096):  # not sys.stdin: at the end the interpreter would wait for this thread's hold on it
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)

    threading.Thread(target=hold, daemon=True).start()
    server.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)  # what it has started


if __name__ == "__main__":
    _main()
