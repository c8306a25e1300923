"""`durableq run`: a command for each item.

An item is done when its command has ended with 0. If the command fails, the item comes again later, and after its last try it
is a dead letter with the story beside it (`durableq.failures`). While a command runs its item is lent to us: if we are killed,
our guard kills the command and the item comes again, to whoever runs next.

What a command leaves running in the background is none of its item, and goes on when we end in order. It is killed as well if
we are killed or fail, and if we have had to kill a command: of that one nothing may be left, and whose it was nobody can tell.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import shutil
import time
from typing import NamedTuple

from durableq import failures
from durableq._delivery import Delivery
from durableq._leases import RESERVED
from durableq._queue import DurableQueue
from durableq._watch import GET, Call, Watch
from durableq.cli._command import (
    DONE,
    FAILED,
    USAGE,
    Command,
    Failure,
    counted,
    duration,
    existing_spool,
    positive,
    spool_argument,
    sync_argument,
    tell,
)
from durableq.cli._guard import Guard
from durableq.cli._items import Shower
from durableq.cli._jobs import PLACE, Job
from durableq.cli._output import Outlet
from durableq.cli._signals import Signals, Stopped
from durableq.errors import Empty, ShutDown, StaleDeliveryError

_GRACE = 1.0
"""Seconds after which an item that was to come again has gone to somebody else."""


class Halt(NamedTuple):
    """When to stop because of failures, as GNU parallel has it."""

    failures: int
    now: bool
    """Whether what runs is stopped too."""


def halt(text: str) -> Halt | None:
    """`never`, `soon,fail=N` or `now,fail=N`."""
    if text == "never":
        return None
    found = re.fullmatch(r"(soon|now),fail=([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no policy; write never, soon,fail=1 or now,fail=1 (or more than 1)")
    return Halt(int(found[2]), found[1] == "now")


def _tries(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tries")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("command_line", metavar="-- CMD", nargs="+", help="the command and its arguments, behind `--`")
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="commands that run at a time (1)")
    parser.add_argument("-n", type=positive, metavar="N", dest="most", help="end after N commands (all that is there)")
    parser.add_argument("-f", "--follow", action="store_true", help="at the end, wait for more items, for ever")
    parser.add_argument("--retries", type=_tries, default=3, metavar="N", help="more tries for an item that failed (3)")
    parser.add_argument(
        "--backoff", type=duration, default=1.0, metavar="TIME", help="before the first of them; then doubled (1s)"
    )
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="for one command; then it is stopped, and has failed")
    parser.add_argument("--halt", type=halt, metavar="WHEN", help="never, or soon,fail=N or now,fail=N (never)")
    parser.add_argument("-u", "--ungroup", action="store_true", help="with -j: let outputs mix, each as it comes")
    parser.add_argument("--unpickle", action="store_true", help="unpickle items of Python programs: this runs their code")
    sync_argument(parser)


def _run(options: argparse.Namespace) -> int:
    program = options.command_line[0]
    if PLACE not in program and shutil.which(program) is None:
        raise Failure(f"{program}: there is no such command on the PATH", USAGE)
    path = options.path if options.follow else existing_spool(options.path)
    guard = Guard()
    with DurableQueue(path, sync=options.sync, serializer="bytes") as queue, Signals() as signals:
        return _Runner(queue, options, guard, signals).run()


class _Runner:
    def __init__(self, queue: DurableQueue, options: argparse.Namespace, guard: Guard, signals: Signals) -> None:
        from durableq.pool import Backoff

        self._queue = queue
        self._store = queue._store
        self._options = options
        self._guard = guard
        self._signals = signals
        self._collect = options.jobs > 1 and not options.ungroup
        self._outlet = Outlet(1, signals) if self._collect else None
        self._shower = Shower(queue._store, unpickle=options.unpickle, as_json=False)
        self._backoff = Backoff(options.backoff)
        self._jobs: list[Job] = []
        self._again: dict[str, float] = {}  # items that are to come again: id -> when
        self._started = self._failed = 0
        self._empty = self._stopping = False
        self._poll = select.poll()
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._news, select.POLLIN)
        self._watch = Watch(queue._store, GET)
        self._call = Call(lambda: os.eventfd_write(self._news, 1), queue._store.may_take)

    def run(self) -> int:
        """Until there is nothing more to do; the exit code."""
        try:
            while True:
                self._start()
                if not self._jobs and self._at_end():
                    break
                self._wait()
                self._finish()
            self._guard.dismiss()
            self._signals.check()
            return FAILED if self._failed else DONE
        finally:
            for job in self._jobs:
                job.kill()
                job.close()
                with contextlib.suppress(StaleDeliveryError):
                    job.delivery.release()

    # -- starting ------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        most = self._options.most
        return not self._stopping and len(self._jobs) < self._options.jobs and (most is None or self._started < most)

    def _start(self) -> None:
        """Start commands for what is there."""
        self._empty = False
        while self._has_room():
            delivery = self._take()
            if delivery is None:
                self._empty = True
                return
            self._again.pop(delivery.id, None)
            self._started += 1
            self._start_one(delivery)

    def _take(self) -> Delivery | None:
        box: list[tuple[int, int, int, int, int, bytes]] = []
        try:
            self._queue._wait_and_take(box, 1, False, None, False, RESERVED)
            return Delivery(self._store, box[0], self._shower.plain(box[0]))
        except Empty:
            return None
        except ShutDown:  # nothing will come any more
            self._stopping = True
            return None
        except BaseException:
            self._store.untake(box)
            raise

    def _start_one(self, delivery: Delivery) -> None:
        item: bytes = delivery.item
        try:
            job = Job(
                delivery,
                item,
                self._options.command_line,
                guard=self._guard,
                collect=self._collect,
                timeout=self._options.timeout,
            )
        except (OSError, ValueError) as error:  # an item too long for a command line, or with a zero byte in it
            self._has_failed(delivery, f"the command could not be started: {error}", "")
            return
        except BaseException:
            delivery.release()
            raise
        self._jobs.append(job)
        self._poll.register(job.end, select.POLLIN)
        self._poll.register(job.errors, select.POLLIN)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _at_end(self) -> bool:
        """Whether nothing is to be expected any more, when nothing runs."""
        if self._stopping or not self._has_room():
            return True
        now = time.time()
        self._again = {id: due for id, due in self._again.items() if due + _GRACE > now}
        return not self._options.follow and not self._again

    def _wait(self) -> None:
        """Until a command has ended or says something, an item has come, or the clock says so."""
        wants = self._empty and self._has_room()
        if wants and not self._watch.arm(self._call):
            self._watch.disarm(self._call, used=True)
            return
        try:
            self._signals.poll(self._poll, self._milliseconds(), deaf=self._stopping)
        except Stopped:
            if self._stopping:  # the second time
                raise
            self._stop()
        finally:
            if wants:
                self._watch.disarm(self._call, used=True)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._news)

    def _milliseconds(self) -> int | None:
        now = time.monotonic()
        seconds = min((job.seconds_left(now) for job in self._jobs), default=float("inf"))
        if self._again and not self._jobs:
            seconds = min(seconds, max(0.0, min(self._again.values()) - time.time() + _GRACE))
        if self._queue.lease is not None and self._jobs:
            seconds = min(seconds, self._queue.lease / 3)
        return None if seconds == float("inf") else int(seconds * 1000) + 1

    def _stop(self) -> None:
        self._stopping = True
        if self._jobs:
            commands = counted(len(self._jobs), "command")
            tell(f"waiting for {commands} to end; once more to kill them and leave their items in the queue")

    # -- finishing -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """See to the commands that have ended, and to the clock."""
        now = time.monotonic()
        for job in list(self._jobs):
            if not job.listen():
                with contextlib.suppress(KeyError):
                    self._poll.unregister(job.errors)
            if select.select([job.end], [], [], 0)[0]:
                self._has_ended(job)
                continue
            job.look_at_clock(now)
            if self._queue.lease is not None:
                with contextlib.suppress(StaleDeliveryError):  # its ack will tell
                    job.delivery.extend(self._queue.lease)

    def _has_ended(self, job: Job) -> None:
        self._poll.unregister(job.end)
        with contextlib.suppress(KeyError):
            self._poll.unregister(job.errors)
        self._jobs.remove(job)
        delivery = job.delivery
        wrong = job.close()
        try:
            self._pass_on(job)
        except BaseException:
            delivery.release()
            raise
        try:
            if wrong is None:
                delivery.ack()
            elif job.reason == _HALTED:
                delivery.release()
            else:
                self._has_failed(delivery, wrong, job.told)
        except StaleDeliveryError:
            tell(f"item {delivery.id}: its lease ran out and somebody else has it; what this command did may be done twice")

    def _pass_on(self, job: Job) -> None:
        if self._outlet is not None and job.output is not None:
            job.output.seek(0)
            while data := job.output.read(1 << 20):
                self._outlet.write([data])
            job.output.close()

    def _has_failed(self, delivery: Delivery, reason: str, told: str) -> None:
        if delivery.deliveries <= self._options.retries:
            delay = self._backoff(delivery.deliveries)
            self._again[delivery.id] = time.time() + delay
            delivery.nack(delay)
            return
        failures.reject(self._queue, delivery, reason, told)
        self._failed += 1
        tell(f"item {delivery.id}: {reason}, delivered {counted(delivery.deliveries, 'time')}; it lies with the dead letters")
        policy: Halt | None = self._options.halt
        if policy is not None and self._failed >= policy.failures:
            self._stopping = True
            if policy.now:
                for job in self._jobs:
                    job.stop(_HALTED)


_HALTED = "halted"


COMMAND = Command(
    "run",
    "run a command for each item of a queue, as xargs would",
    _arguments,
    _run,
    """\
