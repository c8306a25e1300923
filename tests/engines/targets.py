"""Engines as the tests of `forward` see them: a URL behind a proxy, faults, and what has arrived."""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

from engines.kafka_mock import KafkaCluster
from engines.proxy import Proxy
from engines.rabbitmq import RabbitMQ
from engines.redis_server import RedisServer

_numbers = itertools.count()


class Arrived(NamedTuple):
    id: str
    value: bytes
    key: bytes | None
    headers: dict[str, bytes]


class Target(Protocol):
    """An engine. `restart` after `kill` finds it with what it had, `restart_empty` without."""

    largest: int
    """Bytes of the largest message that it takes."""
    reserved: tuple[str, ...]
    """Names that no header can have."""
    proxy: Proxy
    url: str

    def kill(self) -> None: ...

    def restart(self) -> None: ...

    def restart_empty(self) -> None: ...

    def arrived(self, place: str = "", fresh: bool = False) -> list[Arrived]:
        """What is there, also what an earlier call has taken out (`fresh`: forget that)."""

    def dispose(self) -> None: ...


class RedisTarget:
    """A stream."""

    largest = 1 << 20
    reserved = "id", "value", "key", "tag", "at", "n"
    options = ("--proto-max-bulk-len", "1mb")

    def __init__(self, server: RedisServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy
        self.url = f"redis://127.0.0.1:{proxy.port}/0/events"

    def kill(self) -> None:
        self.server.kill()

    def restart(self) -> None:
        self.server.start()

    def restart_empty(self) -> None:
        self.server.wipe()
        self.server.start()

    def arrived(self, place: str = "events", fresh: bool = False) -> list[Arrived]:
        with self.server.client() as client:
            return [self._arrived(fields) for _, fields in client.xrange(place)]

    @staticmethod
    def _arrived(fields: dict[bytes, bytes]) -> Arrived:
        id, value, key = fields.pop(b"id").decode(), fields.pop(b"value"), fields.pop(b"key", None)
        return Arrived(id, value, key, {name.decode(): field for name, field in fields.items()})

    def dispose(self) -> None:
        self.server.kill()


class RabbitTarget:
    """A durable queue."""

    largest = 1_000_000
    reserved = "tag", "at", "key", "x-delivery-count"

    def __init__(self, broker: RabbitMQ, proxy: Proxy) -> None:
        self.broker, self.proxy = broker, proxy
        self.place = f"events{next(_numbers)}"
        self.url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//?queue={self.place}"
        self._taken: dict[str, list[Arrived]] = {}
        self._on_disk = False

    def kill(self) -> None:
        # A broker that gets SIGKILL may have forgotten a queue that was declared just before, with all that it has
        # confirmed; one that has been through an orderly end is on the disk.
        if self._on_disk:
            self.broker.kill()
        else:
            self.broker.stop()
        self._on_disk = True

    def restart(self) -> None:
        self.broker.start()

    def restart_empty(self) -> None:
        self._on_disk = False
        self.broker.wipe()
        self.broker.start()

    def arrived(self, place: str = "", fresh: bool = False) -> list[Arrived]:
        import kombu

        place = place or self.place
        if fresh:
            self._taken.clear()
        taken = self._taken.setdefault(place, [])
        with kombu.Connection(self.broker.url) as connection, connection.channel() as channel:
            while (message := channel.basic_get(place, no_ack=True)) is not None:
                headers = dict(message.properties.get("application_headers") or {})
                as_bytes = {n: v if isinstance(v, bytes) else v.encode() for n, v in headers.items()}
                key = as_bytes.pop("key", None)
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                taken.append(Arrived(message.properties["message_id"], body, key, as_bytes))
        return list(taken)

    def dispose(self) -> None:
        if not self.broker.running:
            self.broker.start()


class KafkaTarget:
    """A topic with one partition."""

    largest = 1_000_000
    reserved = ("durableq-id",)

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.url = f"kafka://127.0.0.1:{proxy.port}/events?reconnect.backoff.max.ms=200&retry.backoff.max.ms=200"
        self.cluster: KafkaCluster | None = None
        self._start()

    def _start(self) -> None:
        self.cluster = KafkaCluster(advertise=self.proxy.port)
        self.cluster.tell("topic", "events")
        self.proxy.upstream = self.cluster.port

    def kill(self) -> None:
        self.cluster.tell("down")
        self.proxy.cut()

    def restart(self) -> None:
        self.cluster.tell("up")

    def restart_empty(self) -> None:
        self.cluster.kill()
        self._start()

    def arrived(self, place: str = "events", fresh: bool = False) -> list[Arrived]:
        self.cluster.tell("advertise", self.cluster.port)
        found = []
        for message in self.cluster.messages(place):
            headers = dict(message.headers())
            found.append(Arrived(headers.pop("durableq-id").decode(), message.value(), message.key(), headers))
        self.cluster.tell("advertise", self.proxy.port)
        return found

    def dispose(self) -> None:
        self.cluster.kill()
