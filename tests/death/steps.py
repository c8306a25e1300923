"""Counting the byte codes that run in the package, and striking at the n-th of them."""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import durableq

PACKAGE = str(Path(durableq.__file__).parent) + os.sep
NEVER = 1 << 60


class Steps:
    """Strikes at the `target`-th byte code that runs in the package while it is watched.

    With `interruptible`, only the points count at which CPython looks for signals: where a function is entered, behind a
    call, and where a loop goes round; also in the library modules that the package calls while it holds a lock.
    """

    def __init__(self, target: int, strike: Callable[[], None], *, interruptible: bool = False) -> None:
        self.count = 0
        self.where = ""
        self._target = target
        self._strike = strike
        self._interruptible = interruptible
        self._previous: dict[int, str] = {}

    def watch(self, work: Callable[[], object]) -> None:
        """Do `work`, and strike in it."""
        sys._getframe().f_trace_opcodes = True  # Python 3.12 tells of byte codes if one frame has wanted it before
        sys.settrace(self._enter)
        try:
            work()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_back is not None:  # a return from Python code is no point: only the callee itself looks for signals
            self._previous[id(frame.f_back)] = ""
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) and not (self._interruptible and name.endswith("contextlib.py")):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._previous[id(frame)] = "RESUME"
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event != "opcode":
            return self._step
        if self._interruptible:
            code = frame.f_code.co_code[frame.f_lasti]
            previous = self._previous.get(id(frame), "")
            self._previous[id(frame)] = dis.opname[code]
            if not (previous == "RESUME" or previous.startswith("CALL") or "BACKWARD" in previous):
                return self._step
        self.count += 1
        if self.count == self._target:
            code = frame.f_code.co_code[frame.f_lasti]
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {dis.opname[code]}"
            self._strike()
        return self._step


def tells_all() -> bool:
    """Whether tracing tells of each byte code, also when a function runs for the first time: not in Python 3.13.0."""
    told = []

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        told.append(event)
        return step

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes = True
        return step

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # as `watch`
    sys.settrace(enter)
    try:
        (lambda: None)()
    finally:
        sys.settrace(before)
    return "opcode" in told


def die() -> None:
    """What the kernel does to a process that gets kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def interrupt() -> None:
    """What Python's handler of SIGINT does."""
    raise KeyboardInterrupt
