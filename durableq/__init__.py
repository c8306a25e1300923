"""durableq: the queue to swap in for `multiprocessing.Queue` when losing work is not acceptable."""

from typing import TYPE_CHECKING, Any

from durableq._check import Damage, Report, check, repair
from durableq._delivery import Delivery, Peeked
from durableq._dropin import JoinableQueue, Queue, SimpleQueue
from durableq._owner import Owner
from durableq._queue import DurableQueue
from durableq._store import Stats
from durableq.errors import (
    ClosedError,
    DamagedError,
    DecodeError,
    DurableQError,
    Empty,
    Full,
    InsecureSpoolError,
    NetworkFilesystemError,
    NewerFormatError,
    NotASpoolError,
    OptionMismatchError,
    PoisonedError,
    PoolError,
    ShutDown,
    SpoolReplacedError,
    StaleDeliveryError,
    TooManyOwnersError,
)
from durableq.failures import Failure

if TYPE_CHECKING:
    from durableq.pool import Backoff, WorkerPool

__all__ = [
    "Backoff",
    "ClosedError",
    "Damage",
    "DamagedError",
    "DecodeError",
    "Delivery",
    "DurableQError",
    "DurableQueue",
    "Empty",
    "Failure",
    "Full",
    "InsecureSpoolError",
    "JoinableQueue",
    "NetworkFilesystemError",
    "NewerFormatError",
    "NotASpoolError",
    "OptionMismatchError",
    "Owner",
    "Peeked",
    "PoisonedError",
    "PoolError",
    "Queue",
    "Report",
    "ShutDown",
    "SimpleQueue",
    "SpoolReplacedError",
    "StaleDeliveryError",
    "Stats",
    "TooManyOwnersError",
    "WorkerPool",
    "check",
    "repair",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # A program that only puts and gets does not pay for what a worker pool imports.
    if name in ("Backoff", "WorkerPool"):
        from durableq import pool

        return getattr(pool, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
