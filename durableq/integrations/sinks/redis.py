"""To Redis: streams (XADD) and lists (RPUSH), through redis-py.

One connection, on which a parcel's commands go out before the replies to the one before have come in; Redis answers in order,
and each reply is a verdict. An entry of a stream has the fields `id`, `value`, `key` if there is one, and the headers. An
element of a list is the value alone, or, with `envelope=json` in the URL, a JSON object of `id`, `value`, `key` and `headers`.
(Into a value alone a key does not go, nor headers: who asks for them is told so. What travels with the items is left out.)

    reply                                               verdict
    an entry's id, a list's length                      confirmed
    an error that speaks of the message's size          refused
    any other (memory, read only, wrong type, rights)   none: Redis is away until that is mended

A value above the server's `proto-max-bulk-len` is refused here: Redis would drop the connection and what is under way on it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

from durableq.errors import BadURLError
from durableq.integrations._extras import need
from durableq.integrations._urls import split_redis
from durableq.integrations.message import Message
from durableq.integrations.sinks.base import AwayError, Parcel, Sink

__all__ = ["FIELDS", "RedisSink"]

FIELDS = frozenset({"id", "value", "key", "tag", "at", "n"})
"""Fields of a stream's entry that are durableq's own, here or in `durableq.connect`; others are headers."""

CONNECT_PATIENCE = 5.0
PATIENCE = 30.0
"""Seconds without a sign of life after which a connection is given up."""

_LARGEST = 512 << 20
"""What `proto-max-bulk-len` is unless the server says otherwise."""
_ABOUT_SIZE = ("too large", "exceeds maximum", "exceeds the maximum")


class RedisSink(Sink):
    """A stream or a list of a Redis server; `url` as `durableq.integrations._urls` has it."""

    def __init__(self, url: str) -> None:
        self._redis = need("redis", "redis")
        self._errors = (self._redis.ConnectionError, self._redis.TimeoutError)
        engine = split_redis(url, {"envelope"})
        self._list = "list" in engine.words
        self._where = engine.words["list" if self._list else "stream"]
        self._envelope = engine.words.get("envelope")
        self.reserved = frozenset() if self._list else FIELDS
        self.bare = self._list and self._envelope is None
        self.name = f"{engine.place} {'list' if self._list else 'stream'} {self._where}"
        if self._envelope is not None and (not self._list or self._envelope != "json"):
            raise BadURLError(f"{self.name}: envelope=json is for lists, and there is no other")
        try:
            # No second try by the client library: it would not know what has its reply already.
            self._client = self._redis.Redis.from_url(
                engine.url,
                socket_timeout=PATIENCE,
                socket_connect_timeout=CONNECT_PATIENCE,
                retry=self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),
            )
            self._client.connection_pool.make_connection()
        except (ValueError, TypeError, self._redis.RedisError) as exc:
            raise BadURLError(f"{self.name}: redis-py does not take this URL: {exc}") from None
        self._connection: Any = None
        self._owed: deque[tuple[Parcel, int]] = deque()
        self._gone: AwayError | None = None
        self._largest = _LARGEST
        self._heard = 0.0

    def open(self) -> None:
        if self._connection is not None:
            return
        connection = self._client.connection_pool.make_connection()
        try:
            connection.connect()
            self._largest = self._ask_largest(connection)
        except self._redis.RedisError as exc:  # also of a database that is not there, or of rights: until that is mended
            connection.disconnect()
            raise AwayError(str(exc)) from exc
        self._connection = connection
        self._gone = None

    def _ask_largest(self, connection: Any) -> int:
        connection.send_command("CONFIG", "GET", "proto-max-bulk-len")
        try:
            answer = connection.read_response()
        except self._redis.ResponseError:  # not allowed to ask, or a server that has no such thing
            return _LARGEST
        found = [*answer.items()] if isinstance(answer, dict) else [tuple(answer)]
        return int(found[0][1]) if found and len(found[0]) == 2 else _LARGEST

    def send(self, parcel: Parcel) -> None:
        commands = []
        for index, message in enumerate(parcel.messages):
            if len(message.value) > self._largest:
                parcel.refuse(index, f"its {len(message.value)} bytes are more than the server takes ({self._largest})")
                continue
            try:
                commands.append(self._command(message))
            except ValueError as exc:
                parcel.refuse(index, str(exc))
                continue
            self._owed.append((parcel, index))
        self._heard = time.monotonic()
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        except self._errors as exc:
            raise AwayError(str(exc)) from exc

    def _command(self, message: Message) -> tuple[Any, ...]:
        where = message.topic or self._where
        if not self._list:
            if message.key is None and not message.headers:
                return (b"XADD", where, b"*", b"id", message.id, b"value", message.value)
            key = () if message.key is None else (b"key", message.key)
            headers = [part for header in message.headers.items() for part in header]
            return (b"XADD", where, b"*", b"id", message.id, b"value", message.value, *key, *headers)
        return (b"RPUSH", where, _enveloped(message) if self._envelope else message.value)

    def wait(self, parcel: Parcel, timeout: float) -> bool:
        connection = self._connection
        try:
            while self._owed and self._owed[0][0] is parcel:
                if not connection.can_read(timeout):
                    if time.monotonic() - self._heard > PATIENCE:
                        raise AwayError(f"no reply for {PATIENCE:.0f} seconds")
                    return False
                self._read(connection)
        except self._errors as exc:
            raise AwayError(str(exc)) from exc
        if self._gone is not None:
            raise self._gone
        return True

    def _read(self, connection: Any) -> None:
        """One reply: it is that to the oldest command."""
        reason = None
        try:
            connection.read_response()
        except self._redis.ResponseError as exc:
            reason = str(exc)
        self._heard = time.monotonic()
        parcel, index = self._owed.popleft()
        if reason is None:
            parcel.confirm(index)
        elif any(words in reason for words in _ABOUT_SIZE):
            parcel.refuse(index, reason)
        else:
            self._gone = self._gone or AwayError(reason)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
        self._owed.clear()


def _enveloped(message: Message) -> str:
    fields: dict[str, Any] = {"id": message.id}
    try:
        fields["value"] = json.loads(message.value) if message.content_type == "application/json" else message.value.decode()
        if message.key is not None:
            fields["key"] = message.key.decode()
        if message.headers:
            fields["headers"] = {name: value.decode() for name, value in message.headers.items()}
    except UnicodeDecodeError:
        raise ValueError("it is not text, so it cannot go into a JSON envelope; send it to a stream") from None
    return json.dumps(fields, ensure_ascii=False)
