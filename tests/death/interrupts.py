"""KeyboardInterrupt at every point where CPython looks for signals: the same handle goes on, and nothing is lost or kept.

python -m tests.death.interrupts             every point of every operation
python -m tests.death.interrupts --stride 20
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from durableq import DurableQueue, _store
from durableq._handle import Handle

from .cases import CASES
from .scenes import BIG
from .shape import Case
from .steps import NEVER, Steps, interrupt
from .trial import Wrong, drain, expect_no_sleepers

OUT = ("close", "purge", "get of an expired lease", "rewind, and on", "ack of a dead letter", "nack of a dead letter")
"""Many steps, other outcomes by the clock, or a dead letter in hand, which is not in view."""
INTERRUPTIBLE = [case for case in CASES if not (case.alone or case.ends_queue or case.name in OUT)]
TAKES = ("get", "reserve")
"""What these were about to return is available again when they raise."""


def points(case: Case, folder: Path) -> int:
    """At how many points the operation can be interrupted."""
    return min(_child(case, folder, NEVER)["count"], 400 if case.limit < 1 << 60 else NEVER)


def interrupt_at(case: Case, folder: Path, n: int) -> None:
    """Interrupt `case` at its n-th point and look, in the same process and with the same handle, at what is left."""
    seen = _child(case, folder, n)
    if not seen["where"]:
        return  # it waited a little less often this time, and got through
    if not seen["raised"]:
        raise Wrong(f"{case.name}: swallows the interrupt at {n} ({seen['where']})")
    before, after = _baseline(case, folder, False), _baseline(case, folder, True)
    allowed = [before] if case.name.startswith(TAKES) else [before, after]
    found = seen["found"]
    if found in allowed or (case.name.startswith(TAKES) and _items(found) == _items(before)):
        return
    if case.name in ("redrive", "put that drops", "get of what cannot be decoded", "ack many large"):
        return  # several steps: any of them may be the last
    raise Wrong(f"{case.name}: interrupted at {n} ({seen['where']}): found {found}, not one of {allowed}".replace(BIG, "..."))


def _items(found: Any) -> Any:
    return [sorted(map(repr, (item for item, _ in found["ready"]))), found["dead"], found["lent"]]


_baselines: dict[tuple[str, bool], Any] = {}


def _baseline(case: Case, folder: Path, done: bool) -> Any:
    key = (case.name, done)
    if key not in _baselines:
        _baselines[key] = _child(case, folder, NEVER if done else 0)["found"]
    return _baselines[key]


def _child(case: Case, folder: Path, n: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            with case.patched(), mock.patch.object(_store, "under_cold_lock", _without_cold_lock):
                os.write(writing, json.dumps(_scene(case, str(folder / "q.dq"), n)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(9)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        how = "a lock was kept" if status == -signal.SIGALRM else "see above"
        raise Wrong(f"{case.name}: interrupted at {n}, ended with {status}: {how}")
    seen: dict[str, Any] = json.loads(said)
    return seen


def _without_cold_lock(path: str, work: Callable[[], Any]) -> Any:
    """It is another library's lock, with limits of its own: an interrupt in a finalizer of it is never seen."""
    return work()


def _scene(case: Case, path: str, n: int) -> dict[str, Any]:
    Handle.compiled = False
    other = DurableQueue(path, sync=None, **case.options)
    q = DurableQueue(path, **{"sync": None, **case.handle})
    state = case.prepare(q)
    q._store._look_at = other._store._look_at = float("inf")
    steps = Steps(n, interrupt, interruptible=True)
    kept: list[BaseException] = []  # as in an `except` clause: its traceback lives on while we go on
    try:
        if n and not (n == NEVER and case.limit < 1 << 60):
            steps.watch(lambda: case.operate(q, state))
    except KeyboardInterrupt as exc:
        kept.append(exc)
    except Exception:
        if n != NEVER:
            raise
    # The other handle first, then the same one, then another thread with it: none of them may find a lock taken.
    lent = other.stats().lent
    found = drain(other, finish=False, exact=not case.shifts, lent=lent)
    expect_no_sleepers(other)
    if n != NEVER:
        _go_on(q)
        worker = threading.Thread(target=_go_on, args=(q,))
        worker.start()
        worker.join()
    count = 400 if case.limit < 1 << 60 else steps.count
    view = {"ready": [[repr(i), d] for i, d in found.ready], "dead": list(found.dead), "delayed": found.delayed, "lent": lent}
    q.close()
    return {"raised": bool(kept), "where": steps.where, "count": count, "found": view}


def _go_on(q: DurableQueue) -> None:
    if not q.maxsize:
        q.put("more")
        if not q._done:
            assert q.reserve(block=False).item == "more"
        else:
            assert q.get(block=False) == "more"
    q.stats()
    q.peek()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.death.interrupts", description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--case", action="append")
    parser.add_argument("--at", type=int)
    options = parser.parse_args()
    tried = wrong = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="durableq-interrupt-") as parent:
        folder = Path(parent) / "queue"
        for case in INTERRUPTIBLE:
            if options.case and case.name not in options.case:
                continue
            n, bad = points(case, folder), 0
            for at in [options.at] if options.at else range(1, n + 1, options.stride):
                tried += 1
                try:
                    interrupt_at(case, folder, at)
                except Wrong as exc:
                    bad += 1
                    if bad <= 3:
                        print(exc, file=sys.stderr, flush=True)
            wrong += bad
            print(f"{case.name:36} {n:6} points  {bad} wrong", flush=True)
    print(f"interrupts={tried} wrong={wrong} seconds={time.monotonic() - started:.0f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
