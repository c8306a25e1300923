"""Starts the workers of a round, kills them at random, replaces them, and closes the account."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import durableq

from . import log, worker
from .account import Account, Tally
from .plans import Plan

ROOT = Path(__file__).resolve().parent.parent.parent
STUCK_AFTER = 20.0
GOVERNOR = 0
"""Its number among the workers: it puts the backlog and drains what is left."""


class Stuck(Exception):
    """Nobody made progress for a long while."""


class Round:
    def __init__(self, plan: Plan, folder: str, seed: int, kill_every: float) -> None:
        self.plan, self.folder, self.kill_every = plan, folder, kill_every
        self.rng = random.Random(seed)
        self.path = os.path.join(folder, "q.dq")
        self.q = durableq.DurableQueue(self.path, **plan.options)
        self.workers: dict[int, tuple[int, str, subprocess.Popen[bytes] | None]] = {}  # number -> pid, role, Popen
        self.roles: dict[str, list[int]] = {"producer": [], "consumer": []}  # everybody who ever was
        self.killed: dict[int, int] = {}
        self.problems: list[str] = []
        self.number = GOVERNOR

    # -- the course of a round -----------------------------------------------------------------------------------------

    def run(self, seconds: float, kills: int) -> Tally:
        """At least so long, and at least so many kills."""
        dead: list[tuple[int, int]] | None = None
        try:
            self._backlog()
            self._fill_up()
            self._kill_away(time.monotonic() + seconds, kills)
            self._finish()
            dead = self._drain()
        except Stuck as error:
            self.problems.append(f"stuck {error}\n{self._where_they_are()}")
        finally:
            for number in list(self.workers):
                self._kill(number)
        account = Account(
            at_most_once=self.plan.at_most_once,
            ordered=self.plan.ordered,
            count_survives=not self.plan.massacres,
        )
        for events in log.read(self.folder):
            account.worker(events)
        tally = account.close(self.killed, dead)
        tally.wrong = self.problems + tally.wrong
        return tally

    def _backlog(self) -> None:
        if self.plan.backlog:
            write = log.Log(self.folder, GOVERNOR)
            origin = log.origin_of(GOVERNOR, 0)
            write(log.INTENT, 0, origin, 0, self.plan.backlog)
            self.q.put_many(
                [(origin, n, worker.filler(origin, n, self.plan.payload)) for n in range(self.plan.backlog)]
            )
            write(log.RETURNED, 0, origin, 0, self.plan.backlog)

    def _kill_away(self, until: float, kills: int) -> None:
        seen: dict[str, tuple[int, float]] = {}
        while time.monotonic() < until or len(self.killed) < kills:
            time.sleep(self.rng.expovariate(1 / self.kill_every))
            self._look_for_failures()
            alive = list(self.workers)
            fate = self.rng.random()
            if self.plan.massacres and fate < 0.2:
                self._massacre()
            else:  # mostly one; sometimes two, to die within the same microseconds
                for number in self.rng.sample(alive, 2 if fate > 0.85 else 1):
                    self._kill(number)
            self._fill_up()
            self._watch(seen)

    def _massacre(self) -> None:
        for number in self.workers:
            self._signal(number, signal.SIGKILL)
        for number in list(self.workers):
            self._kill(number)
        self.q.close()
        if self.rng.random() < 0.5:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + "-shm")
        self.q = durableq.DurableQueue(self.path, **self.plan.options)

    def _finish(self) -> None:
        if self.plan.end == "shutdown":
            self.q.shutdown()
        for role in ("producer", "consumer"):
            open(os.path.join(self.folder, "stop-" + role), "w").close()
            deadline = time.monotonic() + STUCK_AFTER
            while any(its == role for _, its, _ in self.workers.values()):
                # A shutdown reaches both sides at once.
                self._look_for_failures(*(("producer", "consumer") if self.plan.end == "shutdown" else (role,)))
                if time.monotonic() > deadline:
                    raise Stuck(f"at the end: a {role} does not stop")
                time.sleep(0.005)

    def _drain(self) -> list[tuple[int, int]]:
        """What is left over must still be there, and then nothing."""
        self.q.close()  # a shut down queue opens again once everybody has closed it
        self.q = durableq.DurableQueue(self.path, **self.plan.options)
        write = log.Log(self.folder, GOVERNOR)
        with contextlib.suppress(queue.Empty):
            while True:
                item = self.q.get(timeout=0.1)
                write(log.GOT, 0, item[0], item[1])
                if not self.plan.at_most_once:
                    write(log.SETTLING, 0, item[0], item[1])
                    self.q.task_done()
                    write(log.DONE, 0, item[0], item[1])
        stats = self.q.stats()
        if self.q.qsize() or stats.ready or stats.lent or stats.delayed or stats.unfinished or stats.damaged:
            self.problems.append(f"drained, and yet: {stats}")
        else:
            signal.alarm(10)  # a join that waits for nothing ends the program, loudly
            self.q.join()
            signal.alarm(0)
        dead = [item[:2] for item in self.q.dead_letters.peek(stats.dead)] if stats.dead else []
        self.q.close()
        report = durableq.check(self.path)
        if not report.ok:
            self.problems.append(f"check says: {report}")
        return dead

    # -- the workers ---------------------------------------------------------------------------------------------------

    def _fill_up(self) -> None:
        for role, wanted in (("producer", self.plan.producers), ("consumer", self.plan.consumers)):
            for _ in range(wanted - sum(its == role for _, its, _ in self.workers.values())):
                self._start(role)

    def _start(self, role: str) -> None:
        self.number += 1
        number, seed, fate = self.number, self.rng.getrandbits(32), self.rng.random()
        errors = os.open(os.path.join(self.folder, f"err-{number:06d}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        process = None
        if fate < 0.25:  # a stranger who knows the path
            command = [sys.executable, "-m", "tests.stress.worker", self.folder, self.plan.name, role]
            process = subprocess.Popen([*command, str(number), str(seed)], cwd=ROOT, stderr=errors)
            pid = process.pid
        else:  # a child, with the handle that it inherits or one of its own
            pid = os.fork()
            if pid == 0:
                code = 4
                try:
                    os.dup2(errors, 2)
                    code = worker.main(self.folder, self.plan, role, number, seed, self.q if fate < 0.7 else None)
                finally:
                    os._exit(code)
        os.close(errors)
        self.workers[number] = pid, role, process
        self.roles[role].append(number)

    def _signal(self, number: int, signum: int) -> None:
        if signum == signal.SIGKILL:
            self.killed.setdefault(number, time.monotonic_ns())
        os.kill(self.workers[number][0], signum)

    def _kill(self, number: int) -> None:
        self._signal(number, signal.SIGKILL)
        pid, role, process = self.workers.pop(number)
        status = process.wait() if process is not None else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != -signal.SIGKILL:  # it had ended just before, of itself
            del self.killed[number]
            self._judge(number, role, status, ending=True)

    def _look_for_failures(self, *ending: str) -> None:
        for number, (pid, role, process) in list(self.workers.items()):
            if process is not None:
                status = process.poll()
            else:
                ended, raw = os.waitpid(pid, os.WNOHANG)
                status = os.waitstatus_to_exitcode(raw) if ended else None
            if status is not None:
                del self.workers[number]
                self._judge(number, role, status, ending=role in ending)

    def _judge(self, number: int, role: str, status: int, ending: bool) -> None:
        if status != 0 or not ending:
            self.problems.append(f"{role} {number} ended with {status}:\n{self._errors(number)}")

    def _watch(self, seen: dict[str, tuple[int, float]]) -> None:
        """Each side must get on, whatever happens to the others."""
        for role, numbers in self.roles.items():
            size = log.sizes(self.folder, numbers)
            before, since = seen.get(role, (-1, 0.0))
            if size != before:
                seen[role] = size, time.monotonic()
            elif time.monotonic() - since > STUCK_AFTER:
                raise Stuck(f"no {role} wrote anything for {STUCK_AFTER} s; the queue: {self.q.stats()}")

    # -- for people ----------------------------------------------------------------------------------------------------

    def _errors(self, number: int) -> str:
        with open(os.path.join(self.folder, f"err-{number:06d}"), errors="replace") as file:
            return file.read()[-6000:]

    def _where_they_are(self) -> str:
        for number in self.workers:
            self._signal(number, signal.SIGUSR1)
        time.sleep(0.5)
        told = [(number, role, self._errors(number)) for number, (_, role, _) in self.workers.items()]
        return "\n".join(f"--- {role} {number}\n{text}" for number, role, text in told)


def rounds(
    plans: list[Plan], folder: Path, *, seconds: float, kills: int, each: float, seed: int
) -> Iterator[tuple[Plan, int, Tally, int]]:
    """Round after round until both the time and the kills are reached: plan, seed, tally, kills."""
    started = time.monotonic()
    done = number = 0
    kill_every = min(0.4, 0.6 * seconds / max(1, kills))
    while time.monotonic() - started < seconds or done < kills:
        plan = plans[number % len(plans)]
        number += 1
        place = folder / f"round-{number:04d}"
        place.mkdir()
        share = max(1, round(kills * each / seconds))
        one = Round(plan, str(place), seed + number, kill_every)
        tally = one.run(each, share)
        done += len(one.killed)
        yield plan, seed + number, tally, len(one.killed)
        if tally.ok:  # what went wrong stays, to be looked at
            for name in os.listdir(place):
                os.unlink(place / name)
            place.rmdir()
