"""What is compared: every queue behind the same few methods, so that one piece of work runs on all of them.

A peer lives through one run. It is made in the parent, where it creates what its processes share; each process that uses it is
forked from there and calls `connect` first, which opens what belongs to one process (a connection, a client), and `close` at
the end, after which everything it put is on its way to the others. `remove` ends the run in the parent.

`put`, `get` and the others are plain attributes wherever they can be: they are then the peer's own methods, and nothing stands
between it and the clock.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL = 0.0005
"""Seconds between two looks of a consumer whose queue cannot wake it: generous, their own workers look far less often."""


class Peer:
    """One queue; see the module. `place` is a directory of its own, `room` the bytes that may wait where there is a bound."""

    name = ""
    module = ""  #: what has to be importable
    program = ""  #: what has to be on the PATH
    remedy = ""  #: the command that brings them
    batch = 0  #: so many are put and taken by one call; 0: one by one

    put: Callable[[bytes], Any]
    get: Callable[[], bytes]
    done: Callable[[], Any]  #: acknowledges what this process got last
    put_many: Callable[[list[bytes]], Any]
    get_many: Callable[[int], list[bytes]]

    def __init__(self, place: Path, room: int) -> None:
        raise NotImplementedError

    @classmethod
    def missing(cls) -> str:
        """The command that installs it if it is not there, else nothing."""
        lacks_module = cls.module and importlib.util.find_spec(cls.module) is None
        lacks_program = cls.program and shutil.which(cls.program) is None
        return cls.remedy if lacks_module or lacks_program else ""

    def connect(self) -> None:
        """In a process that will use it, before the clock runs."""

    def close(self) -> None:
        """In a process that has used it."""

    def remove(self) -> None:
        """In the parent, at the end of the run; the directory goes after that."""

    def served_by(self) -> int | None:
        """The process that serves it, if there is one beside those that use it."""
        return None
