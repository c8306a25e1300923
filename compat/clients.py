"""Programs of the standard library that are handed a queue of ours, unchanged; here those without start methods.

Every test counts what comes out against what went in, item by item, and with enough of them that a loss of one in a
thousand shows.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import logging.handlers
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import durableq

from . import standins

MANY = 5000
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parent.parent


class Case(unittest.TestCase):
    """A test with a folder for its queue, queues that are counted and closed, and no thread that dies unseen."""

    def setUp(self) -> None:
        died: list[threading.ExceptHookArgs] = []
        self.addCleanup(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = died.append
        self.addCleanup(self.assertEqual, died, [])
        folder = tempfile.TemporaryDirectory(prefix="durableq-compat-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(folder.name, "q.dq")

    def made(self, q: Any) -> Any:
        self.addCleanup(q.close)
        return q

    def anonymous(self) -> Any:
        return self.made(standins.MpQueue())

    def joinable(self) -> Any:
        return self.made(standins.MpJoinableQueue())

    def by_path(self, **options: Any) -> Any:
        standins.note()
        return self.made(durableq.DurableQueue(self.path, **options))

    def drained(self, get: Callable[[], Any]) -> list[Any]:
        came = []
        try:
            while True:
                came.append(get())
        except durableq.Empty:
            return came


class Listening(logging.Handler):
    """Keeps the messages that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Logging(Case):
    def log_through(self, q: Any) -> None:
        logger = logging.Logger("through a queue", logging.INFO)
        logger.addHandler(logging.handlers.QueueHandler(q))
        handler = Listening()
        listener = logging.handlers.QueueListener(q, handler)
        listener.start()
        for number in range(MANY):
            logger.info("message %d", number)
        listener.stop()
        self.assertEqual(handler.messages, [f"message {number}" for number in range(MANY)])

    def test_queue_handler_and_listener_with_a_queue(self) -> None:
        self.log_through(self.anonymous())

    def test_queue_handler_and_listener_with_a_joinable_queue(self) -> None:
        q = self.joinable()
        self.log_through(q)
        q.join()

    def test_queue_handler_and_listener_with_a_durable_queue(self) -> None:
        q = self.by_path()
        self.log_through(q)
        q.join()

    def test_records_of_a_run_that_had_no_listener_are_heard_by_the_next(self) -> None:
        q = self.by_path()
        logger = logging.Logger("earlier", logging.INFO)
        logger.addHandler(logging.handlers.QueueHandler(q))
        logger.info("left %s", "behind")
        q.close()
        handler = Listening()
        again = self.by_path()
        listener = logging.handlers.QueueListener(again, handler)
        listener.start()
        listener.stop()
        self.assertEqual(handler.messages, ["left behind"])
        again.join()

    def test_dict_config_takes_the_queue_object(self) -> None:
        if sys.version_info >= (3, 12) and not hasattr(logging.config, "_is_queue_like_object"):
            self.skipTest("dictConfig of this Python takes no queue objects but the standard classes' own")
        q = self.anonymous()
        self.configure(q)
        logging.getLogger("compat.dict").warning("hello")
        self.assertEqual(q.get(timeout=PATIENCE).getMessage(), "hello")

    def test_dict_config_makes_the_queue_itself(self) -> None:
        if sys.version_info < (3, 12):
            self.skipTest("dictConfig makes queues from Python 3.12 on")
        self.configure({"()": "durableq.JoinableQueue", "path": self.path})
        standins.note()
        logging.getLogger("compat.dict").warning("hello")
        handler = logging.getLogger("compat.dict").handlers[0]
        self.made(handler.queue)
        self.assertEqual(self.by_path().get(timeout=PATIENCE).getMessage(), "hello")

    def configure(self, q: Any) -> None:
        handlers: dict[str, Any] = {"queued": {"class": "logging.handlers.QueueHandler", "queue": q}}
        if sys.version_info >= (3, 12):  # from then on it makes a listener too, and 3.12.1 insists on its handlers
            handlers["sink"] = {"class": "logging.NullHandler"}
            handlers["queued"]["handlers"] = ["sink"]
        loggers = {"compat.dict": {"handlers": ["queued"], "level": "INFO", "propagate": False}}
        self.addCleanup(logging.getLogger("compat.dict").handlers.clear)
        config = {"version": 1, "disable_existing_loggers": False, "handlers": handlers, "loggers": loggers}
        logging.config.dictConfig(config)


