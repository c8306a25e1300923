"""The network between a client and a server, for tests that want it to fail: a TCP proxy in threads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CHUNK = 4096


class Proxy:
    """Listens on `port` and passes on to `upstream`, a port of this machine.

    refuse()          nobody gets in, and whoever is in is cut off
    accept()          after `refuse`, on the same port
    cut()             cuts off whoever is in
    cut_after(n)      cuts off after `n` more bytes towards the server, in the middle of whatever that is
    mute()            what the server says is swallowed, until `cut`: it hears, and its answers are lost
    delay             seconds for each 4 KiB, either way
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.delay = 0.0
        self.passed = 0
        """Bytes that went to the server."""
        self._left: int | None = None
        self._muted = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.port = 0
        self.accept()

    def accept(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        # A listener that another thread waits on lives on until that thread wakes: shut it down first.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, set()
            self._left, self._muted = None, False
        for one in sockets:
            _close(one)

    def cut_after(self, count: int) -> None:
        self._left = count

    def mute(self) -> None:
        self._muted = True

    def close(self) -> None:
        self.refuse()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket()
            try:
                server.connect(("127.0.0.1", self.upstream))
            except OSError:
                _close(client)
                server.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, inward in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, inward), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, inward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if self.delay:
                    time.sleep(self.delay)
                if not inward:
                    if not self._muted:
                        sink.sendall(data)
                    continue
                left = self._left
                if left is None:
                    sink.sendall(data)
                    self.passed += len(data)
                else:
                    sink.sendall(data[:left])
                    self.passed += min(left, len(data))
                    self._left = left - len(data)
                    if left <= len(data):
                        self.cut()
        for one in (source, sink):
            with self._lock:
                self._sockets.discard(one)
            _close(one)


def _close(one: socket.socket) -> None:
    """In order: what was sent arrives, and then the end."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
