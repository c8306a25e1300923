"""The log of a spool: what was done to the file, and what its users were told, in one order.

Wrappers in place of the names of `durableq._os` do each call and its entry under one lock, so that the order of the log is
the order of the deeds; with a log file, over several processes. Entries are tuples:

    ("w", offset, data)  ("t", size)  ("p", offset, length)  ("c", offset, length)     what changes the file
    ("sb", n)  ("se", n)                                     sync n begins; it covers all before its beginning once it ended
    ("begin", n)  ("end", n, kind, ids, synced)              call n of a user; `synced`: its return is a promise by itself
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durableq import _os
from durableq._handle import Handle

Entry = tuple[Any, ...]
_NAMES = ("pwrite", "pwritev", "ftruncate", "punch", "collapse", "fdatasync", "fsync")


class Recorder:
    """Records all that happens to one spool while it is installed."""

    def __init__(self, spool: Path, log: Path | None = None, only_calls: bool = False) -> None:
        self._spool = spool
        self._only_calls = only_calls  # of users, and syncs: the disk is a real one
        self._entries: list[Entry] = []
        self._log = None if log is None else os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._mutex = threading.RLock()
        self._real = {name: getattr(_os, name) for name in _NAMES}
        self._numbers = (f"{os.getpid()}.{n}" for n in itertools.count())

    @contextmanager
    def installed(self) -> Iterator[Recorder]:
        """In place of the real calls, as long as the context lasts."""
        compiled = Handle.compiled
        Handle.compiled = compiled and self._only_calls  # what is compiled calls the system past the seam
        for name in ("fdatasync",) if self._only_calls else _NAMES:
            setattr(_os, name, getattr(self, name))
        try:
            yield self
        finally:
            Handle.compiled = compiled
            for name, real in self._real.items():
                setattr(_os, name, real)

    def entries(self) -> list[Entry]:
        """The log so far."""
        if self._log is None:
            return list(self._entries)
        return read_log(self._log)

    @contextmanager
    def call(self, kind: str, ids: list[int], synced: bool) -> Iterator[list[int]]:
        """A call of a user; `ids` may be filled in while it runs. An exception means: nothing was promised."""
        n = next(self._numbers)
        self._emit(("begin", n))
        yield ids
        self._emit(("end", n, kind, tuple(ids), synced))  # at once in the log: a kill of ours loses nothing of it

    # -- the wrappers --------------------------------------------------------------------------------------------------

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._locked():
            n: int = self._real["pwrite"](fd, data, offset)
            if self._is_spool(fd):
                self._emit(("w", offset, bytes(data[:n])))
            return n

    def pwritev(self, fd: int, parts: Any, offset: int) -> int:
        return self.pwrite(fd, b"".join(parts), offset)

    def ftruncate(self, fd: int, size: int) -> None:
        with self._locked():
            self._real["ftruncate"](fd, size)
            if self._is_spool(fd):
                self._emit(("t", size))

    def punch(self, fd: int, offset: int, length: int) -> bool:
        with self._locked():
            done: bool = self._real["punch"](fd, offset, length)
            if done and self._is_spool(fd):
                self._emit(("p", offset, length))
            return done

    def collapse(self, fd: int, offset: int, length: int) -> bool:
        """Works where the file system cannot do it, too."""
        with self._locked():
            size = os.fstat(fd).st_size
            assert offset % 4096 == length % 4096 == 0 and offset + length < size, "a collapse that EINVAL would refuse"
            if not self._real["collapse"](fd, offset, length):
                rest = os.pread(fd, size, offset + length)
                os.pwrite(fd, rest, offset)
                os.ftruncate(fd, size - length)
            self._emit(("c", offset, length))
            return True

    def fdatasync(self, fd: int) -> None:
        if not self._is_spool(fd):
            return
        n = next(self._numbers)
        self._emit(("sb", n))
        if self._only_calls:
            self._real["fdatasync"](fd)  # else what a sync does to the disk is decided in `disk`
        self._emit(("se", n))

    fsync = fdatasync

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _is_spool(self, fd: int) -> bool:
        a = os.fstat(fd)
        try:
            b = os.stat(self._spool)
        except FileNotFoundError:
            return False
        return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            if self._log is not None:
                fcntl.lockf(self._log, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if self._log is not None:
                    fcntl.lockf(self._log, fcntl.LOCK_UN)

    def _emit(self, entry: Entry) -> None:
        if self._log is None:
            self._entries.append(entry)
        else:
            data = pickle.dumps(entry)
            os.write(self._log, len(data).to_bytes(4, "little") + data)


def read_log(fd: int, size: int | None = None) -> list[Entry]:
    """All whole entries of a log file, or those within its first `size` bytes."""
    data = os.pread(fd, os.fstat(fd).st_size if size is None else size, 0)
    entries, at = [], 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + length > len(data):
            break
        entries.append(pickle.loads(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return entries
