"""Queues as Prometheus metrics.

    from prometheus_client import REGISTRY, start_http_server
    from durableq.integrations.prometheus import QueueCollector

    REGISTRY.register(QueueCollector(jobs, mails))
    start_http_server(9100)

All metrics have the label `queue`, the path of the spool, and are read when they are asked for: one process that watches a
queue is enough, whoever puts and gets.
"""

from __future__ import annotations

from collections.abc import Iterable

from durableq import DurableQError, DurableQueue
from durableq.integrations._extras import needed
from durableq.integrations._metrics import METRICS, Metric

with needed("prometheus_client", "prometheus"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

Family = GaugeMetricFamily | CounterMetricFamily


class QueueCollector(Collector):
    """Collects `stats()` of any number of queues. `durableq_up` is 0 for one that cannot be read, such as a closed handle."""

    def __init__(self, *queues: DurableQueue) -> None:
        self._queues = queues

    def describe(self) -> Iterable[Family]:
        """The metrics without their values, so that registering reads no queue."""
        return _families()

    def collect(self) -> Iterable[Family]:
        """The metrics as they are now."""
        up, *families = _families()
        for queue in self._queues:
            try:
                stats = queue.stats()
            except (DurableQError, OSError):
                up.add_metric([queue.path], 0)
                continue
            up.add_metric([queue.path], 1)
            for metric, family in zip(METRICS, families, strict=True):
                family.add_metric([queue.path], metric.value(stats))
        return [up, *families]


def _families() -> list[Family]:
    up = GaugeMetricFamily("durableq_up", "Whether the queue can be read", labels=["queue"])
    return [up, *map(_family, METRICS)]


def _family(metric: Metric) -> Family:
    kind = CounterMetricFamily if metric.counts else GaugeMetricFamily
    return kind(f"durableq_{metric.name}_{metric.unit}", metric.help, labels=["queue"])
