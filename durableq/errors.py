"""Everything durableq raises, by whose fault it is.

    DurableQError
    |-- of the caller:      BadURLError, ClosedError, OptionMismatchError, ReservedNameError, StaleDeliveryError,
    |                       UnsupportedError
    |-- of the file:        NotASpoolError, NewerFormatError, DamagedError, SpoolReplacedError
    |-- of the item:        DecodeError
    |-- of the environment: InsecureSpoolError, NetworkFilesystemError, PoisonedError, PoolError, TooManyOwnersError

Each class also derives from the built-in that a program written for `multiprocessing.Queue` would catch (`ValueError` on a
closed queue, `OSError` for the disk). `Empty` and `Full` are the standard library's own; so is `ShutDown` from Python 3.13
on. Every message names the file, what is wrong and what to do about it. All of them survive pickling, so that a worker
can send one home. (The arrangement follows trio's and httpx's exception trees.)
"""

from __future__ import annotations

import queue
import sys

__all__ = [
    "BadURLError",
    "ClosedError",
    "DamagedError",
    "DecodeError",
    "DurableQError",
    "Empty",
    "Full",
    "InsecureSpoolError",
    "MissingExtraError",
    "NetworkFilesystemError",
    "NewerFormatError",
    "NotASpoolError",
    "OptionMismatchError",
    "PoisonedError",
    "PoolError",
    "ReservedNameError",
    "ShutDown",
    "SpoolReplacedError",
    "StaleDeliveryError",
    "TooManyOwnersError",
    "UnreachableError",
    "UnsupportedError",
]

Empty = queue.Empty
Full = queue.Full

if sys.version_info >= (3, 13):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by put and get once the queue was shut down (as `queue.ShutDown` from Python 3.13 on)."""


class DurableQError(Exception):
    """The base of all that durableq itself raises."""


class BadURLError(DurableQError, ValueError):
    """This URL names no engine that durableq knows, or lacks something."""


class ClosedError(DurableQError, ValueError):
    """This handle was closed; open the queue again."""


class OptionMismatchError(DurableQError, ValueError):
    """An option contradicts the one stored in the spool when it was created."""


class ReservedNameError(DurableQError, ValueError):
    """A header has a name under which the messages of this engine have something else."""


class StaleDeliveryError(DurableQError, ValueError):
    """A delivery was settled after its item had gone to somebody else, or a second time. Nothing was changed."""


class NotASpoolError(DurableQError, ValueError):
    """The file is no spool of durableq. It was not touched."""


class NewerFormatError(DurableQError, ValueError):
    """The spool was written in a newer format than this version reads. It was not touched."""


class DamagedError(DurableQError, ValueError):
    """The spool's superblock is damaged beyond use; `durableq.repair(path)` rebuilds it from the records."""


class SpoolReplacedError(DurableQError, OSError):
    """The file under this open handle was deleted or replaced by another."""


class DecodeError(DurableQError, ValueError):
    """An item could not be decoded; it now lies with the dead letters."""


class InsecureSpoolError(DurableQError, PermissionError):
    """Others can write to this spool, and decoding its items, such as unpickling them, could run their code."""


class NetworkFilesystemError(DurableQError, OSError):
    """The spool is on a network file system, where locks and mappings do not hold between machines."""


class PoisonedError(DurableQError, OSError):
    """A sync failed earlier on this handle, so what it wrote may be lost; open the queue again."""


class PoolError(DurableQError, RuntimeError):
    """A worker pool cannot go on: its workers end before they have done anything."""


class TooManyOwnersError(DurableQError, OSError):
    """Every owner slot of the queue is taken by a live handle."""


class MissingExtraError(DurableQError, ImportError):
    """The library that this needs is not installed; the message has the pip command."""


class UnreachableError(DurableQError, ConnectionError):
    """The engine did not answer, or said no for now; what was asked of it may or may not have been done."""


class UnsupportedError(DurableQError, NotImplementedError):
    """This engine cannot do that."""
