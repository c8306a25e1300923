"""The command line of the death suite; see the package. Ends with a line of sums, and with 1 if anything was wrong."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from .cases import CASES
from .trial import Wrong, die_at, points


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.death", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every point of every operation")
    parser.add_argument("--stride", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=0, help="how many second deaths to try with each operation")
    parser.add_argument("--case", action="append", help="only this operation; may be given again")
    parser.add_argument("--at", type=int, help="only this point")
    parser.add_argument("--second", type=int, default=0, help="with --at: the point at which the second process dies")
    parser.add_argument("--stop", action="store_true", help="stop at the first thing that is wrong")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the queues live (default: a temporary folder)")
    options = parser.parse_args()
    stride = 1 if options.all else options.stride
    dice = random.Random(options.seed)
    deaths = pairs = wrong = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="durableq-death-", dir=options.folder) as parent:
        folder = Path(parent) / "queue"
        for case in CASES:
            if options.case and case.name not in options.case:
                continue
            n = points(case, folder)
            tries = [(at, 0) for at in range(1 + dice.randrange(stride), n + 1, stride)]
            tries += [(dice.randint(1, n), dice.randint(1, 1500)) for _ in range(options.pairs or 40 * options.all)]
            if options.at:
                tries = [(options.at, options.second)]
            bad = 0
            for at, second in tries:
                try:
                    met = die_at(case, folder, at, second)
                except Wrong as exc:
                    bad += 1
                    if bad <= 3 or options.at:
                        print(exc, file=sys.stderr, flush=True)
                    if options.stop:
                        return 1
                    continue
                deaths += not second
                pairs += bool(second) and met
            wrong += bad
            print(f"{case.name:36} {n:6} points  {len(tries):6} tried  {bad} wrong", flush=True)
    print(f"deaths={deaths} pairs={pairs} wrong={wrong} seconds={time.monotonic() - started:.0f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
