"""What every test starts from: a path of its own, handles that are closed and processes that are ended after it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_jobs
import psutil
import pytest
from processes import PATIENCE, Child

from durableq import DurableQueue, WorkerPool, check
from durableq._handle import Handle

SPOILING = {"test_bad_input", "test_check", "test_damage", "test_fuzz"}
"""Modules whose tests damage their spool on purpose."""


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the queue of this test lies. After the test the whole spool is checked, unless it is to be bad."""
    where = tmp_path / "q.dq"
    yield where
    if where.is_file() and request.module.__name__ not in SPOILING:
        report = check(where)
        assert report.ok, report


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the broker directory of this test lies. After the test every spool in it is checked."""
    where = tmp_path / "broker"
    yield where
    for spool in where.glob("*.dq"):
        report = check(spool)
        assert report.ok, report


@pytest.fixture
def open_queue(path: Path) -> Iterator[Callable[..., DurableQueue]]:
    """`open_queue(**options)` is `DurableQueue(path, **options)`, closed after the test."""
    handles: list[DurableQueue] = []

    def opener(where: Path | str = path, **options: Any) -> DurableQueue:
        handles.append(DurableQueue(where, **options))
        return handles[-1]

    yield opener
    for handle in handles:
        handle.close()


@pytest.fixture
def q(open_queue: Callable[..., DurableQueue]) -> DurableQueue:
    """A queue with the default options."""
    return open_queue()


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled calls in this process: every call to the system goes through the seam, every step is a byte code."""
    monkeypatch.setattr(Handle, "compiled", False)


@pytest.fixture
def pool(path: Path) -> Callable[..., WorkerPool]:
    """`pool(function, processes, **options)` is a WorkerPool at `path`: by default of one worker, that tries again at once."""

    def maker(function: Callable[[Any], Any] = pool_jobs.work, processes: int = 1, **options: Any) -> WorkerPool:
        return WorkerPool(path, function, processes, **{"backoff": pool_jobs.AT_ONCE, **options})

    return maker


@pytest.fixture
def start(path: Path) -> Iterator[Callable[..., Child]]:
    """`start(code, *args)` runs code in a process of its own, which ends before the spool at `path` is checked."""
    children: list[Child] = []

    def starter(code: str, *args: object, **options: Any) -> Child:
        children.append(Child(code, *args, **options))
        return children[-1]

    yield starter
    for child in children:
        child.dispose()


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """Kill what a failed test left running: a forgotten consumer would eat another test's time, if not its items."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and not _serves_multiprocessing(p)]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=PATIENCE)


def _serves_multiprocessing(process: psutil.Process) -> bool:
    # The fork server and the resource tracker live as long as the test run by design.
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "multiprocessing.forkserver" in command or "multiprocessing.resource_tracker" in command


@pytest.fixture
def punches_holes(tmp_path: Path) -> None:
    """Skip the test where the file system cannot give back the middle of a file."""
    allocate = ctypes.CDLL(None, use_errno=True).fallocate
    allocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * 65536)
    with open(probe, "r+b") as file:
        if allocate(file.fileno(), 0x01 | 0x02, 0, 65536):  # KEEP_SIZE | PUNCH_HOLE
            pytest.skip("this file system cannot punch holes")
    probe.unlink()
