"""One death: a child that dies at a point of an operation, and a survivor that finds what it may find and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import durableq
from durableq import DurableQueue
from durableq._handle import Handle
from durableq._state import GET_WAITERS, JOIN_WAITERS, LETTER_WAITERS, PUT_WAITERS

from .scenes import BIG, kept
from .shape import Case, Found
from .steps import NEVER, Steps, die

PATIENCE = 20
"""Seconds after which a survivor that waits for a lock will wait for ever."""
SAME = ("s1", "s2")
"""What survivors put: of the size of what the cases put, so that it fits exactly over what a dead producer left."""


class Wrong(AssertionError):
    """A survivor found what it must not find."""


def points(case: Case, folder: Path) -> int:
    """How many byte codes the operation takes."""
    if case.limit != 1 << 60:
        return case.limit
    status, count = _run(case, folder, NEVER)
    if status != 0:
        raise Wrong(f"{case.name}: ends with {status} when nobody kills it")
    return count


def die_at(case: Case, folder: Path, n: int, second: int = 0) -> bool:
    """Kill `case` at its n-th byte code, and a process that meets what is left at its `second`-th; then look.

    False if the second one got through.
    """
    survivor, q_path = _prepare(case, folder)
    died = True
    try:
        with _patience(f"{case.name}: somebody waits for ever after a death at {n} {second or ''}"):
            helper = Helper(q_path, case, n % 2 == 0) if second else None
            status, _ = _run_on(case, q_path, n)
            if status != -signal.SIGKILL:
                raise Wrong(f"{case.name}: was not killed at {n} but ended with {status}")
            if helper:
                died = helper.repair(second)
            _look(case, q_path, survivor, n, pair=second > 0)
    except Exception as exc:
        where = locate(case, folder, n)
        told = exc if isinstance(exc, Wrong) else traceback.format_exc()
        raise Wrong(f"{case.name}: dies at {n} {second or ''} ({where}): {_short(told)}") from exc
    finally:
        if survivor is not None:
            survivor.close()
    return died


def _short(told: object) -> str:
    return str(told).replace(BIG, "...")


def locate(case: Case, folder: Path, n: int) -> str:
    """The line of a point."""
    survivor, q_path = _prepare(case, folder)
    try:
        return _in_child(case, q_path, n, say_where=True)[1]
    finally:
        if survivor is not None:
            survivor.close()


# -- the one who dies --------------------------------------------------------------------------------------------------


def _prepare(case: Case, folder: Path) -> tuple[DurableQueue | None, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = str(folder / "q.dq")
    if not case.alone:
        with case.patched():  # also what the queue is made with
            return DurableQueue(path, sync=None, **case.options), path
    if case.name == "create":
        return None, path
    child = os.fork()
    if child == 0:
        with _last_words():
            q = DurableQueue(path, sync=None, **case.options)
            case.prepare(q)
            die()
    os.waitpid(child, 0)
    if case.lost_control:
        os.unlink(path + "-shm")
    return None, path


def _run(case: Case, folder: Path, n: int) -> tuple[int, int]:
    survivor, path = _prepare(case, folder)
    try:
        return _run_on(case, path, n)
    finally:
        if survivor is not None:
            survivor.close()


def _run_on(case: Case, path: str, n: int) -> tuple[int, int]:
    status, said = _in_child(case, path, n)
    return status, int(said or 0)


def _in_child(case: Case, path: str, n: int, say_where: bool = False) -> tuple[int, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with _last_words(), case.patched():
            os.close(reading)
            signal.alarm(0)
            _operate(case, path, n, writing, say_where)
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), said


def _operate(case: Case, path: str, n: int, writing: int, say_where: bool) -> None:
    Handle.compiled = False  # every step is a byte code here; who survives may be compiled or not

    def strike() -> None:
        if say_where:
            os.write(writing, steps.where.encode())
        die()

    steps = Steps(n, strike)
    if case.alone:
        steps.watch(lambda: case.operate(path, None))  # type: ignore[arg-type]
        kept[-1]._store._let_go()  # it dies without closing: that has a case of its own
    else:
        q = DurableQueue(path, **{"sync": None, **case.handle})
        kept.append(q)
        state = case.prepare(q)
        q._store._look_at = float("inf")  # no look around by the clock: the same byte codes each time
        steps.watch(lambda: case.operate(q, state))
    if n == NEVER:
        os.write(writing, str(steps.count).encode())
        os._exit(0)
    die()


class Helper:
    """A second process, with the queue open before the first one dies or not, that is killed while it repairs."""

    def __init__(self, path: str, case: Case, early: bool) -> None:
        self._go, go = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            with _last_words():
                os.close(go)
                signal.alarm(0)
                Handle.compiled = False
                q = DurableQueue(path, sync=None) if early and not case.alone else None
                at = struct.unpack("<q", os.read(self._go, 8))[0]
                Steps(at, die).watch(lambda: _repair(q or DurableQueue(path, sync=None)))
                os._exit(0)
        os.close(self._go)
        self._go = go

    def repair(self, at: int) -> bool:
        os.write(self._go, struct.pack("<q", at))
        os.close(self._go)
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            raise Wrong(f"the second process ended with {status}")
        return status != 0


def _repair(q: DurableQueue) -> None:
    q._store._look_around()
    q.stats()
    with suppress(durableq.Empty, durableq.ShutDown):
        q.reserve(block=False).nack()


@contextmanager
def _last_words() -> Iterator[None]:
    try:
        yield
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(9)


@contextmanager
def _patience(message: str) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise Wrong(message)

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# -- the one who survives ----------------------------------------------------------------------------------------------


def _look(case: Case, path: str, survivor: DurableQueue | None, n: int, pair: bool) -> None:
    after_boot = None if case.lost_control or case.boot_forgets else _after_boot(path)
    fresh = None
    if survivor is None or n % 2:
        fresh = DurableQueue(path, sync=None)
    q = fresh or survivor
    assert q is not None
    other = survivor or q
    try:
        if case.ends_queue:  # and begins anew when nobody has it open any more
            other.close()
            q.close()
            q = other = fresh = DurableQueue(path, sync=None)
        found = drain(q, finish=True, exact=not case.shifts)
        _judge(case, found, pair)
        if after_boot is not None:
            _judge(case, after_boot, pair, booted=True)
        expect_no_sleepers(q)
        if not case.options.get("maxsize"):
            other.put(SAME[0])
        q.put(SAME[1])
        rest = q.get_many(2)
        assert rest == list(SAME[-len(rest) :]), rest
        for _ in rest:
            q.task_done()
        q.put(SAME[1])
        at_last = _after_boot(path)
        assert [item for item, _ in at_last.ready] == [SAME[1]], at_last
        assert sorted(map(repr, at_last.dead)) == sorted(map(repr, found.dead)), at_last
        assert at_last.delayed == found.delayed
    finally:
        if fresh is not None:
            fresh.close()


def drain(q: DurableQueue, finish: bool, exact: bool, lent: int = 0) -> Found:
    """Everything that can be taken, with a look at every count before and after."""
    size = q.qsize()
    stats = q.stats()
    taken: list[Any] = []
    with suppress(durableq.Empty, durableq.ShutDown):
        taken += q.reserve_many(5000, block=False)
    dead = tuple(q.dead_letters.peek(5000))
    now = q.stats()
    found = Found(tuple((d.item, d.deliveries) for d in taken), dead, now.delayed, now.drops)
    _agree("dead", now.dead, len(dead), found)
    _agree("dead, counted", q.dead_letters.qsize(), len(dead), found)
    _agree("lent by now", now.lent, len(taken) + lent, found)
    _agree("waiting by now", q.qsize(), found.delayed, found)
    if exact:
        _agree("qsize", size, len(taken) + found.delayed, found)
        _agree("ready and delayed", stats.ready + stats.delayed, size, found)
        _agree("dead before", stats.dead, len(dead), found)
        _agree("unfinished", stats.unfinished, size + lent, found)
        _agree("lent", stats.lent, lent, found)
    if finish:
        for delivery in taken:
            delivery.ack()
        _agree("unfinished at last", q.stats().unfinished, found.delayed, found)
        if not found.delayed:
            q.join()
    return found


def _agree(what: str, count: int, expected: int, found: Found) -> None:
    if count != expected:
        raise Wrong(f"{what}: {count} instead of {expected}; {found}")


def _judge(case: Case, found: Found, pair: bool, booted: bool = False) -> None:
    options = (case.before, case.after)
    if found in options or case.between(found):
        return
    # A boot forgets first deliveries, and a second death may add one.
    plain = [_plain(option) for option in options]
    if (pair or booted) and (_plain(found) in plain or any(case.between(f) for f in (_plain(found, 1), found))):
        return
    raise Wrong(f"found {'after a boot ' * booted}{found}\nbefore {case.before}\nafter {case.after}")


def _plain(found: Found, deliveries: int = 0) -> Found:
    return Found(tuple((item, deliveries) for item, _ in found.ready), found.dead, found.delayed)


def _after_boot(path: str) -> Found:
    """What a machine would find that boots now: the spool without its companions."""
    folder = Path(path).parent / "boot"
    folder.mkdir(exist_ok=True)
    copy = str(folder / "q.dq")
    for name in ("q.dq", "q.dq-shm", "q.dq-lock"):
        with suppress(FileNotFoundError):
            os.unlink(folder / name)
    with suppress(FileNotFoundError):
        shutil.copy(path, copy)
    with DurableQueue(copy, sync=None) as q:
        return drain(q, finish=False, exact=False)


def expect_no_sleepers(q: DurableQueue) -> None:
    words = q._store._words
    counts = [words[word] for word in (GET_WAITERS, PUT_WAITERS, JOIN_WAITERS, LETTER_WAITERS)]
    if any(counts):
        raise Wrong(f"sleepers in get, put, join, and in get of a dead letter: {counts}, and nobody sleeps")
