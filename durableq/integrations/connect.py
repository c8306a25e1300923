"""The step from one machine to many: the queue of an engine that exists, with the methods of DurableQueue.

file:///path/jobs.dq                        DurableQueue
redis://host:port/db/NAME   rediss:// unix://   a Redis stream with a consumer group
amqp://user:password@host/vhost?queue=NAME      RabbitMQ and other AMQP brokers, through kombu
sqs://...?queue=NAME                            any other transport of kombu; kombu+redis:// for its own Redis transport
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from durableq._queue import DurableQueue
from durableq._serializers import Codec, Serializer
from durableq.errors import BadURLError, UnsupportedError
from durableq.integrations.engines.base import Engine
from durableq.integrations.engines.queue import EngineQueue

__all__ = ["connect"]

_OF_A_FILE = {"sync", "max_bytes", "on_full", "mode"}


def connect(
    url: str, maxsize: int = 0, *, ack: str = "task_done", serializer: str | Serializer = "pickle", **options: Any
) -> DurableQueue | EngineQueue:
    """The queue that a URL names (see the module), created if it is not there.

    maxsize, ack, serializer, and the options lease and max_deliveries are those of DurableQueue, whose other options go
    with file:// only. `transport_options` goes to kombu. What the engine cannot do raises UnsupportedError; an engine that
    does not answer raises UnreachableError (a ConnectionError), here and in every call.

    Delivery is at least once (`ack="task_done"`): `Delivery.id` is the same each time. Unpickling is running code: with the
    default serializer, whoever may write to the engine runs code here; "json" and "bytes" are safe from that.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise BadURLError(f"{url}: a file's URL has three slashes and an absolute path: file:///var/spool/jobs.dq")
        return DurableQueue(unquote(parts.path), maxsize, ack=ack, serializer=serializer, **options)
    if parts.scheme == "kafka":
        raise UnsupportedError(
            "kafka://: what Kafka has is no queue of items that are done one by one; durableq.forward sends to it"
        )
    if not parts.scheme:
        raise BadURLError(f"{url!r} is no URL; for a file, take DurableQueue({url!r}) or file:///...")
    for option in ("lease", "max_deliveries"):
        if options.get(option) is not None and options[option] <= 0:
            raise ValueError(f"{option}={options[option]!r} must be None or positive")
    for option in _OF_A_FILE & options.keys():
        raise UnsupportedError(f"{parts.scheme}://: {option} is for a queue in a file; see what the engine itself has for that")
    found = EngineQueue(_engine(parts.scheme, url, maxsize, Codec(serializer).tag, options), ack, serializer)
    found._origin = (_connect_again, (url, maxsize, {"ack": ack, "serializer": serializer, **options}))
    return found


def _connect_again(url: str, maxsize: int, options: dict[str, Any]) -> DurableQueue | EngineQueue:
    return connect(url, maxsize, **options)


def _engine(scheme: str, url: str, maxsize: int, tag: int, options: dict[str, Any]) -> Engine:
    if scheme in ("redis", "rediss", "unix"):
        from durableq.integrations.engines.redis import RedisEngine

        return RedisEngine(url, tag, maxsize=maxsize, **options)
    from durableq.integrations.engines.kombu import KombuEngine

    remedies = {
        "maxsize": "give the broker's queue a length limit",
        "lease": "what is lent comes back when its holder is gone; brokers have a time limit of their own",
        "max_deliveries": "brokers do not count them for all queues; give a quorum queue a delivery limit",
    }
    for option, remedy in remedies.items():
        if options.pop(option, None) or (option == "maxsize" and maxsize):
            raise UnsupportedError(f"{scheme}://: {option} is not for queues of a broker: {remedy}")
    return KombuEngine(url, tag, **options)
