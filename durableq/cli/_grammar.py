"""What the command line can be, read from the parsers themselves: the source of completions and of the manual page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from durableq.cli._command import Command


class Option(NamedTuple):
    """An option of a subcommand."""

    names: Sequence[str]
    metavar: str | None
    """What its value is called; None: it takes none."""
    help: str
    choices: Sequence[str]


class Place(NamedTuple):
    """An argument that is known by its place."""

    metavar: str
    help: str
    optional: bool
    repeated: bool


class Grammar(NamedTuple):
    """A subcommand and what may follow it."""

    command: Command
    places: Sequence[Place]
    options: Sequence[Option]


def grammar(command: Command) -> Grammar:
    """The grammar of a subcommand."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show help and examples")
    command.arguments(parser)
    shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    places = [_place(action) for action in shown if not action.option_strings]
    return Grammar(command, places, [_option(action) for action in shown if action.option_strings])


def _place(action: argparse.Action) -> Place:
    return Place(_metavar(action), action.help or "", action.nargs in ("?", "*"), action.nargs in ("*", "+"))


def _option(action: argparse.Action) -> Option:
    choices = [str(choice) for choice in action.choices or ()]
    metavar = None if action.nargs == 0 else _metavar(action)
    return Option(action.option_strings, metavar, (action.help or "").replace("%%", "%"), choices)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper().replace("_", "-")
