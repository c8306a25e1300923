"""What a thread opens or closes while another one forks.

A forked child shares the open file descriptions of its parent, and with them the locks: they are held until the child is gone
as well. A handle that is open is left by the child at once (`Handle.after_fork`). But a thread that is in the middle of
opening or closing one does not exist in the child, and nobody there knows of its descriptors. So it says on which queue it is
at work, and the child closes every descriptor of that queue's files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_at_work: dict[object, str] = {}


def begin(path: str) -> object:
    """Say that the files of the queue at `path` are being opened or closed, until `end` is called with what this returns."""
    key = object()
    _at_work[key] = path
    return key


def end(key: object) -> None:
    """The descriptors are closed, or a handle knows them."""
    _at_work.pop(key, None)


def at_work(path: str, work: Callable[[], T]) -> T:
    """Do `work`, which opens or closes files of the queue at `path`."""
    key = begin(path)
    try:
        return work()
    finally:
        end(key)


def leave_behind() -> None:
    """In a forked child: close what the parent's other threads were opening or closing."""
    files = {_identity(path + suffix) for path in _at_work.values() for suffix in ("", "-shm", "-lock")} - {None}
    _at_work.clear()
    if files:
        for name in os.listdir("/proc/self/fd"):
            if _identity(int(name)) in files:
                os.close(int(name))


def _identity(file: str | int) -> tuple[int, int] | None:
    with suppress(OSError):
        info = os.stat(file)
        return info.st_dev, info.st_ino
    return None
