"""Why an item is a dead letter: the story beside it.

A queue keeps its dead letters in the spool. What happened to them (a traceback or the end of a program's stderr; when, on
which host, in which process) is in `PATH-failures`: a text file with one JSON object on each line, for `tail` and `jq` too.

    read(queue)        {id: Failure} for the dead letters that are there now
    reject(queue, delivery, reason, details)     tell the story, then `delivery.reject()`
    bury(queue, delivery, Failure.undecoded(delivery, ...))   the same with another story
    note(queue, Failure.of(delivery, ...))       tell the story only: of an item whose holder is dead, say
    sweep(queue)       forget the stories of items that are no dead letters any more; `note` does it now and then by itself

A story belongs to an item by `Delivery.id`; if an item has several (it was redriven and failed again), the last one counts.

What a crash leaves. The story is written first and the item becomes a dead letter after it: killed in between, the item is
delivered again and the story of a living item is passed over by `read`, until `sweep` drops it. What fails to be written (a
full disk) costs the story and never the item: a dead letter without a story is one whose story is not known. A line is
one append under the queue's cold lock; a line that does not read as JSON (a torn one, after a power cut) is passed over. A
sweep takes the place of the file as a whole, or leaves it as it was.

Nothing here is unpickled: the item is kept as a short text, for people.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import reprlib
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from durableq._delivery import Delivery
from durableq._locks import under_cold_lock
from durableq._os import create_beside
from durableq._queue import DurableQueue

__all__ = ["Failure", "bury", "latest", "note", "read", "reject", "short", "sweep"]

LONGEST = 16 << 10
"""Characters of `details` that are kept: the end of them, where tracebacks and programs say what was wrong."""

FRESH = 60.0
"""Seconds for which a sweep leaves every story alone: its item may not have become a dead letter yet."""

SWEEP_FROM = 1 << 20
"""Bytes below which the file is never swept by itself. Above, it is when it has doubled since the last sweep."""

NOT_DECODED = "an item that was not decoded"
"""For people, in place of the item."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """What happened to one item."""

    id: str
    """The item's `Delivery.id`."""
    reason: str
    """One line: "ValueError: no such customer", "exit code 3", "killed by SIGSEGV"."""
    details: str
    """The traceback, or the end of stderr; may be empty."""
    deliveries: int
    """How often the item had been delivered."""
    time: float
    """Unix time."""
    host: str
    pid: int
    """The process that had the item."""
    item: str
    """The item as a short text."""

    @classmethod
    def of(cls, delivery: Delivery, reason: str, details: str = "", *, pid: int | None = None) -> Failure:
        """What happened just now to a delivery; `pid`: in which process, if not in this one."""
        return cls.now(delivery.id, delivery.deliveries, short(delivery.item), reason, details, pid=pid)

    @classmethod
    def undecoded(cls, delivery: Delivery, reason: str) -> Failure:
        """As `of`, for a delivery whose item cannot be decoded."""
        return cls.now(delivery.id, delivery.deliveries, NOT_DECODED, reason)

    @classmethod
    def now(cls, id: str, deliveries: int, item: str, reason: str, details: str = "", *, pid: int | None = None) -> Failure:
        """As `of`, by an item's id, where nobody has its delivery any more."""
        line = " ".join(reason.split())
        return cls(id, line, details[-LONGEST:], deliveries, time.time(), socket.gethostname(), pid or os.getpid(), item)


def reject(queue: DurableQueue, delivery: Delivery, reason: str, details: str = "") -> None:
    """Put a delivery with the dead letters, with its story. Raises StaleDeliveryError as `Delivery.reject` does."""
    bury(queue, delivery, Failure.of(delivery, reason, details))


def bury(queue: DurableQueue, delivery: Delivery, story: Failure) -> None:
    """As `reject`, with a story that was made before."""
    note(queue, story)  # first: see the module
    delivery.reject()


def note(queue: DurableQueue, failure: Failure) -> None:
    """Write a story down. A disk that cannot take it is logged as a warning, for the item comes first."""
    line = json.dumps(asdict(failure)).encode() + b"\n"
    try:
        under_cold_lock(queue.path, lambda: _append_locked(queue, line))
    except OSError as error:
        _log.warning("%s: the story of %s is lost, %s: %s", queue.path, failure.id, error, failure.reason)


