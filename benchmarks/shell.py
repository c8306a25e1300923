"""How fast are `durableq put` and `durableq get` beside a plain loop and `cat`? `python -m benchmarks.shell [--rounds 3]`

All in one run, in rounds A B C A B C; medians, each from the start of the program to its end, with files at both ends:

    loop              Python: `for line in sys.stdin.buffer: out.write(line)`
    put, get          the same lines into a queue and out of it
    cat               a stream of bytes into a file
    put block         the stream into a queue, by `put --framing block`
    get raw           and out of it, by `get --raw`

What comes out is compared with what went in. `put` and `get` have their default options: both end when all is on the disk,
which neither the loop nor `cat` waits for. What is held to: lines, 0.15 of the loop; bytes, 0.3 of `cat`. Exit code 1 if that
does not hold.
"""

from __future__ import annotations

import argparse
import filecmp
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Failed, Figures, environment, medians

LOOP = "import sys; out = sys.stdout.buffer\nfor line in sys.stdin.buffer: out.write(line)"
DURABLEQ = (sys.executable, "-m", "durableq")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Programs start from compiled files, as what pip has installed does; no run is to compile them anew."""
LINES, BYTES = 0.15, 0.3
"""Shares of the plain loop and of `cat` that are held to."""


def touch_memory(size: int) -> None:
    """Use so much memory and let go of it, so that no run waits for what a virtual machine gets from its host first."""
    with mmap.mmap(-1, max(size, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


class Place:
    """A folder with what goes in, and where what comes out is compared with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.queue = folder / "q.dq"

    def timed(self, source: Path, *command: str) -> float:
        """The seconds of a command from `source` to `out`, in which nothing is before, nor after; of `get`, from the queue."""
        self.out.unlink(missing_ok=True)
        touch_memory(3 * max(source.stat().st_size, self.queue.stat().st_size if self.queue.exists() else 0))
        with source.open("rb") as stdin, self.out.open("wb") as stdout:
            began = time.perf_counter()
            subprocess.run(command, stdin=stdin, stdout=stdout, check=True, env=ENVIRONMENT)
            return time.perf_counter() - began

    def through(self, source: Path, *plain: str, framing: tuple[str, ...], raw: tuple[str, ...]) -> Iterator[float]:
        """The seconds of the plain program, of `put`, and of `get`, whose output must be `source` again."""
        yield self.timed(source, *plain)
        yield self.timed(source, *DURABLEQ, "put", str(self.queue), *framing)
        yield self.timed(Path(os.devnull), *DURABLEQ, "get", str(self.queue), *raw)
        if not filecmp.cmp(source, self.out, shallow=False):
            raise Failed(f"what came out of {self.queue} is not what went in")
        self.out.unlink()
        for path in self.folder.glob("q.dq*"):
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--lines", type=int, default=2_000_000, help="short lines a run (2 million)")
    parser.add_argument("--mib", type=int, default=1024, help="MiB of the stream of bytes (1024)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(environment(options.dir or Path(tempfile.gettempdir())), flush=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        try:
            found = measure(Place(Path(name)), options.lines, options.mib, options.rounds)
        except Failed as failure:
            print(failure)
            return 1
    return judge(found, options.lines, options.mib)


def measure(place: Place, lines: int, mib: int, rounds: int) -> Figures:
    """Medians of seconds."""
    short, stream = place.folder / "lines", place.folder / "stream"
    short.write_bytes(b"".join(b"event number %d\n" % n for n in range(lines)))
    stream.write_bytes(os.urandom(1 << 20) * mib)
    found = []
    for _ in range(rounds):
        loop, put, get = place.through(short, sys.executable, "-c", LOOP, framing=(), raw=())
        cat, block, raw = place.through(stream, "cat", framing=("--framing", "block"), raw=("--raw",))
        found.append({"loop": loop, "put": put, "get": get, "cat": cat, "put block": block, "get raw": raw})
    return medians(found)


def judge(seconds: Figures, lines: int, mib: int) -> int:
    missed = False
    for plain, share, subjects, amount, unit in (
        ("loop", LINES, ("put", "get"), lines, "lines/s"),
        ("cat", BYTES, ("put block", "get raw"), mib, "MiB/s"),
    ):
        print(f"{plain:12}{amount / seconds[plain]:12,.0f} {unit}")
        for name in subjects:
            ratio = seconds[plain] / seconds[name]
            missed |= ratio < share
            verdict = "ok" if ratio >= share else "MISSED"
            print(f"{name:12}{amount / seconds[name]:12,.0f} {unit:8} {ratio:6.2f} of {plain} (wanted: {share}) {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