class Threads(Case):
    def test_thread_pool_executor_with_producers_and_consumers(self) -> None:
        q = self.joinable()
        came: list[int] = []

        def consume() -> None:
            while (item := q.get(timeout=PATIENCE)) is not None:
                came.append(item)
                q.task_done()
            q.task_done()

        def produce(first: int) -> None:
            for number in range(first, MANY, 4):
                q.put(number)

        with ThreadPoolExecutor(8) as pool:
            consumers = [pool.submit(consume) for _ in range(4)]
            for producer in [pool.submit(produce, first) for first in range(4)]:
                producer.result(PATIENCE)
            for _ in consumers:
                q.put(None)
            for consumer in consumers:
                consumer.result(PATIENCE)
        q.join()
        self.assertEqual(sorted(came), list(range(MANY)))

    def test_asyncio_to_thread(self) -> None:
        q = self.joinable()

        async def consume() -> list[int]:
            came = []
            while (item := await asyncio.to_thread(q.get, timeout=PATIENCE)) is not None:
                came.append(item)
                q.task_done()
            q.task_done()
            return came

        async def run() -> list[list[int]]:
            consumers = [asyncio.create_task(consume()) for _ in range(3)]
            for number in range(2000):
                await asyncio.to_thread(q.put, number)
            for _ in consumers:
                await asyncio.to_thread(q.put, None)
            return await asyncio.gather(*consumers)

        came = [item for part in asyncio.run(run()) for item in part]
        self.assertEqual(sorted(came), list(range(2000)))
        q.join()


class Strangers(Case):
    """Programs that share nothing but the path."""

    def run_python(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.addCleanup(process.kill)
        return process

    def ended(self, process: subprocess.Popen[str]) -> str:
        said, _ = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, said)
        return said

    def test_subprocess_peers_that_open_it_by_path(self) -> None:
        q = self.by_path()
        produce = "import sys, durableq; q = durableq.DurableQueue(sys.argv[1])\nfor n in range(%d, %d): q.put(n)"
        consume = textwrap.dedent("""
            import sys, durableq
            q = durableq.DurableQueue(sys.argv[1])
            while (item := q.get(timeout=60)) is not None:
                print(item)
                q.task_done()
            q.task_done()
        """)
        consumers = [self.run_python("-c", consume, self.path) for _ in range(2)]
        for producer in [self.run_python("-c", produce % (n, n + 1000), self.path) for n in (0, 1000, 2000)]:
            self.ended(producer)
        for _ in consumers:
            q.put(None)
        came = [int(line) for consumer in consumers for line in self.ended(consumer).split()]
        self.assertEqual(sorted(came), list(range(3000)))
        q.join()

    def test_pytest_xdist_workers_share_one_queue(self) -> None:
        q = self.by_path()
        q.put_many(range(50))
        Path(self.folder, "test_shared.py").write_text(
            textwrap.dedent(f"""
                import os
                import durableq
                import pytest

                @pytest.mark.parametrize("number", range(50))
                def test_takes_one_and_puts_one(number):
                    with durableq.DurableQueue({self.path!r}) as q:
                        item = q.get(timeout=30)
                        assert item < 50  # 50 tests take one each: the 50 oldest, not what was put here
                        q.put((100 + item, os.environ["PYTEST_XDIST_WORKER"]))
                        q.task_done()
            """)
        )
        options = ["-q", "-n", "3", "-p", "no:cacheprovider", "--rootdir", self.folder, "-o", "addopts="]
        self.ended(self.run_python("-m", "pytest", *options, self.folder))
        came = self.drained(q.get_nowait)
        self.assertEqual(sorted(number for number, _ in came), [100 + number for number in range(50)])
        self.assertGreater(len({worker for _, worker in came}), 1)
