"""Queues as the tests of `connect` see them: one kind after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

import durableq
from durableq import UnsupportedError

numbers = itertools.count()


class Subject:
    """An engine with a queue of the test's own."""

    def __init__(self, kind: str, url: str, *cannot: str) -> None:
        self.kind, self.url, self._cannot = kind, url, cannot
        self.long_enough = 2.5 if kind == "redis" else 0.3
        """Seconds in which what is not held any more would have come back: two silences, where those matter."""
        self._opened: list[Any] = []

    def open(self, **options: Any) -> Any:
        """A handle of the queue, closed after the test."""
        self._opened.append(durableq.connect(self.url, **options))
        return self._opened[-1]

    def cannot_do(self, what: str) -> bool:
        """Whether this engine raises UnsupportedError for it."""
        return what in self._cannot

    def dispose(self) -> None:
        for queue in self._opened:
            queue.close()


def refuses(call: Callable[[], object]) -> None:
    """What the engine cannot do is told."""
    with pytest.raises(UnsupportedError):
        call()
