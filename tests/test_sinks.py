"""What is particular to one engine that `forward` sends to."""

from __future__ import annotations

import json

import pytest
from engines.kafka_mock import PRODUCE, TOO_LARGE, UNKNOWN_TOPIC
from processes import until

import durableq
from durableq import BadURLError, failures


@pytest.fixture
def redis_server(make_redis):
    return make_redis()


@pytest.fixture
def redis_url(redis_server):
    return f"redis://127.0.0.1:{redis_server.port}/0"


@pytest.fixture
def channel(rabbitmq):
    """A channel to the broker, for the tests themselves."""
    import kombu

    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        yield channel


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_an_element_of_a_list_is_the_value(q, redis_server, redis_url):
    q.put_many([b"a", {"n": 1}])
    durableq.forward(q, f"{redis_url}?list=jobs", drain=True)
    with redis_server.client() as client:
        assert client.lrange("jobs", 0, -1) == [b"a", b'{"n":1}']


def test_an_element_of_a_list_may_be_an_envelope_with_the_id(q, redis_server, redis_url):
    q.put_many(["a", {"n": 1, "who": "ada"}])
    ids = [one.id for one in q.peek_deliveries(2)]
    url = f"{redis_url}?list=jobs&envelope=json"
    durableq.forward(q, url, drain=True, key=lambda item: len(item), headers=lambda _: {"h": "x"})
    with redis_server.client() as client:
        assert [json.loads(element) for element in client.lrange("jobs", 0, -1)] == [
            {"id": ids[0], "value": "a", "key": "1", "headers": {"h": "x"}},
            {"id": ids[1], "value": {"n": 1, "who": "ada"}, "key": "2", "headers": {"h": "x"}},
        ]


@pytest.mark.parametrize("part", [{"key": "user"}, {"headers": ["user"]}, {"headers": lambda item: {"user": "x"}}])
def test_a_list_without_an_envelope_has_no_place_for_keys_and_headers_and_says_so_before_anything_is_taken(q, redis_url, part):
    q.put({"user": "ada"})
    with pytest.raises(BadURLError, match=r"has no place for a key and headers; add envelope=json to the URL"):
        durableq.forward(q, f"{redis_url}?list=jobs", drain=True, **part)
    assert [one.deliveries for one in q.peek_deliveries(2)] == [0]


def test_what_travels_with_an_item_is_left_out_of_a_list_without_an_envelope(q, redis_server, redis_url):
    q._carry(lambda: {"traceparent": "00-1-2-03"})
    q.put(b"a")
    assert durableq.forward(q, f"{redis_url}?list=jobs", drain=True) == (1, 0)
    with redis_server.client() as client:
        assert client.lrange("jobs", 0, -1) == [b"a"]


def test_in_an_envelope_a_header_may_have_any_name(q, redis_server, redis_url):
    q.put({"id": "mine", "value": 1})
    durableq.forward(q, f"{redis_url}?list=jobs&envelope=json", drain=True, headers=["id", "value"])
    with redis_server.client() as client:
        (element,) = map(json.loads, client.lrange("jobs", 0, -1))
    assert element["headers"] == {"id": "mine", "value": "1"} and element["id"] != "mine"


def test_what_is_no_text_does_not_fit_into_an_envelope(q, redis_server, redis_url):
    q.put_many([b"\xff", b"a"])
    assert durableq.forward(q, f"{redis_url}?list=jobs&envelope=json", drain=True) == (1, 1)
    assert q.dead_letters.peek() == [b"\xff"]


def test_a_name_may_stand_in_the_path_alone(q, redis_server):
    q.put(b"a")
    durableq.forward(q, f"redis://127.0.0.1:{redis_server.port}/jobs", drain=True)
    with redis_server.client() as client:
        assert client.xlen("jobs") == 1


def test_it_speaks_through_a_unix_socket(q, make_redis, tmp_path):
    server = make_redis("--unixsocket", str(tmp_path / "socket"))
    q.put(b"a")
    durableq.forward(q, f"unix://{tmp_path}/socket?stream=jobs", drain=True)
    with server.client() as client:
        assert client.xlen("jobs") == 1


@pytest.mark.parametrize(
    "trouble, mend",
    [
        pytest.param("SET events x", "DEL events", id="wrong type"),
        pytest.param("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", id="out of memory"),
        pytest.param("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", id="read only"),
        pytest.param("ACL SETUSER default -xadd", "ACL SETUSER default +xadd", id="no permission"),
    ],
)
def test_a_server_that_takes_nothing_for_now_costs_no_item(q, redis_server, redis_url, forwarder, trouble, mend, caplog):
    with redis_server.client() as client:
        client.execute_command(*trouble.split())
        q.put_many([b"a", b"b"])
        forwarder(f"{redis_url}/events")
        until(lambda: "is away" in caplog.text)
        client.execute_command(*mend.split())
        until(lambda: q.stats().unfinished == 0)
        assert [fields[b"value"] for _, fields in client.xrange("events")] == [b"a", b"b"]
    assert q.stats().dead == 0


