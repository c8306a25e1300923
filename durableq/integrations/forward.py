"""Store and forward: what is put into a queue on this machine reaches an engine elsewhere, whatever the network does.

What holds, for every item, when the forwarder, the engine or the network dies at any moment:

    1. It is acked only after the engine has confirmed it. Until then it is lent to this process, or waits in the queue.
    2. It becomes a dead letter only if no message can be made of it, or the engine has refused that very message.
    3. So it may reach the engine twice (it was confirmed, and the news was lost), always under the same id.
    4. Items go out in the order of the queue, and after a failure all that was not confirmed goes out again in that order. (One
       forwarder for each queue, then. What comes back to the queue from another process is older and goes first.)

While the engine is away nothing more is taken from the queue than was under way at that moment, and an outage costs no item one
of its deliveries: what was not confirmed when the forwarder leaves is released, not given back.

Parcels of up to `batch` items are under way, `in_flight` at a time. A parcel grows to its full size step by step, and
shrinks if items are large, so that what is under way fits into memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from durableq import failures
from durableq._delivery import Delivery
from durableq._queue import DurableQueue
from durableq.errors import BadURLError, DecodeError, Empty, ShutDown, StaleDeliveryError
from durableq.failures import Failure
from durableq.integrations.message import Headers, Message, Part, Shape, UnsendableError
from durableq.integrations.sinks.base import CONFIRMED, REFUSED, AwayError, Parcel, Sink
from durableq.integrations.sinks.open import open_sink

__all__ = ["Forwarded", "forward"]

log = logging.getLogger("durableq.forward")

_TICK = 0.25
"""Longest wait, in seconds, between two looks at whether to stop."""
_FIRST_PARCEL = 16
_PARCEL_BYTES = 8 << 20
_FIRST_DELAY, _LAST_DELAY = 0.1, 30.0
"""Of the back-off, in seconds; it doubles in between, and a random part of up to a half is taken off."""
_KEEP = 60.0
"""Seconds for which an item that would come back by the queue's lease is kept each time; if we die it comes back at once."""
_GRACE = 5.0
"""Seconds that a forwarder which is to stop waits for what is under way."""


class Forwarded(NamedTuple):
    """What a forwarder did."""

    sent: int
    """Items that the engine confirmed."""
    refused: int
    """Items that went to the dead letters."""


def forward(
    queue: DurableQueue | str | os.PathLike[str],
    sink: Sink | str,
    *,
    value: Part | None = None,
    key: Part | None = None,
    headers: Headers | None = None,
    topic: Part | None = None,
    drain: bool = False,
    stop: threading.Event | None = None,
    batch: int = 500,
    in_flight: int = 4,
) -> Forwarded:
    """Send the items of a queue to an engine until `stop` is set, the queue is shut down or, with `drain`, it is empty.

    queue       a DurableQueue, or the path of one
    sink        kafka://host/TOPIC, redis://host/db/STREAM, redis://host/db?list=NAME, amqp://host/vhost?queue=NAME or
                ?exchange=NAME, or a Sink
    value, key, headers, topic   from each item, by a function or by the name of a field: see `durableq.integrations.message`
    batch       most items that are sent together
    in_flight   most batches that are on their way at a time

    While the engine is away it tries again, for as long as it takes, ever more slowly (up to 30 seconds). What the engine
    refuses for good, and what no message can be made of, goes to the dead letters. What it does is told to the logger
    "durableq.forward". Raises BadURLError (also if a message has no place for a key or headers there), MissingExtraError,
    ReservedNameError (a header has a name that is durableq's own there), and OSError from the queue's disk; then too, nothing
    is lost.
    """
    if batch < 1 or in_flight < 1:
        raise ValueError("'batch' and 'in_flight' must be at least 1")
    target = open_sink(sink) if isinstance(sink, str) else sink
    if target.bare and (key is not None or headers):
        raise BadURLError(
            f"{target.name}: an element is the value alone and has no place for a key and headers; "
            f"add envelope=json to the URL, or leave them away"
        )
    shape = Shape(value=value, key=key, headers=headers, topic=topic, reserved=target.reserved)
    own = None if isinstance(queue, DurableQueue) else DurableQueue(queue)
    try:
        source = own if own is not None else queue
        assert isinstance(source, DurableQueue)
        return _Forwarder(source, target, shape, drain, stop or threading.Event(), batch, in_flight).run()
    finally:
        if own is not None:
            own.close()


