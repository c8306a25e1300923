"""An item as bytes to be written or text to be read: what the shell shows of what was put by whatever program.

What is in the spool was written by a serializer, and its tag says which. Bytes are shown as they are and JSON as its text.
Pickles are programs: they are unpickled only for who has asked for it, and then shown as the text of the object.
"""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

from durableq._headers import without_headers
from durableq._leases import MAX_COUNT, Taken
from durableq._record import TAG_BYTES, TAG_CUSTOM, TAG_HEADERS, TAG_JSON, TAG_PICKLE
from durableq._store import Store
from durableq.cli._command import Failure

_SERIALIZERS = {TAG_PICKLE: "pickle", TAG_JSON: "json", TAG_BYTES: "bytes", TAG_CUSTOM: "custom"}
_PLAIN = frozenset((TAG_BYTES, TAG_JSON))
"""The tags of items whose payload is what is shown."""


class UndecodableError(Failure):
    """An item that was to be unpickled and cannot be shown; `reason` says why, without the item's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.reason = reason


class Shower:
    """Shows the items of one queue. Raises Failure for one that it must not show, UndecodableError for one that it cannot."""

    def __init__(self, store: Store, *, unpickle: bool, as_json: bool) -> None:
        self._store = store
        self._unpickle = unpickle
        self._as_json = as_json

    def show(self, box: list[Taken]) -> list[bytes]:
        """Each item as it is to be written."""
        if self._as_json:
            return [self._described(taken) for taken in box]
        if {taken[3] for taken in box} <= _PLAIN:
            return [taken[5] for taken in box]
        return [self.plain(taken) for taken in box]

    def plain(self, taken: Taken) -> bytes:
        """The item itself."""
        taken = _without_headers(taken)
        if taken[3] != TAG_PICKLE:
            return taken[5]
        item = self._unpickled(taken)
        try:
            return item if isinstance(item, bytes) else str(item).encode(errors="surrogateescape")
        except Exception as error:
            raise UndecodableError(
                self._name(taken), f"has no text ({type(error).__name__}: {error}); take it with a program"
            ) from error

    def short(self, taken: Taken) -> str:
        """The item as a line of text, for people; what must not or cannot be shown is told instead."""
        from durableq._progress import printable  # here: it takes long to load, and only who shows texts needs it

        try:
            item = self.plain(taken)
        except Failure:
            return f"(a pickle of {len(taken[5])} bytes; --unpickle shows it)"
        try:
            return printable(item.decode())
        except UnicodeDecodeError:
            return repr(item[:300])

    def described(self, taken: Taken) -> dict[str, Any]:
        """The item with what is known of it, as an object for JSON."""
        _, _, _, tag, _, payload = taken = _without_headers(taken)
        about = self.about(taken)
        if tag == TAG_JSON:
            return {**about, "item": json.loads(payload)}
        if tag == TAG_PICKLE:
            item = self._unpickled(taken)
            return {**about, "item": item if _fits_json(item) else str(item)}
        try:
            return {**about, "item": payload.decode()}
        except UnicodeDecodeError:
            return {**about, "base64": base64.b64encode(payload).decode()}

    def about(self, taken: Taken) -> dict[str, Any]:
        """What is known of an item, without the item."""
        position, _, count, tag, enqueued, _ = taken
        return {
            "id": self._store.name(position),
            "deliveries": count & MAX_COUNT,
            "put": enqueued / 1e6,
            "serializer": _SERIALIZERS.get(tag & ~TAG_HEADERS, "unknown"),
        }

    def _described(self, taken: Taken) -> bytes:
        return json.dumps(self.described(taken)).encode()

    def _unpickled(self, taken: Taken) -> Any:
        name = self._name(taken)
        if not self._unpickle:
            raise Failure(f"{name} is a pickle, and unpickling runs code; --unpickle shows it, if you trust who put it")
        try:
            return pickle.loads(taken[5])
        except MemoryError as error:  # says nothing about the item
            raise Failure(f"{name} cannot be unpickled, there is too little memory; free some") from error
        except Exception as error:
            reason = f"cannot be unpickled ({type(error).__name__}: {error}); set PYTHONPATH to where its classes are"
            raise UndecodableError(name, reason) from error

    def _name(self, taken: Taken) -> str:
        return f"{self._store.path}: item {self._store.name(taken[0])}"


def _without_headers(taken: Taken) -> Taken:
    position, index, count, tag, enqueued, payload = taken
    if not tag & TAG_HEADERS:
        return taken
    return position, index, count, tag & ~TAG_HEADERS, enqueued, without_headers(payload)


def _fits_json(item: Any) -> bool:
    try:
        json.dumps(item)
    except (TypeError, ValueError):
        return False
    return True
