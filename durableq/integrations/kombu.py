"""A kombu transport, and so a Celery broker: `durableq:///path/of/a/directory`, with no server.

    import durableq.integrations.kombu                      # makes the name known to kombu
    app = Celery("jobs", broker="durableq:///srv/jobs")

A queue is a spool in that directory (`_broker_directory` for the rest that a broker has to know). A message that was
delivered and is not acked is a Delivery, lent as any other:

    basic_ack                        ack
    basic_reject(requeue=True)       nack: it comes before all that waits
    basic_reject(requeue=False)      reject: it lies with the dead letters of the spool
    the worker dies                  it goes to the next one at once, marked as redelivered: no visibility timeout
    the channel is closed            release: it goes back and was not delivered

Exchanges of type direct, topic and fanout are shared by all processes; so are Celery's remote control and its events.
Celery itself confines mingle and gossip to AMQP and Redis. Not supported: priorities, and a TTL of messages.

A consumer waits without polling, in Celery's event loop as in a blocking `drain_events`: a thread rings (`_watch`). Where
threads are green (gevent, eventlet) it polls, for a green thread must not sleep in the kernel.

transport_options: `sync` and `max_deliveries` as of DurableQueue; `polling_interval` in seconds, for green threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from durableq import DecodeError, Delivery, DurableQError, SpoolReplacedError, StaleDeliveryError, __version__
from durableq.integrations._broker_directory import Facts
from durableq.integrations._broker_spools import Spools
from durableq.integrations._extras import needed

with needed("kombu", "kombu"):
    from kombu.log import get_logger
    from kombu.transport import TRANSPORT_ALIASES, virtual
    from kombu.transport.base import to_rabbitmq_queue_arguments
    from kombu.utils.compat import detect_environment
    from kombu.utils.json import dumps, loads

TRANSPORT_ALIASES["durableq"] = "durableq.integrations.kombu:Transport"

logger = get_logger(__name__)

_OPTIONS = ("sync", "max_deliveries")
_tags = count(1)
_TRANSIENT = 1
"""The delivery mode of a message that nobody misses when its queue is gone: replies, events, remote control."""


class QoS(virtual.QoS):
    """What a channel has delivered and not settled; the prefetch count is kombu's."""

    def ack(self, delivery_tag: int) -> None:
        """The message is done."""
        self._settle(delivery_tag, Delivery.ack)

    def reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Give the message back, or put it with the dead letters."""
        self._settle(delivery_tag, Delivery.nack if requeue else Delivery.reject)

    def _settle(self, delivery_tag: int, how: Callable[[Delivery], None]) -> None:
        self.channel.settle(delivery_tag, how)
        super().ack(delivery_tag)
        if self.prefetch_count:  # this may be another thread than that which sleeps for want of room
            self.channel.bell.ring()

    def restore_unacked(self) -> list[Any]:
        """Give everything back: orderly, so it does not count as a delivery, however often a worker is restarted."""
        self._flush()
        while self._delivered:
            delivery_tag, _ = self._delivered.popitem()
            delivery = self.channel.lent.pop(delivery_tag, None)
            if delivery is not None:  # else another thread has just settled it
                with suppress(DurableQError):  # closed: it has gone back; stale: as in a forked child, for it is the parent's
                    delivery.release()
        return []


class Channel(virtual.Channel):
    """A channel of a connection."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._spools = connection.spools
        self.bell = connection.spools.bell
        self.lent = connection.lent
        self._no_ack: set[str] = set()

    # -- messages ------------------------------------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        data = dumps(message).encode()
        create = message["properties"].get("delivery_mode") != _TRANSIENT
        while (spool := self._spools.get(queue, create=create)) is not None:
            try:
                return spool.put(data)
            except SpoolReplacedError:  # somebody has deleted the queue
                self._spools.forget(queue)

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        for _, _, queue in self.get_table(exchange):
            self._put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        spool = self._spools.take_from(queue)
        if spool is None:
            raise virtual.Empty
        try:
            delivery = spool.reserve(block=False)
        except DecodeError as exc:
            logger.error("%s", exc)
            raise virtual.Empty from None
        try:
            message: dict[str, Any] = loads(delivery.item.decode())
            properties = message["properties"]
            properties["delivery_tag"] = tag = next(_tags)
            if delivery.deliveries > 1:
                properties["delivery_info"]["redelivered"] = True
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            logger.error("%s: item %s is no message (%r); it lies with the dead letters", spool.path, delivery.id, exc)
            delivery.reject()
            raise virtual.Empty from None
        if queue in self._no_ack:
            delivery.ack()
        else:
            self.lent[tag] = delivery
        return message

    def settle(self, delivery_tag: int, how: Callable[[Delivery], None]) -> None:
        """Do this with a delivery. If it has gone to somebody else, or was settled before, it is none of ours."""
        delivery = self.lent.pop(delivery_tag, None)
        if delivery is not None:
            try:
                how(delivery)
            except StaleDeliveryError as exc:
                logger.warning("%s", exc)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Consume from a queue."""
        if no_ack:
            self._no_ack.add(queue)
        self._spools.consume(queue)
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer."""
        self._no_ack.discard(self._tag_to_queue.get(consumer_tag))
        super().basic_cancel(consumer_tag)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message, or None."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if no_ack and message is not None:
            self.settle(message.delivery_tag, Delivery.ack)
        return message

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Set the prefetch count."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.bell.ring()  # as in `QoS`: there may be more room now

    # -- queues and exchanges ------------------------------------------------------------------------------------------

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        arguments = kwargs.get("arguments") or {}
        facts: Facts = {name: True for name in ("exclusive", "auto_delete") if kwargs.get(name)}
        if "x-expires" in arguments:
            facts["expires"] = arguments["x-expires"] / 1000
        self._spools.declare(queue, facts)

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        """As for AMQP: `expires` becomes `x-expires`."""
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._spools.directory.exists(queue)

    def _size(self, queue: str) -> int:
        spool = self._spools.get(queue, create=False)
        return 0 if spool is None else spool.qsize()

    def _purge(self, queue: str) -> int:
        spool = self._spools.get(queue, create=False)
        return 0 if spool is None else spool.purge()

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        """Delete a queue with its messages and bindings."""
        if not (if_empty and self._size(queue)):
            self.state.queue_bindings_delete(queue)
            self._spools.delete(queue)

    def exchange_declare(self, exchange: Any = None, type: str = "direct", *args: Any, **kwargs: Any) -> None:
        """Declare an exchange, for all processes."""
        super().exchange_declare(exchange, type, *args, **kwargs)
        if exchange and not kwargs.get("passive"):
            self._spools.directory.declare_exchange(exchange, type or "direct")

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings."""
        self.state.exchanges.pop(exchange, None)
        self._spools.directory.delete_exchange(exchange)

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        """The type of an exchange, whoever declared it."""
        if exchange not in self.state.exchanges:
            default = self._spools.directory.exchange_type(exchange) or default
        return super().typeof(exchange, default)

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """What is bound to an exchange, by whatever process."""
        self._spools.sweep()
        return self._spools.directory.bindings(exchange)

    def _queue_bind(self, exchange: str, routing_key: str | None, pattern: str | None, queue: str) -> None:
        self._spools.directory.bind(exchange, (routing_key or "", pattern or "", queue))

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any
    ) -> None:
        """Undo a binding, for all processes."""
        exchange = exchange or "amq.direct"
        self.state.binding_delete(queue, exchange, routing_key)
        key, pattern, queue = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self._spools.directory.unbind(exchange, (key or "", pattern or "", queue))


class Transport(virtual.Transport):
    """A connection: a directory, and the spools in it that it has open."""

    Channel = Channel
    driver_type = driver_name = "durableq"
    can_parse_url = True
    polling_interval = 0.05
    implements = virtual.Transport.implements.extend(asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"]))
    connection_errors = (*virtual.Transport.connection_errors, DurableQError, OSError)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = {name: client.transport_options[name] for name in _OPTIONS if name in client.transport_options}
        self.spools = Spools(_path_of(client), **options)
        self.lent: dict[int, Delivery] = {}
        self._loop: Any = None

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """None: there is no host."""
        return {}

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """For people."""
        return f"durableq://{_path_of(self.client)}"

    def driver_version(self) -> str:
        """The version of durableq."""
        return __version__

    def close_connection(self, connection: Any) -> None:
        """Give back what is not acked, and close the spools."""
        self.unregister_from_event_loop(connection, self._loop)
        super().close_connection(connection)
        self.spools.close()

    # -- receiving -----------------------------------------------------------------------------------------------------

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Wait for a message and deliver it. Raises TimeoutError."""
        if detect_environment() != "default":
            super().drain_events(connection, timeout=timeout)
            return
        end = None if timeout is None else monotonic() + timeout
        while not self._deliver_one():
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if self.spools.listen(self._wanted()):
                self.spools.bell.wait(left)

    def _deliver_one(self) -> bool:
        self.spools.bell.quiet()
        delivered = True
        try:
            self.cycle.get(self._deliver)
        except virtual.Empty:
            delivered = False
        self.spools.hush(delivered)
        return delivered

    def _wanted(self) -> Iterator[str]:
        """The queues from which something may be taken now."""
        for channel in self.channels:
            if channel._consumers and channel.qos.can_consume():
                yield from channel._active_queues

    # -- in kombu's event loop -----------------------------------------------------------------------------------------

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver in the loop from now on: one message at a time, so that the loop can do other things between them."""
        self._loop = loop
        loop.on_tick.add(self._on_tick)
        loop.add_reader(self.spools.bell.fd, self._deliver_one)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Undo it."""
        if loop is not None:
            loop.on_tick.discard(self._on_tick)
            with suppress(OSError, KeyError, ValueError):
                loop.remove_reader(self.spools.bell.fd)
            self._loop = None

    def _on_tick(self) -> None:
        # Each time before the loop goes to sleep: an ack may have made room for more.
        if not self.spools.listen(self._wanted()):
            self.spools.bell.ring()


def _path_of(client: Any) -> str:
    """The directory that a connection names: in its URL, or, if kombu has taken that to pieces, as its virtual host."""
    url = client.hostname or ""
    parts = urlsplit(url if "://" in url else f"durableq://{url}/{quote(client.virtual_host or '')}")
    path = unquote(parts.path).strip("/")
    if not path or parts.netloc or parts.query:
        raise ValueError(
            f"{parts.geturl()!r} names no broker of durableq, which is a directory of this machine and has no host: "
            f"write durableq:///path/of/it, with three slashes, and options in transport_options"
        )
    return f"/{path}"
