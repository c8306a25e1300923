"""The list of subcommands."""

from __future__ import annotations

import importlib

from durableq.cli._command import Command

#: Every subcommand, in the order in which the help lists them. Each is `COMMAND` in the module of that name here.
COMMANDS = (
    *("put", "get", "run", "work", "stat", "peek", "map"),
    *("check", "purge", "redrive", "compact", "forward", "demo", "completion", "man"),
)


def command(name: str) -> Command:
    """The subcommand of that name. Raises KeyError."""
    if name not in COMMANDS:
        raise KeyError(name)
    found: Command = importlib.import_module(f"durableq.cli.{name}").COMMAND
    return found
