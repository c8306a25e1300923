"""`durableq redrive`: another chance for the dead letters."""

from __future__ import annotations

import argparse

from durableq._queue import DurableQueue
from durableq.cli._command import DONE, Command, counted, existing_spool, spool_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)


def _run(options: argparse.Namespace) -> int:
    with DurableQueue(existing_spool(options.path), serializer="bytes") as queue:
        number = queue.redrive()
    print(f"{counted(number, 'dead letter')} {'is' if number == 1 else 'are'} back in the queue")
    return DONE


COMMAND = Command(
    "redrive",
    "put all dead letters back into the queue, as if they had never been delivered",
    _arguments,
    _run,
    "They come before what waits, as they are older.",
    (("durableq redrive jobs.dq", "once what was wrong with them has been mended"),),
)
