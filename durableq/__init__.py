"""durableq: the queue to swap in for `multiprocessing.Queue` when losing work is not acceptable."""

import importlib
from typing import TYPE_CHECKING, Any

from durableq._delivery import Delivery, Peeked
from durableq._inspect import Stats
from durableq._owner import Owner
from durableq._queue import DurableQueue
from durableq.errors import (
    BadURLError,
    ClosedError,
    DamagedError,
    DecodeError,
    DurableQError,
    Empty,
    Full,
    InsecureSpoolError,
    MissingExtraError,
    NetworkFilesystemError,
    NewerFormatError,
    NotASpoolError,
    OptionMismatchError,
    PoisonedError,
    PoolError,
    ReservedNameError,
    ShutDown,
    SpoolReplacedError,
    StaleDeliveryError,
    TooManyOwnersError,
    UnreachableError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from durableq._check import Damage, Report, check, repair
    from durableq._dropin import JoinableQueue, Queue, SimpleQueue
    from durableq.failures import Failure
    from durableq.integrations.connect import connect
    from durableq.integrations.forward import forward
    from durableq.pool import Backoff, WorkerPool

__all__ = [
    "Backoff",
    "BadURLError",
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
    "MissingExtraError",
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
    "ReservedNameError",
    "ShutDown",
    "SimpleQueue",
    "SpoolReplacedError",
    "StaleDeliveryError",
    "Stats",
    "TooManyOwnersError",
    "UnreachableError",
    "UnsupportedError",
    "WorkerPool",
    "check",
    "connect",
    "forward",
    "repair",
]

__version__ = "0.1.0"

# Loaded when they are first asked for: a program that only puts and gets does not pay for what these import.
_LATER = {
    "Backoff": "durableq.pool",
    "Damage": "durableq._check",
    "Failure": "durableq.failures",
    "JoinableQueue": "durableq._dropin",
    "Queue": "durableq._dropin",
    "Report": "durableq._check",
    "SimpleQueue": "durableq._dropin",
    "WorkerPool": "durableq.pool",
    "check": "durableq._check",
    "connect": "durableq.integrations.connect",
    "forward": "durableq.integrations.forward",
    "repair": "durableq._check",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return found
