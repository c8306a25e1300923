"""`durableq check`: is every record of a spool whole; and mending a spool that is not."""

from __future__ import annotations

import argparse
import dataclasses
import json

from durableq._check import Damage, Report, check, repair
from durableq._picture import human
from durableq.cli._command import DAMAGED, DONE, Command, counted, existing_spool, spool_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("--repair", action="store_true", help="mend it, if nobody has it open; a copy is made first")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _run(options: argparse.Namespace) -> int:
    path = existing_spool(options.path)
    report = repair(path) if options.repair else check(path)
    print(_as_json(report) if options.json else "\n".join(_lines(report)))
    return DONE if report.ok else DAMAGED


def _as_json(report: Report) -> str:
    found = dataclasses.asdict(report)
    for name in ("damaged", "torn"):
        found[name] = [damage._asdict() for damage in getattr(report, name)]
    return json.dumps(found)


def _lines(report: Report) -> list[str]:
    counts = f"{report.waiting} waiting or lent, {report.delayed} delayed, {counted(report.dead, 'dead letter')}"
    lines = [f"{report.path}: {'sound' if report.ok else 'damaged'}", f"  items    {counts}"]
    lines.append(f"  bytes    {human(report.size)} long, {human(report.holes)} of them given back to the disk")
    lines += _places("damaged", report.damaged)
    lines += _places("torn", report.torn)
    if report.backup is not None:
        lines.append(f"  mended   what was damaged is in {report.path}-damaged, the spool as it was in {report.backup}")
    elif not report.ok:
        lines.append(f"  remedy   nothing else is lost; `durableq check --repair {report.path}` mends it, after a copy")
    return lines


def _places(what: str, places: tuple[Damage, ...]) -> list[str]:
    lines = [f"  {what:8} {place.length} bytes at offset {place.offset}: {place.reason}" for place in places[:20]]
    return [*lines, f"           and {len(places) - 20} places more"] if len(places) > 20 else lines


COMMAND = Command(
    "check",
    "read all of a queue and say whether anything is damaged; or mend it",
    _arguments,
    _run,
    """\
Every record has checksums. Checking changes nothing and may be done while the queue is in use; exit code 5 if something is
damaged. "Torn" is what a power cut broke off: it was not promised, and the next program that opens the queue clears it away.

--repair keeps damaged bytes in PATH-damaged, and the whole spool as it was in PATH-backup; all other items stay. Nobody may
have the queue open.""",
    (
        ("durableq check jobs.dq", "all of it is read"),
        ("durableq check --repair jobs.dq", "mend it"),
        ("durableq check --json jobs.dq | jq '.damaged[].offset'", "for a script"),
    ),
)
