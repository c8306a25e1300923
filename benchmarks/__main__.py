"""How fast durableq is, against what it replaces: `python -m benchmarks [--quick] [--only fifo,drain] [--plot] [--readme]`

All subjects of one piece of work take turns in rounds, A B C A B C; what is printed are medians, and ratios of medians. Every
message is checked to arrive once and intact: a subject that fails that has no figures. CPU seconds are those of all processes
of a run, a server's too. `pip install 'durableq[bench]'` brings the peers from PyPI; whichever is missing is listed.

--quick has shorter runs and fewer of them, and is done in under two minutes. Its runs are too short for a sync to come due
under the default `sync=1.0`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import Figures, environment, take_turns
from benchmarks.matrix import GROUPS, TARGETS, WORKS
from benchmarks.peers import Peer
from benchmarks.report import Result, judge, lines, markdown, summary, write_into
from benchmarks.works import Work

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PACKAGES = ("faster-fifo", "persist-queue", "litequeue", "diskcache", "huey", "redis")


def measure(work: Work, wanted: Callable[[type[Peer]], bool], directory: Path, rounds: int, seconds: float) -> Result:
    """Do one piece of work, in rounds of so many seconds."""
    result = Result(work)
    subjects = []
    for peer in filter(wanted, work.subjects):
        if remedy := peer.missing():
            result.missing[peer] = remedy
        else:
            subjects.append(peer)
    counts: dict[type[Peer], int] = {}

    def run(peer: type[Peer]) -> Figures:
        if peer not in counts:
            counts[peer] = work.count_for(peer, directory, seconds)
        return work.run(peer, directory, counts[peer])

    result.figures, result.failed = take_turns(subjects, 1 if work.steady else rounds, run)
    return result


def versions() -> str:
    """The peers that are there, in one line."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("redis-server"):
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
        found += [f"redis-server {word[2:]}" for word in said.split() if word.startswith("v=")]
    return ", ".join(found)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="everything in under two minutes")
    parser.add_argument("--only", type=_groups, default=GROUPS, metavar="WORK,...", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--peers", metavar="WORD,...", help="only these and durableq: any peers whose names contain a word")
    parser.add_argument("--dir", help="a directory on the disk to measure (default: that of temporary files)")
    parser.add_argument("--rounds", type=_positive(int), help="rounds of each piece of work (default: 5, or 3 if --quick)")
    parser.add_argument("--seconds", type=_positive(float), help="about so long is a run (default: 1.5, or 0.12 if --quick)")
    parser.add_argument("--plot", action="store_true", help=f"draw bar charts: PNG files in {HERE.name}/")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.12 if options.quick else 1.5)
    if options.dir and not Path(options.dir).is_dir():
        parser.error(f"argument --dir: {options.dir} is not a directory; create it first")
    if options.readme:
        try:
            write_into(README, None)
        except (OSError, ValueError) as exc:
            parser.error(f"argument --readme: {exc}")
    return options


def _groups(text: str) -> tuple[str, ...]:
    groups = tuple(text.split(","))
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no work {', '.join(unknown)}; there is {', '.join(GROUPS)}")
    return groups


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    number.__name__ = "number"  # argparse names it when the text is none
    return number


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.plot:
        from benchmarks import plot  # before all the work: it may be that matplotlib is missing
    words = options.peers.split(",") if options.peers else [""]

    def wanted(peer: type[Peer]) -> bool:
        return any(word in peer.name for word in ["durableq", *words])

    began = time.monotonic()
    results: dict[Work, Result] = {}
    with tempfile.TemporaryDirectory(prefix="durableq-bench-", dir=options.dir) as directory:
        timing = f"medians of {options.rounds} rounds, {options.seconds:g} s a run"
        heading = f"{environment(Path(directory))}; {versions()}; {timing}"
        print(heading)
        for work in WORKS:
            if work.group in options.only:
                results[work] = measure(work, wanted, Path(directory), options.rounds, options.seconds)
                print("", *lines(results[work]), sep="\n", flush=True)
    verdicts = judge(TARGETS, results)
    print("\nTargets", *summary(verdicts), sep="\n")
    print(f"\n{time.monotonic() - began:.0f} s")
    if options.plot:
        print("drawn:", *plot.draw(results.values(), HERE))
    if options.readme:
        write_into(README, markdown(heading, results.values(), verdicts))
    ours = [peer for result in results.values() for peer in result.failed if peer.name.startswith("durableq")]
    return 1 if ours or any(verdict.reached is False for verdict in verdicts) else 0


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)  # by exception, so that what was started is stopped on the way


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what was started has been stopped")
