"""CPython's queue tests of multiprocessing, with our queues; in a module of its own, since children import it.

`_TestQueue` is written for three kinds of world: processes, threads (`multiprocessing.dummy`) and a manager, whose
server process owns the queues. All three get ours.
"""

from __future__ import annotations

import multiprocessing
import sys
import unittest
from multiprocessing import managers

from . import standins
from .cpython import the_module

theirs = the_module("_test_multiprocessing")


class Fresh:
    """Lets `test_no_import_lock_contention` import its module again in each of the three worlds."""

    def setUp(self) -> None:
        sys.modules.pop("imported_by_an_imported_module", None)


class WithProcessesTestQueue(Fresh, theirs._TestQueue, theirs.ProcessesMixin, unittest.TestCase):
    Queue = standins.MpQueue
    JoinableQueue = standins.MpJoinableQueue


class WithThreadsTestQueue(Fresh, theirs._TestQueue, theirs.ThreadsMixin, unittest.TestCase):
    Queue = staticmethod(standins.Queue)
    JoinableQueue = staticmethod(standins.Queue)


class DurableManager(managers.SyncManager):
    """A manager whose server process keeps durable queues."""


DurableManager.register("Queue", standins.MpQueue)
DurableManager.register("JoinableQueue", standins.MpJoinableQueue)


class WithManagerTestQueue(Fresh, theirs._TestQueue, theirs.ManagerMixin, unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super(theirs.ManagerMixin, cls).setUpClass()
        cls.manager = DurableManager(ctx=multiprocessing.get_context())
        cls.manager.start()


class TestSimpleQueue(theirs.TestSimpleQueue): ...


class TestStdinBadfiledescriptor(theirs.TestStdinBadfiledescriptor): ...


SUITE = [WithProcessesTestQueue, WithThreadsTestQueue, WithManagerTestQueue, TestSimpleQueue]
ALONE = [(TestStdinBadfiledescriptor, "test_queue_in_process")]
