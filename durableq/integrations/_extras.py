"""The libraries that are no dependency of durableq: imported where they are used; a missing one is told by its pip command."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from durableq.errors import MissingExtraError


@contextmanager
def needed(package: str, extra: str) -> Iterator[None]:
    """Around imports from a package of an extra. Raises MissingExtraError, one line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != package:
            raise  # it is there, and misses something of its own
        raise MissingExtraError(
            f"this needs the package {package!r}: python -m pip install 'durableq[{extra}]'", name=exc.name
        ) from None


def need(module: str, extra: str) -> ModuleType:
    """Import a library of an extra, as `needed`."""
    with needed(module.split(".")[0], extra):
        return importlib.import_module(module)
