"""What do consumers cost that wait on an empty queue? `python -m benchmarks.idle [--consumers 8] [--seconds 20]`

That many processes wait in `get()` on one queue, and as many, started in turn with them, in a loop of `time.sleep(0.1)`: the
least that anything can cost that looks ten times a second. Processor seconds of each for so many seconds, in percent of a
core. What is held to: the median consumer costs less than 0.1 %. Exit code 1 if that does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import environment

LIMIT = 0.1
WAITING = "import sys; from durableq import DurableQueue; q = DurableQueue(sys.argv[1]); print(flush=True); q.get()"
SLEEPING = "import time; print(flush=True)\nwhile True: time.sleep(0.1)"


def used(process: subprocess.Popen[bytes]) -> float:
    """Nanoseconds that the processor has worked for this process."""
    # psutil counts in ticks of 10 ms, which is more than there is to be measured.
    return float(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])


def measure(path: Path, consumers: int, seconds: float) -> dict[str, list[float]]:
    """Percent of a core of each process, by what it does."""
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        for _ in range(consumers):
            for what, code in (("get", WAITING), ("sleep", SLEEPING)):
                process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
                started.append((what, process))
        for _, process in started:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(2)  # those that have just come to an empty queue still look around
        before = [used(process) for _, process in started]
        time.sleep(seconds)
        after = [used(process) for _, process in started]
    finally:
        for _, process in started:
            process.kill()
            process.communicate()
    found: dict[str, list[float]] = {"get": [], "sleep": []}
    for (what, _), first, last in zip(started, before, after, strict=True):
        found[what].append((last - first) / seconds / 1e7)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consumers", type=int, default=8, help="processes that wait (8)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long they are watched (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        print(environment(Path(directory)), flush=True)
        found = measure(Path(directory) / "q.dq", options.consumers, options.seconds)
    for what, name in (("get", "get() on an empty queue"), ("sleep", "time.sleep(0.1) in a loop")):
        median, most = statistics.median(found[what]), max(found[what])
        print(f"{name:28} {median:6.3f} % of a core each, at most {most:.3f} %")
    holds = statistics.median(found["get"]) < LIMIT
    print(f"under {LIMIT} %: {'ok' if holds else 'MISSED'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
