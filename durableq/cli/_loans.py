"""The items that are lent to `durableq run`, and what becomes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from durableq import failures
from durableq._delivery import Delivery
from durableq._queue import DurableQueue
from durableq.cli._command import tell
from durableq.errors import Empty, StaleDeliveryError

_GRACE = 1.0
"""Seconds after which an item that was to come again has gone to somebody else."""


class Loans:
    """Takes items, keeps them while there is work on them, and settles each: done, to come again, or a dead letter.

    An item comes again `retries` times, or less often if the queue has a bound of its own that is smaller. What went to
    somebody else meanwhile, for its lease ran out, is left to them.
    """

    def __init__(self, queue: DurableQueue, *, retries: int, backoff: Callable[[int], float]) -> None:
        self._queue = queue
        self._most = min(retries + 1, queue.max_deliveries or retries + 1)
        self._backoff = backoff
        self._held: list[Delivery] = []
        self._extend_at = 0.0
        self._again: dict[str, float] = {}  # items that are to come again: id -> when
        self.buried = 0
        """How many have become dead letters."""

    def take(self) -> Delivery | None:
        """The next item, sealed (`reserve_sealed`); None if there is none now. Raises ShutDown if there never will be one."""
        try:
            (delivery,) = self._queue.reserve_sealed(1, block=False)
        except Empty:
            return None
        self._held.append(delivery)
        self._again.pop(delivery.id, None)
        return delivery

    # -- while they are lent -------------------------------------------------------------------------------------------

    def seconds_left(self, now: float) -> float:
        """Seconds until `extend` has something to do."""
        return max(0.0, self._extend_at - now) if self._queue.lease is not None and self._held else float("inf")

    def extend(self, now: float) -> None:
        """Keep what is lent from being lent to somebody else, if it is time for that."""
        lease = self._queue.lease
        if lease is None or now < self._extend_at:
            return
        self._extend_at = now + lease / 3
        for delivery in self._held:
            with contextlib.suppress(StaleDeliveryError):  # its ack will tell
                delivery.extend(lease)

    # -- settling ------------------------------------------------------------------------------------------------------

    def done(self, delivery: Delivery) -> None:
        """The work on it is done."""
        with self._settling(delivery):
            delivery.ack()

    def failed(self, delivery: Delivery, reason: str, told: str) -> None:
        """The work on it has failed: it comes again later, or is a dead letter with this story."""
        if delivery.deliveries >= self._most:
            self._bury(delivery, failures.Failure.of(delivery, reason, told))
            return
        with self._settling(delivery):
            delay = self._backoff(delivery.deliveries)
            delivery.nack(delay)
            self._again[delivery.id] = time.time() + delay

    def not_decoded(self, delivery: Delivery, reason: str) -> None:
        """There is no work on it: it cannot be decoded, and no try will change that."""
        self._bury(delivery, failures.Failure.undecoded(delivery, reason))

    def _bury(self, delivery: Delivery, story: failures.Failure) -> None:
        with self._settling(delivery):
            failures.bury(self._queue, delivery, story)
            self.buried += 1
            tell(f"item {story.id} is a dead letter after delivery {story.deliveries}: {story.reason}")

    @contextlib.contextmanager
    def _settling(self, delivery: Delivery) -> Iterator[None]:
        try:
            yield
        except StaleDeliveryError:
            tell(f"item {delivery.id}: its lease ran out and somebody else has it; what this command did may be done twice")
        self._held.remove(delivery)

    def give_back(self, delivery: Delivery) -> None:
        """Nothing was wrong with it: it goes back as if it had not been delivered."""
        with contextlib.suppress(StaleDeliveryError):
            delivery.release()
        self._held.remove(delivery)

    def give_all_back(self) -> None:
        """At the end: what is still lent goes back."""
        for delivery in list(self._held):
            self.give_back(delivery)

    # -- what is to come again -----------------------------------------------------------------------------------------

    def seconds_to_next(self) -> float:
        """Seconds until an item that has failed should have come again; infinite if none is expected any more."""
        now = time.time()
        self._again = {id: due for id, due in self._again.items() if due + _GRACE > now}
        return min(self._again.values()) + _GRACE - now if self._again else float("inf")
