"""A queue on anything that kombu speaks to: AMQP brokers such as RabbitMQ, Amazon SQS, and the rest of its transports.

    scheme://[user:password@]host[:port]/[vhost]?queue=NAME

Items are persistent messages in a durable queue NAME, dead letters in NAME.dead. To AMQP they go as `durableq forward` sends
them, with publisher confirms (`AmqpSink`); elsewhere a put is done when kombu's publish returns. They are taken one by one
(`basic_get`), so that a process never has more than it asked for. What a dead process held comes back by the broker: at
once on AMQP, where its connection was its life; after the transport's visibility timeout on others.

Messages that somebody else has sent are read too: the body is the payload in the serializer of this handle. A message is
durableq's own if it has headers `tag` and `at` that are numbers; in others these are headers like any.

A connection that is lost takes with it all that was lent over it: it goes to others, and settling it here is too late.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from durableq.errors import BadURLError, UnreachableError
from durableq.integrations._extras import need
from durableq.integrations._urls import split
from durableq.integrations.engines.base import Body, Engine, Fetched, as_text, number
from durableq.integrations.message import BYTES, Message
from durableq.integrations.sinks.amqp import HEADERS, AmqpSink
from durableq.integrations.sinks.base import AwayError, Parcel

__all__ = ["KombuEngine"]

HEARTBEAT = 30.0
CONNECT_PATIENCE = 5.0
_SHORTEST, _LONGEST = 0.001, 0.1
"""Seconds between two looks of who waits for an item."""
_OF_THE_BROKER = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-stream-offset",
    "x-received-from",
    "x-opt-",
)
"""How headers begin that a broker adds on the way; others with an `x-` are the sender's, such as a trace context of B3."""
_abandoned: list[Any] = []
"""Connections of the parent of this process. Nobody closes them here: that would tell the broker that the parent is gone."""


class _Token(NamedTuple):
    connection: int
    """The number of the connection that it came over."""
    tag: Any
    body: Body


