"""What a subcommand of `durableq` is, and what all of them share: exit codes, failures, types of arguments.

A module `durableq/cli/NAME.py` has one object `COMMAND`, a `Command`, and its name stands in `_registry.COMMANDS`;
nothing else has to know of it: help, completion and the manual page are made from it. Such a module is imported for
`durableq NAME` and for the help, so at its top it imports little; `run` imports what it needs when it is called.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

__all__ = [
    "EXIT_CODES",
    "Command",
    "Failure",
    "counted",
    "duration",
    "existing_spool",
    "positive",
    "size",
    "spool_argument",
    "sync_argument",
    "sync_policy",
]

DONE, FAILED, USAGE, EMPTY, TIMED_OUT, DAMAGED, FULL = range(7)
INTERNAL = 70
ENDED_BY = 128
"""Plus the number of a signal: how a shell tells of a program that a signal ended."""
INTERRUPTED, PIPE_CLOSED = ENDED_BY + 2, ENDED_BY + 13

EXIT_CODES: dict[int, str] = {
    DONE: "it did what was asked",
    FAILED: "it could not: the file, the disk, or (run) a command that failed for good",
    USAGE: "the command line was wrong, or contradicts what the queue was created with",
    EMPTY: "there was nothing to take",
    TIMED_OUT: "nothing came within --timeout",
    DAMAGED: "the file is damaged",
    FULL: "the queue is full, and --on-full is fail",
    INTERNAL: "an error in durableq itself",
    INTERRUPTED: "interrupted from the keyboard (128 + SIGINT)",
    PIPE_CLOSED: "the reader of its output went away (128 + SIGPIPE)",
}


class Command(NamedTuple):
    """One subcommand."""

    name: str
    summary: str
    """One line, without a full stop."""
    arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the arguments to a parser."""
    run: Callable[[argparse.Namespace], int]
    """Does it and returns the exit code. What it raises becomes one line on stderr, see `durableq.cli`."""
    description: str = ""
    """What the help says below the summary; paragraphs are separated by an empty line."""
    examples: tuple[tuple[str, str], ...] = ()
    """Command lines as one would type them, each with what it does."""


class Failure(Exception):
    """A command cannot do what was asked; the message names the remedy. `code` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def tell(message: str) -> None:
    """Say something on stderr, if anybody listens."""
    if sys.stderr is None:  # it was closed, and `print` would write to stdout, among the items
        return
    with contextlib.suppress(OSError, ValueError):
        print(f"durableq: {message}", file=sys.stderr)


def counted(number: int, thing: str) -> str:
    """A number of things, in words: 1 command, 2 commands."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def existing_spool(path: str) -> str:
    """`path`, for commands that must not create the queue that they were asked about. Raises FileNotFoundError."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no queue here; check the path (a program creates it by opening it)")
    return path


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SPANS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def size(text: str) -> int:
    """A positive number of bytes: 4096, 64K, 10M, 2GiB (powers of 1024)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    amount = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if amount < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write a number of bytes such as 4096, 64K, 10M or 2G")
    return amount


def duration(text: str) -> float:
    """A number of seconds, not negative: 5, 0.25, 100ms, 10m, 2h, 1d."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|[smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write seconds such as 5 or 0.25, or 100ms, 10m, 2h, 1d")
    return float(found[1]) * _SPANS[found[2]]


def sync_policy(text: str) -> float | None:
    """The option `sync` of a queue: seconds, or "none"."""
    return None if text == "none" else duration(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def spool_argument(parser: argparse.ArgumentParser, *, created: bool = False) -> None:
    """Add PATH, as every command has it."""
    parser.add_argument("path", metavar="PATH", help="the spool file" + ("; created if it is not there" if created else ""))


def sync_argument(parser: argparse.ArgumentParser) -> None:
    """Add --sync, for commands that change the queue."""
    parser.add_argument(
        "--sync",
        metavar="TIME",
        type=sync_policy,
        default=1.0,
        help="the longest time that may be lost to a power cut: 0 for none at all, or `none` to leave it to the kernel (1s)",
    )
