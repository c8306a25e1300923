"""Keeps a crew of workers at work: starts, watches and replaces them, and brings the pool to its end.

    at work     the crew is complete, or about to be
    stopping    nobody is replaced; each worker ends after what it has in hand; `grace` seconds for that
    at once     each gives back what it has in hand; two seconds for that, then SIGKILL

The first request to stop (a signal, `stop()`, an empty queue under `until_empty`, a queue that was shut down) leads to the
second state; a second request, or the end of the grace, to the third.

A worker that dies is replaced at once. What it had in hand goes back to the queue by itself; here its story is told, for
the day when it becomes a dead letter. Workers that end before they have done anything are replaced more and more slowly, and
if no other one is at work either, not for ever: then something is wrong with all of them, and PoolError says so.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from types import FrameType

from durableq import failures
from durableq._progress import Display, Holder, Watch
from durableq.errors import PoolError
from durableq.failures import Failure
from durableq.pool._crew import Member
from durableq.pool._link import NOW, unpacked
from durableq.pool._settings import Settings

_log = logging.getLogger("durableq.pool")

_BAD_STARTS = 3
_TO_GIVE_BACK = 2.0
_SHOWN_EVERY = 0.25


@dataclass
class Tally:
    """What a pool has done."""

    done: int = 0
    """Items."""
    failed: int = 0
    """Attempts that ended in an exception."""
    dead: int = 0
    """Items that were sent to the dead letters."""
    deaths: int = 0
    """Workers that died, or were killed for a timeout."""
    ended: str = ""
    """Why the pool ended: "SIGTERM", "stop()", "the queue is empty"; empty while it runs."""


class Supervisor:
    """One run of a pool."""

    def __init__(
        self,
        settings: Settings,
        context: BaseContext,
        *,
        processes: int,
        timeout: float | None,
        grace: float,
        until_empty: bool,
        display: Display,
    ) -> None:
        self._settings = settings
        self._context = context
        self._processes = processes
        self._timeout = timeout
        self._grace = grace
        self._until_empty = until_empty
        self._display = display
        self._crew: list[Member] = []
        self._buried = Tally()
        self._number = 0
        self._bad_starts = 0
        self._next_start = 0.0
        self._requests: list[str] = []
        self._heeded = 0
        self._deadline = 0.0
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch = None if display.silent else Watch(settings.queue, self._holders)
        self._next_show = 0.0

    def stop(self, why: str = "stop()") -> None:
        """Ask for the end; a second time: at once. From any thread, and from a signal handler."""
        self._requests.append(why)
        with suppress(OSError):  # full: it is awake, then; closed: it has ended
            os.write(self._wake_w, b"!")

    def run(self) -> Tally:
        """Until the pool has ended; see the module. Raises PoolError, and what the queue raises."""
        _log.info("%d workers on %s", self._processes, self._settings.queue.path)
        try:
            with self._signals():
                while self._crew or not self._heeded:
                    self._turn()
                self._next_show = 0.0  # the last view stays on the screen, so it tells of the end
                self._show()
        finally:
            for member in self._crew:
                member.kill()
            for member in self._crew:
                self._count(member)
                member.bury()
            self._crew.clear()
            wake, self._wake_w = self._wake_w, -1
            os.close(wake)
            os.close(self._wake_r)
        done = self._buried
        done.ended = self._requests[0]
        _log.info("stopped: %d items done, %d attempts failed, %d dead letters", done.done, done.failed, done.dead)
        return done

    def tally(self) -> Tally:
        """What was done so far."""
        total = Tally(**vars(self._buried))
        for member in list(self._crew):
            fields = member.cell.fields
            total.done += fields.done
            total.failed += fields.failed
            total.dead += fields.dead
        return total

    # -- one turn ------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._heed()
        if not self._heeded:
            self._complete_the_crew()
            if self._until_empty and not self._settings.queue.unfinished_tasks:
                self.stop("the queue is empty")
        self._sleep()
        for member in self._crew:
            self._forward_logs(member)
        for member in [member for member in self._crew if member.process.exitcode is not None]:
            self._crew.remove(member)
            self._bury(member)
        self._hold_to_the_limits()
        self._show()

    def _sleep(self) -> None:
        """Until a worker ends or logs something, somebody asks for the end, or it is time for something."""
        now = time.monotonic()
        # A sentinel is not told of a worker's end as long as a process that it forked lives: so never for long.
        due = [now + (0.05 if self._until_empty else 1.0)]
        if self._watch:
            due.append(self._next_show)
        if len(self._crew) < self._processes and not self._heeded:
            due.append(self._next_start)
        if self._heeded:
            due.append(self._deadline)
        if self._timeout is not None:
            due.append(now + max(0.05, self._timeout / 4))  # somebody may begin at any moment
        ends = [member.end for member in self._crew if not member.deaf]
        wait([self._wake_r, *ends, *(m.process.sentinel for m in self._crew)], max(0.0, min(due) - now))
        with suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    def _complete_the_crew(self) -> None:
        while len(self._crew) < self._processes and time.monotonic() >= self._next_start:
            self._number += 1
            try:
                self._crew.append(Member(self._context, self._settings, self._number))
            except OSError as error:  # no more processes, or it was killed before it could read what to do
                self._note_bad_start(f"could not be started ({error})")

    def _forward_logs(self, member: Member) -> None:
        for message in member.messages():
            try:
                record = unpacked(message)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            except Exception as error:  # of what came, or of a user's filter: no reason to end the pool
                why = f"{type(error).__name__}: {error}"
                _log.warning("a log record of %s is lost, it cannot be read or handled: %s", member.name, why)

    def _hold_to_the_limits(self) -> None:
        now = time.monotonic()
        for member in self._crew:
            ended = member.cell.fields.ended
            if self._timeout is not None:
                member.judge(now, self._timeout)
            if ended and now - ended > max(self._grace, 5.0) and not member.verdict:
                member.verdict = "did not end though it had come to its end: a thread of the function's still runs"
                member.kill()

    # -- deaths --------------------------------------------------------------------------------------------------------

    def _bury(self, member: Member) -> None:
        self._forward_logs(member)
        self._count(member)
        bad = ""
        if member.ended_in_order():
            _log.log(logging.DEBUG if self._heeded else logging.INFO, "%s ended: %s", member.name, member.cell.reason)
            if member.cell.fields.final and not self._requests:  # every worker says it: one request, not many
                self.stop(member.cell.reason)
        else:
            self._buried.deaths += 1
            self._tell_of(member)
            if not member.works:
                self._next_start = time.monotonic() + 0.1
                if member.process.exitcode not in (-signal.SIGKILL, -signal.SIGTERM):  # those are somebody's wish
                    bad = member.how_it_ended()
        member.bury()
        if any(other.works for other in self._crew):
            self._bad_starts = 0
        if bad:
            self._note_bad_start(bad)

    def _count(self, member: Member) -> None:
        fields = member.cell.fields
        self._buried.done += fields.done
        self._buried.failed += fields.failed
        self._buried.dead += fields.dead

    def _tell_of(self, member: Member) -> None:
        how, cell, fields = member.how_it_ended(), member.cell, member.cell.fields
        if not fields.since:
            _log.warning("%s %s, with nothing in hand", member.name, how)
            return
        if fields.count > 1:
            _log.error("%s %s, with %d items from %s on; each comes again, alone", member.name, how, fields.count, cell.id)
            return
        _log.error("%s %s, with item %s (delivery %d)", member.name, how, cell.id, fields.deliveries)
        story = Failure.now(cell.id, fields.deliveries, cell.item, how, member.last_words(), pid=member.pid)
        failures.note(self._settings.queue, story)

    def _note_bad_start(self, how: str) -> None:
        self._bad_starts += 1
        self._next_start = time.monotonic() + min(10.0, 0.1 * 2**self._bad_starts)
        if self._bad_starts >= _BAD_STARTS and not any(member.works for member in self._crew):
            raise PoolError(
                f"{self._settings.queue.path}: the last {self._bad_starts} workers {how} before they had done anything, "
                f"so no more are started; what they said on stderr and in the log tells why"
            )

    # -- the end -------------------------------------------------------------------------------------------------------

    def _heed(self) -> None:
        now = time.monotonic()
        requests = len(self._requests)
        if requests and not self._heeded:
            self._heeded = 1
            self._deadline = now + self._grace
            for member in self._crew:
                member.cell.fields.stop = 1
            _log.info("%s: stopping; %d workers have %g s to finish", self._requests[0], len(self._crew), self._grace)
        elif self._heeded == 1 and (requests > 1 or now >= self._deadline):
            why = self._requests[1] if requests > 1 else f"not finished within {self._grace:g} s"
            self._heeded = 2
            self._deadline = now + _TO_GIVE_BACK
            for member in self._crew:
                member.send(NOW)
            _log.warning("%s: what is in hand is given back at once", why)
        elif self._heeded >= 2 and now >= self._deadline:
            self._heeded += 1
            self._deadline = now + _TO_GIVE_BACK
            for member in self._crew:
                _log.warning("%s does not end: SIGKILL", member.name)
                member.kill()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP (the terminal is gone) are requests to stop; a process's main thread alone gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            # Of a terminal that is gone both its shell and the kernel tell: the second time is nobody's impatience.
            if number != signal.SIGHUP or not self._requests:
                self.stop(signal.Signals(number).name)

        before = {
            number: signal.signal(number, request)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` and the background of a script want it
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    # -- people --------------------------------------------------------------------------------------------------------

    def _holders(self) -> list[Holder]:
        now = time.monotonic()
        return [member.holder(now) for member in self._crew]

    def _show(self) -> None:
        if self._watch is not None and time.monotonic() >= self._next_show:
            view = self._watch.look()
            try:
                self._display.show(view)
            except OSError:  # the terminal is gone: no reason to stop working
                self._watch = None
            self._next_show = time.monotonic() + _SHOWN_EVERY