class KombuEngine(Engine):
    """One queue on one broker."""

    beat = HEARTBEAT / 2

    def __init__(self, url: str, own_tag: int, *, transport_options: dict[str, Any] | None = None, dead: bool = False) -> None:
        super().__init__()
        self._kombu = need("kombu", "kombu")
        place = split(url.removeprefix("kombu+"), {"queue"})
        if not place.words.get("queue"):
            raise BadURLError(f"{place.place}: name the queue: ?queue=NAME")
        self._arguments = (url, own_tag, transport_options)
        self._own_tag = own_tag
        self._dead = dead
        self._name = f"{place.words['queue']}.dead" if dead else place.words["queue"]
        self.path = f"{place.place} queue {self._name}"
        self._url, self._options = place.url, transport_options or {}
        scheme = urlsplit(place.url).scheme
        self._amqp = scheme in ("amqp", "amqps", "pyamqp")
        if scheme not in (*need("kombu.transport", "kombu").TRANSPORT_ALIASES, "amqps"):
            raise BadURLError(f"{place.place}: kombu has no transport {scheme!r}")
        self._sink = AmqpSink(self._url, self._name) if self._amqp else None
        self._letters: KombuEngine | None = None
        self._connection: Any = None
        self._errors: tuple[type[Exception], ...] = ()
        self._number = 0
        with self._reaching():
            self._connect()

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connection is not None:
            return
        connection = self._kombu.Connection(
            self._url,
            connect_timeout=CONNECT_PATIENCE,
            heartbeat=HEARTBEAT if self._amqp else 0,
            transport_options=self._options,
        )
        self._number += 1
        self._connection, self._errors = connection, (*connection.connection_errors, *connection.channel_errors)
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=False)
        if self._sink is not None:
            self._sink.open()  # which declares the queue
        self._channel = connection.channel()
        if self._sink is None:
            self._channel.queue_declare(self._name, durable=True, auto_delete=False)
        self._producer = self._kombu.Producer(self._channel)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """One at a time, on a connection that is there; what fails takes the connection with it."""
        with self._guard:
            try:
                self._connect()
                yield
            except AwayError as exc:
                self._drop()
                if exc.suspect:
                    raise ValueError(f"{self.path}: the broker does not take this item: {exc}") from exc
                raise UnreachableError(f"{self.path}: {exc}") from exc
            except Exception as exc:
                if not isinstance(exc, (*self._errors, OSError)):
                    raise
                self._drop()
                raise UnreachableError(f"{self.path}: {exc}") from exc

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is broken already, in whatever way
                connection.collect(socket_timeout=1)
        if self._sink is not None:
            self._sink.close()

    def _abandon(self) -> None:
        _abandoned.append((self._connection, self._sink, self._letters))
        self._connection = self._letters = None
        if self._sink is not None:
            self._sink = AmqpSink(self._url, self._name)

    # -- the queue -----------------------------------------------------------------------------------------------------

    def append(self, bodies: Sequence[Body], delay: float = 0.0) -> int:
        """See Engine."""
        if delay:
            raise self.unsupported("a broker holds nothing back for a time", "put it later")
        with self._reaching():
            messages = [_message(body) for body in bodies]
            if self._sink is not None:
                self._sink.deliver(Parcel(messages))
            else:
                for message in messages:
                    self._producer.publish(
                        message.value,
                        routing_key=self._name,
                        content_type=BYTES,
                        content_encoding="binary",
                        headers={name: value.decode() for name, value in message.headers.items()},
                        message_id=message.id,
                        delivery_mode=2,
                    )
        return len(bodies)

    def waiting(self) -> int:
        """See Engine."""
        with self._reaching():
            # On other transports an empty queue may be no queue, and nothing but declaring it tells the count.
            return int(self._channel.queue_declare(self._name, passive=self._amqp).message_count)

    def purge(self) -> int:
        """See Engine."""
        with self._reaching():
            return int(self._channel.queue_purge(self._name) or 0)

    def dead_letters(self) -> Engine:
        """See Engine."""
        url, own_tag, options = self._arguments
        return KombuEngine(url, own_tag, transport_options=options, dead=True)

    @property
    def maxsize(self) -> int:
        """See Engine."""
        return 0

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        raise self.unsupported("maxsize cannot be set from here", "give the broker's queue a length limit")

    def _fetch(self, limit: int, done: bool, wait: float) -> list[Fetched]:
        until = time.monotonic() + wait
        pause = _SHORTEST
        while True:
            with self._reaching():
                found: list[Fetched] = []
                while len(found) < limit and (message := self._channel.basic_get(self._name, no_ack=done)) is not None:
                    found.append(self._fetched(message))
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            self._ended.wait(min(pause, left))
            self.check()
            pause = min(2 * pause, _LONGEST)

    def _fetched(self, message: Any) -> Fetched:
        # What kombu's own `Queue.get` does, but that raises for what it cannot decompress, which nobody then could take.
        message = getattr(self._channel, "message_to_python", lambda raw: raw)(message)
        headers, ours = message.headers or {}, HEADERS
        name = message.properties.get("message_id") or ""
        payload = message.body if isinstance(message.body, bytes) else message.body.encode()
        tag, enqueued = number(headers.get("tag")), number(headers.get("at"))
        if tag is None or enqueued is None:
            tag, enqueued, ours = self._own_tag, 0, HEADERS - {"tag", "at"}
        theirs = (field for field in headers if field not in ours and not field.startswith(_OF_THE_BROKER))
        others = {field: as_text(headers[field]) for field in theirs}
        body = Body(payload, tag, enqueued, name).carrying(others)
        # Exact for quorum queues, else whether it was delivered before; not even that on some transports.
        before = number(headers.get("x-delivery-count"))
        if before is None:
            before = int(bool(message.delivery_info.get("redelivered")))
        return Fetched(_Token(self._number, message.delivery_tag, body), name, before + 1, body)

    # -- settling ------------------------------------------------------------------------------------------------------

    def _ours(self, token: _Token) -> bool:
        return self._connection is not None and token.connection == self._number

    def _ack(self, token: _Token) -> bool:
        with self._reaching():
            if self._ours(token):
                self._channel.basic_ack(token.tag)
                return True
        return False

    def _nack(self, token: _Token, delay: float) -> bool:
        if delay:
            raise self.unsupported("a broker holds nothing back for a time", "nack it later")
        with self._reaching():
            if self._ours(token):
                self._channel.basic_reject(token.tag, requeue=True)
                return True
        return False

    def _reject(self, token: _Token) -> bool:
        if self._dead:
            return self._nack(token, 0.0)  # it is there already
        with self._reaching():
            if not self._ours(token):
                return False
        if self._letters is None:
            url, own_tag, options = self._arguments
            self._letters = KombuEngine(url, own_tag, transport_options=options, dead=True)
        self._letters.append([token.body])  # before the ack: killed in between, it is there twice
        return self._ack(token)

    def _extend(self, token: _Token, seconds: float) -> bool:
        return self._ours(token)  # it is ours as long as the connection is

    def _beat(self) -> None:
        if not self._amqp or self._connection is None:
            return
        with self._reaching():
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0.001)  # the broker's own heartbeats, or they would count as missed
            self._connection.heartbeat_check()

    def _leave(self) -> None:
        if self._letters is not None:
            self._letters.close()
        with self._guard:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(*self._errors, OSError):
                    connection.release()
            if self._sink is not None:
                self._sink.close()


def _message(body: Body) -> Message:
    headers = {"tag": b"%d" % body.tag, "at": b"%d" % body.enqueued}
    return Message(body.id or uuid.uuid4().hex, body.payload, BYTES, headers=headers)