def read(queue: DurableQueue) -> dict[str, Failure]:
    """The stories of the dead letters that are there now, in the order in which they were told."""
    dead = queue.dead_letters.ids()
    return {failure.id: failure for failure in _stories(queue) if failure.id in dead}


def latest(queue: DurableQueue, id: str) -> Failure | None:
    """The last story that was told of an item, whether or not it is a dead letter (yet)."""
    return next((told for told in _stories(queue) if told.id == id), None)


def sweep(queue: DurableQueue) -> int:
    """Drop the stories of items that are no dead letters (any more), but not those of the last minute; how many.

    A disk that cannot take those that stay is logged as a warning, and all stay.
    """
    try:
        return under_cold_lock(queue.path, lambda: _sweep_locked(queue))
    except OSError as error:
        _log.warning("%s: stories of items that are gone stay there until the next sweep, %s", _file(queue), error)
        return 0


def short(item: Any) -> str:
    """A short text of any item, for people; never fails, and takes little time for big ones."""
    return _short.repr(item)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 100
        self.maxdict = self.maxlist = self.maxtuple = 6

    def repr_bytes(self, item: bytes, level: int) -> str:
        return repr(item) if len(item) <= 100 else f"{item[:80]!r}... ({len(item)} bytes)"


_short = _Short()


def _file(queue: DurableQueue) -> str:
    return f"{queue.path}-failures"


def _append_locked(queue: DurableQueue, line: bytes) -> None:
    with suppress(FileExistsError):
        os.close(create_beside(os.stat(queue.path), _file(queue)))  # as private as the spool
    fd = os.open(_file(queue), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size > max(SWEEP_FROM, 2 * _swept(os.pread(fd, 256, 0))):
            try:
                _sweep_locked(queue, rewrite=True)  # which notes how long it is, even if nothing is dropped
            except OSError:
                pass  # there may be room for a line and not for a second file
            else:
                return _append_locked(queue, line)  # to the file that took the place of this one
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # the line before was torn by a power cut or a full disk: it must not spoil this one
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _file(queue))
    finally:
        os.close(fd)


def _swept(beginning: bytes) -> int:
    """How long the file was after its last sweep: what its first line says."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(beginning.partition(b"\n")[0])["swept"])
    return 0


def _stories(queue: DurableQueue) -> list[Failure]:
    names = {field.name for field in fields(Failure)}
    latest: dict[str, Failure] = {}
    try:
        with open(_file(queue), "rb") as file:
            for line in file:
                with suppress(ValueError, TypeError, AttributeError):
                    told = Failure(**{name: value for name, value in json.loads(line).items() if name in names})
                    latest.pop(told.id, None)  # the last one counts, and so does its place
                    latest[told.id] = told
    except FileNotFoundError:
        pass
    return list(latest.values())


def _sweep_locked(queue: DurableQueue, *, rewrite: bool = False) -> int:
    try:
        before = _stories(queue)
        dead, now = queue.dead_letters.ids(), time.time()
        kept = [told for told in before if told.id in dead or told.time > now - FRESH]
        old = os.stat(_file(queue))
    except FileNotFoundError:
        return 0
    if rewrite or len(kept) < len(before):
        _replace(queue, kept, old)
    return len(before) - len(kept)


def _replace(queue: DurableQueue, stories: Iterable[Failure], old: os.stat_result) -> None:
    """Write these stories in the place of the `old` file. Raises OSError, and then it is as it was."""
    text = b"".join(json.dumps(asdict(told)).encode() + b"\n" for told in stories)
    fresh = f"{_file(queue)}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh)  # left by a process that was killed right here
    try:
        with open(create_beside(old, fresh), "wb") as file:
            file.write(json.dumps({"swept": len(text)}).encode() + b"\n" + text)
        os.replace(fresh, _file(queue))  # as a whole: killed here, the old stories or the new ones are there
    except OSError:
        with suppress(OSError):
            os.unlink(fresh)
        raise
