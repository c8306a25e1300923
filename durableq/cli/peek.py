"""`durableq peek`: what comes next, who has what, and why the dead letters are dead; nothing is taken."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from durableq import failures
from durableq._leases import DEAD_CODE, MAX_COUNT, RETURNED_CODE, Taken
from durableq._progress import duration, printable
from durableq._queue import DurableQueue
from durableq.cli._command import DONE, EMPTY, Command, Failure, existing_spool, positive, spool_argument
from durableq.cli._items import Shower


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("-n", type=positive, default=10, metavar="N", dest="most", help="show up to N items (10)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dead", action="store_true", help="the dead letters, and what happened to them")
    which.add_argument("--lent", action="store_true", help="what was taken and is not done, and who has it")
    parser.add_argument("--json", action="store_true", help="one JSON object on each line, for programs")
    parser.add_argument("--unpickle", action="store_true", help="unpickle items of Python programs: this runs their code")


def _run(options: argparse.Namespace) -> int:
    with DurableQueue(existing_spool(options.path), serializer="bytes") as queue:
        shower = Shower(queue._store, unpickle=options.unpickle, as_json=True)
        stories = failures.read(queue) if options.dead else {}
        found = _found(queue, options)
        for pid, taken in found:
            story = stories.get(queue._store.name(taken[0]))
            if options.json:
                print(json.dumps(_described(shower, taken, pid, story)))
            else:
                print("\n".join(_lines(shower, queue, taken, pid, story)))
    return DONE if found else EMPTY


def _found(queue: DurableQueue, options: argparse.Namespace) -> Sequence[tuple[int | None, Taken]]:
    if options.lent:
        queue._store.reap()
        return queue._store.peek_lent(options.most)[: options.most]
    return [(None, taken) for taken in queue._store.peek(options.most, DEAD_CODE if options.dead else RETURNED_CODE)]


def _described(shower: Shower, taken: Taken, pid: int | None, story: failures.Failure | None) -> dict[str, Any]:
    try:
        found = shower.described(taken)
    except Failure:  # a pickle: what is known of it can be told all the same
        found = shower.about(taken)
    if pid is not None:
        found["pid"] = pid
    if story is not None:
        found["failure"] = {name: getattr(story, name) for name in ("reason", "details", "time", "host", "pid")}
    return found


def _lines(shower: Shower, queue: DurableQueue, taken: Taken, pid: int | None, story: failures.Failure | None) -> list[str]:
    """An item in one line as wide as the terminal, and below it what happened to it."""
    position, _, count, _, enqueued, _ = taken
    deliveries = count & MAX_COUNT
    facts = [f"{duration(max(0.0, time.time() - enqueued / 1e6))} old"]
    if deliveries:
        facts.append(f"{deliveries}x")
    if pid is not None:
        facts.append(f"with {pid}")
    line = f"{queue._store.name(position)}  {', '.join(facts)}  "
    room = shutil.get_terminal_size().columns - 1 - len(line) if sys.stdout.isatty() else 200
    text = shower.short(taken)
    lines = [line + (text if len(text) <= room else text[: max(8, room - 3)] + "...")]
    if story is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(story.time))
        lines.append(f"    {printable(story.reason)} ({when}, {story.host}, {story.pid})")
        lines += [f"    | {printable(told)}" for told in story.details.splitlines()[-5:]]
    return lines


COMMAND = Command(
    "peek",
    "look at the items that come next, and leave them",
    _arguments,
    _run,
    """\
One line for each item: its id, its age, how often it was delivered, and the beginning of it as text. For the whole of the
items see `durableq get --keep`. Exit code 3: there are none.""",
    (
        ("durableq peek jobs.dq", "the next ten items"),
        ("durableq peek --dead -n 100 jobs.dq", "dead letters, each with the exit code or traceback, and the end of stderr"),
        ("durableq peek --lent jobs.dq", "what is being worked on, and by whom"),
    ),
)
