"""What does `forward` reach beside the bare client library? `python -m benchmarks.forward [--items 100000] [--rounds 3]`

All in one run, in rounds A B C A B C; medians of items a second. Each engine is a server of this run on loopback (Redis,
RabbitMQ; librdkafka's mock cluster stands for Kafka). For each engine, the same messages of 100 bytes with an id each:

    bare       the client library sends them from memory as it would be used for speed, and waits until all are confirmed
    forward    they lie in a queue on disk, and are there acked when they are confirmed

What is held to, of Kafka and Redis: 50,000 items a second, or 0.7 of the bare client. Exit code 1 if that does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the servers are those of the tests

from engines.kafka_mock import KafkaCluster
from engines.rabbitmq import RabbitMQ
from engines.redis_server import RedisServer

import durableq
from benchmarks.common import environment
from durableq import DurableQueue

SIZE = 100
ENOUGH, SHARE = 50_000, 0.7
HELD = ("kafka", "redis stream", "redis list")
Bare = Callable[[list[bytes]], None]


def bare_kafka(port: int) -> Bare:
    """confluent-kafka with the guarantees that `forward` asks for."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": f"127.0.0.1:{port}", "enable.idempotence": True, "acks": "all", "log_level": 0})

    def send(items: list[bytes]) -> None:
        confirmed = 0

        def report(error: Any, message: Any) -> None:
            nonlocal confirmed
            confirmed += error is None

        for n, item in enumerate(items):
            producer.produce("events", item, headers=[("id", b"%x" % n)], on_delivery=report)
            if not n % 1000:
                producer.poll(0)
            while len(producer) > 90_000:
                producer.poll(0.01)
        producer.flush()
        assert confirmed == len(items)

    return send


def bare_redis(server: RedisServer, as_list: bool) -> Bare:
    """redis-py with pipelines of 500 commands."""

    def send(items: list[bytes]) -> None:
        with server.client() as client:
            for first in range(0, len(items), 500):
                pipeline = client.pipeline(transaction=False)
                for n, item in enumerate(items[first : first + 500], first):
                    if as_list:
                        pipeline.rpush("events", item)
                    else:
                        pipeline.xadd("events", {"id": b"%x" % n, "value": item})
                pipeline.execute()

    return send


def bare_amqp(url: str) -> Bare:
    """py-amqp with publisher confirms that are waited for every 500 messages."""
    import kombu

    def send(items: list[bytes]) -> None:
        with kombu.Connection(url) as connection, connection.channel() as channel:
            channel.queue_declare("events", durable=True, auto_delete=False)
            channel.confirm_select()
            confirmed = 0

            def on_ack(tag: int, multiple: bool) -> None:
                nonlocal confirmed
                confirmed = max(confirmed, tag) if multiple else confirmed + 1

            channel.events["basic_ack"].add(on_ack)
            for n, item in enumerate(items, 1):
                properties = {"message_id": f"{n:x}", "delivery_mode": 2}
                channel.basic_publish(channel.prepare_message(item, properties=properties), "", "events")
                while not n % 500 and confirmed < n - 500:
                    connection.drain_events()
            while confirmed < len(items):
                connection.drain_events()

    return send


def rate_of(work: Callable[[], None], count: int) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def forwarded(folder: Path, url: str, items: list[bytes]) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place, DurableQueue(f"{place}/q.dq", serializer="bytes") as queue:
        queue.put_many(items)
        queue.sync()

        def work() -> None:
            assert durableq.forward(queue, url, drain=True) == (len(items), 0)

        return rate_of(work, len(items))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--items", type=int, default=100_000, help="messages a run; AMQP gets a fifth of them")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(environment(options.dir or Path(tempfile.gettempdir())))
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        return compare(Path(name), options.items, options.rounds)


def compare(folder: Path, count: int, rounds: int) -> int:
    redis, kafka, rabbitmq = RedisServer(folder / "redis"), KafkaCluster(), RabbitMQ(folder / "rabbitmq")
    try:
        rabbitmq.start()
        kafka.tell("topic", "events")
        redis_url = f"redis://127.0.0.1:{redis.port}/0"
        subjects: dict[str, tuple[Bare, str, int]] = {
            "kafka": (bare_kafka(kafka.port), f"kafka://127.0.0.1:{kafka.port}/events", count),
            "redis stream": (bare_redis(redis, False), f"{redis_url}?stream=events", count),
            "redis list": (bare_redis(redis, True), f"{redis_url}?list=events", count),
            "amqp": (bare_amqp(rabbitmq.url), f"{rabbitmq.url}?queue=events", count // 5),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name, (bare, url, n) in subjects.items():
                items = [f"{number:09}".encode().ljust(SIZE, b".") for number in range(n)]
                pair = rate_of(lambda bare=bare, items=items: bare(items), n), forwarded(folder, url, items)  # type: ignore[misc]
                found[name].append(pair)
                with redis.client() as client:
                    client.flushall()
        return judge(found)
    finally:
        redis.kill()
        kafka.kill()
        rabbitmq.dispose()


def judge(found: dict[str, list[tuple[float, float]]]) -> int:
    missed = 0
    print(f"{'':14}{'bare':>12}{'forward':>12}{'ratio':>8}    items/s")
    for name, pairs in found.items():
        bare, forward = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = forward / bare
        reached = forward >= ENOUGH or ratio >= SHARE
        missed += name in HELD and not reached
        verdict = f"(wanted: {ENOUGH:,}, or {SHARE}) {'ok' if reached else 'MISSED'}" if name in HELD else ""
        print(f"{name:14}{bare:12,.0f}{forward:12,.0f}{ratio:8.2f}    {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
