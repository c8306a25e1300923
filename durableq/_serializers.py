"""What turns items into bytes and back. Each record says which serializer wrote it, so one file may mix them."""

from __future__ import annotations

import copy
import copyreg
import json
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, NamedTuple, Protocol, cast

from durableq._headers import headers_of, with_headers, without_headers
from durableq._record import TAG_BYTES, TAG_CUSTOM, TAG_HEADERS, TAG_JSON, TAG_PICKLE
from durableq.errors import DecodeError


class Serializer(Protocol):
    """Anything with `dumps(item) -> bytes` and `loads(bytes) -> item`, like the modules `pickle`, `marshal`, `msgpack`.

    Its `loads` is taken to run code that stands in the bytes, as that of `pickle` does, so that a spool which others can write
    to is refused. One that never does says so by an attribute `runs_code = False`.
    """

    def dumps(self, item: Any, /) -> bytes:
        """The bytes of an item; whatever it raises is raised by `put` in the caller."""

    def loads(self, data: bytes, /) -> Any:
        """The item of these bytes; what it raises becomes a DecodeError, and the item a dead letter."""


class _Bytes:
    runs_code = False

    @staticmethod
    def dumps(item: Any) -> bytes:
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise TypeError(f'serializer="bytes" takes bytes, not {type(item).__name__}')
        return bytes(item)

    @staticmethod
    def loads(data: bytes) -> bytes:
        return data


def json_encoder(*, allow_nan: bool) -> Callable[[Any], bytes]:
    """What makes compact JSON of items, in UTF-8; `allow_nan`: also of NaN and the infinities, which JSON does not have.

    A text that cannot be UTF-8 (`os.fsdecode` makes such of the names of some files) goes with escapes.
    """
    plain = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=allow_nan).encode
    escaped = json.JSONEncoder(separators=(",", ":"), allow_nan=allow_nan).encode

    def encode(item: Any) -> bytes:
        try:
            return plain(item).encode()
        except UnicodeEncodeError:
            return escaped(item).encode()

    return encode


class _Json:
    runs_code = False
    dumps = staticmethod(json_encoder(allow_nan=True))

    @staticmethod
    def loads(data: bytes) -> Any:
        return json.loads(data)


class _Pickle:
    dumps = staticmethod(partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL))
    loads = staticmethod(pickle.loads)

    @staticmethod
    def dumps_live(item: Any) -> bytes:
        """With what is pickled as long as its process lives: connections and sockets, as `multiprocessing.Queue` does it."""
        return bytes(ForkingPickler.dumps(item, pickle.HIGHEST_PROTOCOL))


def _refuse_connection(connection: Any) -> Any:
    raise TypeError("a Connection can only be pickled by multiprocessing")


def _have_connections_refused() -> None:
    """Have plain `pickle` raise TypeError for a Connection: it would take the number of its descriptor for all there is to it.

    Whoever unpickles that writes into whatever file has the number there. `multiprocessing`'s own pickler is not concerned.
    """
    from multiprocessing.connection import Connection  # here: who does not pickle does not need it

    copyreg.pickle(Connection, _refuse_connection)


class ByName(NamedTuple):
    """A module that is a serializer, on its way to another process: modules cannot be pickled."""

    name: str

    @classmethod
    def of(cls, serializer: str | Serializer) -> str | Serializer | ByName:
        """What can travel in place of a serializer."""
        return cls(serializer.__name__) if isinstance(serializer, ModuleType) else serializer

    def arrived(self) -> Serializer:
        """The module."""
        return cast(Serializer, import_module(self.name))


def _as_bytes(payload: Any) -> bytes:
    # As a buffer it may have items wider than a byte, and then its length is not what it takes.
    return payload if type(payload) is bytes else bytes(memoryview(payload))


