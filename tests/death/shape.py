"""What a case is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from durableq import DurableQueue


@dataclass(frozen=True)
class Found:
    """What a survivor finds: the items that can be taken, in order, each with its delivery's number; and the rest."""

    ready: tuple[tuple[Any, int], ...] = ()
    dead: tuple[Any, ...] = ()
    delayed: int = 0
    drops: int = 0


@dataclass(frozen=True)
class Case:
    """One operation. `prepare` and `operate` run in the process that dies; what `prepare` returns goes to `operate`."""

    name: str
    operate: Callable[[DurableQueue, Any], object]
    before: Found
    after: Found
    prepare: Callable[[DurableQueue], Any] = lambda q: None
    between: Callable[[Found], bool] = lambda found: False
    options: dict[str, Any] = field(default_factory=dict)
    """Of the queue."""
    handle: dict[str, Any] = field(default_factory=dict)
    """Of the handle that dies."""
    patches: tuple[tuple[Any, str, Any], ...] = ()
    alone: bool = False
    """Nobody else has the queue open_handle, and `operate` opens it (its `q` is the path)."""
    lost_control: bool = False
    """The control file is gone before `operate`."""
    limit: int = 1 << 60
    """No points after this one: the operation would go on for ever."""
    ends_queue: bool = False
    coarse: bool = False
    """Long to prepare: fewer points in the short run."""
    boot_forgets: bool = False
    """After a boot the outcome is another, because the spool does not count the first delivery."""
    shifts: bool = False
    """What is taken changes the other counts: they are compared only afterwards."""

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The package with other values of `patches`; AttributeError for one that it does not have."""
        with ExitStack() as stack:
            for module, name, value in self.patches:
                stack.enter_context(mock.patch.object(module, name, value))
            yield


def ready(*items: Any, again: tuple[Any, ...] = ()) -> tuple[tuple[Any, int], ...]:
    """Items as they are found: `again` had been delivered once, the others never."""
    return (*((item, 2) for item in again), *((item, 1) for item in items))