The item is the command's stdin, or stands in place of {} in its arguments. An item is done when its command has ended with 0.
Otherwise it comes again, later and later, --retries times, and then lies with the dead letters, with the exit code and the end
of stderr beside it (`durableq peek --dead`). Killed, rebooted and started again, it goes on where it was: what was running
runs again. What a command leaves in the background goes on, unless `run` is killed or has had to kill a command: then all goes
that its commands have started.

It works off what is there, waits for what has failed to come again, and ends; with --follow it never does. Ctrl-C or SIGTERM:
it starts no more and waits for what runs; the second time it kills that and leaves its items in the queue. --halt soon,fail=N
stops in the same way once N items have failed for good, now,fail=N stops what is running too.

With -j, what a command prints is kept until it has ended, so that outputs do not mix. The environment of a command has
DURABLEQ_ID, the same each time the item is delivered, and DURABLEQ_DELIVERIES. Exit code 0: nothing has failed for good.""",
    (
        ("durableq run jobs.dq -- sh -c 'read -r name && echo hello $name'", "the item on stdin"),
        ("durableq run pictures.dq -j 4 -- convert {} -resize 50% {}.small.png", "four at a time, the item as an argument"),
        ("durableq run -f mails.dq --retries 10 --backoff 30s --timeout 5m -- sendmail -t", "for ever, and never give up soon"),
        ("durableq run tests.dq --retries 0 --halt now,fail=1 -- make {}", "stop everything at the first failure"),
    ),
)
