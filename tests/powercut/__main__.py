"""`python -m tests.powercut --states 2000 [--seed N]`, `python -m tests.powercut --real 100 [--on ext4]`."""

from __future__ import annotations

import argparse
import sys
import time

from .simulate import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description="Power cuts against the guarantees.")
    parser.add_argument("--states", type=int, default=0, metavar="N", help="check N simulated states of the disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=int, default=0, metavar="N", help="cut the power N times on each file system (root)")
    parser.add_argument("--on", action="append", metavar="FS", help="only on this one of ext4, xfs, btrfs")
    options = parser.parse_args()
    failed = 0
    if options.states:
        start = time.monotonic()
        n, seen, failures = simulate(options.states, options.seed)
        for line in failures[:20]:
            print(line)
        names = {"w": "writes", "t": "truncates", "p": "punches", "c": "collapses", "se": "syncs"}
        did = ", ".join(f"{seen[key]} {name}" for key, name in names.items())
        seconds = time.monotonic() - start
        print(f"simulated: {n} states ({did}), {len(failures)} that break a promise, {seconds:.0f} s, seed {options.seed}")
        failed += len(failures)
    if options.real:
        from .real import FILE_SYSTEMS, cut_many

        for name in options.on or FILE_SYSTEMS:
            failed += cut_many(name, options.real, options.seed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
