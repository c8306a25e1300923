"""What an item becomes on its way out: a Message, made by a Shape.

    the value     the item: bytes as they are, str as UTF-8, everything else as JSON (which has no NaN and no Infinity)
    the id        `Delivery.id`: the same each time the item is sent, so that a consumer can drop what it has seen
    key           what the engine partitions by
    headers       names with values, beside the value; what travels with the item itself (a trace context) is among them.
                  An engine's messages may have names that are durableq's own: reserved, and refused
    topic         where it goes, instead of the place that the URL names

Each of value, key, headers and topic is taken from the item: by a function of it, or by the name of one of its fields (an
entry if the item is a mapping, an attribute if not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from durableq._delivery import Delivery
from durableq._serializers import json_encoder
from durableq.errors import ReservedNameError

__all__ = ["BYTES", "Message", "Part", "Shape", "UnsendableError"]

Part = str | Callable[[Any], Any]
"""A field of the item, or a function of the item."""

Headers = Mapping[str, str] | Iterable[str] | Callable[[Any], Mapping[str, Any]]
"""Header names with the field of each; or fields, each the name of its header too; or a function of the item."""

_NO_HEADERS: dict[str, bytes] = {}
BYTES, _TEXT, _JSON = "application/octet-stream", "text/plain", "application/json"
_to_json = json_encoder(allow_nan=False)


class UnsendableError(Exception):
    """This item can be made no message of, whatever the engine says; its message is the reason."""


class Message(NamedTuple):
    """One message, in bytes."""

    id: str
    value: bytes
    content_type: str = BYTES
    key: bytes | None = None
    headers: Mapping[str, bytes] = _NO_HEADERS
    topic: str | None = None


class Shape:
    """Makes messages of items. See the module; what is None is left out (the value: the whole item).

    Raises ReservedNameError if a header that is known by its name has a reserved one; of others, `message` tells.
    """

    def __init__(
        self,
        *,
        value: Part | None = None,
        key: Part | None = None,
        headers: Headers | None = None,
        topic: Part | None = None,
        reserved: frozenset[str] = frozenset(),
    ) -> None:
        self._value = _part(value)
        self._key = _part(key)
        self._headers = _headers(headers, reserved)
        self._topic = _part(topic)
        self._reserved = reserved
        self._plain = value is None and key is None and headers is None and topic is None

    def message(self, delivery: Delivery) -> Message:
        """The message of a delivery. Raises UnsendableError."""
        item = delivery.item
        if self._plain and type(item) is bytes and not delivery.headers:
            return Message(delivery.id, item)
        try:
            value, content_type = _encoded(self._value(item) if self._value else item)
            key = self._key(item) if self._key else None
            topic = self._topic(item) if self._topic else None
            return Message(
                delivery.id,
                value,
                content_type,
                None if key is None else _encoded(key)[0],
                self._headers_of(delivery) if self._headers or delivery.headers else _NO_HEADERS,
                None if topic is None else _name(topic),
            )
        except Exception as exc:  # the functions are the user's: whatever they raise concerns this one item
            raise UnsendableError(f"no message can be made of it ({type(exc).__name__}: {exc})") from exc

    def _headers_of(self, delivery: Delivery) -> dict[str, bytes]:
        own = self._headers(delivery.item) if self._headers else {}
        found = {**delivery.headers, **own}
        _check_names(found, self._reserved)
        return {_name(name): _encoded(value)[0] for name, value in found.items()}


def _encoded(value: Any) -> tuple[bytes, str]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BYTES
    if isinstance(value, str):
        return value.encode(), _TEXT
    return _to_json(value), _JSON


def _name(name: Any) -> str:
    """A topic, or the name of a header, as text that can be encoded. Raises UnicodeEncodeError: clients crash over others."""
    text = str(name)
    text.encode()
    return text


def _part(part: Part | None) -> Callable[[Any], Any] | None:
    if part is None or callable(part):
        return part
    if not isinstance(part, str):
        raise TypeError(f"{part!r} is neither the name of a field nor a function of the item")
    return _field(part)


def _field(name: str) -> Callable[[Any], Any]:
    def field(item: Any) -> Any:
        if isinstance(item, Mapping):
            if name not in item:
                raise LookupError(f"it has no field {name!r}")
            return item[name]
        return getattr(item, name)

    return field


def _headers(headers: Headers | None, reserved: frozenset[str]) -> Callable[[Any], Mapping[str, Any]] | None:
    if headers is None or callable(headers):
        return headers
    if isinstance(headers, str):
        raise TypeError(f"headers={headers!r} must be a list of fields, a mapping of header to field, or a function")
    names = headers if isinstance(headers, Mapping) else {name: name for name in headers}
    _check_names(names, reserved)
    fields = {header: _field(name) for header, name in names.items()}
    return lambda item: {header: field(item) for header, field in fields.items()}


def _check_names(names: Iterable[str], reserved: frozenset[str]) -> None:
    for name in reserved.intersection(names):
        raise ReservedNameError(
            f"header {name!r}: the messages of this engine have something else under that name; send it under another one "
            f"(--header NAME=FIELD, or headers={{NAME: FIELD}})"
        )
