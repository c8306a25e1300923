"""`durableq stat`: what is in a queue, what it takes on disk, and who has it open."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Any

from durableq.cli._command import DONE, USAGE, Command, Failure, counted, duration, existing_spool, spool_argument

if TYPE_CHECKING:
    from durableq import DurableQueue, Stats
    from durableq._delivery import Peeked


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", action="store_true", help="one JSON object, for programs")
    kinds.add_argument("--prometheus", action="store_true", help="as Prometheus metrics, for a text file collector")
    parser.add_argument("-w", "--watch", action="store_true", help="show it again and again, with rates, until Ctrl-C")
    parser.add_argument("--unpickle", action="store_true", help="with --watch: show items of Python programs: runs their code")
    parser.add_argument("--every", type=duration, default=1.0, metavar="TIME", help="with --watch: how often (1s)")


def _run(options: argparse.Namespace) -> int:
    from durableq._queue import DurableQueue

    if options.watch and options.prometheus:
        raise Failure("--prometheus shows one moment: leave --watch away", USAGE)
    if options.unpickle and not options.watch:
        raise Failure("--unpickle shows what each process is on, which --watch does: add it", USAGE)
    serializer = "pickle" if options.unpickle else "bytes"
    with DurableQueue(existing_spool(options.path), serializer=serializer) as queue:
        if options.watch:
            _watch(queue, options)
        elif options.json:
            print(json.dumps(_described(queue)))
        elif options.prometheus:
            from durableq.integrations._metrics import exposition

            print(exposition([_of_others(queue.stats())]), end="")
        else:
            print("\n".join(_lines(_of_others(queue.stats()), _lent(queue))))
    return DONE


def _of_others(stats: Stats) -> Stats:
    """We have it open ourselves to ask; whoever reads this wants to know of the others."""
    return dataclasses.replace(stats, owners=tuple(owner for owner in stats.owners if owner.pid != os.getpid()))


def _lent(queue: DurableQueue) -> dict[int | None, Peeked]:
    """The oldest item that each process has."""
    return {peeked.pid: peeked for peeked in reversed(queue.peek_lent())}


def _described(queue: DurableQueue) -> dict[str, Any]:
    found = dataclasses.asdict(_of_others(queue.stats()))
    lent = _lent(queue)
    for owner in found["owners"]:
        oldest = lent.get(owner["pid"])
        owner["oldest"] = oldest and {"id": oldest.id, "deliveries": oldest.deliveries, "put": oldest.enqueued_at}
    return found


def _watch(queue: DurableQueue, options: argparse.Namespace) -> None:
    from durableq import _progress

    if not options.json:
        _progress.watch(queue, interval=options.every)
    looker = _progress.Watch(queue)
    while True:
        view = looker.look()
        rates = {"done_per_second": round(view.rate, 3), "put_per_second": round(view.arriving, 3)}
        print(json.dumps({**_described(queue), **rates}), flush=True)
        time.sleep(options.every)


def _lines(stats: Stats, lent: dict[int | None, Peeked]) -> list[str]:
    from durableq._picture import human
    from durableq._progress import printable

    lines = [
        f"{stats.path}",
        f"  items    {stats.ready} ready, {stats.lent} lent, {stats.delayed} delayed, {counted(stats.dead, 'dead letter')}",
        f"  ever     {stats.puts} put, {stats.drops} dropped, {stats.damaged} damaged ({human(stats.damaged_bytes)})",
        f"  bytes    {human(stats.bytes_live)} live, {human(stats.bytes_on_disk)} on disk, {human(stats.bytes_logical)} long",
    ]
    if stats.oldest is not None:
        age = max(0.0, time.time() - stats.oldest)
        lines.append(f"  oldest   waits since {_moment(stats.oldest)} ({age:.0f} s)")
    for owner in stats.owners:
        since = f", runs since {_moment(owner.started)}" if owner.started else ""
        waits = ", waiting" if owner.waiting else ""
        lines.append(f"  held by  {owner.pid} {printable(owner.command)}: {owner.lent} lent{waits}{since}")
        if oldest := lent.get(owner.pid):
            lines.append(f"           the oldest of them: {oldest.id}, put {_moment(oldest.enqueued_at)}, {_times(oldest)}")
    return lines


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _times(peeked: Peeked) -> str:
    return "delivered once" if peeked.deliveries == 1 else f"delivered {peeked.deliveries} times"


COMMAND = Command(
    "stat",
    "what is in a queue, what it takes on disk, and who has it open",
    _arguments,
    _run,
    """\
Ready items can be taken; lent ones were taken and are not done yet, each is with one of the processes that have the queue open;
delayed ones wait for their time; dead letters failed too often, or cannot be decoded. "On disk" is what `du` shows, "long"
what `ls -l` does: what was done is given back to the file system.""",
    (
        ("durableq stat jobs.dq", "counts, bytes, and the processes that have the queue open"),
        ("durableq stat --watch --unpickle jobs.dq", "as it changes, with rates, the time left, and who is on what"),
        ("durableq stat --json jobs.dq | jq .ready", "one number for a script"),
        ("durableq stat --prometheus jobs.dq > /var/lib/node_exporter/jobs.prom.new", "for a text file collector"),
    ),
)
