"""Traces and metrics of queues for OpenTelemetry.

    from durableq.integrations import otel

    otel.propagate(jobs)                      # what this handle puts carries the trace context of its caller
    jobs.put(order)

    with jobs.reserve() as delivery, otel.process(delivery):
        handle(delivery.item)                 # in a span of kind CONSUMER, child of the span that called put

    otel.observe(jobs, mails)                 # `stats()` of these queues as metrics

The context goes in the headers of the record, in the format of the global propagator (W3C `traceparent` unless it was
configured otherwise), and so survives what the item survives. `get` returns the item alone: who wants the context takes
with `reserve`. A handle that is pickled to another process is asked there once more to `propagate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic

from durableq import Delivery, DurableQError, DurableQueue, Stats
from durableq.integrations._extras import needed
from durableq.integrations._metrics import METRICS, Metric

with needed("opentelemetry", "otel"):
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import Span, SpanKind, Tracer

_FRESH = 0.1
"""Seconds for which a reading serves; a reader asks for all metrics in one go."""
_UNITS = {"items": "{item}", "bytes": "By", "seconds": "s", "processes": "{process}"}


def propagate(queue: DurableQueue) -> None:
    """Have all that is put through this handle from now on carry the trace context of its caller."""
    queue._carry(_current)


def _current() -> dict[str, str]:
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier


@contextmanager
def process(delivery: Delivery, tracer: Tracer | None = None) -> Iterator[Span]:
    """A span around the work on an item, child of the span that put it, whichever process and boot that was in.

    An exception that leaves the block is recorded in the span and goes on.
    """
    name = os.path.basename(delivery._store.path)
    with (tracer or trace.get_tracer("durableq")).start_as_current_span(
        f"process {name}",
        context=extract(delivery.headers),
        kind=SpanKind.CONSUMER,
        attributes={
            "messaging.system": "durableq",
            "messaging.operation.type": "process",
            "messaging.destination.name": name,
            "messaging.message.id": delivery.id,
            "durableq.deliveries": delivery.deliveries,
        },
    ) as span:
        yield span


def observe(*queues: DurableQueue, meter: Meter | None = None) -> None:
    """Report `stats()` of these queues as metrics, as often as the meter's reader collects; not of those that were closed."""
    meter = meter or metrics.get_meter("durableq")
    readings = [_Reading(queue) for queue in queues]
    for metric in METRICS:
        create = meter.create_observable_counter if metric.counts else meter.create_observable_gauge
        create(f"durableq.{metric.name}", [partial(_observe, metric, readings)], _UNITS[metric.unit], metric.help)


def _observe(metric: Metric, readings: Iterable[_Reading], _: CallbackOptions) -> Iterator[Observation]:
    for reading in readings:
        stats = reading.stats()
        if stats is not None:
            yield Observation(metric.value(stats), {"durableq.queue": stats.path})


class _Reading:
    """`stats()` of a queue, read once for all metrics of a collection."""

    def __init__(self, queue: DurableQueue) -> None:
        self._queue = queue
        self._stats: Stats | None = None
        self._fresh_until = 0.0

    def stats(self) -> Stats | None:
        """None if the queue cannot be read."""
        if monotonic() > self._fresh_until:
            try:
                self._stats = self._queue.stats()
            except (DurableQError, OSError):
                self._stats = None
            self._fresh_until = monotonic() + _FRESH
        return self._stats
