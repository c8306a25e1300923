"""`durableq map`: a picture of the file, to scale."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time

from durableq._map import Map, as_text, survey, text_width
from durableq._picture import BLOCKS, symbols_for
from durableq._queue import DurableQueue
from durableq.cli._command import DONE, USAGE, Command, Failure, duration, existing_spool, spool_argument

_LINES = 16
"""Lines of cells, at most."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="draw it again and again, until Ctrl-C")
    parser.add_argument("--every", type=duration, default=1.0, metavar="TIME", help="with --watch: how often (1s)")
    parser.add_argument("--svg", metavar="FILE", help="write the picture to FILE as SVG; - for stdout")
    parser.add_argument("--ascii", action="store_true", help="plain ASCII without colours, as where there is nothing better")


def _run(options: argparse.Namespace) -> int:
    if options.watch and options.svg:
        raise Failure("--svg draws one moment: leave --watch away", USAGE)
    with DurableQueue(existing_spool(options.path), serializer="bytes") as queue:
        if options.svg:
            _write_svg(queue, options.svg)
        elif options.watch:
            _watch(queue, options)
        else:
            print("\n".join(_drawn(queue, options)))
    return DONE


def _drawn(queue: DurableQueue, options: argparse.Namespace) -> list[str]:
    columns = shutil.get_terminal_size().columns
    unicode = not options.ascii and symbols_for(sys.stdout) == BLOCKS
    colours = not options.ascii and _has_colours()
    picture = Map.of(survey(queue), text_width(columns) * _LINES)
    return as_text(picture, columns, unicode=unicode, colours=colours)


def _has_colours() -> bool:
    # https://no-color.org
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")


def _watch(queue: DurableQueue, options: argparse.Namespace) -> None:
    drawn = 0
    while True:
        lines = _drawn(queue, options)
        if sys.stdout.isatty():
            # Back to where the last one began, and what it leaves uncovered is cleared.
            sys.stdout.write(f"\x1b[{drawn}A\r\x1b[J" if drawn else "")
        elif drawn:
            sys.stdout.write("\n")
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
        drawn = len(lines)
        time.sleep(options.every)


def _write_svg(queue: DurableQueue, name: str) -> None:
    from durableq._map_svg import COLUMNS, as_svg

    picture = as_svg(Map.of(survey(queue), COLUMNS * _LINES))
    if name == "-":
        print(picture, end="")
        return
    if os.path.realpath(name) == queue.path:
        raise Failure(f"{name}: that is the queue itself; give the picture another name", USAGE)
    with open(name, "w", encoding="utf-8") as file:
        file.write(picture)


COMMAND = Command(
    "map",
    "draw a picture of the file: what lies where, and what was given back to the disk",
    _arguments,
    _run,
    """\
To scale, from the front of the file to its end, in lines; each cell shows the most remarkable thing that lies in it. Items are
taken at the head and put at the tail. What was taken and is not done, was given back, waits for its time or is dead stays where
it is, and holds its own block; all around it goes back to the file system, and is a hole in the file.""",
    (
        ("durableq map jobs.dq", "where everything lies"),
        ("durableq map --watch jobs.dq", "watch the space come back"),
        ("durableq map --svg jobs.svg jobs.dq", "a picture for a browser"),
    ),
)
