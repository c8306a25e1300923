"""`durableq run`: a command for each item.

An item is done when its command has ended with 0. If the command fails, the item comes again later, and after its last try it
is a dead letter with the story beside it (`durableq.failures`). While a command runs its item is lent to us: if we are killed,
our guard kills the command and the item comes again, to whoever runs next.

Only what is about the item or the command counts as a failure of it. What keeps us from starting any command, and an item that
we must not show, end us in order: nothing more is started, what runs is waited for, and the rest stays as it was.

What a command leaves running in the background is not part of its work, and goes on when we end in order. It is killed too if
we are killed or fail, and if we have had to kill a command: of that one nothing may be left, and nobody knows whose is whose.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import select
import shutil
import signal
import time
from typing import NamedTuple

from durableq._delivery import Delivery
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
from durableq.cli._items import Shower, UndecodableError
from durableq.cli._jobs import PLACE, Job, UnstartableError
from durableq.cli._loans import Loans
from durableq.cli._output import Outlet
from durableq.cli._signals import Signals, Stopped
from durableq.errors import ShutDown

_LOOK = 0.1
"""Seconds after which we look at what runs while an output waits for its reader."""


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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, how a command ended is lost
    try:
        guard = Guard()
    except OSError as error:
        raise _no_start(path, error) from error
    with DurableQueue(path, sync=options.sync, serializer="bytes") as queue, Signals() as signals:
        return _Runner(queue, options, guard, signals).run()


_REMEDIES = {
    errno.EAGAIN: "raise `ulimit -u` or end other processes",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "raise fs.file-max or end other processes",
    errno.ENOMEM: "free some memory",
    errno.ENOENT: "make room there or raise `ulimit -n`",  # all that `tempfile` says, whatever kept it from making one
    errno.ENOSPC: "make room in /tmp, or set TMPDIR to where there is some",
    errno.ENOSYS: "take Linux 5.3 or later",
}


def _no_start(path: str, error: OSError) -> Failure:
    remedy = _REMEDIES.get(error.errno or 0, "mend that")
    return Failure(
        f"{path}: no command can be started: {error.strerror}; {remedy}, and run it again: what was not done is in the queue"
    )


class _Runner:
    def __init__(self, queue: DurableQueue, options: argparse.Namespace, guard: Guard, signals: Signals) -> None:
        from durableq.pool import Backoff

        self._queue = queue
        self._options = options
        self._guard = guard
        self._signals = signals
        self._collect = options.jobs > 1 and not options.ungroup
        self._outlet = Outlet(1, signals) if self._collect else None
        self._shower = Shower(queue._store, unpickle=options.unpickle, as_json=False)
        self._loans = Loans(queue, retries=options.retries, backoff=Backoff(options.backoff))
        self._jobs: list[Job] = []
        self._started = 0
        self._empty = self._stopping = False
        self._exhausted = False
        """Whether there was too little of something to start a command or to wait for an item, and none has ended since."""
        self._wrong: Failure | None = None
        """Why we stop, if not because all is done."""
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
            if self._wrong is not None:
                raise self._wrong
            self._signals.check()
            return FAILED if self._loans.buried else DONE
        finally:
            for job in self._jobs:
                job.kill()
                job.close()
            self._loans.give_all_back()

    # -- starting ------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        if self._stopping or self._exhausted or len(self._jobs) >= self._options.jobs:
            return False
        return self._options.most is None or self._started < self._options.most

    def _start(self) -> None:
        """Start commands for what is there."""
        if self._signals.number is not None and not self._stopping:
            self._stop()
        self._empty = False
        while self._has_room():
            try:
                delivery = self._loans.take()
            except ShutDown:  # nothing will come any more, but for what runs and may fail
                self._stopping = not self._jobs
                return
            if delivery is None:
                self._empty = True
                return
            self._start_one(delivery)

    def _start_one(self, delivery: Delivery) -> None:
        try:
            delivery.item = self._shower.plain(delivery.item)
        except UndecodableError as error:
            self._loans.not_decoded(delivery, error.reason)
            self._heed_policy()
            return
        except Failure as failure:
            self._loans.give_back(delivery)
            self._stop_for(failure)
            return
        try:
            job = Job(
                delivery,
                self._options.command_line,
                guard=self._guard,
                collect=self._collect,
                timeout=self._options.timeout,
            )
        except UnstartableError as error:
            self._started += 1
            self._has_failed(delivery, f"the command could not be started: {error}", "")
            return
        except OSError as error:
            self._loans.give_back(delivery)
            self._has_too_little(error)
            return
        self._started += 1
        self._jobs.append(job)
        self._poll.register(job.end, select.POLLIN)
        self._poll.register(job.errors, select.POLLIN)

    def _has_too_little(self, error: OSError) -> None:
        """Go on when a command has ended and left us more; if none runs, give up."""
        self._exhausted = True
        if not self._jobs:
            self._stop_for(_no_start(self._queue.path, error))

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _at_end(self) -> bool:
        """Whether nothing is to be expected any more, when nothing runs."""
        if self._stopping or not self._has_room():
            return True
        return not self._options.follow and self._loans.seconds_to_next() == float("inf")

    def _wait(self) -> None:
        """Until a command has ended or says something, an item has come, or the clock says so."""
        wants = self._empty and self._has_room()
        try:
            if wants and not self._watch.arm(self._call):
                self._watch.disarm(self._call, used=True)
                return
        except OSError as error:
            self._has_too_little(error)
            return
        try:
            self._signals.poll(self._poll, _milliseconds(self._seconds_left()), deaf=self._stopping)
        except Stopped:
            if self._stopping:  # the second time
                raise
            self._stop()
        finally:
            if wants:
                self._watch.disarm(self._call, used=True)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._news)

    def _seconds_left(self) -> float:
        """Until the clock has something to say of what is in hand, or else of an item that is to come again."""
        now = time.monotonic()
        seconds = min([self._loans.seconds_left(now), *(job.seconds_left(now) for job in self._jobs)])
        return seconds if self._jobs else min(seconds, self._loans.seconds_to_next())

    def _stop(self) -> None:
        self._stopping = True
        if self._jobs:
            commands = counted(len(self._jobs), "command")
            tell(f"waiting for {commands} to end; once more to kill them and leave their items in the queue")

    def _stop_for(self, failure: Failure) -> None:
        """Start no more, wait for what runs, and fail with this then."""
        self._stopping = True
        self._wrong = failure

    # -- finishing -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """See to the commands that have ended, and to the others."""
        for job in list(self._jobs):
            if job.ended:
                self._has_ended(job)
        self._look_after()

    def _look_after(self) -> None:
        """See to what runs: what it says, its clock, and that we keep its item."""
        now = time.monotonic()
        for job in self._jobs:
            if not job.listen():
                self._unregister(job.errors)
            job.look_at_clock(now)
        self._loans.extend(now)

    def _has_ended(self, job: Job) -> None:
        self._unregister(job.end)
        self._unregister(job.errors)
        self._jobs.remove(job)
        self._exhausted = False
        wrong = job.close()
        self._pass_on(job)
        if wrong is None:
            self._loans.done(job.delivery)
        elif job.reason == _HALTED:
            self._loans.give_back(job.delivery)
        else:
            self._has_failed(job.delivery, wrong, job.told)

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(fd)

    def _pass_on(self, job: Job) -> None:
        if self._outlet is not None and job.output is not None:
            job.output.seek(0)
            while data := job.output.read(1 << 20):
                self._outlet.write([data], self._meanwhile)
            job.output.close()

    def _meanwhile(self) -> int | None:
        """Look after what else runs while an output waits for its reader; the milliseconds until that has to be done again.

        Whose command has ended by then waits for its turn: one output must not come into the middle of another.
        """
        self._look_after()
        return _milliseconds(min(self._seconds_left(), _LOOK if self._jobs else float("inf")))

    def _has_failed(self, delivery: Delivery, reason: str, told: str) -> None:
        self._loans.failed(delivery, reason, told)
        self._heed_policy()

    def _heed_policy(self) -> None:
        policy: Halt | None = self._options.halt
        if policy is not None and self._loans.buried >= policy.failures:
            self._stopping = True
            if policy.now:
                for job in self._jobs:
                    job.stop(_HALTED)


_HALTED = "halted"


def _milliseconds(seconds: float) -> int | None:
    """For `poll`: None is for ever."""
    return None if seconds == float("inf") else int(seconds * 1000) + 1


COMMAND = Command(
    "run",
    "run a command for each item of a queue, as xargs would",
    _arguments,
    _run,
    """\
