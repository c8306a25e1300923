"""Headers in front of a payload: what travels with an item and is not part of it, such as a trace context.

A record whose tag has TAG_HEADERS set holds

    offset  size  field
    0       4     length of the headers, little-endian
    4       ..    the headers: a JSON object of strings
    ..      ..    the payload of the serializer that the rest of the tag names

Who knows no headers knows no such tag, and puts the item with the dead letters rather than decode what it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

_LENGTH = 4


def with_headers(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A payload behind its headers."""
    text = json.dumps(dict(headers), separators=(",", ":")).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + payload


def headers_of(payload: bytes) -> dict[str, str]:
    """The headers before a payload. Raises ValueError (and, by `json`, RecursionError) if they are none."""
    found = json.loads(payload[_LENGTH : _end(payload)])
    if not isinstance(found, dict):
        raise ValueError("its headers are no JSON object")
    return {str(name): str(value) for name, value in found.items()}


def without_headers(payload: bytes) -> bytes:
    """The payload that stands behind headers. Raises ValueError if there is no room for those."""
    return payload[_end(payload) :]


def _end(payload: bytes) -> int:
    end = _LENGTH + int.from_bytes(payload[:_LENGTH], "little")
    if end > len(payload):
        raise ValueError("its headers are longer than the record")
    return end
