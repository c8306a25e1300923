"""To Kafka, through confluent-kafka (librdkafka).

The producer is idempotent and asks all in-sync replicas: librdkafka itself sends again, keeps the order within each
partition and drops its own repeats. It is given all the time it wants (`message.timeout.ms=0`): only a message that we gave up
could come out of order. What the delivery report says is the verdict:

    no error                                  confirmed
    the record is too large or not allowed    refused, if it was sent alone; a broker refuses records by the batch, so
                                              the others of its batch are innocent, and all are sent again one by one
    anything else                             none: Kafka is away (a topic that is not there may be created yet)

The id is the header `durableq-id`. Order is kept within a partition: give the items a key, or the topic one partition.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from durableq.errors import BadURLError
from durableq.integrations._extras import need
from durableq.integrations.sinks.base import AwayError, Parcel, Sink

__all__ = ["ID_HEADER", "KafkaSink"]

ID_HEADER = "durableq-id"
CONNECT_PATIENCE = 5.0
_STUFFED = 30.0
"""Seconds for which the client's own buffer may be full before that counts as being away."""
_LAST_NEWS = 1.0
"""Seconds that the other reports may still take after the first bad one."""
_CONFIG = {"enable.idempotence": True, "acks": "all", "message.timeout.ms": 0, "client.id": "durableq"}
_REFUSALS = (
    *("MSG_SIZE_TOO_LARGE", "TOPIC_EXCEPTION", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD"),
    *("INVALID_TIMESTAMP", "UNSUPPORTED_FOR_MESSAGE_FORMAT", "POLICY_VIOLATION"),
)


class KafkaSink(Sink):
    """A topic of a Kafka cluster: kafka://host:port,host:port/TOPIC?librdkafka.property=value

    config: more properties of librdkafka, for what should not stand in a URL (passwords). The topic may be left out if each
    item names its own.
    """

    reserved = frozenset({ID_HEADER})

    def __init__(self, url: str, config: dict[str, Any] | None = None) -> None:
        self._kafka = need("confluent_kafka", "kafka")
        parts = urlsplit(url)
        self._topic = unquote(parts.path.strip("/")) or None
        self.name = f"kafka://{parts.netloc}{parts.path}"
        if not parts.netloc or "@" in parts.netloc:
            raise BadURLError(
                f"kafka://{parts.netloc.rpartition('@')[2]}: the URL is kafka://host:port,host:port/TOPIC?property=value"
            )
        self._config = {
            "bootstrap.servers": parts.netloc,
            **_CONFIG,
            **dict(parse_qsl(parts.query, keep_blank_values=True)),
            **(config or {}),
        }
        self._refusals = {getattr(self._kafka.KafkaError, name) for name in _REFUSALS}
        self._producer: Any = None
        self._gone: AwayError | None = None

    def open(self) -> None:
        if self._producer is not None:
            return
        try:
            producer = self._kafka.Producer(self._config, logger=logging.getLogger("durableq.forward.kafka"))
        except (self._kafka.KafkaException, ValueError, TypeError) as exc:
            raise BadURLError(f"{self.name}: librdkafka does not take this configuration: {_words(exc)}") from None
        try:
            found = producer.list_topics(*([self._topic] if self._topic else []), timeout=CONNECT_PATIENCE)
        except self._kafka.KafkaException as exc:
            raise AwayError(_words(exc)) from None
        if self._topic and found.topics[self._topic].error is not None:
            raise AwayError(f"topic {self._topic}: {found.topics[self._topic].error.str()}")
        self._producer = producer
        self._gone = None

    def send(self, parcel: Parcel) -> None:
        produce = self._producer.produce
        for index, message in enumerate(parcel.messages):
            topic = message.topic or self._topic
            if topic is None:
                parcel.refuse(index, "neither the URL nor the item names a topic")
                continue
            headers = [(ID_HEADER, message.id.encode()), *message.headers.items()]
            report = partial(self._report, parcel, index)
            stuffed = 0.0
            while True:
                try:
                    produce(topic, message.value, message.key, on_delivery=report, headers=headers)
                except BufferError:
                    stuffed = stuffed or time.monotonic()
                    if time.monotonic() - stuffed > _STUFFED:
                        raise AwayError("the brokers take nothing, and the client's buffer is full") from None
                    self._producer.poll(0.1)
                    continue
                except ValueError as exc:  # a topic that is no name for it
                    parcel.refuse(index, str(exc))
                except self._kafka.KafkaException as exc:  # told at once, of this message alone
                    error = exc.args[0]
                    if error.code() not in self._refusals:
                        raise AwayError(_words(exc)) from None
                    parcel.refuse(index, error.str())
                break
        self._producer.poll(0)

    def _report(self, parcel: Parcel, index: int, error: Any, _: Any) -> None:
        if error is None:
            parcel.confirm(index)
        elif self._gone is None:
            self._gone = AwayError(error.str(), suspect=error.code() in self._refusals)

    def wait(self, parcel: Parcel, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while not parcel.settled:
            if self._gone is not None:
                self._producer.flush(_LAST_NEWS)
                raise self._gone
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._producer.poll(left)
        return True

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # Every message gets its report: those that were confirmed meanwhile, and those that are purged.
            producer.purge()
            producer.flush(CONNECT_PATIENCE)


def _words(exc: Exception) -> str:
    error = exc.args[0] if exc.args else exc
    return str(error.str()) if hasattr(error, "str") else str(error)
