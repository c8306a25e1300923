"""`durableq purge`: throw items away."""

from __future__ import annotations

import argparse
import sys

from durableq import failures
from durableq._leases import Taken
from durableq._queue import DurableQueue
from durableq.cli._command import DONE, FAILED, Command, counted, existing_spool, spool_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("--dead", action="store_true", help="throw away the dead letters instead of what waits")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask; without a terminal it never does")


def _run(options: argparse.Namespace) -> int:
    with DurableQueue(existing_spool(options.path), serializer="bytes") as queue:
        count = queue.dead_letters.qsize() if options.dead else queue.qsize()
        what = "dead letter" if options.dead else "item"
        question = f"throw away {counted(count, what)} of {queue.path}?"
        if count and not options.yes and sys.stdin and sys.stdin.isatty() and not _agrees(question):
            print("nothing was thrown away")
            return FAILED
        removed = _purge_dead(queue) if options.dead else queue.purge()
    print(f"{counted(removed, what)} thrown away")
    return DONE


def _agrees(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _purge_dead(queue: DurableQueue) -> int:
    removed = 0
    while True:
        box: list[Taken] = []
        if not queue._store.take_dead(box, 256, True):
            failures.sweep(queue)
            return removed
        removed += len(box)


COMMAND = Command(
    "purge",
    "throw away what waits in a queue, or its dead letters",
    _arguments,
    _run,
    "Items that were taken and are not done stay: who has them will say what becomes of them. On a terminal it asks first.",
    (
        ("durableq purge jobs.dq", "all that is ready or delayed, after a question"),
        ("durableq purge --dead --yes jobs.dq", "the dead letters, and the stories beside them"),
    ),
)
