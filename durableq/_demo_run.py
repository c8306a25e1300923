"""The programs that `durableq demo` starts: the run, and the workers that it keeps at work and kills.

See `durableq.demo` for how they play together and what each leaves on disk.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from durableq import _picture
from durableq._queue import DurableQueue
from durableq.errors import DurableQError, Empty, ShutDown

JOBS, RESULTS, PLAN = "demo-jobs.dq", "demo-results.dq", "demo.json"

#: When pictures of the spool are taken, besides when a run starts: the share of files done, and the name of the line.
PICTURES = ((0.25, "a quarter done"), (0.5, "half way"), (0.75, "three quarters"), (0.95, "nearly done"))

#: The share of the seconds asked for by which the workers are paced. The rest goes by while interpreters start, half of
#: the crew is being replaced, and the files are queued and checked.
PACED = 0.75


class DemoError(DurableQError):
    """The demo could not be brought to its end."""


@dataclass
class Plan:
    """`demo.json`. `state` is "filling" (the queue may hold a part of the files), "running", or "checked"."""

    state: str
    root: str
    files: list[str]
    bytes: int = 0

    @classmethod
    def load(cls, directory: Path) -> Plan | None:
        try:
            return cls(**json.loads((directory / PLAN).read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DemoError(f"{directory / PLAN}: not written by a demo ({error}); use another --dir") from error

    @classmethod
    def expect(cls, directory: Path) -> Plan:
        plan = cls.load(directory)
        if plan is None:
            raise DemoError(f"{directory / PLAN}: gone while the demo was at work; start it again with another --dir")
        return plan

    def save(self, directory: Path) -> None:
        scratch = directory / (PLAN + ".new")
        scratch.write_text(json.dumps(asdict(self)), "utf-8")
        scratch.replace(directory / PLAN)  # as a whole: a run killed here leaves the old plan or the new one


def start(role: str, directory: Path, options: argparse.Namespace, **other: float) -> subprocess.Popen[bytes]:
    """A new program that plays `role`. A run leads a process group, so that one SIGKILL takes it and its crew."""
    command = [sys.executable, "-m", "durableq", "demo", "--role", role, "--parent", str(os.getpid())]
    command += ["--dir", str(directory), "--workers", str(options.workers)]
    for name, value in {"seconds": options.seconds, **other}.items():
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=role == "run")


# -- a worker ----------------------------------------------------------------------------------------------------------


def count(source: bytes) -> tuple[int | None, int]:
    """The functions (None: it does not parse, the standard library tests itself with such files) and the lines."""
    lines = source.count(b"\n") + (not source.endswith(b"\n") and source != b"")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None, lines
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return sum(isinstance(node, kinds) for node in ast.walk(tree)), lines


def work(options: argparse.Namespace) -> int:
    """Take files, count them, put the result, ack: until the queue is shut down. `seconds` is the pace for one file."""
    warnings.simplefilter("ignore")  # what the files' own syntax deserves is not our subject
    directory = Path(options.dir)
    due = time.monotonic()
    with DurableQueue(directory / JOBS) as jobs, DurableQueue(directory / RESULTS) as results:
        while os.getppid() == options.parent:  # nobody wants our work any more when the run is gone
            try:
                delivery = jobs.reserve(timeout=0.5)
            except Empty:
                continue
            except ShutDown:
                break
            name, source = delivery.item
            functions, lines = count(source)
            # Keep to the pace, and make up for a long file with the next ones. It sleeps while it holds its file: that
            # is where most kills strike.
            due = max(due, time.monotonic() - 1.0) + options.seconds
            time.sleep(max(0.0, due - time.monotonic()))
            results.put(("counted", name, functions, lines, delivery.deliveries))
            delivery.ack()
    return 0


# -- a run -------------------------------------------------------------------------------------------------------------


class Run:
    """One run of the program: a crew of workers on the queue, and SIGKILL among them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.directory = Path(options.dir)
        self.crew: dict[int, subprocess.Popen[bytes]] = {}
        self.kills = 0
        self.line = ProgressLine()

    def go(self) -> int:
        """Until the queue is empty (0), or half way of the first run, where it kills itself and its crew."""
        plan = Plan.expect(self.directory)
        name = f"run {self.options.number} (process {os.getpid()})"
        started = time.perf_counter()
        with DurableQueue(self.directory / JOBS) as jobs, DurableQueue(self.directory / RESULTS) as results:
            opened = 1000 * (time.perf_counter() - started)
            if plan.state == "filling":
                self.fill(plan, jobs, results)
                took = time.perf_counter() - started
                size = _picture.human(plan.bytes)
                self.line.say(f"{name}: queued {len(plan.files)} files, {size}, in {took:.1f} s")
            else:
                left = jobs.stats().unfinished
                self.line.say(f"{name}: opened both queues in {opened:.0f} ms; {left} files are still to be counted")
            try:
                self.watch(plan, jobs, results)
                jobs.shutdown()  # reaches every worker, wherever it waits
                self.dismiss_the_crew()
            finally:
                for worker in self.crew.values():
                    worker.kill()
        self.line.say(f"{name}: the queue is empty")
        return 0

    def fill(self, plan: Plan, jobs: DurableQueue, results: DurableQueue) -> None:
        # A run that was killed while it filled left a part of the files: begin again, so that each is there once.
        jobs.purge()
        results.purge()
        for first in range(0, len(plan.files), 50):
            sources = [(name, (Path(plan.root) / name).read_bytes()) for name in plan.files[first : first + 50]]
            plan.bytes += sum(len(source) for _, source in sources)
            jobs.put_many(sources)
        plan.state = "running"
        plan.save(self.directory)

    def watch(self, plan: Plan, jobs: DurableQueue, results: DurableQueue) -> None:
        """Keep the crew at work until every file is done; strike now and then; take pictures on the way."""
        total = len(plan.files)
        done = total - jobs.stats().unfinished
        dies_half_way = self.options.number == 1 and done < total // 2
        pictures = [(share, label) for share, label in PICTURES if share * total > done]
        pictures.insert(0, (0.0, "full" if done == 0 else "started again"))
        gap = usual = max(0.4, self.options.seconds / 40)
        strike, done_then = time.monotonic() + gap, done
        while True:
            if os.getppid() != self.options.parent:
                os.killpg(0, signal.SIGKILL)  # the demo itself was killed: nobody else would stop us
            stats = jobs.stats()
            done = total - stats.unfinished
            while pictures and done >= pictures[0][0] * total:
                seen = _picture.read_extents(self.directory / JOBS)
                results.put(("picture", pictures.pop(0)[1], seen.size, seen.on_disk, seen.data))
            self.line.show(partial(self.progress, done, total))
            if done == total:
                return
            if dies_half_way and done * 2 >= total:
                self.line.say(f"half way: SIGKILL to this whole program, {len(self.crew)} workers and itself")
                results.put(("killed", "crew", len(self.crew)))
                os.killpg(0, signal.SIGKILL)
            if time.monotonic() >= strike and self.strike({owner.pid for owner in stats.owners if owner.lent}, results):
                # A file that takes longer than we let anybody live must get through all the same.
                gap = usual if done > done_then else 2 * gap
                strike, done_then = time.monotonic() + random.expovariate(1 / gap), done
            self.man_the_crew(total)
            time.sleep(0.05)

    def strike(self, busy: set[int], results: DurableQueue) -> bool:
        """Kill one of the crew that is at work; False if none is at this moment."""
        at_work = [pid for pid in self.crew if pid in busy]
        if not at_work:
            return False
        worker = self.crew.pop(random.choice(at_work))
        worker.kill()
        worker.wait()
        self.kills += 1
        results.put(("killed", "worker", 1))
        return True

    def man_the_crew(self, total: int) -> None:
        """Start workers until the crew is complete. None has any business to end before the work is done."""
        for worker in self.crew.values():
            if worker.poll() is not None:
                raise DemoError(f"worker {worker.pid} failed with exit code {worker.returncode}")
        pace = max(0.0, self.options.seconds) * PACED * self.options.workers / total
        while len(self.crew) < self.options.workers:
            worker = start("worker", self.directory, self.options, seconds=pace)
            self.crew[worker.pid] = worker

    def dismiss_the_crew(self) -> None:
        """Wait until every worker went by itself, as it does from a queue that was shut down."""
        for worker in self.crew.values():
            try:
                code = worker.wait(timeout=30)
            except subprocess.TimeoutExpired:
                raise DemoError(f"worker {worker.pid} does not end though the queue was shut down") from None
            if code != 0:
                raise DemoError(f"worker {worker.pid} failed with exit code {code}")

    def progress(self, done: int, total: int) -> str:
        """How far we are, and the spool file as it is now."""
        seen = _picture.read_extents(self.directory / JOBS)
        bar = _picture.draw(seen, 24, symbols=self.line.symbols)
        return (
            f"run {self.options.number}: {done:{len(str(total))}}/{total} files, {self.kills:2} kills, "
            f"{_picture.human(seen.on_disk):>8} on disk |{bar}|"
        )


class ProgressLine:
    """One line that is written over on a terminal, and a line every two seconds where there is none."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.symbols = _picture.symbols_for(sys.stdout)
        self.next = 0.0

    def show(self, text: Callable[[], str]) -> None:
        """Show what `text` returns, if it is time for that again."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.1 if self.terminal else 2.0)
        if self.terminal:
            room = shutil.get_terminal_size().columns - 1  # a filled last column would wrap into a line of its own
            print("\r\x1b[K" + text()[:room], end="", flush=True)
        else:
            print(text(), flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if self.terminal else "") + text, flush=True)