def test_a_database_that_the_server_does_not_have_costs_no_item(q, redis_server, forwarder, caplog):
    q.put(b"a")
    running = forwarder(f"redis://127.0.0.1:{redis_server.port}/99/events")
    until(lambda: "is away" in caplog.text)
    assert "DB index is out of range" in caplog.text
    assert running.finish() == (0, 0)
    assert [(one.item, one.deliveries) for one in q.peek_deliveries(2)] == [(b"a", 0)]


def test_a_server_that_stalls_in_the_middle_gets_the_rest_when_it_goes_on(q, redis_server, redis_url, forwarder):
    forwarder(f"{redis_url}/events")
    q.put(b"a")
    until(lambda: q.stats().unfinished == 0)
    redis_server.stall()
    q.put_many([b"b", b"c"])
    until(lambda: q.stats().lent == 2)
    redis_server.go_on()
    until(lambda: q.stats().unfinished == 0)
    with redis_server.client() as client:
        assert [fields[b"value"] for _, fields in client.xrange("events")] == [b"a", b"b", b"c"]


# -- Kafka -------------------------------------------------------------------------------------------------------------


def kafka_values(kafka, topic="events"):
    return [message.value() for message in kafka.messages(topic)]


def test_of_a_batch_that_a_broker_refuses_only_the_culprit_goes_to_the_dead_letters(q, kafka):
    kafka.tell("topic", "events")
    # The batch as a whole is refused, then the second of its messages once more, when it is sent alone.
    kafka.tell("errors", PRODUCE, TOO_LARGE, 0, TOO_LARGE)
    q.put_many([b"a", b"b", b"c"])
    assert durableq.forward(q, f"kafka://127.0.0.1:{kafka.port}/events", drain=True) == (2, 1)
    assert kafka_values(kafka) == [b"a", b"c"]
    assert q.dead_letters.peek() == [b"b"]


def test_a_topic_that_is_not_there_yet_is_waited_for(q, kafka, forwarder, caplog):
    kafka.tell("topic", "events")
    kafka.tell("topic_error", "events", UNKNOWN_TOPIC)
    q.put(b"a")
    forwarder(f"kafka://127.0.0.1:{kafka.port}/events")
    until(lambda: "is away" in caplog.text)
    kafka.tell("topic_error", "events", 0)
    until(lambda: q.stats().unfinished == 0)
    assert kafka_values(kafka) == [b"a"]
    assert q.stats().dead == 0


def test_a_message_for_a_topic_that_is_not_there_is_kept_until_it_is(q, kafka, forwarder, caplog):
    kafka.tell("topic", "events")
    kafka.tell("errors", PRODUCE, UNKNOWN_TOPIC)
    q.put(b"a")
    forwarder(f"kafka://127.0.0.1:{kafka.port}/events")
    until(lambda: q.stats().unfinished == 0)
    assert kafka_values(kafka) == [b"a"]
    assert q.stats().dead == 0


def test_properties_of_librdkafka_may_stand_in_the_url(q, kafka):
    kafka.tell("topic", "events")
    q.put_many([b"x" * 100] * 50)
    durableq.forward(q, f"kafka://127.0.0.1:{kafka.port}/events?compression.type=gzip&linger.ms=1", drain=True)
    assert kafka_values(kafka) == [b"x" * 100] * 50


def test_a_topic_may_be_left_to_the_items(q, kafka):
    kafka.tell("topic", "a")
    q.put({"to": "a"})
    assert durableq.forward(q, f"kafka://127.0.0.1:{kafka.port}", drain=True, topic="to") == (1, 0)
    assert kafka_values(kafka, "a") == [b'{"to":"a"}']


def test_a_topic_that_can_be_none_for_kafka_makes_its_item_a_dead_letter_and_the_rest_goes_on(q, kafka):
    kafka.tell("topic", "a")
    q.put_many(["a", "a\0b", "a"])
    assert durableq.forward(q, f"kafka://127.0.0.1:{kafka.port}", drain=True, topic=str) == (2, 1)
    assert q.dead_letters.peek() == ["a\0b"]


def test_an_item_without_a_topic_goes_to_the_dead_letters(q, kafka):
    q.put("a")
    assert durableq.forward(q, f"kafka://127.0.0.1:{kafka.port}", drain=True) == (0, 1)


# -- AMQP --------------------------------------------------------------------------------------------------------------


