"""Which of CPython's tests are run, and how our class gets into them."""

from __future__ import annotations

import importlib
import sys
import unittest
from collections.abc import Iterator
from types import ModuleType

from . import standins

DEBIAN = f"libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite"
"""The package of Debian and Ubuntu with the `test` package of this Python."""

START_METHODS = ("fork", "spawn", "forkserver")
SUITES = {
    "queue": (),
    "logging": (),
    "signatures": (),
    "multiprocessing": START_METHODS,
    "clients": (),
    "clients_mp": START_METHODS,
}
"""Suite -> the start methods under which it is run; none: it starts no process by multiprocessing."""


class NoTestPackage(Exception):
    """The interpreter came without its own tests."""


def the_module(name: str) -> ModuleType:
    """A module of CPython's `test` package."""
    try:
        return importlib.import_module("test." + name)
    except ImportError as error:
        raise NoTestPackage(
            f"{sys.executable}: this Python has no `test.{name}` ({error}). CPython's `test` package comes with source, pyenv "
            f"and python.org builds; on Debian and Ubuntu: apt-get install {DEBIAN}; on Fedora: dnf install python3-test"
        ) from error


def require() -> None:
    """Raise NoTestPackage, before anything is run, if a module of the `test` package is missing."""
    for name in ("test_queue", "test_logging", "_test_multiprocessing"):
        the_module(name)


def tests(suite: str) -> Iterator[unittest.TestCase]:
    """The tests of one suite."""
    yield from {
        "queue": _queue,
        "logging": _logging,
        "multiprocessing": _multiprocessing,
        "clients": lambda: _ours("clients"),
        "clients_mp": lambda: _ours("clients_mp"),
        "signatures": _signatures,
    }[suite]()


def _all_of(case: type) -> Iterator[unittest.TestCase]:
    for name in unittest.TestLoader().getTestCaseNames(case):
        yield case(name)


def _queue() -> Iterator[unittest.TestCase]:
    module = the_module("test_queue")
    world = {"queue": standins.queue_module(standins.Queue), "__module__": module.__name__}
    plain = {**world, "queue": standins.queue_module(standins.PlainQueue)}
    yield from _all_of(type("QueueTest", (module.QueueTest, unittest.TestCase), dict(world)))
    yield from _all_of(type("PlainQueueTest", (module.QueueTest, unittest.TestCase), plain))
    yield from _all_of(type("FailingQueueTest", (module.FailingQueueTest, unittest.TestCase), dict(world)))

    def set_up(self: unittest.TestCase) -> None:
        self.type2test = standins.Queue
        module.BaseSimpleQueueTest.setUp(self)

    # What queue.SimpleQueue is tested for holds for every FIFO queue: with 50 threads and 10,000 items.
    body = {**world, "setUp": set_up}
    yield from _all_of(type("SimpleQueueTest", (module.BaseSimpleQueueTest, unittest.TestCase), body))


def _logging() -> Iterator[unittest.TestCase]:
    standins.patch()  # before the import: the module derives a class from queue.Queue
    module = the_module("test_logging")
    yield from _all_of(module.QueueHandlerTest)
    yield from _all_of(module.QueueListenerTest)
    for name in unittest.TestLoader().getTestCaseNames(module.ConfigDictTest):
        if "queue" in name:
            yield module.ConfigDictTest(name)


def _multiprocessing() -> Iterator[unittest.TestCase]:
    standins.patch()
    from . import mp

    for case in mp.SUITE:
        yield from _all_of(case)
    for case, name in mp.ALONE:
        yield case(name)


def _ours(name: str) -> Iterator[unittest.TestCase]:
    module = importlib.import_module(f"{__package__}.{name}")
    for case in vars(module).values():
        if isinstance(case, type) and issubclass(case, unittest.TestCase) and case.__module__ == module.__name__:
            yield from _all_of(case)


def _signatures() -> Iterator[unittest.TestCase]:
    from . import signatures

    yield from _all_of(signatures.Signatures)
