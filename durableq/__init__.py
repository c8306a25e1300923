"""durableq: the queue to swap in for `multiprocessing.Queue` when losing work is not acceptable."""

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
    ShutDown,
    SpoolReplacedError,
    StaleDeliveryError,
    TooManyOwnersError,
)
from durableq.failures import Failure

__all__ = [
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
    "Queue",
    "Report",
    "ShutDown",
    "SimpleQueue",
    "SpoolReplacedError",
    "StaleDeliveryError",
    "Stats",
    "TooManyOwnersError",
    "check",
    "repair",
]

__version__ = "0.1.0"
