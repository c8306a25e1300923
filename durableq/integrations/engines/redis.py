"""A queue on a Redis stream (6.2 or later), through redis-py: consumer groups, with `redis_scripts` for each step.

NAME is the stream, NAME:delayed what waits for its time, NAME:options what belongs to the queue, NAME:dead the dead letters.
Everybody is a consumer of the group `durableq`. An entry is taken with XREADGROUP, done with XACK and XDEL.

What the dead held. A process gives a sign of life for all it has every few seconds (XCLAIM to itself). Entries without one
for `silence` seconds (30, or ?silence=SECONDS in the URL of who creates the queue) are taken over by XAUTOCLAIM. With a
`lease` there are no signs of life but for what was extended: an entry is anybody's when the lease is over.

maxsize, max_deliveries, lease and silence belong to the queue: stored by who creates it, adopted by who leaves them out, and
who contradicts them gets OptionMismatchError.

Entries that somebody else has added are read too (those of `durableq forward`, say): `value` is the payload in the
serializer of this handle, `id` its name. An entry is durableq's own if it has a `tag` and an `at` that are numbers; in others
these are headers, as all fields are that have no meaning here.
"""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from durableq.errors import BadURLError, OptionMismatchError, UnreachableError
from durableq.integrations._extras import need
from durableq.integrations._urls import split_redis
from durableq.integrations.engines import redis_scripts as scripts
from durableq.integrations.engines.base import Body, Engine, Fetched, as_text, number
from durableq.integrations.sinks.redis import FIELDS

__all__ = ["RedisEngine"]

GROUP = "durableq"
SILENCE = 30.0
PATIENCE = 30.0
CONNECT_PATIENCE = 5.0
MOST = 1000
"""Entries in one step: while a script runs Redis does nothing else, and Lua's stack is not deep."""


class _Token:
    """An entry in our name: its id, the group's count of its deliveries, and until when (monotonic) it is kept."""

    __slots__ = ("count", "id", "until")

    def __init__(self, id: bytes, count: int, until: float) -> None:
        self.id, self.count, self.until = id, count, until


