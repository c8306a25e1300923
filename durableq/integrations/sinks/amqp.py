"""To AMQP 0-9-1 brokers such as RabbitMQ, through kombu and py-amqp.

Messages are persistent and carry the id as `message_id`. The channel is in confirm mode and does not wait after each: the
broker's acks come in later, several at once, by delivery tag. Every message is `mandatory`, since a broker confirms what
it then drops because no queue wants it.

    from the broker                          verdict
    ack                                      confirmed
    nack (a full queue, an inner error)      none: the broker is away until it takes it
    (a topic or header name is too long)     refused, before it is sent: AMQP has 255 bytes for each
    return: no queue for it                  none if we name the queue (it is declared again); refused behind an exchange
    channel closed: precondition failed      one of those under way is not to its liking (too large, say): they are sent
                                             again one by one, and the one that does it again is refused
    anything else                            none: the broker is away

`queue=NAME` sends to that queue, declared durable unless it is there; `exchange=NAME` to an exchange, which must be there,
with `routing_key` if one is given. An item's topic stands in the place of the queue's name or the routing key.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from durableq.errors import BadURLError
from durableq.integrations._extras import need
from durableq.integrations._urls import split
from durableq.integrations.message import BYTES, Message
from durableq.integrations.sinks.base import AwayError, Parcel, Sink

__all__ = ["HEADERS", "AmqpSink"]

HEADERS = frozenset({"tag", "at", "key", "x-delivery-count"})
"""Headers of a message that are durableq's own, here or in `durableq.connect`, or the broker's count of deliveries."""

_WORDS = {"queue", "exchange", "routing_key"}
_LONGEST_NAME = 255
CONNECT_PATIENCE = 5.0
PATIENCE = 30.0
"""Seconds without a sign of life after which a connection is given up."""


class AmqpSink(Sink):
    """A queue or an exchange of an AMQP broker; `url` as `durableq.integrations._urls` has it."""

    reserved = HEADERS

    def __init__(self, url: str, queue: str = "") -> None:
        self._kombu = need("kombu", "kombu")
        self._precondition_failed = need("amqp", "kombu").PreconditionFailed
        engine = split(f"{url}{'&' if '?' in url else '?'}queue={quote(queue)}" if queue else url, _WORDS)
        self._exchange = engine.words.get("exchange", "")
        self._routing_key = engine.words.get("routing_key", engine.words.get("queue", ""))
        self.name = f"{engine.place} {f'exchange {self._exchange}' if self._exchange else f'queue {self._routing_key}'}"
        if ("queue" in engine.words) == ("exchange" in engine.words):
            raise BadURLError(f"{engine.place}: name the queue or the exchange: ?queue=NAME, or ?exchange=NAME&routing_key=KEY")
        self._url = engine.url
        self._connection: Any = None
        self._channel: Any = None

    def open(self) -> None:
        if self._connection is not None:
            if not self._dropped():
                return
            self.close()
        connection = self._kombu.Connection(
            self._url,
            connect_timeout=CONNECT_PATIENCE,
            transport_options={"read_timeout": PATIENCE, "write_timeout": PATIENCE},
        )
        self._connection, self._errors = connection, (*connection.connection_errors, *connection.channel_errors)
        self._known: set[str] = set()
        self._owed: dict[int, tuple[Parcel, int]] = {}
        self._returned: dict[str, str] = {}
        self._tag = 0
        self._gone: AwayError | None = None
        try:
            # One try, or kombu would sleep for seconds between two of its own.
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=False)
            if not self._exchange and self._routing_key:
                self._find_queue(self._routing_key)
            self._channel = channel = connection.channel()
            channel.confirm_select()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
        except self._errors as exc:
            self.close()
            raise AwayError(str(exc)) from exc

    def _dropped(self) -> bool:
        """Whether the broker has closed an idle connection meanwhile."""
        try:
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0.001)
        except self._errors:
            return True
        return False

    def _find_queue(self, name: str) -> None:
        """Declare the queue unless it is there, on channels of its own: a broker that says no closes the channel."""
        if name in self._known:
            return
        try:
            with self._connection.channel() as channel:
                channel.queue_declare(name, passive=True)
        except self._connection.channel_errors:
            with self._connection.channel() as channel:
                channel.queue_declare(name, durable=True, auto_delete=False)
        self._known.add(name)

    def send(self, parcel: Parcel) -> None:
        try:
            for index, message in enumerate(parcel.messages):
                long = [name for name in (message.topic or "", *message.headers) if len(name.encode()) > _LONGEST_NAME]
                if long:
                    parcel.refuse(index, f"AMQP has {_LONGEST_NAME} bytes for a name, and not for {long[0][:40]!r}...")
                    continue
                self._publish(message)
                self._owed[self._tag] = (parcel, index)
        except self._errors as exc:
            raise self._away(exc) from exc
        self._heard = time.monotonic()

    def deliver(self, parcel: Parcel) -> None:
        """Send a parcel and wait until all of it is confirmed. Raises AwayError."""
        self.open()
        self.send(parcel)
        while not self.wait(parcel, PATIENCE):
            pass  # it raises by itself when nothing more comes

    def _publish(self, message: Message) -> None:
        routing_key = message.topic or self._routing_key
        if not self._exchange:
            self._find_queue(routing_key)
        headers: dict[str, Any] = dict(message.headers)
        if message.key is not None:
            headers["key"] = message.key
        body = self._channel.prepare_message(
            message.value,
            content_type=message.content_type,
            content_encoding="binary" if message.content_type == BYTES else "utf-8",  # as kombu's own consumers expect
            headers=headers,
            properties={"message_id": message.id, "delivery_mode": 2},
        )
        self._tag += 1
        self._channel.basic_publish(body, self._exchange, routing_key, mandatory=True, timeout=PATIENCE)

    def wait(self, parcel: Parcel, timeout: float) -> bool:
        until = time.monotonic() + timeout
        try:
            while not parcel.settled:
                if self._gone is not None and not self._owed:  # an ack may take longer than a nack
                    raise self._gone
                left = until - time.monotonic()
                if left <= 0:
                    if time.monotonic() - self._heard > PATIENCE:
                        raise self._gone or AwayError(f"no confirmation for {PATIENCE:.0f} seconds")
                    return False
                try:
                    self._connection.drain_events(timeout=left)
                    self._heard = time.monotonic()
                except TimeoutError:
                    pass
        except self._errors as exc:
            raise self._away(exc) from exc
        return True

    def _away(self, exc: Exception) -> AwayError:
        if isinstance(exc, AwayError):
            return exc
        return AwayError(str(exc), suspect=isinstance(exc, self._precondition_failed))

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for parcel, index in self._settled(tag, multiple):
            reason = self._returned.pop(parcel.messages[index].id, None)
            if reason is None:
                parcel.confirm(index)
            elif self._exchange:
                parcel.refuse(index, reason)
            else:
                self._gone = AwayError("the queue has gone")

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for _ in self._settled(tag, multiple):
            self._gone = AwayError("the broker did not take a message; its queue may be full")

    def _settled(self, tag: int, multiple: bool) -> list[tuple[Parcel, int]]:
        if not multiple:
            return [self._owed.pop(tag)]
        tags = []
        for owed in self._owed:  # in the order of their tags
            if owed > tag:
                break
            tags.append(owed)
        return [self._owed.pop(owed) for owed in tags]

    def _on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        # It comes before the ack of the same message.
        self._returned[message.properties["message_id"]] = f"no queue is bound to {exchange!r} for {routing_key!r}"

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # No farewell to a broker that may not answer: the socket is closed, and that says it too.
            connection.collect(socket_timeout=1)
