"""The `durableq` command.

A subcommand is one entry in `COMMANDS`: its name, what it does, a function that adds its arguments to a parser, and one
that runs it and returns the exit code. Nothing else has to know of it. Each imports what it needs when it is called, so
that a short `durableq stat` does not pay for the others.

Whatever goes wrong becomes one line on stderr and an exit code, and never a traceback:

    0    it did what was asked
    1    it could not: the file, the disk, or a check that did not hold
    2    the command line was wrong (argparse)
    130  interrupted from the keyboard (128 + SIGINT)
    141  the reader of our output went away (128 + SIGPIPE)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from durableq.errors import DurableQError

if TYPE_CHECKING:
    from durableq import Stats

__all__ = ["main"]


class Command(NamedTuple):
    """One subcommand."""

    name: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit code."""
    try:
        # Parsing is inside as well: printing the help can meet a closed pipe too.
        options = _parser().parse_args(argv)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; that must not meet the broken pipe again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DurableQError, OSError) as error:
        _complain(str(error) or type(error).__name__)
        return 1


def _complain(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print("durableq: " + " ".join(message.split()), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="durableq", description="Durable queues in single files: they outlive kill -9 and reboots."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.summary, description=command.summary)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _existing_spool(path: str) -> str:
    """For commands that only look: they must not create the queue that they were asked about."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no queue here; check the path (a program creates it by opening it)")
    return path


# -- stat --------------------------------------------------------------------------------------------------------------


def _stat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the spool file")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _stat(options: argparse.Namespace) -> int:
    from durableq import DurableQueue

    with DurableQueue(_existing_spool(options.path)) as jobs:
        stats = jobs.stats()
    # We had it open ourselves to ask; whoever reads this wants to know of the others.
    stats = dataclasses.replace(stats, owners=tuple(owner for owner in stats.owners if owner.pid != os.getpid()))
    if options.json:
        print(json.dumps(dataclasses.asdict(stats)))
    else:
        print("\n".join(_stat_lines(stats)))
    return 0


def _stat_lines(stats: Stats) -> list[str]:
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


# -- demo --------------------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    from durableq.demo import add_arguments

    add_arguments(parser)


def _demo(options: argparse.Namespace) -> int:
    from durableq.demo import run

    return run(options)


#: Every subcommand, in the order in which the help lists them.
COMMANDS: tuple[Command, ...] = (
    Command("stat", "what is in a queue, what it takes on disk, and who has it open", _stat_arguments, _stat),
    Command("demo", "count a library's functions with workers that get killed, and lose none", _demo_arguments, _demo),
)
