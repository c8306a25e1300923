"""`durableq stat`: what is in a queue, what it takes on disk, and who has it open."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING

from durableq.cli._command import Command, existing_spool

if TYPE_CHECKING:
    from durableq import Stats


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the spool file")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _run(options: argparse.Namespace) -> int:
    from durableq import DurableQueue

    with DurableQueue(existing_spool(options.path)) as jobs:
        stats = jobs.stats()
    # We had it open ourselves to ask; whoever reads this wants to know of the others.
    stats = dataclasses.replace(stats, owners=tuple(owner for owner in stats.owners if owner.pid != os.getpid()))
    if options.json:
        print(json.dumps(dataclasses.asdict(stats)))
    else:
        print("\n".join(_lines(stats)))
    return 0


def _lines(stats: Stats) -> list[str]:
    from durableq._picture import human

    lines = [
        f"{stats.path}",
        f"  items    {stats.ready} ready, {stats.lent} lent, {stats.delayed} delayed, {stats.dead} dead letters",
        f"  ever     {stats.puts} put, {stats.drops} dropped, {stats.damaged} damaged ({human(stats.damaged_bytes)})",
        f"  bytes    {human(stats.bytes_live)} live, {human(stats.bytes_on_disk)} on disk, {human(stats.bytes_logical)} long",
    ]
    if stats.oldest is not None:
        age = max(0.0, time.time() - stats.oldest)
        lines.append(f"  oldest   waits since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(stats.oldest))} ({age:.0f} s)")
    for owner in stats.owners:
        waits = ", waiting" if owner.waiting else ""
        lines.append(f"  held by  {owner.pid} {owner.command}: {owner.lent} lent{waits}")
    return lines


COMMAND = Command(
    "stat",
    "what is in a queue, what it takes on disk, and who has it open",
    _arguments,
    _run,
    examples=(("durableq stat jobs.dq", "counts, bytes, and the processes that have the queue open"),),
)
