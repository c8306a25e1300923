"""A Redis server for a test."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engines.leash import Leashed, free_port, installed


class RedisServer:
    """A Redis server that keeps an append-only file (`appendfsync no`: a kill loses nothing, a wipe does)."""

    def __init__(self, folder: Path, *options: str) -> None:
        pytest.importorskip("redis", reason="install it: python -m pip install 'durableq[redis]'")
        self._program = installed("redis-server", "redis-server")
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start it, on the same port and with what is on the disk."""
        self._folder.mkdir(exist_ok=True)
        self._server = Leashed(
            [
                *(self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "no", "--enable-debug-command", "yes", *self._options),
            ],
            self._folder / "log",
        )
        self._server.wait_until(self._answers)

    def _answers(self) -> bool:
        import redis

        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def client(self):
        """A client of it."""
        import redis

        return redis.Redis(port=self.port)

    def kill(self) -> None:
        """SIGKILL."""
        self._server.kill()

    def wipe(self) -> None:
        """Forget everything on the disk."""
        for part in sorted(self._folder.rglob("*"), reverse=True):
            part.rmdir() if part.is_dir() else part.unlink()

    def stall(self) -> None:
        """Stop it in its tracks, connections open."""
        self._server.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stall`."""
        self._server.signal(signal.SIGCONT)
