"""Every public method of the standard classes is there: the same parameters in the same order with the same defaults.

Ours may have further keyword-only parameters (`put(..., delay=0)`): no call that is valid for the standard class can
meet them.
"""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.queues
import queue
import unittest
from typing import Any

import durableq

from . import standins

PAIRS = {
    "queue.Queue": (queue.Queue, durableq.JoinableQueue),
    "multiprocessing.queues.Queue": (multiprocessing.queues.Queue, durableq.Queue),
    "multiprocessing.queues.JoinableQueue": (multiprocessing.queues.JoinableQueue, durableq.JoinableQueue),
    "multiprocessing.queues.SimpleQueue": (multiprocessing.queues.SimpleQueue, durableq.SimpleQueue),
}
NAMED_TWICE = {("queue.Queue", "put"): "item", ("queue.Queue", "put_nowait"): "item"}
"""queue.Queue says `item` where multiprocessing says `obj`; one class that stands for both can have one name only."""


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each, without self."""
    found = list(inspect.signature(method).parameters.values())[1:]
    return [(one.name, one.kind, one.default) for one in found]


class Signatures(unittest.TestCase):
    def compare(self, name: str) -> None:
        standins.note()  # nothing needs to be built to look at a class
        theirs, ours = PAIRS[name]
        for method in sorted(dir(theirs)):
            if method.startswith("_") or not callable(getattr(theirs, method)):
                continue
            with self.subTest(method=method):
                expected = parameters(getattr(theirs, method))
                found = parameters(getattr(ours, method))
                extra = found[len(expected) :]
                found = found[: len(expected)]
                self.assertTrue(all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in extra), extra)
                if (name, method) in NAMED_TWICE:
                    expected[0], found[0] = expected[0][1:], found[0][1:]  # type: ignore[assignment]
                self.assertEqual(found, expected)

    def test_queue_Queue(self) -> None:
        self.compare("queue.Queue")

    def test_multiprocessing_Queue(self) -> None:
        self.compare("multiprocessing.queues.Queue")

    def test_multiprocessing_JoinableQueue(self) -> None:
        self.compare("multiprocessing.queues.JoinableQueue")

    def test_multiprocessing_SimpleQueue(self) -> None:
        self.compare("multiprocessing.queues.SimpleQueue")

    def test_the_constructors(self) -> None:
        standins.note()
        makers = (multiprocessing.Queue, multiprocessing.JoinableQueue, multiprocessing.SimpleQueue)
        pairs = [*PAIRS.values(), *zip(makers, (durableq.Queue, durableq.JoinableQueue, durableq.SimpleQueue), strict=True)]
        for theirs, ours in pairs:
            with self.subTest(theirs=theirs, ours=ours):
                expected, found = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
                by_place = [one.name for one in found.values() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
                self.assertEqual(by_place, [name for name in expected if name != "ctx"])
                for name, one in expected.items():
                    self.assertEqual(found[name].kind, one.kind)
                    if name != "ctx":  # theirs insists on it, ours takes it
                        self.assertEqual(found[name].default, one.default)

    def test_the_exceptions_are_the_standard_ones(self) -> None:
        standins.note()
        self.assertIs(durableq.Empty, queue.Empty)
        self.assertIs(durableq.Full, queue.Full)
        if hasattr(queue, "ShutDown"):
            self.assertIs(durableq.ShutDown, queue.ShutDown)

    def test_shutdown_is_there_on_every_python(self) -> None:
        standins.note()
        expected = [("immediate", inspect.Parameter.POSITIONAL_OR_KEYWORD, False)]
        self.assertEqual(parameters(durableq.JoinableQueue.shutdown), expected)
