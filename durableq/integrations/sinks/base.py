"""What `forward` asks of an engine.

    open()          connect, if it is not connected. Raises AwayError
    send(parcel)    hand the parcel's messages to the engine, in order, without waiting for it. Raises AwayError
    wait(parcel, s) wait up to `s` seconds; whether every message of the parcel has its verdict. Raises AwayError
    close()         leave, collecting what verdicts have come; never raises, and `open` may follow

Several parcels may be under way; they are waited for in the order in which they were sent. A verdict is CONFIRMED (the
engine said that it has the message: then, and only then, the item is acked), REFUSED (it will never take it: the item
becomes a dead letter) or UNKNOWN (it is sent again).

A sink that raised AwayError is closed and opened again, and all messages without a verdict are sent again, in their order; so
a message may arrive twice, and carries an id by which that is seen. To keep such repeats few, a sink that has had bad news
of one message still waits for what is said of the others before it raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from durableq.errors import UnreachableError
from durableq.integrations.message import Message

__all__ = ["CONFIRMED", "REFUSED", "UNKNOWN", "AwayError", "Parcel", "Sink"]

UNKNOWN, CONFIRMED, REFUSED = 0, 1, 2


class AwayError(UnreachableError):
    """The engine is not there, or not willing at the moment; what has no verdict must be sent again.

    suspect: the connection is fine, and the engine has thrown out something of what was sent without telling what. Sent one by
    one, the message that brings this about once more is the culprit.
    """

    def __init__(self, reason: str, suspect: bool = False) -> None:
        super().__init__(reason)
        self.suspect = suspect


class Parcel:
    """Messages that are sent together, with their verdicts."""

    __slots__ = ("_open", "messages", "reasons", "verdicts")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.verdicts = bytearray(len(messages))
        self.reasons: dict[int, str] = {}
        """Why a message was refused."""
        self._open = len(messages)

    @property
    def settled(self) -> bool:
        """Whether every message has its verdict."""
        return not self._open

    def confirm(self, index: int) -> None:
        """The engine has this message."""
        if not self.verdicts[index]:
            self.verdicts[index] = CONFIRMED
            self._open -= 1

    def refuse(self, index: int, reason: str) -> None:
        """The engine will never take this message."""
        if not self.verdicts[index]:
            self.verdicts[index] = REFUSED
            self.reasons[index] = reason
            self._open -= 1


class Sink(ABC):
    """A connection to an engine. See the module."""

    name: str
    """Which engine and which place in it, for people: no password."""
    reserved: frozenset[str] = frozenset()
    """Names that an item's header cannot have, since whoever reads the messages finds something else there."""
    bare = False
    """Whether a message is its value and nothing else: there is no place for a key and headers."""

    @abstractmethod
    def open(self) -> None:
        """Connect, if it is not connected. Raises AwayError."""

    @abstractmethod
    def send(self, parcel: Parcel) -> None:
        """Hand over the messages of a parcel, in order, without waiting for the engine. Raises AwayError."""

    @abstractmethod
    def wait(self, parcel: Parcel, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the verdicts on the oldest parcel; whether all are there. Raises AwayError."""

    @abstractmethod
    def close(self) -> None:
        """Leave at once. Verdicts that have come are in the parcels. Never raises; `open` may follow."""
