"""`durableq demo`: see `durableq.demo`."""

from __future__ import annotations

import argparse

from durableq.cli._command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    from durableq.demo import add_arguments

    add_arguments(parser)


def _run(options: argparse.Namespace) -> int:
    from durableq.demo import run

    return run(options)


COMMAND = Command(
    "demo",
    "count a library's functions with workers that get killed, and lose none",
    _arguments,
    _run,
    examples=(("durableq demo --dir demo", "keep the files, and carry on there when it was stopped"),),
)
