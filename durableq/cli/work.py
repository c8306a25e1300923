"""`durableq work`: see `durableq.pool`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

from durableq.cli._command import DONE, FAILED, INTERRUPTED, USAGE, Command, Failure, duration, positive, size


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the spool file; created if there is none")
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="what to call with each item; found from here as well")
    parser.add_argument("-j", "--processes", type=positive, metavar="N", help="workers (default: one for each CPU)")
    parser.add_argument("--results", metavar="PATH", help="the queue that gets what the function returns, with the item's id")
    parser.add_argument("--until-empty", action="store_true", help="end when everything is done")
    parser.add_argument("--max-deliveries", type=positive, default=5, metavar="N", help="then an item is a dead letter (5)")
    parser.add_argument("--backoff", type=duration, default=1.0, metavar="TIME", help="before the second try; then doubled")
    parser.add_argument("--batch", type=positive, metavar="N", help="call the function with a list of up to N items")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="for one call; then its worker is killed")
    parser.add_argument("--lease", type=duration, metavar="TIME", help="after which the item of a hung worker is another's")
    parser.add_argument("--grace", type=duration, default=30.0, metavar="TIME", help="to finish in when told to stop (30s)")
    parser.add_argument("--max-memory", type=size, metavar="SIZE", help="of a worker; then it is replaced after its item")
    parser.add_argument("--max-items", type=positive, metavar="N", help="of a worker; then it is replaced")
    parser.add_argument("--sync", type=_sync, default=1.0, metavar="TIME", help="what a power cut may cost; or none (1s)")
    parser.add_argument("--serializer", choices=("pickle", "json", "bytes"), default="pickle", help="of the items (pickle)")
    parser.add_argument("--start-method", choices=("spawn", "forkserver", "fork"), default="spawn", help="of workers (spawn)")
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        default="INFO",
        help="what to log on stderr (INFO): one line for each event; DEBUG: for each item as well",
    )


def _run(options: argparse.Namespace) -> int:
    from durableq.pool import Backoff, WorkerPool

    logging.basicConfig(
        level=options.log_level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr
    )
    # Where the user is comes first, as with `python -m`; workers get this path, too.
    sys.path.insert(0, os.getcwd())
    try:
        pool = WorkerPool(
            options.path,
            _find(options.function),
            options.processes,
            max_deliveries=options.max_deliveries,
            backoff=Backoff(options.backoff),
            lease=options.lease,
            results=options.results,
            batch=options.batch,
            timeout=options.timeout,
            max_memory=options.max_memory,
            max_items=options.max_items,
            grace=options.grace,
            start_method=options.start_method,
            serializer=options.serializer,
            sync=options.sync,
            progress=sys.stderr,
        )
    except (TypeError, ValueError) as error:
        raise Failure(str(error), USAGE) from error
    tally = pool.run(until_empty=options.until_empty)
    if tally.ended == signal.Signals.SIGINT.name:
        return INTERRUPTED
    return FAILED if options.until_empty and tally.dead else DONE


def _sync(text: str) -> float | None:
    return None if text == "none" else duration(text)


def _find(name: str) -> Callable[[Any], Any]:
    """The function of "module:function"; the part behind the colon may have dots."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise Failure(f"{name!r}: write MODULE:FUNCTION, as in mypackage.jobs:handle", USAGE)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise Failure(f"{module_name} cannot be imported: {_told(error)}") from error
        raise Failure(f"there is no module {error.name!r} on the path ({os.getcwd()} comes first in it)", USAGE) from error
    except (Exception, SystemExit) as error:  # anything can happen while a module is run
        raise Failure(f"{module_name} cannot be imported: {_told(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise Failure(f"{module_name} has no {path!r}; it must be a function at its top level", USAGE)
        found = getattr(found, part)
    return cast(Callable[[Any], Any], found)


def _told(error: BaseException) -> str:
    """What it is, and where in the user's module it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


COMMAND = Command(
    "work",
    "call a function of yours with each item, in worker processes that are replaced when they die",
    _arguments,
    _run,
    """\
An item is done when the function has returned. If it raises, the item comes again, later and later; if its worker dies, it
comes again at once; after --max-deliveries it is with the dead letters, and what happened is told beside it (in
PATH-failures). Killed and started again, it goes on where it was.

SIGTERM and Ctrl-C: no more items are taken, and what runs has --grace to finish; the second time it is given back at once.
A terminal that is closed counts as the first time, unless nohup is there. On a terminal it shows what it is doing. TIME is in
seconds, or as in 100ms, 10m, 2h; SIZE as in 500M.""",
    (
        ("durableq work jobs.dq shop.jobs:handle -j 4", "four workers that call handle(item) of shop/jobs.py"),
        ("durableq work jobs.dq jobs:resize --results done.dq --until-empty", "work it off, keep what resize() returns"),
        ("durableq work jobs.dq jobs:fetch --timeout 60 --max-memory 500M", "nothing may hang, nobody may grow"),
    ),
)
