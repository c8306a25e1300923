"""What is measured of a queue, once for all systems that collect it: `stats()` as gauges and counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from durableq import Stats


@dataclass(frozen=True)
class Metric:
    """One number of a queue."""

    name: str
    unit: str
    """"items", "bytes", "seconds" or "processes"."""
    help: str
    value: Callable[[Stats], float]
    counts: bool = False
    """It only ever rises, while the queue's files are there."""


METRICS = (
    Metric("ready", "items", "Items that can be taken now", lambda s: s.ready),
    Metric("lent", "items", "Items that were taken and are not done yet", lambda s: s.lent),
    Metric("delayed", "items", "Items that wait for their time", lambda s: s.delayed),
    Metric("dead", "items", "Dead letters", lambda s: s.dead),
    Metric("put", "items", "Items ever put", lambda s: s.puts, counts=True),
    Metric("dropped", "items", 'Items dropped under on_full="drop_oldest"', lambda s: s.drops, counts=True),
    Metric("damaged", "items", "Damaged records found", lambda s: s.damaged, counts=True),
    Metric("live", "bytes", "Bytes of all items that are not done", lambda s: s.bytes_live),
    Metric("disk", "bytes", "Bytes of disk that the spool takes", lambda s: s.bytes_on_disk),
    Metric("oldest", "seconds", "Age of the oldest ready item; 0 if there is none", lambda s: _age(s.oldest)),
    Metric("open_in", "processes", "Processes that have the queue open", lambda s: len({o.pid for o in s.owners})),
)


def _age(since: float | None) -> float:
    return 0.0 if since is None else max(0.0, time.time() - since)


def exposition(queues: Iterable[Stats]) -> str:
    """The metrics of these queues in Prometheus's text format, as `QueueCollector` would have them collected."""
    stats = list(queues)
    lines = _family("durableq_up", "gauge", "Whether the queue can be read", [(s.path, 1) for s in stats])
    for metric in METRICS:
        kind, suffix = ("counter", "_total") if metric.counts else ("gauge", "")
        values = [(s.path, metric.value(s)) for s in stats]
        lines += _family(f"durableq_{metric.name}_{metric.unit}{suffix}", kind, metric.help, values)
    return "".join(line + "\n" for line in lines)


def _family(name: str, kind: str, about: str, values: Iterable[tuple[str, float]]) -> list[str]:
    escaped = about.replace("\\", r"\\").replace("\n", r"\n")
    samples = [f'{name}{{queue="{_label(path)}"}} {float(value)}' for path, value in values]
    return [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}", *samples]


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
