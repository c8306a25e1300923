"""Programs of the standard library that hand a queue of ours to child processes, under the start method of the run."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from . import standins
from .clients import PATIENCE, Case, Listening

EACH = 1500
_inherited: Any = None


def keep(q: Any) -> None:
    """The initializer of a pool's worker."""
    global _inherited
    _inherited = q


def put_into_inherited(first: int) -> int:
    """Put `EACH` numbers into the queue that the initializer got."""
    for number in range(first, first + EACH):
        _inherited.put(number)
    return os.getpid()


def put_into(q: Any, first: int) -> int:
    """Put `EACH` numbers into a queue that came as an argument."""
    for number in range(first, first + EACH):
        q.put(number)
    return os.getpid()


def consume_until_none(q: Any, results: Any) -> None:
    """Hand on what comes, and say when it is done."""
    for item in iter(q.get, None):
        results.put(item)
        q.task_done()
    q.task_done()


def log_some(q: Any, who: int) -> None:
    """Log into a queue, as the logging cookbook does it in a worker process."""
    logger = logging.Logger(f"worker {who}", logging.INFO)
    logger.addHandler(logging.handlers.QueueHandler(q))
    for number in range(500):
        logger.info("%d says %d", who, number)


def log_everything(q: Any) -> None:
    """Log with the root logger at DEBUG, where the messages of libraries go too, those that durableq uses among them."""
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(q)]
    root.setLevel(logging.DEBUG)
    for number in range(50):
        logging.info("everything %d", number)


def log_and_die(q: Any) -> None:
    """Log one record and be gone before anybody could flush anything."""
    log_some(q, 7)
    os.kill(os.getpid(), signal.SIGKILL)


class ProcessCase(Case):
    def setUp(self) -> None:
        super().setUp()
        self.context = multiprocessing.get_context()

    def start(self, target: Any, *args: Any) -> Any:
        process = self.context.Process(target=target, args=args, daemon=True)
        process.start()
        return process

    def ended(self, process: Any, code: int = 0) -> None:
        process.join(PATIENCE)
        self.assertEqual(process.exitcode, code)

    def assert_all_there(self, q: Any, tasks: int) -> None:
        came = [q.get(timeout=PATIENCE) for _ in range(tasks * EACH)]
        self.assertEqual(sorted(came), list(range(tasks * EACH)))
        self.assertTrue(q.empty())


class Pool(ProcessCase):
    def test_workers_get_the_queue_by_initargs(self) -> None:
        q = self.anonymous()
        with self.context.Pool(3, keep, (q,)) as pool:
            pool.map(put_into_inherited, range(0, 4 * EACH, EACH), chunksize=1)
        self.assert_all_there(q, 4)

    def test_tasks_get_the_queue_as_an_argument(self) -> None:
        q = self.anonymous()
        with self.context.Pool(3) as pool:
            pool.starmap(put_into, [(q, first) for first in range(0, 4 * EACH, EACH)], chunksize=1)
        self.assert_all_there(q, 4)

    def test_tasks_get_a_durable_queue_as_an_argument(self) -> None:
        q = self.by_path()
        with self.context.Pool(3) as pool:
            pool.starmap(put_into, [(q, first) for first in range(0, 4 * EACH, EACH)], chunksize=1)
        self.assert_all_there(q, 4)


class Executor(ProcessCase):
    def test_workers_get_the_queue_by_initargs(self) -> None:
        q = self.anonymous()
        with ProcessPoolExecutor(3, self.context, keep, (q,)) as pool:
            list(pool.map(put_into_inherited, range(0, 4 * EACH, EACH)))
        self.assert_all_there(q, 4)

    def test_tasks_get_the_queue_as_an_argument(self) -> None:
        q = self.anonymous()
        with ProcessPoolExecutor(3, self.context) as pool:
            list(pool.map(put_into, [q] * 4, range(0, 4 * EACH, EACH)))
        self.assert_all_there(q, 4)

    def test_a_queue_travels_inside_a_queue(self) -> None:
        outer, inner = self.anonymous(), self.anonymous()
        outer.put(inner)
        self.made(outer.get(timeout=PATIENCE)).put("through the other one")
        self.assertEqual(inner.get(timeout=PATIENCE), "through the other one")


class Processes(ProcessCase):
    def test_a_joinable_queue_with_worker_processes(self) -> None:
        q, results = self.joinable(), self.anonymous()
        workers = [self.start(consume_until_none, q, results) for _ in range(3)]
        for number in range(EACH):
            q.put(number)
        q.join()
        for _ in workers:
            q.put(None)
        for worker in workers:
            self.ended(worker)
        self.assertEqual(sorted(results.get(timeout=PATIENCE) for _ in range(EACH)), list(range(EACH)))

    def test_a_killed_worker_s_item_goes_to_another(self) -> None:
        q, results = self.joinable(), self.anonymous()
        q.put("precious")
        barrier = self.context.Event()
        worker = self.start(take_and_wait, q, barrier)
        self.assertTrue(barrier.wait(PATIENCE))
        worker.kill()
        self.ended(worker, -signal.SIGKILL)
        q.put(None)
        self.ended(self.start(consume_until_none, q, results))
        self.assertEqual(results.get(timeout=PATIENCE), "precious")
        q.join()

    def test_a_simple_queue(self) -> None:
        q = self.made(standins.MpSimpleQueue())
        process = self.start(put_into, q, 0)
        came = [q.get() for _ in range(EACH)]
        self.ended(process)
        self.assertEqual(came, list(range(EACH)))


def take_and_wait(q: Any, barrier: Any) -> None:
    """Take an item, say so, and never be done with it."""
    q.get(timeout=PATIENCE)
    barrier.set()
    threading.Event().wait()


class ProcessLogging(ProcessCase):
    def test_worker_processes_log_through_one_queue(self) -> None:
        q = self.anonymous()
        handler = Listening()
        listener = logging.handlers.QueueListener(q, handler)
        listener.start()
        workers = [self.start(log_some, q, who) for who in range(3)]
        for worker in workers:
            self.ended(worker)
        listener.stop()
        for who in range(3):
            theirs = [message for message in handler.messages if message.startswith(f"{who} ")]
            self.assertEqual(theirs, [f"{who} says {number}" for number in range(500)])

    def test_a_root_logger_at_debug_logs_through_the_queue(self) -> None:
        q = self.joinable()
        self.ended(self.start(log_everything, q))
        messages = [q.get(timeout=PATIENCE).getMessage() for _ in range(q.qsize())]
        self.assertEqual(messages, [f"everything {number}" for number in range(50)])

    def test_what_a_worker_logged_before_it_was_killed_arrives(self) -> None:
        q = self.anonymous()
        self.ended(self.start(log_and_die, q), -signal.SIGKILL)
        handler = Listening()
        listener = logging.handlers.QueueListener(q, handler)
        listener.start()
        listener.stop()
        self.assertEqual(handler.messages, [f"7 says {number}" for number in range(500)])
