"""A real job, with real deaths: every source file of the standard library through one durable queue.

Four parts are played, each by a process that runs `durableq demo` on one directory:

    the demo     starts one run after the other and checks in the end; while a run is at work it has no queue open
    a run        queues the files if that was not done yet, keeps a crew of workers at work, kills them at random;
                 the first one kills itself and its whole crew half way, with one SIGKILL to its process group
    a worker     borrows a file from the queue, parses it, puts what it counted into the second queue, and acks
    the check    (in the demo) reads the second queue: was every file counted?

What they leave on disk:

    demo-jobs.dq      one item for each file: (name, source)
    demo-results.dq   what happened: ("counted", ...) by workers, ("killed", ...) and ("picture", ...) by runs
    demo.json         the names that were queued, and how far the demo is; always replaced as a whole

A worker puts its result *before* it acks. Killed in between, it leaves a result and an item that comes again: that file
is counted twice; the check says so and takes it once. The other order would lose the file. This is at-least-once
delivery, and what the demo is there to show.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durableq import _picture
from durableq._demo_run import JOBS, PLAN, RESULTS, DemoError, Plan, Run, start, work
from durableq._queue import DurableQueue

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `durableq demo`."""
    parser.add_argument("--dir", metavar="DIR", help="keep the files in DIR, or carry on there (default: temporary)")
    parser.add_argument("--workers", metavar="N", type=_positive, default=4, help="worker processes (default: 4)")
    parser.add_argument("--seconds", metavar="S", type=float, default=20.0, help="about how long; 0: full speed (default: 20)")
    parser.add_argument("--limit", metavar="N", type=_positive, help="take only N of the files, evenly spread")
    # These are for the programs that the demo starts.
    parser.add_argument("--role", choices=("run", "worker"), help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=1, help=argparse.SUPPRESS)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def run(options: argparse.Namespace) -> int:
    """What `durableq demo` does; the exit code is 0 only if every file was counted."""
    if options.role == "worker":
        return work(options)
    if options.role == "run":
        return Run(options).go()
    if options.dir is not None:
        Path(options.dir).mkdir(parents=True, exist_ok=True)
        return Demo(Path(options.dir), options).go()
    with tempfile.TemporaryDirectory(prefix="durableq-demo-", ignore_cleanup_errors=True) as directory:
        return Demo(Path(directory), options).go()


def find_sources(limit: int | None) -> tuple[Path, list[str]]:
    """The standard library's directory, and every .py file in it by its name from there."""
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for directory, inner, files in os.walk(root):
        # What was installed later is not the standard library.
        inner[:] = [name for name in inner if name not in ("site-packages", "dist-packages", "__pycache__")]
        names += [os.path.join(directory, name) for name in files if name.endswith(".py")]
    names = sorted(os.path.relpath(name, root) for name in names if os.path.isfile(name))
    if not names:
        raise DemoError(f"{root}: no .py files here; run the demo with a Python whose standard library is on disk")
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    return root, names