def amqp_url(rabbitmq, query):
    return f"{rabbitmq.url}?{query}"


def drained(channel, queue):
    found = []
    while (message := channel.basic_get(queue, no_ack=True)) is not None:
        found.append(message)
    return found


def bodies(messages):
    return [bytes(message.body, "utf-8") if isinstance(message.body, str) else message.body for message in messages]


def test_messages_are_persistent_and_of_their_type(q, rabbitmq, channel):
    q.put_many([b"a", "b", {"c": 1}])
    durableq.forward(q, amqp_url(rabbitmq, "queue=types"), drain=True)
    found = drained(channel, "types")
    assert {message.properties["delivery_mode"] for message in found} == {2}
    assert [message.properties["content_type"] for message in found] == [
        "application/octet-stream",
        "text/plain",
        "application/json",
    ]


def test_an_exchange_routes_by_the_topic(q, rabbitmq, channel):
    channel.exchange_declare("things", "topic", durable=True, auto_delete=False)
    for name in ("apples", "pears"):
        channel.queue_declare(name, durable=True, auto_delete=False)
        channel.queue_bind(name, "things", f"fruit.{name}")
    q.put_many([{"to": "fruit.apples", "n": "1"}, {"to": "fruit.pears", "n": "2"}])
    durableq.forward(q, amqp_url(rabbitmq, "exchange=things"), drain=True, topic="to", value="n")
    assert bodies(drained(channel, "apples")) == [b"1"]
    assert bodies(drained(channel, "pears")) == [b"2"]


def test_what_no_queue_is_bound_for_goes_to_the_dead_letters(q, rabbitmq, channel):
    channel.exchange_declare("loose", "direct", durable=True, auto_delete=False)
    channel.queue_declare("bound", durable=True, auto_delete=False)
    channel.queue_bind("bound", "loose", "yes")
    q.put_many(["yes", "no", "yes"])
    assert durableq.forward(q, amqp_url(rabbitmq, "exchange=loose"), drain=True, topic=str) == (2, 1)
    assert q.dead_letters.peek() == ["no"]
    assert len(drained(channel, "bound")) == 2


@pytest.mark.parametrize("part", ["topic", "headers"])
def test_a_name_that_is_too_long_for_amqp_makes_its_item_a_dead_letter_and_the_rest_goes_on(q, rabbitmq, part):
    shapes = {"topic": str, "headers": lambda item: {item: "x"}}
    q.put_many(["short", "l" * 256, "e" * 255])
    assert durableq.forward(q, amqp_url(rabbitmq, "queue=lengths"), drain=True, **{part: shapes[part]}) == (2, 1)
    assert q.dead_letters.peek() == ["l" * 256]
    assert "AMQP has 255 bytes for a name" in next(iter(failures.read(q).values())).reason


def test_a_queue_that_is_deleted_meanwhile_is_declared_again(q, rabbitmq, channel, forwarder):
    forwarder(amqp_url(rabbitmq, "queue=fleeting"))
    q.put("a")
    until(lambda: q.stats().unfinished == 0)
    channel.queue_delete("fleeting")
    q.put("b")
    until(lambda: q.stats().unfinished == 0)
    assert bodies(drained(channel, "fleeting")) == [b"b"]


def test_a_queue_of_another_kind_is_used_as_it_is(q, rabbitmq, channel):
    channel.queue_declare("fickle", durable=False, auto_delete=False, arguments={"x-max-length": 10})
    q.put("a")
    durableq.forward(q, amqp_url(rabbitmq, "queue=fickle"), drain=True)
    assert len(drained(channel, "fickle")) == 1


def test_a_full_queue_of_the_broker_keeps_the_items_here(q, rabbitmq, channel, forwarder, caplog):
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare("narrow", durable=True, auto_delete=False, arguments=limits)
    q.put_many(["a", "b"])
    forwarder(amqp_url(rabbitmq, "queue=narrow"))
    until(lambda: "is away" in caplog.text)
    assert q.stats().dead == 0
    found = drained(channel, "narrow")
    until(lambda: q.stats().unfinished == 0)
    assert {*bodies(found), *bodies(drained(channel, "narrow"))} == {b"a", b"b"}


def test_an_exchange_that_is_not_there_is_waited_for(q, rabbitmq, channel, forwarder, caplog):
    channel.queue_declare("patient", durable=True, auto_delete=False)
    q.put("a")
    forwarder(amqp_url(rabbitmq, "exchange=later&routing_key=k"))
    until(lambda: "is away" in caplog.text)
    channel.exchange_declare("later", "direct", durable=True, auto_delete=False)
    channel.queue_bind("patient", "later", "k")
    until(lambda: q.stats().unfinished == 0)
    assert len(drained(channel, "patient")) + q.stats().dead == 1
