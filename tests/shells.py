"""The real program in a real shell: command lines as a user types them, in a directory of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from processes import PATIENCE


class Shell:
    """A directory, and bash in it. `durableq` is the program of this Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / ".bin"
        programs.mkdir()
        program = programs / "durableq"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m durableq "$@"\n')
        program.chmod(0o755)
        (programs / "python").symlink_to(sys.executable)
        self.env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "100"}
        self._running: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        script: str,
        *,
        stdin: bytes = b"",
        code: int | None = 0,
        env: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script to its end, which must have this exit code (None: any)."""
        done = subprocess.run(
            ["bash", "-c", script],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env={**self.env, **(env or {})},
            timeout=patience,
        )
        assert code is None or done.returncode == code, (script, done.returncode, done.stdout[-500:], done.stderr[-2000:])
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    def out(self, script: str, **options: object) -> bytes:
        """What a script prints."""
        return self.run(script, **options).stdout  # type: ignore[arg-type]

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script that runs beside the test; `exec` in it makes the process the program itself."""
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self.env,
            bufsize=0,
        )
        self._running.append(process)
        return process

    def dispose(self) -> None:
        """End what still runs."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def heard(process: subprocess.Popen[bytes], size: int, patience: float = PATIENCE) -> bytes:
    """So many bytes of what a process prints."""
    assert process.stdout is not None
    data = b""
    deadline = time.monotonic() + patience
    while len(data) < size:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([process.stdout], [], [], left)[0], f"it said only {data!r}"
        more = os.read(process.stdout.fileno(), size - len(data))
        assert more, f"it ended after {data!r}"
        data += more
    return data


def one_line(stderr: bytes) -> str:
    """The one line of an error."""
    text = stderr.decode()
    assert text.startswith("durableq: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text.strip()


class Terminal:
    """A program on a pseudo-terminal of 100 columns and 30 lines, as its controlling terminal."""

    def __init__(self, shell: Shell, command: str, env: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {name: value for name, value in shell.env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        name = os.ttyname(theirs)
        # Who leads a session gets the first terminal that it opens as its own.
        self.process = subprocess.Popen(
            ["setsid", "bash", "-c", f"exec <{name} >{name} 2>&1; exec {command}"],
            cwd=shell.folder,
            env={**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})},
        )
        self._theirs = theirs
        self.seen = b""

    def until(self, text: bytes, patience: float = PATIENCE) -> bytes:
        """Everything up to and with this text."""
        deadline = time.monotonic() + patience
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._ours], [], [], left)[0], self.seen
            self.seen += os.read(self._ours, 1 << 16)
        at = self.seen.index(text) + len(text)
        before, self.seen = self.seen[:at], self.seen[at:]
        return before

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        deadline = time.monotonic() + PATIENCE
        while True:
            # Reading all the while: a terminal holds a few KiB, then the program waits for us.
            code = self.process.poll()
            while select.select([self._ours], [], [], 0.02 if code is None else 0)[0]:
                self.seen += os.read(self._ours, 1 << 16)
            if code is not None:
                return code
            assert time.monotonic() < deadline, self.seen

    def dispose(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._ours)
        os.close(self._theirs)
