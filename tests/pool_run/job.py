"""What the workers do with an item: (number, path), or (number, one of the bad ones)."""

from __future__ import annotations

import ctypes
import hashlib
import time
from pathlib import Path

SEGFAULT, HANG = "a pointer to nowhere", "the end of time"


def handle(item: tuple[int, str]) -> tuple[int, str]:
    """The number and the hash."""
    number, path = item
    if path == SEGFAULT:
        ctypes.string_at(0)
    if path == HANG:
        time.sleep(3600)
    return number, hash_of(path)


def hash_of(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
