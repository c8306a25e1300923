"""Raw floors: what the system calls cost that a queue of the kind cannot do without, and nothing else.

They are no queues: one process at either end, no bounds, no waiting but a spin, and nothing survives.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from pathlib import Path

from benchmarks.peers import Peer
from durableq import _os

_LENGTH = struct.Struct("<I")
_RUN = 1 << 20
"""Bytes that are given back to the file system at once."""


class Pipe(Peer):
    """A pipe with pickles, each behind its length."""

    name = "floor: pipe"

    def __init__(self, place: Path, room: int) -> None:
        reader, self.writer = os.pipe()
        self.reader = open(reader, "rb")  # noqa: SIM115, for the life of the peer

    def put(self, message: bytes) -> None:
        data = pickle.dumps(message)
        os.writev(self.writer, (_LENGTH.pack(len(data)), data))

    def get(self) -> bytes:
        (length,) = _LENGTH.unpack(self.reader.read(_LENGTH.size))
        return pickle.loads(self.reader.read(length))

    def remove(self) -> None:
        self.reader.close()
        os.close(self.writer)


class Spool(Peer):
    """A file: `pwrite` at its end, `pread` at its front, and a hole punched behind each MiB that was read.

    The end is told through a word of shared memory; who reads spins on it.
    """

    name = "floor: pwrite, pread, punch"

    def __init__(self, place: Path, room: int) -> None:
        self.fd = os.open(place / "spool", os.O_RDWR | os.O_CREAT, 0o600)
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.words = memoryview(self.memory).cast("Q")
        self.head = self.tail = self.punched = 0

    def put(self, message: bytes) -> None:
        # The length goes first and alone, so that a large message is not copied to stand behind it.
        os.pwrite(self.fd, _LENGTH.pack(len(message)), self.tail)
        os.pwrite(self.fd, message, self.tail + _LENGTH.size)
        self.tail += _LENGTH.size + len(message)
        self.words[0] = self.tail

    def get(self) -> bytes:
        while self.words[0] == self.head:
            os.sched_yield()
        (length,) = _LENGTH.unpack(os.pread(self.fd, _LENGTH.size, self.head))
        message = os.pread(self.fd, length, self.head + _LENGTH.size)
        self.head += _LENGTH.size + length
        if self.head - self.punched >= _RUN:
            _os.punch(self.fd, self.punched, self.head - self.punched)
            self.punched = self.head
        return message

    def remove(self) -> None:
        os.close(self.fd)


class Synced(Peer):
    """A file that all append to, each write followed by an `fdatasync`; read again from the front."""

    name = "floor: write, fdatasync"

    def __init__(self, place: Path, room: int) -> None:
        self.path = place / "spool"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def connect(self) -> None:
        self.reader = open(self.path, "rb")  # noqa: SIM115, for the life of the process

    def put(self, message: bytes) -> None:
        os.write(self.fd, _LENGTH.pack(len(message)) + message)
        os.fdatasync(self.fd)

    def get(self) -> bytes:
        (length,) = _LENGTH.unpack(self.reader.read(_LENGTH.size))
        return self.reader.read(length)

    def close(self) -> None:
        self.reader.close()

    def remove(self) -> None:
        os.close(self.fd)
