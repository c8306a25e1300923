"""The kombu transport: a directory of spools as a message broker."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, _store

kombu = pytest.importorskip("kombu", reason="python -m pip install 'durableq[kombu]'")

import durableq.integrations.kombu as transport  # noqa: E402
from durableq._watch import Watch  # noqa: E402


@pytest.fixture
def connect(directory):
    """`connect()` is a new connection to the broker, closed after the test."""
    connections = []

    def connecter(**options):
        connections.append(kombu.Connection(f"durableq://{directory}", transport_options=options))
        return connections[-1]

    yield connecter
    for connection in connections:
        connection.close()


@pytest.fixture
def channel(connect):
    return connect().channel()


JOBS = kombu.Queue("jobs", kombu.Exchange("jobs", "direct"), routing_key="jobs")


def publish(channel, *bodies, queue=JOBS, **options):
    producer = kombu.Producer(channel)
    for body in bodies:
        producer.publish(body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], **options)


def spool_of(directory, queue="jobs"):
    return DurableQueue(directory / f"{queue}.dq", serializer="bytes")


class Consumer:
    """Collects what is delivered to it."""

    def __init__(self, connection, *queues, prefetch=0, **options):
        self.connection = connection
        self.channel = connection.channel()
        self.messages = []
        if prefetch:
            self.channel.basic_qos(0, prefetch, False)
        on_message = self.messages.append
        self.consumer = kombu.Consumer(self.channel, queues or [JOBS], on_message=on_message, **options)
        self.consumer.consume()

    def drain(self, timeout=PATIENCE):
        """Wait for one more message, and return its payload."""
        self.connection.drain_events(timeout=timeout)
        return self.messages[-1].payload

    def drain_all(self):
        """All payloads that are there now."""
        first = len(self.messages)
        with contextlib.suppress(socket.timeout):
            while True:
                self.drain(timeout=0)
        return [message.payload for message in self.messages[first:]]


# -- messages --------------------------------------------------------------------------------------------------------------


def test_a_message_is_delivered_once_and_is_done_when_it_is_acked(connect, channel, directory):
    publish(channel, {"a": 1})
    consumer = Consumer(connect())
    assert consumer.drain() == {"a": 1}
    assert spool_of(directory).stats().lent == 1
    consumer.messages[0].ack()
    assert spool_of(directory).stats().unfinished == 0


def test_messages_come_in_the_order_in_which_they_were_published(connect, channel):
    publish(channel, *range(5))
    assert Consumer(connect()).drain_all() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("serializer", ["json", "pickle", "raw"])
def test_bodies_of_all_serializers_arrive_as_they_were(connect, channel, serializer):
    body = b"\x00\xff\xfe" if serializer == "raw" else ["text ä", 2]
    kind = {"content_type": "application/data", "content_encoding": "binary"} if serializer == "raw" else {}
    publish(channel, body, serializer=None if serializer == "raw" else serializer, headers={"n": 1}, **kind)
    consumer = Consumer(connect(), accept=["json", "pickle", "application/data"])
    assert consumer.drain() == body
    assert consumer.messages[0].headers["n"] == 1


def test_a_requeued_message_comes_again_before_the_others_and_says_so(connect, channel):
    publish(channel, "a", "b")
    consumer = Consumer(connect(), prefetch=1)
    consumer.drain()
    assert "redelivered" not in consumer.messages[0].delivery_info
    consumer.messages[0].requeue()
    assert consumer.drain() == "a"
    assert consumer.messages[1].delivery_info["redelivered"]


def test_a_rejected_message_lies_with_the_dead_letters(connect, channel, directory):
    publish(channel, "a")
    consumer = Consumer(connect())
    consumer.drain()
    consumer.messages[0].reject()
    assert spool_of(directory).stats().dead == 1
    spool_of(directory).redrive()
    assert consumer.drain() == "a"


def test_a_message_of_which_a_worker_dies_too_often_is_a_dead_letter(connect, directory):
    connection = connect(max_deliveries=2)
    publish(connection.channel(), "poison", "b")
    consumer = Consumer(connection, prefetch=1)
    for _ in range(2):
        assert consumer.drain() == "poison"
        consumer.messages[-1].requeue()
    assert consumer.drain() == "b"
    assert spool_of(directory).stats().dead == 1


def test_no_more_than_the_prefetch_count_is_delivered_until_something_is_acked(connect, channel):
    publish(channel, *range(5))
    consumer = Consumer(connect(), prefetch=2)
    assert consumer.drain_all() == [0, 1]
    consumer.messages[0].ack()
    assert consumer.drain_all() == [2]


def test_several_consumers_share_a_queue(connect, channel):
    publish(channel, *range(6))
    consumers = [Consumer(connect(), prefetch=2) for _ in range(3)]
    assert sorted(body for consumer in consumers for body in consumer.drain_all()) == list(range(6))


def test_what_a_closed_channel_had_not_acked_goes_back(connect, channel):
    publish(channel, "a", "b")
    consumer = Consumer(connect())
    assert consumer.drain_all() == ["a", "b"]
    consumer.messages[1].ack()
    consumer.channel.close()
    next_one = Consumer(connect())
    assert next_one.drain_all() == ["a"]
    assert "redelivered" not in next_one.messages[0].delivery_info  # a worker that is restarted uses up no delivery


def test_an_ack_after_the_connection_was_closed_changes_nothing(connect, channel, directory):
    publish(channel, "a")
    consumer = Consumer(connect())
    consumer.drain()
    consumer.connection.close()
    consumer.messages[0].ack()
    assert spool_of(directory).stats().ready == 1


def test_what_is_consumed_without_acks_is_done_when_it_is_delivered(connect, channel, directory):
    publish(channel, "a")
    assert Consumer(connect(), no_ack=True).drain() == "a"
    assert spool_of(directory).stats().unfinished == 0


def test_a_message_can_be_fetched_without_a_consumer(channel, directory):
    publish(channel, "a", "b")
    first = JOBS(channel).get()
    assert first.payload == "a"
    assert JOBS(channel).get(no_ack=True).payload == "b"
    assert JOBS(channel).get() is None
    first.ack()
    assert spool_of(directory).stats().unfinished == 0


def test_a_queue_is_counted_purged_and_deleted(channel, directory):
    publish(channel, "a", "b")
    assert JOBS(channel).queue_declare().message_count == 2
    assert JOBS(channel).purge() == 2
    publish(channel, "c")
    JOBS(channel).delete(if_empty=True)
    assert (directory / "jobs.dq").exists()
    JOBS(channel).delete()
    assert sorted(os.listdir(directory)) == ["broker.json", "broker.json-lock"]
    with pytest.raises(kombu.exceptions.ChannelError, match="NOT_FOUND"):
        JOBS(channel).queue_declare(passive=True)


def test_what_is_no_message_is_a_dead_letter_and_stops_nobody(connect, channel, directory):
    publish(channel, "a")
    with spool_of(directory) as spool, DurableQueue(directory / "jobs.dq") as of_another_kind:
        spool.put(b"no json")
        spool.put(b'{"no": "message"}')
        of_another_kind.put("pickled")
    publish(channel, "b")
    consumer = Consumer(connect())
    assert consumer.drain_all() == ["a"]
    until(lambda: "b" in consumer.drain_all())
    assert spool_of(directory).stats().dead == 3


def test_a_persistent_message_is_kept_for_a_queue_that_nobody_has_declared_yet(connect, channel):
    kombu.Producer(channel).publish("a", routing_key="new")
    assert Consumer(connect(), kombu.Queue("new")).drain() == "a"


def test_a_transient_message_for_a_queue_that_is_gone_goes_with_it(channel, directory):
    kombu.Producer(channel).publish("a", routing_key="gone", delivery_mode=1)
    assert not (directory / "gone.dq").exists()


def test_a_publisher_goes_on_when_somebody_else_has_deleted_the_queue(connect, channel):
    producer, other = kombu.Producer(channel), connect().channel()
    producer.publish("a", routing_key="jobs")
    other.queue_delete("jobs")
    deadline = time.monotonic() + PATIENCE
    while not other._size("jobs"):  # it is noticed within milliseconds, not at once
        producer.publish("b", routing_key="jobs")
        assert time.monotonic() < deadline


@pytest.mark.parametrize("name", ["a/b", "..", "ä@host", "100%", "x.dq"])
def test_a_queue_may_have_any_name_and_stays_in_its_directory(connect, channel, directory, name):
    queue = kombu.Queue(name)
    kombu.Producer(channel).publish("a", routing_key=name, declare=[queue])
    assert Consumer(connect(), queue).drain() == "a"
    assert {path.parent for path in directory.parent.rglob("*.dq")} == {directory}


# -- exchanges -------------------------------------------------------------------------------------------------------------


def test_a_direct_exchange_routes_by_the_key(connect, channel):
    exchange = kombu.Exchange("logs", "direct")
    queues = [kombu.Queue(key, exchange, routing_key=key) for key in ("info", "error")]
    consumer = Consumer(connect(), queues[1])
    for queue in queues:
        publish(channel, queue.name, queue=queue)
    assert consumer.drain_all() == ["error"]


def test_a_topic_exchange_of_another_process_routes_by_the_pattern(connect, channel):
    exchange = kombu.Exchange("topics", "topic")
    consumer = Consumer(connect(), kombu.Queue("de", exchange, routing_key="news.de.*"))
    producer = kombu.Producer(channel)
    for key in ("news.de.sport", "news.fr.sport", "weather"):
        producer.publish(key, exchange="topics", routing_key=key)
    assert consumer.drain_all() == ["news.de.sport"]


def test_a_fanout_exchange_reaches_all_queues_of_all_processes(connect, channel):
    exchange = kombu.Exchange("all", "fanout")
    consumers = [Consumer(connect(), kombu.Queue(f"q{n}", exchange, exclusive=True)) for n in range(3)]
    kombu.Producer(channel).publish("x", exchange=exchange, declare=[exchange])
    assert [consumer.drain() for consumer in consumers] == ["x", "x", "x"]


def test_an_unbound_queue_gets_nothing_more(connect, channel):
    exchange = kombu.Exchange("all", "fanout")
    consumer = Consumer(connect(), kombu.Queue("q", exchange))
    kombu.Queue("q", exchange)(consumer.channel).unbind_from(exchange)
    kombu.Producer(channel).publish("x", exchange=exchange, declare=[exchange])
    assert consumer.drain_all() == []


def test_a_deleted_exchange_leaves_its_queues_their_messages(connect, channel):
    publish(channel, "a")
    JOBS.exchange(channel).delete()
    kombu.Producer(connect().channel()).publish("b", exchange="jobs", routing_key="jobs")
    assert Consumer(connect(), kombu.Queue("jobs")).drain_all() == ["a"]


def test_damaged_bindings_are_told_with_the_remedy(connect, channel, directory):
    publish(channel, "a")
    (directory / "broker.json").write_text("{")
    with pytest.raises(ValueError, match=r"broker\.json: is damaged .* delete it"):
        publish(connect().channel(), "b")


# -- queues that end with their users --------------------------------------------------------------------------------------

ENDING = {
    "exclusive": {"exclusive": True},
    "auto_delete": {"auto_delete": True},
    "expires": {"expires": 0.001},
}


@pytest.mark.parametrize("kind", ENDING)
def test_a_queue_ends_with_the_process_that_used_it_even_by_sigkill(connect, channel, directory, start, kind):
    user = start(
        """
        import kombu, durableq.integrations.kombu
        channel = kombu.Connection(sys.argv[1]).channel()
        queue = kombu.Queue("mine", kombu.Exchange("all", "fanout"), **eval(sys.argv[2]))
        kombu.Consumer(channel, [queue], on_message=print).consume()
        say("consumes")
        hear()
        """,
        f"durableq://{directory}",
        ENDING[kind],
    )
    user.expect("consumes")
    kombu.Queue("other")(channel).declare()  # sweeps
    assert (directory / "mine.dq").exists()
    user.kill()
    time.sleep(0.01)  # expires
    kombu.Queue("another")(connect().channel()).declare()
    assert not list(directory.glob("mine*"))
    assert json.loads((directory / "broker.json").read_text())["exchanges"]["all"]["bindings"] == []


def test_a_publisher_to_many_notices_that_one_of_them_is_dead(connect, channel, directory, start, monkeypatch):
    user = start(
        """
        import kombu, durableq.integrations.kombu
        channel = kombu.Connection(sys.argv[1]).channel()
        queue = kombu.Queue("mine", kombu.Exchange("all", "fanout"), exclusive=True)
        kombu.Consumer(channel, [queue], on_message=print).consume()
        say("consumes")
        hear()
        """,
        f"durableq://{directory}",
    )
    user.expect("consumes")
    producer = kombu.Producer(channel)
    exchange = kombu.Exchange("all", "fanout")
    producer.publish("x", exchange=exchange, declare=[exchange])
    user.kill()

    def swept():
        producer.publish("x", exchange=exchange)
        return not (directory / "mine.dq").exists()

    until(swept)


def test_an_auto_delete_queue_waits_for_its_first_consumer(connect, directory):
    queue = kombu.Queue("later", auto_delete=True)
    connection = connect()
    kombu.Producer(connection.channel()).publish("a", routing_key="later", declare=[queue])
    connection.close()
    consumer = Consumer(connect(), queue)
    assert consumer.drain() == "a"
    consumer.messages[0].ack()
    consumer.connection.close()
    assert not list(directory.glob("later*"))


def test_an_exclusive_queue_is_gone_when_its_connection_is_closed(connect, directory):
    consumer = Consumer(connect(), kombu.Queue("mine", exclusive=True))
    consumer.connection.close()
    assert not list(directory.glob("mine*"))


def test_a_forked_child_does_not_keep_its_parents_queues(connect, channel, directory, start):
    user = start(
        """
        import kombu, durableq.integrations.kombu
        channel = kombu.Connection(sys.argv[1]).channel()
        kombu.Consumer(channel, [kombu.Queue("mine", exclusive=True)], on_message=print).consume()
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(tell, b"!")
            time.sleep(600)
        os.read(told, 1)
        say(pid)
        hear()
        """,
        f"durableq://{directory}",
    )
    child = int(user.hear())
    try:
        user.kill()
        kombu.Queue("other")(channel).declare()
        assert not list(directory.glob("mine*"))
    finally:
        os.kill(child, 9)


def test_a_forked_child_lets_go_of_an_inherited_connection_and_of_nothing_else(connect, channel, directory):
    publish(channel, "a")
    consumer = Consumer(connect())
    consumer.drain()
    before = len(spool_of(directory).stats().owners)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            consumer.connection.collect()
            os.write(tell, b"collected")
            time.sleep(PATIENCE)
        os._exit(1)
    try:
        assert os.read(told, 9) == b"collected"
        assert len(spool_of(directory).stats().owners) == before
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)
    consumer.messages[0].ack()
    assert spool_of(directory).stats().unfinished == 0


def test_a_process_that_ends_without_closing_gives_back_what_it_has_not_acked(connect, channel, directory, start):
    publish(channel, "a")
    holder = start(
        """
        import kombu, durableq.integrations.kombu
        connection = kombu.Connection(sys.argv[1])
        message = kombu.Queue("jobs")(connection.channel()).get()
        say(message.payload)
        """,
        f"durableq://{directory}",
    )
    holder.expect("a")
    holder.finish()
    assert "Traceback" not in holder._complaint()
    assert spool_of(directory).stats().ready == 1


# -- waiting and dying -----------------------------------------------------------------------------------------------------


def test_draining_raises_timeout_after_its_time_and_not_before(connect):
    consumer = Consumer(connect())
    began = time.monotonic()
    with pytest.raises(socket.timeout):
        consumer.drain(timeout=0.05)
    assert time.monotonic() - began >= 0.05


def test_a_waiting_consumer_is_woken_and_does_not_poll(connect, channel, monkeypatch):
    monkeypatch.setattr(_store, "RECHECK", 3600.0)
    consumer = Consumer(connect())
    spool = consumer.channel._spools.get("jobs", create=False)
    for body in ("a", "b"):
        waits = threading.Thread(target=consumer.drain, daemon=True)
        waits.start()
        until(lambda: any(owner.waiting for owner in spool.stats().owners))
        publish(channel, body)
        waits.join(PATIENCE)
        assert consumer.messages[-1].payload == body


def test_when_the_system_has_room_for_a_thread_again_a_consumer_is_woken(connect, channel, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    consumer = Consumer(connect())
    spool = consumer.channel._spools.get("jobs", create=False)
    with monkeypatch.context() as shortage:
        shortage.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            consumer.drain()
    waits = threading.Thread(target=consumer.drain, daemon=True)
    waits.start()
    until(lambda: any(owner.waiting for owner in spool.stats().owners))
    publish(channel, "a")
    waits.join(PATIENCE)
    assert consumer.messages[-1].payload == "a"


def test_a_consumer_that_has_its_prefetch_count_sleeps_although_more_is_there(connect, channel, monkeypatch):
    publish(channel, "a", "b")
    consumer = Consumer(connect(), prefetch=1)
    assert consumer.drain_all() == ["a"]
    tries = []
    real = consumer.connection.transport._deliver_one
    monkeypatch.setattr(consumer.connection.transport, "_deliver_one", lambda: tries.append(1) or real())
    consumer.connection.transport.spools.bell.ring()
    with pytest.raises(socket.timeout):
        consumer.drain(timeout=0.1)
    assert len(tries) < 5


@pytest.mark.parametrize(
    "make_room",
    [
        lambda message: message.ack(),
        lambda message: message.reject(),
        lambda message: message.requeue(),
        lambda message: message.channel.basic_qos(0, 2, False),
    ],
    ids=["ack", "reject", "requeue", "more prefetched"],
)
def test_room_that_another_thread_makes_under_the_prefetch_count_wakes_the_consumer(connect, channel, monkeypatch, make_room):
    publish(channel, "a", "b")
    consumer = Consumer(connect(), prefetch=1)
    consumer.drain()
    bell, asleep = consumer.connection.transport.spools.bell, threading.Event()
    wait = bell.wait
    monkeypatch.setattr(bell, "wait", lambda seconds: asleep.set() or wait(seconds))
    waits = threading.Thread(target=consumer.drain, args=(None,), daemon=True)
    waits.start()
    assert asleep.wait(PATIENCE)
    make_room(consumer.messages[0])
    waits.join(PATIENCE)
    assert len(consumer.messages) == 2


def test_a_consumer_waits_for_several_queues_at_once(connect, channel):
    queues = [kombu.Queue(name) for name in "abc"]
    consumer = Consumer(connect(), *queues)
    got = []
    waits = threading.Thread(target=lambda: got.extend(consumer.drain() for _ in queues), daemon=True)
    waits.start()
    for queue in reversed(queues):
        kombu.Producer(channel).publish(queue.name, routing_key=queue.name)
    waits.join(PATIENCE)
    assert sorted(got) == ["a", "b", "c"]


def test_what_a_killed_consumer_held_goes_to_the_one_that_waits(connect, channel, directory, start):
    publish(channel, "a", "b")
    holder = start(
        """
        import kombu, durableq.integrations.kombu
        connection = kombu.Connection(sys.argv[1])
        queue = kombu.Queue("jobs")
        kombu.Consumer(connection.channel(), [queue], on_message=lambda message: say(message.payload)).consume()
        connection.drain_events(timeout=9)
        connection.drain_events(timeout=9)
        hear()
        """,
        f"durableq://{directory}",
    )
    holder.expect("a")
    holder.expect("b")
    consumer = Consumer(connect())
    assert consumer.drain_all() == []
    killer = threading.Timer(0.05, holder.kill)
    killer.start()
    assert [consumer.drain(), consumer.drain()] == ["a", "b"]
    assert all(message.delivery_info["redelivered"] for message in consumer.messages)
    killer.join()


def test_in_kombus_event_loop_messages_come_one_by_one_and_an_ack_makes_room(connect, channel):
    from kombu.asynchronous import Hub

    hub, connection = Hub(), connect()
    got = []

    def on_message(message):
        got.append(message.payload)
        hub.call_soon(message.ack)

    in_loop = connection.channel()
    in_loop.basic_qos(0, 1, False)
    kombu.Consumer(in_loop, [JOBS], on_message=on_message).consume()
    connection.transport.register_with_event_loop(connection.connection, hub)
    publish(channel, *range(20))
    deadline = time.monotonic() + PATIENCE
    while len(got) < 20:
        assert time.monotonic() < deadline
        hub.run_once()
    assert got == list(range(20))
    until(lambda: hub.run_once() or any(owner.waiting for owner in in_loop._spools.get("jobs", create=False).stats().owners))
    waking = threading.Timer(0.05, publish, (channel, "late"))
    waking.start()
    until(lambda: hub.run_once() or got[-1] == "late")
    waking.join()
    connection.close()
    assert not hub.on_tick
    hub.close()


def test_with_green_threads_it_polls_and_starts_no_thread(connect, channel, monkeypatch):
    monkeypatch.setattr(transport, "detect_environment", lambda: "gevent")
    started = []
    monkeypatch.setattr(Watch, "arm", started.append)
    consumer = Consumer(connect())
    with pytest.raises(socket.timeout):
        consumer.drain(timeout=0.06)
    publish(channel, "a")
    assert consumer.drain() == "a"
    monkeypatch.undo()
    assert not started


def test_a_connection_that_many_replies_go_through_does_not_keep_them_all_open(connect, directory):
    producer = kombu.Producer(connect().channel())
    for n in range(50):
        producer.publish(n, routing_key=f"reply{n}")
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]
    assert sum(name.endswith(".dq") and str(directory) in name for name in opened) <= 32
    producer.publish("again", routing_key="reply0")
    assert spool_of(directory, "reply0").qsize() == 2


# -- its name --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["durableq://", "durableq:///", "durableq://host/srv/jobs", "durableq:///srv/jobs?sync=0"])
def test_a_url_that_names_no_directory_says_how_it_should_be(url):
    with pytest.raises(ValueError, match="durableq:///path/of/it"):
        kombu.Connection(url).connect()


def test_a_directory_whose_parent_is_missing_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError):
        kombu.Connection(f"durableq://{tmp_path}/no/such").create_transport()


def test_a_connection_names_its_directory(connect, directory):
    assert connect().as_uri() == f"durableq://{directory}"
    assert connect().clone().as_uri() == f"durableq://{directory}"


def test_importing_the_integration_makes_the_name_known_to_kombu(directory):
    code = f"import kombu, durableq.integrations.kombu; kombu.Connection('durableq://{directory}').connect()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert directory.is_dir()
