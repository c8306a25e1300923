"""How durableq compares with what it replaces: `python -m benchmarks [--quick] [--only fifo,drain] [--dir DIR]`"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.common import environment, take_turns
from benchmarks.peers import Peer
from benchmarks.works import GROUPS, WORKS, Work


def report(work: Work, options: argparse.Namespace, directory: Path) -> bool:
    counts: dict[type[Peer], int] = {}

    def measure(subject: type[Peer]) -> dict[str, float]:
        if subject not in counts:
            counts[subject] = work.count_for(subject, directory, options.seconds)
        return work.run(subject, directory, counts[subject])

    found, failed = take_turns(work.subjects, options.rounds, measure)
    print(f"\n{work.name}")
    first = next(iter(found.values()))["rate"]
    for subject, figures in found.items():
        ratio = first / figures["rate"]
        print(f"  {subject.name:32} {figures['rate']:12,.0f}/s {figures['cpu']:8.2f} CPU s/million   {ratio:8.2f} x", flush=True)
    for subject, why in failed.items():
        print(f"  {subject.name:32} FAILED: {why}")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=",".join(GROUPS))
    parser.add_argument("--dir")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.2 if options.quick else 1.5)
    only = options.only.split(",") if options.only else GROUPS
    ok = True
    with tempfile.TemporaryDirectory(prefix="durableq-bench-", dir=options.dir) as directory:
        print(environment(Path(directory)))
        for work in WORKS:
            if work.group in only:
                ok &= report(work, options, Path(directory))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
