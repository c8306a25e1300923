"""What a pool and one of its workers share.

A memory file, mapped by both. The worker writes it and the pool reads it (`stop`: the other way round); what stands there
outlives the worker:

    0       ready        i64     1 once the worker takes items
    8       since        f64     monotonic time at which it began with what it has in hand; 0.0: nothing in hand
    16      ended        f64     monotonic time at which it left its loop to end in order; 0.0: it is at work
    24..    count, deliveries, done, failed, dead, final   i64: items in hand and the deliveries of the first; items done,
            failed attempts, items sent to the dead letters, since the worker started; 1 if why it ended ends the pool
    72      stop         i64     1 once the worker is to take no more, for the pool ends; 2: for it alone got a SIGTERM
    80..    id, item, reason   text: the first item in hand, by id and for people; why it ended in order
    4096..  last words: what `faulthandler` writes of the Python stack when the worker crashes, or hangs and is asked

`since` is written last and cleared first, so the rest of it holds whenever it is not zero.

A socket pair that keeps messages whole, so that a worker killed in the middle of one leaves none by halves:

    pool to worker   NOW: give back what you have, and end. The end of the stream: the pool is dead
    worker to pool   log records, of built-in types only: what they mention may be of a class that the pool cannot import
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import time
from logging import LogRecord, makeLogRecord
from logging.handlers import QueueHandler
from multiprocessing import reduction
from typing import Any

from durableq.failures import LONGEST, NOT_DECODED, short

NOW = b"now"
ASK = signal.SIGUSR2
"""The worker's Python stack is written to its last words at this signal, even if it never gives up the GIL again."""

_WORDS = 4096
_OURS = os.path.join("durableq", "pool", "_worker.py")
_LONGEST_LOG = 40_000
"""Characters that are kept of a log record's message, and of each text among its extras."""
_LARGEST_LOG = 200_000
"""Bytes of a record on its way; Linux lets a socket send few more. A message of 4 bytes a character fits."""


class _Layout(ctypes.Structure):
    _fields_ = (
        ("ready", ctypes.c_int64),
        ("since", ctypes.c_double),
        ("ended", ctypes.c_double),
        ("count", ctypes.c_int64),
        ("deliveries", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("failed", ctypes.c_int64),
        ("dead", ctypes.c_int64),
        ("final", ctypes.c_int64),
        ("stop", ctypes.c_int64),
        ("id", ctypes.c_char * 64),
        ("item", ctypes.c_char * 512),
        ("reason", ctypes.c_char * 128),
    )


class Cell:
    """The memory file. Travels to the worker as a descriptor."""

    def __init__(self) -> None:
        fd = os.memfd_create("durableq-worker", os.MFD_CLOEXEC)
        os.ftruncate(fd, _WORDS)
        self._map(fd)

    def _map(self, fd: int) -> None:
        self._fd = fd
        self.fields = _Layout.from_buffer(mmap.mmap(fd, _WORDS))

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._fd)

    def __setstate__(self, state: Any) -> None:
        self._map(state.detach())

    def close(self) -> None:
        """Give back the descriptor; what is mapped can still be read."""
        os.close(self._fd)

    # -- the worker's side ---------------------------------------------------------------------------------------------

    def begin(self, id: str, deliveries: int, count: int) -> None:
        """The worker begins with `count` items, of which this is the first; what it is can be told by `name`."""
        cell = self.fields
        cell.id, cell.item = _packed(id, 64), _packed(NOT_DECODED, 512)
        cell.deliveries, cell.count = deliveries, count
        cell.since = time.monotonic()

    def name(self, item: str) -> None:
        """What the first item is, as a short text."""
        self.fields.item = _packed(item, 512)

    def end(self) -> None:
        """It has nothing in hand."""
        self.fields.since = 0.0

    def leave(self, reason: str, final: bool = False) -> None:
        """It ends in order; `final`: for a reason that holds for the whole pool."""
        self.fields.final = final
        self.fields.reason = _packed(reason, 128)
        self.fields.ended = time.monotonic()

    def catch_last_words(self) -> None:
        """From now on a crash leaves the Python stack here."""
        os.lseek(self._fd, _WORDS, os.SEEK_SET)
        faulthandler.enable(self._fd, all_threads=False)
        faulthandler.register(ASK, self._fd, all_threads=False)

    # -- the pool's side -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The first item in hand."""
        return str(self.fields.id.decode(errors="replace"))

    @property
    def item(self) -> str:
        """The first item in hand, as a short text."""
        return str(self.fields.item.decode(errors="replace"))

    @property
    def reason(self) -> str:
        """Why the worker ended in order."""
        return str(self.fields.reason.decode(errors="replace"))

    def size(self) -> int:
        """How much of it there is."""
        return os.fstat(self._fd).st_size

    def last_words(self, start: int = 0) -> str:
        """What `faulthandler` wrote from that size on: the stack from its top down to where the user's function was called."""
        words = os.pread(self._fd, LONGEST, max(start, _WORDS)).decode(errors="replace")
        lines = words.splitlines(keepends=True)
        ours = next((n for n, line in enumerate(lines) if _OURS in line), len(lines))
        return "".join(lines[:ours])


def _packed(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[: size - 1]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The pool's end and the worker's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Forwarder(QueueHandler):
    """A logging handler that sends records to the pool, which logs them as its own."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)  # type: ignore[arg-type]

    def enqueue(self, record: LogRecord) -> None:
        """Send it; `prepare` has made its message a string before. If it is too large as a whole, it loses its extras."""
        fields = {name: _plain(value) for name, value in vars(record).items()}
        fields["message"] = fields["msg"]  # one object, which is pickled once
        packed = pickle.dumps(fields)
        if len(packed) > _LARGEST_LOG:
            packed = pickle.dumps({name: fields[name] for name in vars(makeLogRecord({})) if name in fields})
        self.queue.send(packed)  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    """What is built in as it is, anything else as its repr, and of long texts the beginning. Never fails."""
    try:
        return _copied(value)
    except Exception:  # it contains itself, another thread changes it, or its repr fails
        return short(value)[:_LONGEST_LOG]


def _copied(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):  # also of a class of its own: an enumeration of levels, say
            return kind(value)
    if type(value) is dict:
        return {_copied(name): _copied(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_LOG else text[:_LONGEST_LOG] + " ..."


def unpacked(message: bytes) -> LogRecord:
    """The log record that a Forwarder has sent. What is none raises any exception."""
    return makeLogRecord(pickle.loads(message))


def receive(end: socket.socket) -> bytes | None:
    """A message that is there, b"" at the end of the stream, None if there is none now."""
    try:
        return end.recv(_LARGEST_LOG, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""
