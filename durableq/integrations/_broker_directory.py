"""A directory of spools as a message broker: what it knows beside the messages.

    NAME.dq, ..       the messages of the queue NAME (percent-encoded where a file name cannot say it)
    broker.json       the exchanges and their bindings, and the queues that do not outlive their users

`broker.json` is replaced as a whole, under a lock, and read without one. It changes only when something is declared, so
a publisher looks at its inode and reads it once.

A process that uses a queue of the second kind claims it by a shared `flock` on its spool, which the kernel lifts when the
process dies. What nobody claims any more is removed by whoever declares something next:

    exclusive           at once
    auto_delete         once it has had a consumer
    expires (seconds)   when nothing happened to it for so long
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import quote

from durableq import DurableQueue
from durableq._locks import under_cold_lock

Binding = tuple[str, str, str]
"""Routing key, pattern, queue."""
Facts = dict[str, Any]
"""exclusive, auto_delete, consumed, expires: those of a queue that are true. None of them: it stays."""

_SPOOL_FILES = ("", "-shm", "-lock", "-damaged")


class BrokerDirectory:
    """One process's view of the directory."""

    def __init__(self, path: str, **options: Any) -> None:
        """`options` are those of DurableQueue for the spools. The directory is created; the one that it is in must be there."""
        self._path = path
        self._file = os.path.join(path, "broker.json")
        self._options = options
        self._seen = (0, 0)
        self._state: dict[str, Any] = _nothing()
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def spool(self, queue: str) -> str:
        """The path of a queue's spool."""
        return os.path.join(self._path, quote(queue, safe="@ ") + ".dq")

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def exchange_type(self, exchange: str) -> str | None:
        """The type with which somebody declared an exchange."""
        found: dict[str, str] | None = self._read()["exchanges"].get(exchange)
        return found["type"] if found else None

    def bindings(self, exchange: str) -> list[Binding]:
        """What is bound to an exchange, by whatever process."""
        found = self._read()["exchanges"].get(exchange)
        return [(key, pattern, queue) for key, pattern, queue in found["bindings"]] if found else []

    def declare_exchange(self, exchange: str, kind: str) -> None:
        """Note an exchange. Its bindings stay if it is there."""
        if self.exchange_type(exchange) != kind:
            self._change(lambda state: state["exchanges"].setdefault(exchange, {"bindings": []}).update(type=kind))

    def delete_exchange(self, exchange: str) -> None:
        """Forget an exchange and its bindings."""
        self._change(lambda state: state["exchanges"].pop(exchange, None))

    def bind(self, exchange: str, binding: Binding) -> None:
        """Bind a queue to an exchange."""
        if binding not in self.bindings(exchange):
            self._change(
                lambda state: (
                    state["exchanges"]
                    .setdefault(exchange, {"type": "direct", "bindings": []})["bindings"]
                    .append(list(binding))
                )
            )

    def unbind(self, exchange: str, binding: Binding) -> None:
        """Undo `bind`."""

        def work(state: dict[str, Any]) -> None:
            if exchange in state["exchanges"]:
                found = state["exchanges"][exchange]
                found["bindings"] = [other for other in found["bindings"] if other != list(binding)]

        self._change(work)

    # -- queues --------------------------------------------------------------------------------------------------------

    def exists(self, queue: str) -> bool:
        """Whether a queue was declared, or put into, and not removed."""
        return os.path.exists(self.spool(queue))

    def facts(self, queue: str) -> Facts | None:
        """What ends a queue that does not outlive its users; None for one that stays."""
        facts: Facts | None = self._read()["queues"].get(queue)
        return facts

    def declare(self, queue: str, facts: Facts) -> tuple[DurableQueue, Claim | None]:
        """A handle on a queue that is created if it is not there, and a claim if it does not outlive its users."""

        def work(state: dict[str, Any]) -> tuple[DurableQueue, Claim | None]:
            if facts:
                state["queues"].setdefault(queue, {}).update(facts)
            handle = self._open(state, queue)
            return handle, Claim.of(handle.path) if queue in state["queues"] else None

        # All under the lock, so that nobody removes the queue between its opening and the claim.
        return cast(tuple[DurableQueue, "Claim | None"], self._change(work))

    def open(self, queue: str, *, create: bool) -> DurableQueue | None:
        """A handle on a queue; None if it is not there and is not to be created."""

        def work(state: dict[str, Any]) -> DurableQueue | None:
            return self._open(state, queue) if create or self.exists(queue) else None

        return cast("DurableQueue | None", self._change(work))

    def _open(self, state: dict[str, Any], queue: str) -> DurableQueue:
        options = self._options | ({"sync": None} if queue in state["queues"] else {})
        return DurableQueue(self.spool(queue), serializer="bytes", **options)

    def claim(self, queue: str) -> Claim | None:
        """Keep a queue that does not outlive its users, as one of them; None if it does, or is not there."""

        def work(state: dict[str, Any]) -> Claim | None:
            return Claim.of(self.spool(queue)) if queue in state["queues"] and self.exists(queue) else None

        return cast("Claim | None", self._change(work))

    def consumed(self, queue: str) -> None:
        """The queue has a consumer: if it is an auto_delete one, it ends with the last claim."""
        facts = self.facts(queue)
        if facts is not None and not facts.get("consumed"):
            self._change(lambda state: state["queues"].get(queue, {}).update(consumed=True))

    def remove(self, queue: str) -> None:
        """Remove a queue, its messages and its bindings."""
        self._change(lambda state: self._remove(state, queue))

    def sweep(self) -> None:
        """Remove the queues that nobody claims any more."""
        if any(self._is_over(queue, facts) for queue, facts in self._read()["queues"].items()):
            self._change(lambda state: None)

    def _remove(self, state: dict[str, Any], queue: str) -> None:
        state["queues"].pop(queue, None)
        for exchange in state["exchanges"].values():
            exchange["bindings"] = [binding for binding in exchange["bindings"] if binding[2] != queue]
        for suffix in _SPOOL_FILES:
            with suppress(FileNotFoundError):
                os.unlink(self.spool(queue) + suffix)

    def _is_over(self, queue: str, facts: Facts) -> bool:
        path = self.spool(queue)
        try:
            idle = time.time() - os.stat(path).st_mtime
        except FileNotFoundError:
            return True
        ended = facts.get("exclusive") or (facts.get("auto_delete") and facts.get("consumed"))
        expired = "expires" in facts and idle > facts["expires"]
        return bool(ended or expired) and not Claim.is_held(path)

    # -- broker.json ---------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        try:
            info = os.stat(self._file)
        except FileNotFoundError:
            return _nothing()
        seen = (info.st_ino, info.st_mtime_ns)
        if seen != self._seen:
            self._state, self._seen = self._load(), seen
        return self._state

    def _load(self) -> dict[str, Any]:
        try:
            with open(self._file, "rb") as file:
                state: dict[str, Any] = json.load(file)
            return {"exchanges": dict(state["exchanges"]), "queues": dict(state["queues"])}
        except FileNotFoundError:
            return _nothing()
        except (ValueError, TypeError, KeyError) as exc:
            raise ValueError(
                f"{self._file}: is damaged ({exc}); delete it and restart the workers, which declare what they use: "
                f"no message is lost"
            ) from exc

    def _change(self, work: Callable[[dict[str, Any]], Any]) -> Any:
        """Do `work` on what is known, under the lock, remove what is over, and write it down if that changed it."""

        def locked() -> Any:
            state = self._load()
            before = json.dumps(state)
            result = work(state)
            for queue in [queue for queue, facts in state["queues"].items() if self._is_over(queue, facts)]:
                self._remove(state, queue)
            text = json.dumps(state)
            if text != before:
                self._write(text)
            return result

        return under_cold_lock(self._file, locked)

    def _write(self, text: str) -> None:
        temporary = f"{self._file}.new"
        with open(temporary, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
            file.flush()
            now = max(time.time_ns(), self._changed() + 1)
            os.utime(file.fileno(), ns=(now, now))  # two changes within a tick of the clock are two to a reader as well
            os.fsync(file.fileno())  # before the rename: a power cut must not leave an empty file in place of the old one
        os.rename(temporary, self._file)

    def _changed(self) -> int:
        with suppress(FileNotFoundError):
            return os.stat(self._file).st_mtime_ns
        return 0


def _nothing() -> dict[str, Any]:
    return {"exchanges": {}, "queues": {}}


class Claim:
    """A shared lock on a spool, for as long as this process uses the queue."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _claims.add(self)

    @classmethod
    def of(cls, path: str) -> Claim | None:
        """Claim the queue of this spool; None if it is not there."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        return cls(fd)

    @staticmethod
    def is_held(path: str) -> bool:
        """Whether anybody has claimed the queue of this spool."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """Give it up. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = release


_claims: weakref.WeakSet[Claim] = weakref.WeakSet()


def _release_after_fork() -> None:
    # The lock belongs to the open file description, which a child shares: it would outlive its parent's use of the queue.
    for claim in list(_claims):
        claim.release()


os.register_at_fork(after_in_child=_release_after_fork)