class RedisEngine(Engine):
    """One queue on one Redis server."""

    def __init__(
        self,
        url: str,
        own_tag: int,
        *,
        maxsize: int = 0,
        max_deliveries: int | None = None,
        lease: float | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self._redis = need("redis", "redis")
        place = split_redis(url, {"silence"})
        if "list" in place.words:
            raise BadURLError(f"{place.place}: a queue is a stream; a list has no place for what is lent and not done")
        self._arguments = (url, own_tag)
        self._own_tag = own_tag
        self._name = name or place.words["stream"]
        self.path = f"{place.place} stream {self._name}"
        self._keys = [self._name, f"{self._name}:delayed", f"{self._name}:options", f"{self._name}:dead"]
        try:
            self._wanted = {
                "maxsize": maxsize,
                "max_deliveries": max_deliveries or 0,
                "lease": int(lease * 1000) if lease else 0,
                "silence": int(float(place.words.get("silence", 0)) * 1000),
            }
            self._client = self._redis.Redis.from_url(
                place.url,
                protocol=2,
                socket_timeout=PATIENCE,
                socket_connect_timeout=CONNECT_PATIENCE,
                retry=self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),  # a second try could put twice
            )
        except (ValueError, TypeError) as exc:
            raise BadURLError(f"{self.path}: {exc}") from None
        self._scripts = {text: self._client.register_script(text) for text in vars(scripts).values() if _is_script(text)}
        self._abandon()
        self._set_up()

    def _abandon(self) -> None:
        # redis-py itself leaves the parent's connections to it.
        self._me = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._cursor, self._look_at = b"0-0", 0.0

    def _set_up(self) -> None:
        """Create what is missing, agree on the options."""
        stream, _, options, _ = self._keys
        with self._reaching():
            for name, value in self._wanted.items():
                if value:
                    self._client.hsetnx(options, name, value)
            found = [int(value or 0) for value in self._client.hmget(options, list(self._wanted))]
            stored = dict(zip(self._wanted, found, strict=True))
            with suppress(self._redis.ResponseError):  # it is there; what else it may be, the first use will tell
                self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        for name, value in self._wanted.items():
            if value and value != stored[name]:
                raise OptionMismatchError(f"{self.path}: {name}={value} contradicts the queue's own {name}={stored[name]}")
        self.lease = stored["lease"] / 1000 or None
        self.max_deliveries = stored["max_deliveries"] or None
        self._threshold = stored["lease"] or stored["silence"] or int(SILENCE * 1000)
        self.beat = self._threshold / 3000

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (self._redis.ConnectionError, self._redis.TimeoutError) as exc:
            raise UnreachableError(f"{self.path}: {exc}") from exc
        except self._redis.ResponseError as exc:
            if _lost_group(exc):
                raise
            raise UnreachableError(f"{self.path}: Redis says: {exc}") from exc

    def _run(self, script: str, *arguments: Any) -> Any:
        for last in (False, True):
            try:
                with self._reaching():
                    return self._scripts[script](keys=self._keys, args=[GROUP, self._me, *arguments])
            except self._redis.ResponseError as exc:
                if last:
                    raise UnreachableError(f"{self.path}: Redis says: {exc}") from exc
                self._set_up()  # the server came back empty-handed
        raise AssertionError

    # -- the queue -----------------------------------------------------------------------------------------------------

    def append(self, bodies: Sequence[Body], delay: float = 0.0) -> int:
        """See Engine."""
        return int(self._run(scripts.APPEND, int(delay * 1000), *(field for body in bodies for field in body)))

    def waiting(self) -> int:
        """See Engine."""
        return int(self._run(scripts.COUNTS)[0])

    def unfinished(self) -> int:
        """See Engine."""
        return int(self._run(scripts.COUNTS)[1])

    def peek(self, n: int) -> list[Fetched]:
        """See Engine."""
        return [self._fetched(*seen) for seen in self._run(scripts.PEEK, n)]

    def purge(self) -> int:
        """See Engine."""
        return int(self._run(scripts.PURGE))

    def dead_letters(self) -> Engine:
        """See Engine."""
        return _DeadLetters(*self._arguments, name=f"{self._name}:dead")

    @property
    def maxsize(self) -> int:
        """See Engine."""
        with self._reaching():
            return int(self._client.hget(self._keys[2], "maxsize") or 0)

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        with self._reaching():
            self._client.hset(self._keys[2], "maxsize", value)

    def _fetch(self, limit: int, done: bool, wait: float) -> list[Fetched]:
        limit = min(limit, MOST)
        now = time.monotonic()
        look = now >= self._look_at
        cursor, taken, due = self._run(scripts.TAKE, limit, self._threshold, self._cursor if look else b"", int(done))
        if look:
            self._cursor = cursor
            if cursor == b"0-0":  # round once
                self._look_at = now + self._threshold / 4000
        if due >= 0:
            wait = min(wait, due / 1000)
        if not taken and wait > 0:
            taken = self._wait_and_read(limit, done, wait)
        return [self._fetched(*found) for found in taken]

    def _wait_and_read(self, limit: int, done: bool, wait: float) -> list[Any]:
        try:
            with self._reaching():
                found = self._client.execute_command(
                    *("XREADGROUP", "GROUP", GROUP, self._me, "COUNT", limit, "BLOCK", max(1, int(wait * 1000))),
                    *("STREAMS", self._name, ">"),
                    NEVER_DECODE=True,
                )
        except self._redis.ResponseError:  # the stream has gone under our eyes; the next call makes it anew
            return []
        rows = found[0][1] if found else []
        taken = [
            (id, 1, 1 + (number(fields.get(b"n")) or 0), [part for pair in fields.items() for part in pair])
            for id, fields in rows
        ]
        if done:
            for id, count, *_ in taken:
                self._run(scripts.ACK, id, count)
        return taken

    def _fetched(self, id: bytes, count: int, deliveries: int, fields: list[bytes]) -> Fetched:
        found = {as_text(field): value for field, value in zip(fields[::2], fields[1::2], strict=True)}
        name, ours = as_text(found.get("id", id)), FIELDS
        tag, enqueued = number(found.get("tag")), number(found.get("at"))
        if tag is None or enqueued is None:
            tag, enqueued, ours = self._own_tag, int(id.split(b"-")[0]) * 1000, FIELDS - {"tag", "at"}
        headers = {field: as_text(value) for field, value in found.items() if field not in ours}
        body = Body(found.get("value", b""), tag, enqueued, name).carrying(headers)
        until = time.monotonic() + self.lease if self.lease else math.inf
        return Fetched(_Token(id, count, until), name, deliveries, body)

    # -- settling ------------------------------------------------------------------------------------------------------

    def _ack(self, token: _Token) -> bool:
        return bool(self._run(scripts.ACK, token.id, token.count))

    def _nack(self, token: _Token, delay: float) -> bool:
        return bool(self._run(scripts.GIVE_BACK, token.id, token.count, int(delay * 1000), 1))

    def _release(self, token: _Token) -> bool:
        return bool(self._run(scripts.GIVE_BACK, token.id, token.count, 0, 0))

    def _reject(self, token: _Token) -> bool:
        return bool(self._run(scripts.REJECT, token.id, token.count))

    def _extend(self, token: _Token, seconds: float) -> bool:
        token.until = time.monotonic() + seconds
        return self._keep([token]) == 1

    def _beat(self) -> None:
        now = time.monotonic()
        self._keep([token for token in self.held() if token.until > now])

    def _keep(self, tokens: list[_Token]) -> int:
        """Let each come back at its time, or never as long as we live."""
        now, kept = time.monotonic(), 0
        for first in range(0, len(tokens), MOST):
            arguments: list[Any] = []
            for token in tokens[first : first + MOST]:
                left = (token.until - now) * 1000
                arguments += (token.id, token.count, 0 if left >= self._threshold else int(self._threshold - left))
            kept += int(self._run(scripts.KEEP, *arguments))
        return kept

    def _leave(self) -> None:
        try:
            self._run(scripts.LEAVE)
        finally:
            self._client.close()


class _DeadLetters(RedisEngine):
    def _reject(self, token: _Token) -> bool:
        return self._release(token)  # it is there already

    def _nack(self, token: _Token, delay: float) -> bool:
        return super()._nack(token, 0.0)


def _is_script(text: Any) -> bool:
    return isinstance(text, str) and "redis.call" in text


def _lost_group(exc: Exception) -> bool:
    return str(exc).startswith(("NOGROUP", "UNBLOCKED"))