class _Held(NamedTuple):
    """An item that is lent to us."""

    delivery: Delivery
    message: Message


class _Forwarder:
    def __init__(
        self, queue: DurableQueue, sink: Sink, shape: Shape, drain: bool, stop: threading.Event, batch: int, in_flight: int
    ) -> None:
        self._queue = queue
        self._sink = sink
        self._shape = shape
        self._drain = drain
        self._stop = stop
        self._batch = batch
        self._in_flight = in_flight
        self._unsent: deque[_Held] = deque()
        """Taken and not under way: after a failure, in the order of the queue. Older than all that is under way."""
        self._under_way: deque[tuple[list[_Held], Parcel]] = deque()
        self._alone = 0
        """So many of the next messages are sent one by one, since one of them is suspected."""
        self._size = min(batch, _FIRST_PARCEL)
        self._failures = 0
        self._ended = False
        """Nothing more will come from the queue."""
        self._sent = self._refused = 0
        self._leased = queue.lease is not None
        self._extended = time.monotonic()

    def run(self) -> Forwarded:
        try:
            while not self._finished():
                try:
                    self._sink.open()
                    self._pump()
                except AwayError as away:
                    self._fall_back(away)
                    if not away.suspect:
                        self._wait_a_while(away)
        finally:
            self._leave()
        return Forwarded(self._sent, self._refused)

    def _finished(self) -> bool:
        return self._stop.is_set() or (self._ended and not self._unsent and not self._under_way)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send and settle until there is nothing more to do. Raises AwayError."""
        while not self._finished():
            while len(self._under_way) < (1 if self._alone else self._in_flight):
                held = self._next()
                if not held:
                    break
                parcel = Parcel([one.message for one in held])
                self._under_way.append((held, parcel))  # before it is sent: whatever comes, it is not forgotten
                self._sink.send(parcel)
            self._settle_oldest()
            self._extend()
        until = time.monotonic() + _GRACE
        while self._under_way and time.monotonic() < until:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        if self._under_way and self._sink.wait(self._under_way[0][1], _TICK):
            self._settle(*self._under_way[0])
            self._under_way.popleft()

    def _next(self) -> list[_Held]:
        """What to send next; empty if there is nothing now."""
        held: list[_Held] = []
        if self._unsent:
            while self._unsent and len(held) < (1 if self._alone else self._size):
                held.append(self._unsent.popleft())
            return held
        if self._ended or self._stop.is_set():
            return held
        try:
            # Waiting is for when there is nothing else to do: replies are not kept waiting for the next item.
            idle = not self._under_way and not self._drain
            deliveries = self._queue.reserve_sealed(self._size, block=idle, timeout=_TICK if idle else None)
        except Empty:
            self._ended = self._drain
            return held
        except ShutDown:
            self._ended = True
            return held
        try:
            held = [one for delivery in deliveries if (one := self._held(delivery)) is not None]
        except BaseException:  # of no item: too little memory, or a signal
            _release(deliveries)
            raise
        self._resize(held, len(deliveries))
        return held

    def _held(self, delivery: Delivery) -> _Held | None:
        """An item with its message; None if it is somebody else's by now, or a dead letter."""
        if self._leased and not _keep(delivery):
            return None
        try:
            self._queue.unseal(delivery)
            return _Held(delivery, self._shape.message(delivery))
        except DecodeError as exc:
            self._bury(delivery, Failure.undecoded(delivery, str(exc)))
        except UnsendableError as exc:
            self._refuse(delivery, str(exc))
        return None

    def _resize(self, held: list[_Held], taken: int) -> None:
        """The next parcel is to be twice as large as this one, if there was more, and not above the bound in bytes."""
        if taken == self._size:
            self._size = min(self._batch, self._size * 2)
        if held:
            each = sum(len(one.message.value) for one in held) / len(held)
            self._size = max(1, min(self._size, int(_PARCEL_BYTES / (each + 1))))

    # -- settling ------------------------------------------------------------------------------------------------------

    def _settle(self, held: list[_Held], parcel: Parcel) -> list[_Held]:
        """Ack what is confirmed, bury what is refused; returns the rest."""
        rest = []
        for index, (one, verdict) in enumerate(zip(held, parcel.verdicts, strict=True)):
            if verdict == CONFIRMED:
                self._ack(one.delivery)
            elif verdict == REFUSED:
                self._refuse(one.delivery, f"{self._sink.name} refused it: {parcel.reasons[index]}")
            else:
                rest.append(one)
        self._alone = max(0, self._alone - len(held) + len(rest))
        if self._failures and len(rest) < len(held):
            log.info("%s: it goes on", self._sink.name)
            self._failures = 0
        return rest

    def _ack(self, delivery: Delivery) -> None:
        self._sent += 1
        try:
            delivery.ack()
        except StaleDeliveryError:
            # Its lease ran out while the engine was slow. Whoever has it now sends it once more, under the same id.
            log.info("item %s was sent, and has gone to somebody else meanwhile, who sends it again", delivery.id)

    def _refuse(self, delivery: Delivery, reason: str) -> None:
        self._bury(delivery, Failure.of(delivery, reason))

    def _bury(self, delivery: Delivery, story: Failure) -> None:
        self._refused += 1
        log.warning("item %s goes to the dead letters: %s", delivery.id, story.reason)
        try:
            failures.bury(self._queue, delivery, story)
        except StaleDeliveryError:
            log.info("item %s has gone to somebody else meanwhile", delivery.id)

    # -- when the engine is away ---------------------------------------------------------------------------------------

    def _fall_back(self, away: AwayError) -> None:
        """Give up the connection; what has no verdict is to be sent again, in its order."""
        self._sink.close()  # which may bring verdicts, so first
        rest = [one for held, parcel in self._under_way for one in self._settle(held, parcel)]
        self._under_way.clear()
        if away.suspect and len(rest) == 1:
            self._alone = max(0, self._alone - 1)
            self._refuse(rest[0].delivery, f"{self._sink.name} refused it: {away}")
            rest = []
        elif away.suspect:
            self._alone = len(rest)
        self._unsent.extendleft(reversed(rest))

    def _wait_a_while(self, away: AwayError) -> None:
        """Exponential back-off; the random part keeps many forwarders from coming back in step."""
        delay = min(_LAST_DELAY, _FIRST_DELAY * 2**self._failures) * random.uniform(0.5, 1.0)
        self._failures = min(self._failures + 1, 30)
        log.warning("%s is away, next try in %.1f s: %s", self._sink.name, delay, away)
        until = time.monotonic() + delay
        while (left := until - time.monotonic()) > 0 and not self._stop.wait(min(left, _TICK)):
            self._extend()

    def _extend(self) -> None:
        """Keep what we have, if the queue's lease would take it back while we wait."""
        if self._leased and time.monotonic() > self._extended + _KEEP / 3:
            self._extended = time.monotonic()
            self._unsent = deque(one for one in self._unsent if _keep(one.delivery))
            for held, _ in self._under_way:
                for one in held:
                    _keep(one.delivery)

    def _leave(self) -> None:
        self._sink.close()
        rest = [one for held, parcel in self._under_way for one in self._settle(held, parcel)]
        self._under_way.clear()
        _release([one.delivery for one in (*self._unsent, *rest)])
        self._unsent.clear()


def _release(deliveries: Iterable[Delivery]) -> None:
    """Give back what is still ours, uncounted."""
    for delivery in deliveries:
        with contextlib.suppress(StaleDeliveryError):
            delivery.release()


def _keep(delivery: Delivery) -> bool:
    """Hold on to an item whatever the lease says; False if somebody else has it, who will send it."""
    try:
        delivery.extend(_KEEP)
        return True
    except StaleDeliveryError:
        return False
