"""`durableq compact`: give back all disk space that can be, now."""

from __future__ import annotations

import argparse

from durableq._picture import human
from durableq._queue import DurableQueue
from durableq.cli._command import DONE, Command, existing_spool, spool_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)


def _run(options: argparse.Namespace) -> int:
    with DurableQueue(existing_spool(options.path), serializer="bytes") as queue:
        given = queue.compact()
        stats = queue.stats()
    print(f"{human(max(0, given))} given back; {human(stats.bytes_live)} live, {human(stats.bytes_on_disk)} on disk")
    return DONE


COMMAND = Command(
    "compact",
    "give back all disk space that can be given back, now",
    _arguments,
    _run,
    "A queue does this by itself as it goes along, in batches of a megabyte; this is for who cannot wait. Others may go on.",
    (("durableq compact jobs.dq", "and see with `durableq map jobs.dq` what is left"),),
)