class Demo:
    """The outermost program: one run after the other, and then the check."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options

    def go(self) -> int:
        """All of it; returns the exit code."""
        started = time.monotonic()
        plan = self.prepare()
        print(f"{len(plan.files)} files of {plan.root}")
        print(f"through {self.directory / JOBS} to {self.options.workers} workers", flush=True)
        self.runs()
        code = self.check()
        print(f"\n{time.monotonic() - started:.0f} seconds in all")
        return code

    def prepare(self) -> Plan:
        """A new plan, or the one that an interrupted demo left here."""
        plan = Plan.load(self.directory)
        if plan is None and (self.directory / JOBS).exists():
            raise DemoError(f"{self.directory / JOBS}: not of a demo, no {PLAN} is beside it; use another --dir")
        if plan is not None and plan.state == "running":
            print("a demo was stopped here; carrying on with it")
            return plan
        root, names = find_sources(self.options.limit)
        plan = Plan("filling", str(root), names)
        plan.save(self.directory)  # before there is a queue: a queue without a plan is somebody else's
        return plan

    def runs(self) -> None:
        """Start runs until one comes to the end of the queue. Each is a new program on the same files."""
        for number in (1, 2, 3):
            code = self.one_run(number)
            if code == 0:
                return
            if code != -signal.SIGKILL:
                raise DemoError(f"run {number} failed with exit code {code}; its message stands above")
            print(f"run {number} and its workers are dead; starting again on the same files", flush=True)
        raise DemoError("run 3 was killed too, and not by the demo; try again with more memory and the same --dir")

    def one_run(self, number: int) -> int:
        """Run number `number` to its end, or to its death; returns the exit code."""
        process = start("run", self.directory, self.options, number=number)
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self.options.dir is not None:
                print(f"\nstopped; the same command with --dir {self.directory} carries on", flush=True)
            raise

    def check(self) -> int:
        """Was every file counted? Says what it found, and draws the pictures; returns the exit code."""
        plan = Plan.expect(self.directory)
        with DurableQueue(self.directory / RESULTS) as results:
            found = Findings.of(plan, results.peek(results.qsize()))
        print()
        print("\n".join(found.report()))
        symbols = _picture.symbols_for(sys.stdout)
        print(f"\nthe queue's file, {_picture.legend(symbols)}")
        print("\n".join(picture_lines([*found.pictures, ("all done", self.last_picture())], symbols)))
        if found.lost or found.wrong:
            return 1
        plan.state = "checked"
        plan.save(self.directory)
        return 0

    def last_picture(self) -> _picture.Extents:
        return _picture.read_extents(self.directory / JOBS)


#: What a worker found in a file: functions (None if it does not parse), lines, and the item's deliveries so far.
Result = tuple[int | None, int, int]


@dataclass
class Findings:
    """What the results queue holds, held against the plan."""

    queued: int
    counted: dict[str, list[Result]]
    killed: Counter[str]
    pictures: list[tuple[str, _picture.Extents]]
    lost: list[str]
    wrong: list[str]

    @classmethod
    def of(cls, plan: Plan, results: list[Any]) -> Findings:
        """Sort what workers and runs left; at least once: a file may have several results, which must agree."""
        counted: dict[str, list[Result]] = {}
        killed: Counter[str] = Counter()
        pictures = []
        for kind, what, *rest in results:
            if kind == "counted":
                counted.setdefault(what, []).append((rest[0], rest[1], rest[2]))
            elif kind == "killed":
                killed[what] += rest[0]
            else:
                pictures.append((what, _picture.Extents(*rest)))
        differ = {name for name, found in counted.items() if len({result[:2] for result in found}) > 1}
        wrong = sorted(differ | (set(counted) - set(plan.files)))
        return cls(len(plan.files), counted, killed, pictures, sorted(set(plan.files) - set(counted)), wrong)

    def report(self) -> list[str]:
        """The check in words."""
        deliveries = Counter(max(result[2] for result in found) for found in self.counted.values())
        again = sum(files for times, files in deliveries.items() if times > 1)
        at_most = f" (one of them {max(deliveries)} times)" if again and max(deliveries) > 2 else ""
        twice = sum(len(found) > 1 for found in self.counted.values())
        first = [found[0] for found in self.counted.values()]
        functions = sum(result[0] or 0 for result in first)
        broken = sum(result[0] is None for result in first)
        lines = [
            f"{self.queued} files queued, {len(self.counted)} counted, {len(self.lost)} lost",
            f"  {deliveries[1]} delivered once, {again} again after a kill{at_most}",
            f"  {twice} counted twice, their worker killed after its result and before its ack; taken once here",
            f"  {functions} functions in {sum(result[1] for result in first)} lines; "
            f"{broken} files do not parse (the library tests itself with such)",
            f"  SIGKILL: {self.killed['worker']} workers at random, "
            f"and half way the whole program with its {self.killed['crew']}",
        ]
        for what, names in (("LOST", self.lost), ("WRONG (unknown, or the second count differs)", self.wrong)):
            if names:
                lines.append(f"  {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
        return lines


def picture_lines(pictures: list[tuple[str, _picture.Extents]], symbols: str) -> list[str]:
    """The pictures under each other, on one scale."""
    full = max(seen.size for _, seen in pictures)
    room = max(20, min(72, shutil.get_terminal_size().columns - 40))
    return [
        f"  {label:15}|{_picture.draw(seen, room, full_size=full, symbols=symbols)}| {_picture.human(seen.on_disk):>9} on disk"
        for label, seen in pictures
    ]
