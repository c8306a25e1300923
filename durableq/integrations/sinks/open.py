"""From a URL to the sink that it names."""

from __future__ import annotations

from urllib.parse import urlsplit

from durableq.errors import BadURLError
from durableq.integrations.sinks.base import Sink

__all__ = ["open_sink"]


def open_sink(url: str) -> Sink:
    """The sink for a URL; nothing is connected yet. Raises BadURLError and MissingExtraError."""
    scheme = urlsplit(url).scheme
    if scheme == "kafka":
        from durableq.integrations.sinks.kafka import KafkaSink

        return KafkaSink(url)
    if scheme in ("redis", "rediss", "unix"):
        from durableq.integrations.sinks.redis import RedisSink

        return RedisSink(url)
    if scheme in ("amqp", "amqps"):
        from durableq.integrations.sinks.amqp import AmqpSink

        return AmqpSink(url)
    what = f"{scheme}:// is no engine that durableq forwards to" if scheme else "this is no URL"
    raise BadURLError(f"{what}; there are kafka://, redis://, rediss://, unix://, amqp:// and amqps://")
