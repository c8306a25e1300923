"""A KeyboardInterrupt at every point of an operation at which Python can deliver one: `python striking.py SCENE PATH`.

With a third argument, GAP, a second one follows at the GAP-th point behind each: while the first is being dealt with.

Python looks for signals when a function begins, after a call and at a jump backwards (3.10: at any); here one is made
pending just before. What the program holds on to then, such as the traceback, it still holds while the queue is checked:
people log exceptions.
"""

from __future__ import annotations

import _thread
import contextlib
import dis
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

import durableq
from durableq import DurableQueue, Empty, Full
from durableq._handle import Handle

LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")
PLACES = (os.path.dirname(durableq.__file__), os.path.join(os.path.dirname(os.__file__), "contextlib.py"))
if sys.version_info < (3, 11):
    LOOKS = ("CALL", "JUMP_ABSOLUTE", "POP_JUMP_IF")
    PLACES = PLACES[:1]  # the last filelock for this Python keeps its lock when it is interrupted in there


class Scene(NamedTuple):
    """What is put before, what is made ready and then interrupted, and what may be left in the queue afterwards."""

    items: str
    prepare: Callable[[DurableQueue], Callable[[], Any]]
    left: str
    """What is left in the queue if nothing interrupts."""
    left_too: tuple[str, ...] = ()
    """What else may be left after an interrupt."""
    options: dict[str, Any] = {}  # noqa: RUF012, never changed
    early: bool = False
    """Whether all that is left can be had before the interrupted handle is closed."""


def got(q: DurableQueue) -> Callable[[], Any]:
    q.get_nowait()
    return q.task_done


def rejected(q: DurableQueue) -> Callable[[], Any]:
    q.reserve(timeout=0).reject()
    return q.redrive


def fell_due(q: DurableQueue) -> Callable[[], Any]:
    for item in "xyz":
        q.put(item, delay=0.001)
    time.sleep(0.003)
    return lambda: q.get_many(9)


def with_a_dead_holder(q: DurableQueue) -> Callable[[], Any]:
    q.put("x")
    child = os.fork()
    if child == 0:
        q.get()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return q._store.reap


def rejected_both(q: DurableQueue) -> Callable[[], Any]:
    for delivery in q.reserve_many(2):
        delivery.reject()
    return lambda: q.dead_letters.get_many(9)


def held(q: DurableQueue) -> Callable[[], Any]:
    q.get_nowait()
    return q.close


def ledger_elsewhere(q: DurableQueue) -> Callable[[], Any]:
    with DurableQueue(q.path, sync=None) as other:
        store = other._store
        store._head.hold(lambda: (store._see_head(), store._ledger.rebuild(), store._leave_head()))
    return q.get_nowait


FOR_GOOD = {"ack": "get"}
SCENES = {
    "put": Scene("", lambda q: lambda: q.put("x"), "x", ("",)),
    "put_many": Scene("", lambda q: lambda: q.put_many("xyz"), "xyz", ("", "x", "xy")),
    "a delayed put": Scene("", lambda q: lambda: q.put("x", delay=0.001), "x", ("",)),
    "a put that waits": Scene("x", lambda q: lambda: q.put("y", timeout=0.001), "x", (), {"maxsize": 1}),
    "get": Scene("x", lambda q: q.get_nowait, "x"),
    "get behind a ledger that moved": Scene("x", ledger_elsewhere, "x"),
    "get_many": Scene("xyz", lambda q: lambda: q.get_many(2), "xyz"),
    "get_many of what fell due": Scene("", fell_due, "xyz"),
    "a get that waits": Scene("", lambda q: lambda: q.get(timeout=0.001), ""),
    "get for good": Scene("x", lambda q: q.get_nowait, "", ("x",), FOR_GOOD),
    "get_many for good": Scene("xyz", lambda q: lambda: q.get_many(2), "z", ("xyz",), FOR_GOOD),
    "task_done": Scene("xy", got, "y", ("xy",)),
    "reserve": Scene("x", lambda q: lambda: q.reserve(timeout=0), "x"),
    "ack": Scene("xy", lambda q: q.reserve(timeout=0).ack, "y", ("xy",)),
    "nack": Scene("xy", lambda q: q.reserve(timeout=0).nack, "xy"),
    "reject": Scene("x", lambda q: q.reserve(timeout=0).reject, "x"),
    "dead letters": Scene("xy", rejected_both, "xy"),
    "a look around": Scene("", with_a_dead_holder, "x", early=True),
    "redrive": Scene("x", rejected, "x"),
    "purge": Scene("xy", lambda q: q.purge, "", ("xy", "y")),
    "compact": Scene("xy", lambda q: q.compact, "xy"),
    "stats": Scene("xy", lambda q: q.stats, "xy"),
    "peek": Scene("xy", lambda q: lambda: q.peek(2), "xy"),
    "close": Scene("xy", held, "xy"),
    "open": Scene("xy", lambda q: lambda: DurableQueue(q.path).close(), "xy"),
}


