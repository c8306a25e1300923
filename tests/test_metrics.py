"""`stats()` as metrics: the same numbers for Prometheus and for OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request

import pytest

from durableq import DurableQueue


@pytest.fixture
def busy(open_queue):
    """A queue with two ready items, one lent, one delayed and one dead."""
    q = open_queue(sync=None)
    q.put_many("abcd")
    q.reserve().reject()
    q.reserve()
    q.put("e", delay=3600)
    return q


EXPECTED = {"ready_items": 2, "lent_items": 1, "delayed_items": 1, "dead_items": 1, "put_items": 5, "dropped_items": 0}


class TestPrometheus:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("prometheus_client", reason="python -m pip install 'durableq[prometheus]'")

    def test_a_scrape_shows_what_stats_says(self, busy, open_queue, tmp_path):
        from prometheus_client import CollectorRegistry, start_http_server

        from durableq.integrations.prometheus import QueueCollector

        other = open_queue(tmp_path / "other.dq")
        registry = CollectorRegistry()
        registry.register(QueueCollector(busy, other))
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        for name, value in EXPECTED.items():
            total = "_total" if name in ("put_items", "dropped_items") else ""
            assert float(values[f'durableq_{name}{total}{{queue="{busy.path}"}}']) == value, name
            assert float(values[f'durableq_{name}{total}{{queue="{other.path}"}}']) == 0, name
        assert float(values[f'durableq_live_bytes{{queue="{busy.path}"}}']) == busy.stats().bytes_live
        assert float(values[f'durableq_open_in_processes{{queue="{busy.path}"}}']) == 1
        assert 0 <= float(values[f'durableq_oldest_seconds{{queue="{busy.path}"}}']) < time.time() - busy.stats().oldest + 1
        assert float(values[f'durableq_oldest_seconds{{queue="{other.path}"}}']) == 0

    def test_a_queue_that_cannot_be_read_is_down_and_hides_no_other(self, busy, tmp_path):
        from prometheus_client import CollectorRegistry

        from durableq.integrations.prometheus import QueueCollector

        closed = DurableQueue(tmp_path / "closed.dq")
        closed.close()
        registry = CollectorRegistry()
        registry.register(QueueCollector(closed, busy))
        assert registry.get_sample_value("durableq_up", {"queue": closed.path}) == 0
        assert registry.get_sample_value("durableq_up", {"queue": busy.path}) == 1
        assert registry.get_sample_value("durableq_ready_items", {"queue": closed.path}) is None
        assert registry.get_sample_value("durableq_ready_items", {"queue": busy.path}) == 2


class TestOpenTelemetry:
    @pytest.fixture
    def collect(self):
        pytest.importorskip("opentelemetry.sdk", reason="python -m pip install opentelemetry-sdk")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        from durableq.integrations import otel

        def collector(*queues):
            reader = InMemoryMetricReader()
            provider = MeterProvider([reader], shutdown_on_exit=False)
            otel.observe(*queues, meter=provider.get_meter("test"))
            data = reader.get_metrics_data()
            provider.shutdown()
            return {
                (metric.name, point.attributes["durableq.queue"]): (point.value, metric.unit)
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
                for point in metric.data.data_points
            }

        return collector

    def test_the_instruments_show_what_stats_says(self, busy, collect):
        values = collect(busy)
        for name, value in EXPECTED.items():
            assert values["durableq." + name.replace("_items", ""), busy.path] == (value, "{item}"), name
        assert values["durableq.live", busy.path] == (busy.stats().bytes_live, "By")

    def test_a_queue_that_cannot_be_read_hides_no_other(self, busy, collect, tmp_path):
        closed = DurableQueue(tmp_path / "closed.dq")
        closed.close()
        values = collect(closed, busy)
        assert {path for _, path in values} == {busy.path}

    def test_a_collection_reads_each_queue_once(self, busy, collect, monkeypatch):
        readings = []
        real = busy._store.stats
        monkeypatch.setattr(busy._store, "stats", lambda: readings.append(1) or real())
        monkeypatch.setattr("durableq.integrations.otel._FRESH", 60.0)
        assert len(collect(busy)) > 5
        assert len(readings) == 1


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel"), ("kombu", "kombu", "kombu")],
)
def test_without_its_extra_an_integration_says_what_to_install(module, missing, extra):
    code = f"import sys; sys.modules['{missing}'] = None\nimport durableq.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"python -m pip install 'durableq[{extra}]'" in done.stderr
