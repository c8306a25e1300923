"""What a pool tells its workers, and the small types of its interface. All of it can be pickled."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from durableq._delivery import Delivery
from durableq._queue import DurableQueue


class Result(NamedTuple):
    """What a pool puts into its results queue: an item's id and what the function returned for it.

    At least once: a worker that dies between this put and the ack of its item leaves a result and an item that comes
    again, so a second result of the same `id` follows. Who must not count twice drops what has an id that it has seen.
    With a "json" results queue it is a list of the two.
    """

    id: str
    value: Any


@dataclass(frozen=True)
class Backoff:
    """Seconds before the next try: exponential, with jitter so that what failed together does not return together.

    first    before the second delivery
    factor   by how much longer each time
    most     never longer than this
    jitter   the share of it that is left to chance: 0 none, 1 anything between nothing and all of it
    """

    first: float = 1.0
    factor: float = 2.0
    most: float = 600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.first < 0 or self.factor < 1 or self.most < 0 or not 0 <= self.jitter <= 1:
            raise ValueError(f"{self}: takes first >= 0, factor >= 1, most >= 0 and jitter from 0 to 1")

    def __call__(self, deliveries: int) -> float:
        """The delay after the item's delivery number `deliveries` has failed."""
        whole = min(self.most, self.first * self.factor ** min(deliveries - 1, 64))
        return whole * (1 - self.jitter * random.random())


OnError = Callable[[Delivery, BaseException], Any]


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know. The handles travel as path and options, and are opened anew where they arrive."""

    queue: DurableQueue
    function: Callable[[Any], Any]
    results: DurableQueue | None
    batch: int | None
    max_deliveries: int | None
    backoff: Callable[[int], float]
    lease: float | None
    on_error: OnError | None
    max_memory: int | None
    max_items: int | None
    log_level: int
    """Of the pool's root logger, for what workers log goes there."""