_BY_NAME: dict[str, tuple[int, Serializer]] = {
    "pickle": (TAG_PICKLE, _Pickle()),
    "json": (TAG_JSON, _Json()),
    "bytes": (TAG_BYTES, _Bytes()),
}
_NAMES = {tag: name for name, (tag, _) in _BY_NAME.items()}


class Codec:
    """A serializer with the tag it writes and the tags it reads.

    Only a handle that was opened for pickle unpickles: a hostile spool can give a "json" or "bytes" handle odd items, and
    no more.
    """

    def __init__(self, serializer: str | Serializer) -> None:
        if isinstance(serializer, str):
            if serializer not in _BY_NAME:
                raise ValueError(
                    f"serializer={serializer!r} is unknown; take one of {', '.join(map(repr, _BY_NAME))}, "
                    f"or an object with dumps and loads"
                )
            self.tag, own = _BY_NAME[serializer]
        else:
            if not (callable(getattr(serializer, "dumps", None)) and callable(getattr(serializer, "loads", None))):
                raise TypeError(f"serializer={serializer!r} has no dumps and loads")
            self.tag, own = TAG_CUSTOM, serializer
        self.dumps = own.dumps if self.tag != TAG_CUSTOM else lambda item: _as_bytes(own.dumps(item))
        self.runs_code: bool = getattr(own, "runs_code", True)
        """Whether to decode an item may run code that its writer chose."""
        self.dumps_live: Callable[[Any], bytes] | None = None
        """For what `dumps` raises TypeError of, because it is bound to a living process."""
        if self.tag == TAG_PICKLE:
            _have_connections_refused()
            self.dumps_live = _Pickle.dumps_live
        self.takes_bytes = self.tag == TAG_PICKLE
        """Whether items of type `bytes` go as they are, with the tag of "bytes": the same item comes out, two copies less."""
        self.loads: dict[int, Callable[[bytes], Any]] = {
            tag: s.loads for tag, s in _BY_NAME.values() if tag in (TAG_JSON, TAG_BYTES)
        }
        self.loads[self.tag] = own.loads

    def decode(self, tag: int, payload: bytes, path: str, position: int) -> Any:
        """The item of a record. Raises DecodeError, and MemoryError."""
        try:
            loads = self.loads[tag]
        except KeyError:
            if tag & TAG_HEADERS:
                return self._decode_behind_headers(tag, payload, path, position)
            name = _NAMES.get(tag, "an object of its own")
            raise DecodeError(
                f"{path}: the item at position {position} was written by serializer {name!r}, which this handle does not "
                f"read; it lies with the dead letters: open the queue with that serializer and take it there"
            ) from None
        try:
            return loads(payload)
        except MemoryError:  # says nothing about the item
            raise
        except Exception as exc:
            raise DecodeError(
                f"{path}: the item at position {position} cannot be decoded ({type(exc).__name__}: {exc}); it lies with "
                f"the dead letters: make what it needs importable and call redrive()"
            ) from exc

    def _decode_behind_headers(self, tag: int, payload: bytes, path: str, position: int) -> Any:
        try:
            headers_of(payload)  # whoever reads them is not to be the first to find that they are none
            payload = without_headers(payload)
        except Exception as exc:
            raise DecodeError(
                f"{path}: the headers of the item at position {position} cannot be decoded ({type(exc).__name__}: {exc}); "
                f"it lies with the dead letters"
            ) from exc
        return self.decode(tag & ~TAG_HEADERS, payload, path, position)

    def carrying(self, headers: Callable[[], Mapping[str, str]]) -> Codec:
        """A codec that asks for headers with each item it writes, and puts them before it."""
        codec, dumps, live = copy.copy(self), self.dumps, self.dumps_live
        codec.tag = self.tag | TAG_HEADERS
        codec.takes_bytes = False  # these have a place for headers only behind the serializer
        codec.dumps = lambda item: with_headers(headers(), dumps(item))
        codec.dumps_live = live and (lambda item: with_headers(headers(), live(item)))
        return codec
