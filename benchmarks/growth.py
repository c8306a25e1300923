"""Does anything become slow, big or fat as the queue grows? `python -m benchmarks.growth [--scale 0.01] [--dir DIR]`

Each scenario brings one queue into its state, in a process of its own (so that its memory is its own), and measures
that queue and an empty one in turn, in rounds A B A B: what else the machine does hits both. A round is some thousand
times `burst` puts, `burst` gets and `burst` task_done, timed by the burst; the ratio is that of the medians of rounds.

    empty       nothing: an empty queue against another empty queue, which shows how far the ratios can be trusted
    waiting     5 million items wait
    lent        1 million items are lent to this process and not acked; growth: the gets that lent them
    elsewhere   1 million items are lent to another process, which lives
    stuck       one item is lent for ever while 5 million pass it
    returned    the holder of 1 million items gets SIGKILL; growth: all of them taken again, the first get included

What is held to (the `ok` column): put, get and task_done within 1.5 times of the empty queue; resident memory under
60 MB and 64 bytes for each item that is lent to this process; blocks on disk, at any moment looked at, under the live
bytes plus 4 MiB (those of the control file, `-shm`, are shown but not judged); opening after an orderly stop in under
50 ms. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

import durableq
from benchmarks.common import environment
from durableq import DurableQueue

ITEM = b"x" * 100
BATCH = 1000
MILLION, MIB = 1_000_000, 1 << 20
RATIO, MEGABYTES, BYTES_PER_LENT, SLACK, OPENING = 1.5, 60, 64, 4 << 20, 0.050
OPERATIONS = ("put", "get", "task_done")


@dataclass
class Found:
    """What one scenario measured; it goes from its process to the one that draws the table."""

    costs: dict[str, dict[str, float]] = field(default_factory=dict)  #: grown or empty, operation: µs
    growth: float | None = None  #: what was done on the way, as a ratio to the same on the empty queue
    lent: int = 0
    resident: int = 0
    excess: int = 0  #: the most that the blocks on disk had over the live bytes
    control: int = 0  #: bytes on disk of the control file beside the spool
    opening: float = 0.0
    closing: float = 0.0
    note: str = ""


class Bench:
    """One scenario's queue, the empty queue beside it, and what is measured of the two."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.grown_path, self.empty_path = directory / "grown.dq", directory / "empty.dq"
        self.grown = DurableQueue(self.grown_path)
        self.empty = DurableQueue(self.empty_path)
        self.costs: dict[str, dict[str, list[float]]] = {
            which: {operation: [] for operation in OPERATIONS} for which in ("grown", "empty")
        }
        self.found = Found()

    def items(self, millions: int) -> int:
        return max(BATCH, int(millions * MILLION * self.options.scale))

    def fill(self, amount: int) -> None:
        batch = [ITEM] * BATCH
        for _ in range(amount // BATCH):
            self.grown.put_many(batch)

    def round(self, which: str, amount: int) -> None:
        """Put, get and task_done `amount` times in bursts, on the grown or the empty queue; note µs per operation."""
        queue = self.grown if which == "grown" else self.empty
        put, get, task_done = queue.put, queue.get, queue.task_done
        burst, clock = range(self.options.burst), time.perf_counter
        spent = [0.0, 0.0, 0.0]
        for _ in range(amount // len(burst)):
            begin = clock()
            for _ in burst:
                put(ITEM)
            has_put = clock()
            for _ in burst:
                get()
            has_got = clock()
            for _ in burst:
                task_done()
            done = clock()
            spent[0] += has_put - begin
            spent[1] += has_got - has_put
            spent[2] += done - has_got
        for operation, seconds in zip(OPERATIONS, spent, strict=True):
            self.costs[which][operation].append(seconds / (amount // len(burst) * len(burst)) * 1e6)

    def rounds(self) -> None:
        amount = max(2 * self.options.burst, int(20_000 * min(1.0, self.options.scale * 2.5)))
        self.round("empty", amount)
        self.round("grown", amount)
        for costs in self.costs.values():  # those were to warm up
            for values in costs.values():
                values.clear()
        for _ in range(self.options.rounds):
            self.round("empty", amount)
            self.round("grown", amount)
            self.look_at_blocks()

    def look_at_blocks(self) -> None:
        stats = self.grown.stats()
        self.found.excess = max(self.found.excess, stats.bytes_on_disk - stats.bytes_live)

    def against_empty(self, step: Callable[[int], None], amount: int, operations: tuple[str, ...], spent: float = 0.0) -> float:
        """`step(n)` does the operations n times on the grown queue; all of it against the empty queue, as a ratio.

        Sums and not medians: what comes seldom and is paid by few (a table that grows, a death that is noticed) counts.
        """
        piece = max(self.options.burst, amount // 50)
        reference, left = [], amount
        while left > 0:
            count = min(piece, left)
            begin = time.perf_counter()
            step(count)
            spent += time.perf_counter() - begin
            left -= count
            self.round("empty", max(self.options.burst, piece // 4))
            reference.append(sum(self.costs["empty"][operation].pop() for operation in operations))
            for operation in OPERATIONS:
                if operation not in operations:
                    self.costs["empty"][operation].pop()
        return spent / amount * 1e6 / statistics.mean(reference)

    def take(self, count: int) -> None:
        get = self.grown.get
        for _ in range(count):
            get()

    def take_and_ack(self, count: int) -> None:
        get, task_done = self.grown.get, self.grown.task_done
        while count > 0:
            burst = range(min(self.options.burst, count))
            for _ in burst:
                get()
            for _ in burst:
                task_done()
            count -= len(burst)

    # -- the scenarios -------------------------------------------------------------------------------------------------

    def scenario_empty(self) -> None:
        self.rounds()

    def scenario_waiting(self) -> None:
        amount = self.items(5)
        begin = time.perf_counter()
        self.fill(amount)
        self.found.note = f"put_many {(time.perf_counter() - begin) / amount * 1e6:.2f} µs an item"
        self.rounds()

    def scenario_lent(self) -> None:
        amount = self.items(1)
        self.fill(amount)
        self.round("empty", BATCH)
        before = resident()
        self.found.growth = self.against_empty(self.take, amount, ("get",))
        self.found.lent = amount
        self.found.note = f"{(resident() - before) / amount:.0f} B resident for each lent item"
        # What follows puts and gets at the end, and acks the oldest: the number of lent items stays.
        self.fill(BATCH * 10)
        self.rounds()

    def scenario_elsewhere(self) -> None:
        amount = self.items(1)
        self.fill(amount)
        with holder(self.grown_path, amount):
            self.rounds()

    def scenario_stuck(self) -> None:
        self.grown.put(ITEM)
        with holder(self.grown_path, 1):
            batch, left = [ITEM] * BATCH, self.items(5)
            begin, total = time.perf_counter(), left
            while left > 0:
                self.grown.put_many(batch)
                for _ in self.grown.get_many(BATCH):
                    self.grown.task_done()
                left -= BATCH
                if left % (100 * BATCH) == 0:
                    self.look_at_blocks()
            passed = (time.perf_counter() - begin) / total * 1e6
            self.found.note = f"{passed:.2f} µs for each that passed"
            self.rounds()

    def scenario_returned(self) -> None:
        amount = self.items(1)
        self.fill(amount)
        with holder(self.grown_path, amount) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        begin = time.perf_counter()
        self.grown.get()
        first = time.perf_counter() - begin
        self.grown.task_done()
        self.found.note = f"first get after the death {first * 1000:.0f} ms"
        self.rounds()
        left = self.grown.qsize()
        self.found.growth = self.against_empty(self.take_and_ack, left, ("get", "task_done"), spent=first)
        if self.grown.stats().unfinished:
            raise SystemExit(f"{self.grown.stats().unfinished} items left where none should be")

    # -- what is said in the end ---------------------------------------------------------------------------------------

    def finish(self) -> Found:
        """Close, open again, and hand over what was found."""
        self.look_at_blocks()
        self.found.resident = resident()
        self.found.control = os.stat(f"{self.grown_path}-shm").st_blocks * 512
        for which, costs in self.costs.items():
            self.found.costs[which] = {operation: statistics.median(values) for operation, values in costs.items()}
        self.empty.close()
        begin = time.perf_counter()
        self.grown.close()
        self.found.closing = time.perf_counter() - begin
        self.found.opening = statistics.median(opening_time(self.grown_path) for _ in range(5))
        return self.found


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def opening_time(path: Path) -> float:
    """The seconds that opening takes in a new process, the the imports not counted."""
    program = (
        "import sys, time; from durableq import DurableQueue; begin = time.perf_counter()\n"
        "q = DurableQueue(sys.argv[1]); print(time.perf_counter() - begin); q.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    return float(done.stdout)


@contextlib.contextmanager
def holder(path: Path, amount: int) -> Iterator[subprocess.Popen[str]]:
    """A process that takes `amount` items and holds them until it is killed."""
    program = (
        "import sys, time; from durableq import DurableQueue; q = DurableQueue(sys.argv[1]); left = int(sys.argv[2])\n"
        "while left: left -= len(q.get_many(min(1000, left)))\n"
        "print('holding', flush=True); time.sleep(1e6)"
    )
    command = [sys.executable, "-c", program, str(path), str(amount)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "holding\n":
                raise SystemExit("the process that should hold the items died")
            yield process
        finally:
            process.kill()


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "empty": Bench.scenario_empty,
    "waiting": Bench.scenario_waiting,
    "lent": Bench.scenario_lent,
    "elsewhere": Bench.scenario_elsewhere,
    "stuck": Bench.scenario_stuck,
    "returned": Bench.scenario_returned,
}


# -- the table ---------------------------------------------------------------------------------------------------------


def judge(name: str, found: Found) -> tuple[str, list[str]]:
    """One line of the table, and what in it does not hold."""
    grown, empty = found.costs["grown"], found.costs["empty"]
    ratios = {operation: grown[operation] / empty[operation] for operation in OPERATIONS}
    cells = " ".join(f"{grown[operation]:5.2f} {ratio:4.2f}x" for operation, ratio in ratios.items())
    growth = "    -"
    if found.growth is not None:
        ratios["growth"] = found.growth
        growth = f"{found.growth:4.2f}x"
    allowed = MEGABYTES * 1_000_000 + BYTES_PER_LENT * found.lent
    broken = [f"{what} {ratio:.2f}x" for what, ratio in ratios.items() if ratio > RATIO]
    if found.resident > allowed:
        broken.append(f"memory over {allowed / 1e6:.0f} MB")
    if found.excess > SLACK:
        broken.append("blocks on disk")
    if found.opening > OPENING:
        broken.append("opening")
    places = f"{found.excess / MIB:7.2f} {found.control / MIB:5.1f}"
    times = f"{found.opening * 1000:6.1f} {found.closing * 1000:7.0f}"
    verdict = "no" if broken else "ok"
    line = f"{name:<10} {cells} {growth:>6} {found.resident / 1e6:4.0f} {places} {times}  {verdict}  {found.note}"
    return line, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("`")[0])
    parser.add_argument("--dir", help="where the spools go (default: a temporary directory)")
    parser.add_argument("--scale", type=float, default=1.0, help="take this share of the item numbers (default: 1)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds on each of the two queues (default: 9)")
    parser.add_argument("--burst", type=int, default=100, help="operations timed together (default: 100)")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="these scenarios only")
    parser.add_argument("--measure", choices=SCENARIOS, help=argparse.SUPPRESS)  # one scenario, as a process of its own
    options = parser.parse_args()
    if options.measure:
        bench = Bench(Path(options.dir), options)
        SCENARIOS[options.measure](bench)
        print(json.dumps(asdict(bench.finish())))
        return 0
    if options.dir:
        Path(options.dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="durableq-growth-", dir=options.dir) as directory:
        return table(Path(directory).resolve(), options)


def table(directory: Path, options: argparse.Namespace) -> int:
    print(f"{environment(directory)}, items of {len(ITEM)} B")
    print(f"scale {options.scale:g}; µs and ratio to the empty queue (medians of {options.rounds} rounds)\n")
    print(f"{'':<10} {'put':^11} {'get':^11} {'task_done':^11} growth   MB  excess  -shm   open   close  ok")
    print(f"{'':<10} {'':^11} {'':^11} {'':^11} {'':>6}  RSS     MiB   MiB     ms      ms", flush=True)
    # The programs started from here must measure this very package, wherever the interpreter would look first.
    os.environ["PYTHONPATH"] = str(Path(durableq.__file__).parent.parent)
    failures = []
    for name in options.only:
        place = directory / name
        place.mkdir()
        command = [sys.executable, __file__, "--measure", name, "--dir", str(place), "--scale", str(options.scale)]
        command += ["--rounds", str(options.rounds), "--burst", str(options.burst)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            line, broken = f"{name:<10} failed with exit code {done.returncode}", ["it failed"]
        else:
            line, broken = judge(name, Found(**json.loads(done.stdout)))
        print(line, flush=True)
        failures += [f"{name}: {what}" for what in broken]
        shutil.rmtree(place)
    print("\n" + ("everything holds" if not failures else "does not hold: " + "; ".join(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
