"""A RabbitMQ broker for the tests: node name, ports, cookie, data and port mapper (epmd) are its own."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from engines.leash import MARK, Leashed, free_port, installed


class RabbitMQ:
    """A broker that is not started before `start`; it takes some seconds."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("kombu", reason="install it: python -m pip install 'durableq[kombu]'")
        installed("rabbitmq-server", "rabbitmq-server")
        self._epmd_program = installed("epmd", "rabbitmq-server")
        # The program on the PATH is a wrapper that wants to be root or the user rabbitmq.
        self._program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        if not os.path.exists(self._program):
            pytest.skip(f"{self._program} is not here; install it: apt-get install rabbitmq-server")
        self._folder = folder
        self.port, self._distribution, self._mapper = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._broker: Leashed | None = None
        self._epmd: Leashed | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not killed."""
        return self._broker is not None

    def start(self) -> None:
        """Start it, on the same ports and with what is on the disk."""
        folder = self._folder
        folder.mkdir(exist_ok=True)
        (folder / "plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\nlog.console = true\nmax_message_size = 1000000\n"
        )
        env = {
            "HOME": str(folder),
            MARK: "1",
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"durableq{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "features"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-kernel inet_dist_use_interface {{127,0,0,1}} -setcookie durableq{self.port} +S 2:2 +sbwt none"
            ),
        }
        if self._epmd is None:
            # Started here and not by Erlang, which would leave it behind as a daemon.
            command = [self._epmd_program, "-port", str(self._mapper), "-address", "127.0.0.1"]
            self._epmd = Leashed(command, folder / "epmd.log", env)
            self._epmd.wait_until(lambda: _listens(self._mapper))
        self._broker = Leashed([self._program], folder / "broker.log", env, cwd=folder)
        self._broker.wait_until(self._answers)

    def _answers(self) -> bool:
        import kombu

        if not _listens(self.port):
            return False
        with kombu.Connection(self.url, connect_timeout=5) as connection:
            try:
                connection.connect()
                return True
            except (OSError, *connection.connection_errors):  # it may say no in words while it starts
                return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._broker is not None:
            self._broker.kill()
            self._broker = None

    def stop(self) -> None:
        """SIGTERM. What the broker has just been told of a queue is on its disk only after an orderly end."""
        if self._broker is not None:
            self._broker.stop()
            self._broker = None

    def wipe(self) -> None:
        """Forget everything on the disk."""
        shutil.rmtree(self._folder / "data")

    def dispose(self) -> None:
        """Kill everything."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
