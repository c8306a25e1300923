"""Process death at every machine instruction of the compiled calls; the judges are those of the other deaths.

python -m tests.death.machine --all          every instruction of every compiled call (some minutes)
python -m tests.death.machine --stride 50    every fiftieth

The parent is the child's debugger (ptrace) and has it execute one instruction at a time. Those count that lie in the compiled
module, and those of the C library that it calls: so a child is also killed right before and right behind each system call, and
in the middle of taking and leaving a lock.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from durableq import DurableQueue
from durableq._compiled import COMPILED

from . import trial
from .cases import CASES
from .scenes import BIG, kept
from .shape import Case, Found, ready
from .steps import NEVER
from .trial import Wrong

_TRACEME, _PEEKUSER, _SINGLESTEP = 0, 3, 9
_INSTRUCTION = 16 * 8  # where the instruction pointer lies among the registers
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Unavailable(Exception):
    """Nothing is compiled here, this is another processor, or nobody may debug his children."""


def _append(*items: str) -> Callable[[DurableQueue, Any], int]:
    def operate(q: DurableQueue, _: Any) -> int:
        payloads = [q._dumps(item) for item in items]
        _start()
        if len(payloads) == 1:
            return q._store._fast_append(payloads[0], q._tag)
        return q._store._fast_append_many(payloads, q._tag)

    return operate


def _take(limit: int) -> Callable[[DurableQueue, Any], int]:
    def operate(q: DurableQueue, _: Any) -> int:
        arguments: tuple[Any, ...] = ([], limit, q._done, 0, False)
        _start()
        return q._store._fast_take(*arguments)

    return operate


def _ack(q: DurableQueue, deliveries: Any) -> int:
    first = deliveries[0]
    taken = first._position, first._index, first._count
    _start()
    return q._store._fast_ack(*taken)


_LARGE = BIG * 3
"""Not copied into one piece with its header; and no longer, for it takes an instruction for every few bytes."""
_OPERATE = {
    "put": _append("b1"),
    "put large": _append(_LARGE),
    "put many": _append("b1", "c1", "d1"),
    "get, lent": _take(1),
    "get, done": _take(1),
    "get many, lent": _take(3),
    "get many, done": _take(3),
    "get many large, done": _take(2),
    "ack": _ack,
    "ack of the last": _ack,
}
CALLS = [
    replace(
        case,
        operate=_OPERATE[case.name],
        after=Found(ready("a1", _LARGE)) if case.name == "put large" else case.after,
    )
    for case in CASES
    if case.name in _OPERATE
]


def points(case: Case, folder: Path) -> int:
    """How many instructions the call takes. Raises Unavailable."""
    if not COMPILED or platform.machine() != "x86_64":
        raise Unavailable("the compiled calls are not in use, or this is not x86-64")
    survivor, path = trial._prepare(case, folder)
    assert survivor is not None
    try:
        status, count, _ = _run(case, path, NEVER)
    finally:
        survivor.close()
    if status:
        raise Wrong(f"{case.name}: ends with {status} when nobody kills it")
    return count


def die_at(case: Case, folder: Path, n: int) -> None:
    """Kill `case` before its n-th instruction; then look."""
    survivor, path = trial._prepare(case, folder)
    assert survivor is not None
    where = ""
    try:
        with trial._patience(f"{case.name}: somebody waits for ever after a death at {n}"):
            status, _, where = _run(case, path, n)
            if status not in (-signal.SIGKILL, 0):
                raise Wrong(f"was not killed but ended with {status}")
            trial._look(case, path, survivor, n, pair=False)
    except Exception as exc:
        raise Wrong(f"{case.name}: dies at {n} ({where}): {trial._short(f'{type(exc).__name__}: {exc}')}") from exc
    finally:
        survivor.close()


def _start() -> None:
    """In the child: from here on one instruction at a time."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _run(case: Case, path: str, n: int) -> tuple[int, int, str]:
    child = os.fork()
    if child == 0:
        with trial._last_words():
            signal.alarm(0)
            if _ptrace(_TRACEME, 0, None, None):
                os._exit(7)
            q = DurableQueue(path, **{"sync": None, **case.handle})
            kept.append(q)
            for _ in range(2):  # the first of a handle are not usual yet
                q.put("warm")
                q.get()
                q._done or q.task_done()
            state = case.prepare(q)
            q._store._look_at = float("inf")
            os._exit(0 if case.operate(q, state) else 8)
    return _step_through(child, n)


def _step_through(child: int, n: int) -> tuple[int, int, str]:
    """Execute the child up to its n-th instruction that counts and kill it there; its status, how many there were, where."""
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7:
        raise Unavailable("a process must not be debugged here")
    if not os.WIFSTOPPED(status):
        return os.waitstatus_to_exitcode(status), 0, ""
    ours, libc = _text(child, "_fast."), _text(child, "libc")
    count, inside = 0, False
    while True:
        if _ptrace(_SINGLESTEP, child, None, None):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Unavailable("a process cannot be executed step by step here")
        status = os.waitpid(child, 0)[1]
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status), count, ""
        at = _ptrace(_PEEKUSER, child, _INSTRUCTION, None)
        here = any(start <= at < end for start, end in ours)
        inside = inside or here
        if here or (inside and any(start <= at < end for start, end in libc)):
            count += 1
            if count == n:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                where = f"_fast+{at - ours[0][0]:#x}" if here else "libc"
                return os.waitstatus_to_exitcode(status), count, where


def _text(child: int, name: str) -> list[tuple[int, int]]:
    """The executable mappings of a file."""
    found = []
    with open(f"/proc/{child}/maps") as maps:
        for line in maps:
            span, rights, *_, file = line.split()
            if "x" in rights and os.path.basename(file).startswith(name):
                start, end = span.split("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.death.machine", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every instruction of every call")
    parser.add_argument("--stride", type=int, default=50)
    parser.add_argument("--case", action="append", help="only this call; may be given again")
    parser.add_argument("--at", type=int, help="only this instruction")
    parser.add_argument("--folder", help="where the queues live (default: a temporary folder)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    stride = 1 if options.all else options.stride
    dice = random.Random(options.seed)
    deaths = wrong = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="durableq-machine-", dir=options.folder) as parent:
        folder = Path(parent) / "queue"
        for case in CALLS:
            if options.case and case.name not in options.case:
                continue
            try:
                n = points(case, folder)
            except Unavailable as exc:
                print(f"not possible here: {exc}", file=sys.stderr)
                return 2
            bad, tries = 0, [options.at] if options.at else range(1 + dice.randrange(stride), n + 1, stride)
            for at in tries:
                deaths += 1
                try:
                    die_at(case, folder, at)
                except Wrong as exc:
                    bad += 1
                    if bad <= 3:
                        print(exc, file=sys.stderr, flush=True)
            wrong += bad
            print(f"{case.name:24} {n:6} instructions  {len(tries):6} tried  {bad} wrong", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"deaths={deaths} wrong={wrong} seconds={time.monotonic() - started:.0f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
