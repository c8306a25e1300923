"""Redis lists on a private server: started for one run, on a socket of its own and with an append-only file, then killed."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Failed
from benchmarks.peers import Peer

_KEY = "queue"


class RedisEverysec(Peer):
    """RPUSH and BLPOP; with ack BLMOVE to a list of one's own and LREM from it."""

    name = "Redis list (everysec)"
    module = "redis"
    program = "redis-server"
    remedy = "pip install 'redis[hiredis]' and apt-get install redis-server"
    durability = "synced within 1 s"
    fsync = "everysec"

    def __init__(self, place: Path, room: int) -> None:
        # A socket's name may have 107 characters at most: not every place has room for one.
        self.folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.socket = f"{self.folder.name}/socket"
        options = {
            **{"dir": str(place), "port": "0", "unixsocket": self.socket, "save": "", "loglevel": "warning"},
            **{"appendonly": "yes", "appendfsync": self.fsync},
        }
        command = ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]
        with open(place / "log", "wb") as log:
            self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait_for_server(place / "log")
        except BaseException:
            self.remove()
            raise

    def _wait_for_server(self, log: Path) -> None:
        import redis

        for _ in range(1000):
            try:
                with redis.Redis(unix_socket_path=self.socket) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)
            if self.server.poll() is not None:
                break
        raise Failed(f"redis-server does not answer: {log.read_text(errors='replace')[-300:].strip()}")

    def connect(self) -> None:
        import redis

        self.client: Any = redis.Redis(unix_socket_path=self.socket)

    def put(self, message: bytes) -> None:
        self.client.rpush(_KEY, message)

    def get(self) -> bytes:
        return self.client.blpop(_KEY)[1]

    def close(self) -> None:
        self.client.close()

    def remove(self) -> None:
        self.server.kill()
        self.server.wait()
        self.folder.cleanup()

    def served_by(self) -> int:
        return self.server.pid


class RedisAlways(RedisEverysec):
    name = "Redis list (always)"
    durability = "synced at each command"
    fsync = "always"


class _Acknowledged(RedisEverysec):
    def connect(self) -> None:
        super().connect()
        self.own = f"taken by {id(self)}"

    def get(self) -> bytes:
        self.lent = self.client.blmove(_KEY, self.own, 0)
        return self.lent

    def done(self) -> None:
        self.client.lrem(self.own, 1, self.lent)


class RedisEverysecAck(_Acknowledged):
    """With the names of RedisEverysec."""


class RedisAlwaysAck(_Acknowledged, RedisAlways):
    """With the names of RedisAlways."""
