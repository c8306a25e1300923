"""The command line of the stress suite; see the package for what it does.

It ends with one line of sums and with exit code 1 if anything was lost or done twice; its files are kept.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

from .account import Tally
from .governor import rounds
from .plans import PLANS, by_name


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--kills", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--round", type=float, default=6.0, help="seconds of killing in each round")
    parser.add_argument("--plan", action="append", help="only this one; may be given again")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--folder", help="where the queues live (default: a temporary folder)")
    options = parser.parse_args()
    seconds = options.minutes * 60 + options.seconds or 20.0
    plans = [by_name(name) for name in options.plan] if options.plan else PLANS
    # Forking beside the threads of an open handle is one of the things under test.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    folder = Path(tempfile.mkdtemp(prefix="durableq-stress-", dir=options.folder))
    total, kills, started, bad = Tally(), 0, time.monotonic(), False
    each = min(options.round, seconds)
    for plan, seed, tally, killed in rounds(
        plans, folder, seconds=seconds, kills=options.kills, each=each, seed=options.seed
    ):
        kills += killed
        total.add(tally)
        state = "ok" if tally.ok else "FAILED"
        print(
            f"{time.monotonic() - started:6.0f} s  {plan.name:13} seed {seed}: puts={tally.puts} gets={tally.gets} "
            f"kills={killed} redelivered={tally.redelivered} undecided={tally.undecided} {state}",
            flush=True,
        )
        for heading, texts in (("LOST", tally.lost), ("TWICE", tally.twice), ("WRONG", tally.wrong)):
            for text in texts[:8]:
                print(f"    {heading} {text}")
            if len(texts) > 8:
                print(f"    {heading} and {len(texts) - 8} more")
        bad = bad or not tally.ok
    print(
        f"puts={total.puts} gets={total.gets} kills={kills} redelivered={total.redelivered} "
        f"undecided={total.undecided} lost={len(total.lost)} twice={len(total.twice)} wrong={len(total.wrong)} "
        f"in {time.monotonic() - started:.0f} s"
    )
    if bad:
        print(f"the files of the failed rounds are in {folder}")
        return 1
    folder.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
