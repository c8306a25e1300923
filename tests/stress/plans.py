"""The rounds: each puts the weight on another part of the queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    name: str
    why: str
    producers: int = 3
    consumers: int = 3
    producer_threads: int = 1
    consumer_threads: int = 1
    put: tuple[str, ...] = ("put",)
    take: tuple[str, ...] = ("get",)
    options: dict[str, Any] = field(default_factory=dict)
    payload: int = 200
    backlog: int = 0
    """Items put before the first consumer starts."""
    most: int = 5000
    """Producers pause while more than this is waiting, so that a slow machine drains a round in seconds."""
    produce_pause: float = 0.0
    """Mean of a random pause before each put, in seconds."""
    consume_pause: float = 0.0
    end: str = "stop"
    """How the round ends: "stop" (everybody is told) or "shutdown" (the queue tells them)."""
    massacres: bool = False
    """Now and then everybody dies at once, and half of those times the control words go too, as by a reboot."""

    @property
    def ordered(self) -> bool:
        """One consumer with one thread and nothing given back: each producer's order must be seen."""
        return self.consumers == 1 and self.consumer_threads == 1 and not {"reserve", "reserve_many"} & set(self.take)

    @property
    def at_most_once(self) -> bool:
        return self.options.get("ack") == "get"


PLANS = [
    Plan("lend", "get and task_done, the plain case", take=("get", "hold")),
    Plan("order", "one consumer at a time: each producer's order", producers=4, consumers=1,
         take=("get", "get_many", "hold")),
    Plan("threads", "a kill takes several threads at once", producers=2, consumers=2, producer_threads=3,
         consumer_threads=3, take=("get", "hold", "reserve")),
    Plan("deliveries", "reserve, ack, nack, nack with delay, reject", take=("reserve", "reserve_many", "get")),
    Plan("batches", "put_many and get_many", put=("put_many", "put"), take=("get_many", "reserve_many", "get")),
    Plan("bounded", "producers wait for room, Full is final", put=("put", "put_nowait", "put_many"),
         take=("get", "reserve"), options={"maxsize": 7}),
    Plan("drained", "empty again and again: the file is rewound all the time", producers=2, consumers=3,
         put=("put", "put_many"), take=("get", "get_many"), produce_pause=0.002),
    Plan("backlog", "never empty, big items: holes are punched under the consumers", payload=6000, backlog=3000,
         put=("put", "put_many"), take=("get", "get_many", "hold"), most=3000),
    Plan("at most once", "get is the end of an item", take=("get", "get_many"), options={"ack": "get"}),
    Plan("shutdown", "blocked for ever until shutdown() reaches them", put=("put",), take=("get",),
         options={"maxsize": 50}, end="shutdown"),
    Plan("massacre", "all die at once, the control words are gone too", put=("put", "put_many", "put_delayed"),
         take=("get", "hold", "reserve"), massacres=True),
    Plan("at once", "sync=0: killed in the middle of a group commit", put=("put", "put_many"), take=("get", "get_many"),
         options={"sync": 0}),
]  # fmt: skip


SHARED = Plan("shared", "what the workers of a `part` do", put=("put", "put_many"), take=("get", "hold", "get_many"),
              most=1000, produce_pause=0.004)  # fmt: skip
"""Not one of the rounds: several parts, each run by somebody else, share one queue."""


def by_name(name: str) -> Plan:
    for plan in [*PLANS, SHARED]:
        if plan.name == name:
            return plan
    raise SystemExit(f"there is no plan {name!r}; there are: {', '.join(plan.name for plan in PLANS)}")