class Trip:
    """`-Trip()` makes a SIGINT pending, as one from outside does, and is not itself a place to look for signals."""

    __neg__ = _thread.interrupt_main


TRIP = Trip()


@cache
def points(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions at whose end Python looks for signals."""
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname.startswith(LOOKS) or i.offset == 0)


class Striker:
    """Makes an interrupt pending just before the n-th point that this thread comes to in the package; `gap` later again."""

    def __init__(self, n: int, gap: int) -> None:
        self._left = n
        self._again = -gap if gap else n
        self._thread = threading.get_ident()

    # The callbacks count without calls of their own behind the trip: at the end of one Python would look for signals.

    if sys.version_info >= (3, 12):

        def on(self) -> None:
            """Begin to watch."""
            monitoring = sys.monitoring
            monitoring.use_tool_id(monitoring.DEBUGGER_ID, "striking")
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, self._monitor)
            monitoring.restart_events()
            monitoring.set_events(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION)

        def off(self) -> None:
            """Watch no more."""
            sys.monitoring.set_events(sys.monitoring.DEBUGGER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)

        def _monitor(self, code: CodeType, offset: int) -> Any:
            if not code.co_filename.startswith(PLACES):
                return sys.monitoring.DISABLE
            if offset in points(code) and threading.get_ident() == self._thread:
                self._left -= 1
                if self._left == 0 or self._left == self._again:
                    _ = -TRIP
            return None

    else:

        def on(self) -> None:
            """Begin to watch."""
            sys.settrace(self._trace)

        def off(self) -> None:
            """Watch no more."""
            sys.settrace(None)

        def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
            if event == "call":
                if not frame.f_code.co_filename.startswith(PLACES):
                    return None
                frame.f_trace_opcodes = True
            elif event == "opcode" and frame.f_lasti in points(frame.f_code):
                self._left -= 1
                if self._left == 0 or self._left == self._again:
                    _ = -TRIP
            return self._trace


def strike(n: int, gap: int, operation: Callable[[], Any]) -> BaseException | None:
    """Interrupt the operation at its n-th point and return the interrupt; None if it ended before."""
    striker = Striker(n, gap)
    striker.on()
    try:
        with contextlib.suppress(Empty, Full):
            operation()
        striker.off()
    except BaseException as interrupt:  # two of them may come as a group
        striker.off()
        return interrupt
    return None


def place(interrupt: BaseException) -> str:
    """Where in the package an interrupt came, innermost last."""
    frames = [f for f in traceback.extract_tb(interrupt.__traceback__) if f.filename.startswith(PLACES)]
    return " > ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames)


class Stage:
    """A queue with one handle that is interrupted and another one, used by another thread, that looks on."""

    def __init__(self, scene: Scene, path: str, gap: int) -> None:
        self.scene = scene
        self.gap = gap
        self.path = path
        self.observer = ThreadPoolExecutor(1)
        self.other = DurableQueue(path, sync=None, **{**scene.options, "ack": "task_done"})

    def play(self, n: int) -> bool:
        """The scene with an interrupt at its n-th point, and all checks; False if it has no such point."""
        q = DurableQueue(self.path, sync=None, **self.scene.options)
        if self.scene.items:
            q.put_many(self.scene.items)
        operation = self.scene.prepare(q)
        interrupt = strike(n, self.gap, operation)
        where = f"after an interrupt at {place(interrupt)}" if interrupt else "without an interrupt"
        # While the interrupt and its traceback are still alive.
        self.observed(self.other.stats, where)
        if not self.scene.early:
            q.close()
        left = self.observed(self.drain, where)
        q.close()
        assert left in (self.scene.left, *(self.scene.left_too if interrupt else ())), f"{where}: {left!r} is left"
        again = interrupt is not None
        del interrupt, operation
        gc.collect()
        stats = self.observed(self.other.stats, where)
        assert (stats.unfinished, stats.dead, len(stats.owners)) == (0, 0, 1), f"{where}: {stats}"
        return again

    def observed(self, look: Callable[[], Any], where: str) -> Any:
        try:
            return self.observer.submit(look).result(8)
        except TimeoutError:
            print(f"{where}: everybody else hangs", flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(1)

    def drain(self) -> str:
        """Put and get as others do, and make everything done."""
        self.other.redrive()
        left = ""
        while not self.other.empty():
            left += self.other.get(timeout=5)
            self.other.task_done()
        self.other.put_nowait("after")
        assert self.other.get_nowait() == "after"
        self.other.task_done()
        return left


if __name__ == "__main__":
    Handle.compiled = False  # what is compiled cannot be interrupted
    stage = Stage(SCENES[sys.argv[1]], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 0)
    faulthandler.dump_traceback_later(50, exit=True)
    n = 1
    while stage.play(n):
        n += 1
    print(f"{n} points", flush=True)
    os._exit(0)
