"""The command line of the real run; see the package. It ends with one line of sums, and with exit code 1 if any is wrong."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .account import take
from .governor import Governor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pool_run", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=0.3, help="mean seconds between two kills of a worker")
    parser.add_argument("--seconds", type=float, default=300.0, help="give up after so long")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--folder", help="where the queues live (default: a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="durableq-pool-", dir=options.folder))
    started = time.monotonic()
    until = started + options.seconds
    governor = Governor(folder, options.items, options.workers, options.kill_every, options.seed, until=until)
    governor.run()
    worked = time.monotonic() - started
    account = take(governor.jobs, governor.results, options.items, governor.log.read_text())
    for text in account.wrong[:20]:
        print(f"    WRONG {text}")
    deaths = governor.deaths
    print(
        f"items={account.queued} done={account.done} dead={account.dead} twice={account.twice} wrong={len(account.wrong)} "
        f"pools_killed={deaths.pools} workers_killed={deaths.workers} "
        f"in_hand={account.in_hand} seed={options.seed} in {worked:.0f} s"
    )
    if account.wrong:
        print(f"the files of the run are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
