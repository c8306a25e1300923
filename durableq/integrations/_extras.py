"""The libraries that are no dependency of durableq: imported where they are used; a missing one is told by its pip command."""

from __future__ import annotations

import importlib
from types import ModuleType

from durableq.errors import MissingExtraError


def need(module: str, extra: str) -> ModuleType:
    """Import a library of an extra. Raises MissingExtraError, one line that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, and misses something of its own
        raise MissingExtraError(
            f"this needs the package {module.split('.')[0]!r}: python -m pip install 'durableq[{extra}]'", name=exc.name
        ) from None
