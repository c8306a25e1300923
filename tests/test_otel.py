"""The trace of whoever puts goes on where the item is worked on, also in another process and after a crash."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk", reason="python -m pip install opentelemetry-sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

from durableq.integrations import otel


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider.get_tracer("test")
    provider.shutdown()


def test_the_work_is_a_child_of_the_put(q, tracer, spans):
    otel.propagate(q)
    with tracer.start_as_current_span("order") as order:
        q.put("x")
    with q.reserve() as delivery, otel.process(delivery, tracer) as work:
        assert work.get_span_context().trace_id == order.get_span_context().trace_id
    work = spans.get_finished_spans()[-1]
    assert (work.name, work.kind, work.parent.span_id) == ("process q.dq", SpanKind.CONSUMER, order.get_span_context().span_id)
    assert work.attributes["messaging.message.id"] == delivery.id
    assert q.stats().unfinished == 0


def test_a_trace_goes_on_after_its_producer_was_killed(path, q, tracer, start):
    producer = start(
        """
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import format_trace_id
        from durableq.integrations import otel
        q = DurableQueue(path)
        otel.propagate(q)
        with TracerProvider().get_tracer("producer").start_as_current_span("order") as span:
            q.put("x")
            say(format_trace_id(span.get_span_context().trace_id))
            hear()
        """,
        path,
    )
    trace_id = producer.hear()
    producer.kill()
    with otel.process(q.reserve(), tracer) as work:
        assert format_trace_id(work.get_span_context().trace_id) == trace_id


def test_an_item_put_outside_of_any_trace_begins_one_of_its_own(q, tracer, spans):
    q.put("not instrumented")
    otel.propagate(q)
    q.put("instrumented")
    for _ in range(2):
        with q.reserve() as delivery, otel.process(delivery, tracer):
            pass
    assert [span.parent for span in spans.get_finished_spans()] == [None, None]


def test_work_that_fails_is_seen_in_its_span_and_gives_the_item_back(q, tracer, spans):
    q.put("x")
    with pytest.raises(ZeroDivisionError), q.reserve() as delivery, otel.process(delivery, tracer):
        raise ZeroDivisionError
    (work,) = spans.get_finished_spans()
    assert work.status.status_code is StatusCode.ERROR
    assert q.reserve(False).deliveries == 2