The item is the command's stdin, or stands in place of {} in its arguments. An item is done when its command has ended with 0.
Otherwise it comes again, later and later, --retries times or as often as the queue's own max_deliveries allows, and then lies
with the dead letters, with the exit code and the end of stderr beside it (`durableq peek --dead`). Killed, rebooted and started
again, it goes on where it was: what was running runs again. What a command leaves in the background goes on, unless `run` is
killed or has had to kill a command: then all goes that its commands have started. It should have its stderr elsewhere
(2>>FILE): nobody reads what it says there once the command has ended.

It works off what is there, waits for what has failed to come again, and ends; with --follow it never does. Ctrl-C or SIGTERM:
it starts no more and waits for what runs; the second time it kills that and leaves its items in the queue. --halt soon,fail=N
stops in the same way once N items have failed for good, now,fail=N stops what is running too.

With -j, what a command prints is kept until it has ended, so that outputs do not mix. If descriptors, processes or memory do
not suffice for so many commands, fewer run; if for none, it says so and leaves the items as they are. The environment of a
command has DURABLEQ_ID, the same each time the item is delivered, and DURABLEQ_DELIVERIES. Exit code 0: nothing has failed for
good.""",
    (
        ("durableq run jobs.dq -- sh -c 'read -r name && echo hello $name'", "the item on stdin"),
        ("durableq run pictures.dq -j 4 -- convert {} -resize 50% {}.small.png", "four at a time, the item as an argument"),
        ("durableq run -f mails.dq --retries 10 --backoff 30s --timeout 5m -- sendmail -t", "for ever, and never give up soon"),
        ("durableq run tests.dq --retries 0 --halt now,fail=1 -- make {}", "stop everything at the first failure"),
    ),
)
