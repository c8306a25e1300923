"""`durableq.connect` on queues to which others send, too: no header of theirs keeps a message from being taken."""

from __future__ import annotations

import pytest
from engines.subjects import numbers
from processes import PATIENCE, until

import durableq
from durableq.integrations.sinks.amqp import HEADERS
from durableq.integrations.sinks.redis import FIELDS

ODD = {"tag": "urgent", "at": "yesterday", "n": "north"}
"""Under durableq's own names, what it would not put there."""


@pytest.fixture
def stream(make_redis):
    """A client of a Redis server and the URL of the stream `jobs` there."""
    server = make_redis()
    with server.client() as client:
        yield client, f"redis://127.0.0.1:{server.port}/0/jobs"


@pytest.fixture
def channel(rabbitmq):
    """A channel to the broker, for the tests themselves."""
    import kombu

    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        yield channel


def publish(channel, queue, body, headers, **properties):
    channel.queue_declare(queue, durable=True, auto_delete=False)
    channel.basic_publish(channel.prepare_message(body, headers=headers, properties=properties), "", queue)


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_fields_of_durableq_s_own_are_all_that_it_writes_and_are_reserved(q, stream):
    client, url = stream
    q.put(1)
    durableq.forward(q, url, drain=True, key=str)
    with durableq.connect(url, serializer="json") as jobs:
        jobs.get()
        jobs.put("put")
        jobs.reserve().nack(delay=0.001)
        until(lambda: client.zcount("jobs:delayed", 0, "+inf") == 1)
        seen = [fields for _, fields in client.xrange("jobs")]
        assert jobs.reserve(timeout=PATIENCE).deliveries == 2
        seen += [fields for _, fields in client.xrange("jobs")]
    assert {name.decode() for fields in seen for name in fields} == FIELDS


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"tag": "urgent"}, {"tag": "urgent"}),
        ({"at": "yesterday"}, {"at": "yesterday"}),
        ({"at": "-1", "tag": "1"}, {"at": "-1", "tag": "1"}),
        ({"at": "1" + 300 * "0", "tag": "1"}, {"at": "1" + 300 * "0", "tag": "1"}),
        ({"tag": "1"}, {"tag": "1"}),
        ({"n": "north"}, {}),
        ({"n": "inf"}, {}),
        (ODD, {"tag": "urgent", "at": "yesterday"}),
        ({b"\xff": b"\xfe"}, {"\N{REPLACEMENT CHARACTER}": "\N{REPLACEMENT CHARACTER}"}),
        ({"id": b"\xff"}, {}),
    ],
    ids=str,
)
def test_an_entry_of_somebody_else_s_is_an_item_with_headers(stream, fields, headers):
    client, url = stream
    with durableq.connect(url, serializer="json") as jobs:
        for item in ("1", "2"):
            client.xadd("jobs", {"value": item, **fields})
        assert jobs.peek(2) == [1, 2]
        first, second = jobs.reserve_many(2)
        assert [(one.item, one.headers, one.deliveries) for one in (first, second)] == [(1, headers, 1), (2, headers, 1)]
        assert 1e9 < first.enqueued_at < 1e11
        first.nack()
        second.reject()
        assert jobs.reserve(timeout=PATIENCE).deliveries == 2
        assert jobs.dead_letters.get() == 2


def test_a_get_that_waits_is_given_an_entry_of_somebody_else_s_as_well(stream):
    client, url = stream
    with durableq.connect(url, serializer="json") as jobs:
        client.xadd("jobs", {"value": "1", **ODD})
        (woken_by,) = jobs._store._wait_and_read(1, False, PATIENCE)
        assert jobs._store._fetched(*woken_by).deliveries == 1


# -- AMQP --------------------------------------------------------------------------------------------------------------


def test_headers_of_durableq_s_own_are_all_that_it_writes_and_are_reserved(q, rabbitmq, channel):
    url = f"{rabbitmq.url}?queue=own"
    q.put("forwarded")
    durableq.forward(q, url, drain=True, key=str)
    with durableq.connect(url) as jobs:
        jobs.put("put")
    messages = [channel.basic_get("own", no_ack=True) for _ in range(2)]
    assert {name for message in messages for name in message.headers} == HEADERS - {"x-delivery-count"}


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        ({"tag": "urgent"}, {"tag": "urgent"}),
        ({"at": "yesterday", "tag": 1}, {"at": "yesterday", "tag": "1"}),
        ({"at": [1], "tag": {"a": 1}}, {"at": "[1]", "tag": "{'a': 1}"}),
        ({"tag": 1}, {"tag": "1"}),
        ({"x-delivery-count": "many"}, {}),
        ({"x-b3-traceid": "80f198ee", "x-first-death-queue": "q"}, {"x-b3-traceid": "80f198ee"}),
        ({"compression": "none"}, {"compression": "none"}),
    ],
    ids=str,
)
def test_a_message_of_somebody_else_s_is_an_item_with_headers(rabbitmq, channel, sent, headers):
    queue = f"foreign{next(numbers)}"
    with durableq.connect(f"{rabbitmq.url}?queue={queue}", serializer="json") as jobs:
        publish(channel, queue, b"1", sent)
        publish(channel, queue, b"2", {})
        first = jobs.reserve(timeout=PATIENCE)
        assert (first.item, first.headers, first.deliveries) == (1, headers, 1)
        first.ack()
        assert jobs.get(timeout=PATIENCE) == 2
