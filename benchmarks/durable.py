"""What do durable puts cost, and do many producers share a sync? `python -m benchmarks.durable [--dir DIR] [--rounds 5]`

All in one run, in rounds A B C A B C, so that what else the machine does hits everything; medians of puts a second:

    raw 1, raw 8        processes that each append 152 bytes to one file and `fdatasync` it: the floor
    sync=0 1, sync=0 8  producers of 100-byte items on one queue
    slow 1, slow 8      the same with 5 ms added to each sync at the seam: a slow disk

What is held to: 1 producer at least 0.85 of 1 raw process; 8 producers at least 8 raw processes, and twice 1 producer;
on the slow disk 8 producers 6 times 1. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.common import environment
from durableq import DurableQueue, _os

ITEM = b"x" * 100
RECORD = b"x" * 152
SLOW = 0.005


def raw(folder: Path, start: Barrier, counts: multiprocessing.Queue[int], slow: bool, seconds: float) -> None:
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    start.wait()
    n, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        os.write(fd, RECORD)
        os.fdatasync(fd)
        n += 1
    counts.put(n)


def producer(folder: Path, start: Barrier, counts: multiprocessing.Queue[int], slow: bool, seconds: float) -> None:
    if slow:
        sync = _os.fdatasync

        def slow_sync(fd: int) -> None:
            time.sleep(SLOW)
            sync(fd)

        _os.fdatasync = slow_sync
    queue = DurableQueue(folder / "q.dq", sync=0)
    start.wait()
    n, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        queue.put(ITEM)
        n += 1
    counts.put(n)
    queue.close()


SUBJECTS = {
    "raw 1": (raw, 1, False),
    "raw 8": (raw, 8, False),
    "sync=0 1": (producer, 1, False),
    "sync=0 8": (producer, 8, False),
    "slow 1": (producer, 1, True),
    "slow 8": (producer, 8, True),
}
WANTED = [("sync=0 1", "raw 1", 0.85), ("sync=0 8", "raw 8", 1.0), ("sync=0 8", "sync=0 1", 2.0), ("slow 8", "slow 1", 6.0)]


def once(name: str, directory: str | None, seconds: float) -> float:
    work, processes, slow = SUBJECTS[name]
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        start, counts = multiprocessing.Barrier(processes), multiprocessing.Queue()
        workers = [
            multiprocessing.Process(target=work, args=(Path(folder), start, counts, slow, seconds)) for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        total = sum(counts.get() for _ in workers)
        for worker in workers:
            worker.join()
    return total / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each of them puts in a round (1)")
    options = parser.parse_args()
    print(f"{environment(Path(options.dir or tempfile.gettempdir()))}, items of {len(ITEM)} B")
    rounds = [{name: once(name, options.dir, options.seconds) for name in SUBJECTS} for _ in range(options.rounds)]
    median = {name: statistics.median(r[name] for r in rounds) for name in SUBJECTS}
    for name, rate in median.items():
        print(f"{name:10} {rate:10,.0f} puts/s")
    missed = 0
    for name, other, least in WANTED:
        ratio = median[name] / median[other]
        missed += ratio < least
        print(f"{name} / {other}: {ratio:.2f} (wanted: {least}) {'ok' if ratio >= least else 'MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
