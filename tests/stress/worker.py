"""What gets killed: a process with one or more threads that put or get, and write down what they do.

Run as `python -m tests.stress.worker FOLDER PLAN ROLE WORKER SEED`, or called in a forked child. It ends when the file
"stop-ROLE" appears in the folder (and, for a consumer, nothing is left to get), or when the queue is shut down.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from typing import Any

import durableq

from .log import (
    ASK,
    DONE,
    GIVING_BACK,
    GOT,
    INTENT,
    NOTHING,
    REFUSED,
    REJECTED,
    REJECTING,
    RETURNED,
    SETTLING,
    Log,
    origin_of,
)
from .plans import Plan, by_name


def filler(origin: int, seq: int, most: int) -> bytes:
    """Bytes that belong to this item alone: what comes out must be what went in."""
    number = (origin * 1_000_003 + seq) * 2_654_435_761 & 0xFFFFFFFF
    return number.to_bytes(4, "little") * (number % (most // 4 + 1))


class Worker:
    def __init__(self, folder: str, plan: Plan, role: str, worker: int, seed: int, q: Any) -> None:
        self.folder, self.plan, self.role, self.worker, self.seed, self.q = folder, plan, role, worker, seed, q
        self.log = Log(folder, worker)
        self.failed = False

    def run(self) -> int:
        one = self.produce if self.role == "producer" else self.consume
        count = self.plan.producer_threads if self.role == "producer" else self.plan.consumer_threads
        threads = [threading.Thread(target=self._guarded, args=(one, number)) for number in range(1, count)]
        for thread in threads:
            thread.start()
        self._guarded(one, 0)
        for thread in threads:
            thread.join()
        if not self.failed:
            self.q.close()
        return 3 if self.failed else 0

    def _guarded(self, one: Any, thread: int) -> None:
        try:
            one(thread, random.Random(self.seed * 64 + thread))
        except BaseException:
            self.failed = True
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(3)  # the other threads would go on as if nothing had happened

    def stopping(self) -> bool:
        return os.path.exists(os.path.join(self.folder, "stop-" + self.role))

    # -- producing -----------------------------------------------------------------------------------------------------

    def produce(self, thread: int, rng: random.Random) -> None:
        plan, q, log, origin = self.plan, self.q, self.log, origin_of(self.worker, thread)
        seq = 0
        while not self.stopping():
            if plan.produce_pause:
                time.sleep(rng.expovariate(1 / plan.produce_pause))
            elif seq % 64 == 0 and q.qsize() > plan.most:
                time.sleep(0.005)
            how = rng.choice(plan.put)
            count = rng.randint(1, 12) if how == "put_many" else 1
            items = [(origin, n, filler(origin, n, plan.payload)) for n in range(seq, seq + count)]
            log(INTENT, thread, origin, seq, count)
            try:
                if how == "put_many":
                    q.put_many(items)
                elif how == "put_nowait":
                    q.put_nowait(items[0])
                elif how == "put_delayed":
                    q.put(items[0], delay=rng.random() * 0.02)
                else:
                    q.put(items[0])
            except queue.Full:
                log(REFUSED, thread, origin, seq, count)
                time.sleep(0.0005)
            except durableq.ShutDown:
                log(REFUSED, thread, origin, seq, count)
                return
            else:
                log(RETURNED, thread, origin, seq, count)
            seq += count

    # -- consuming -----------------------------------------------------------------------------------------------------

    def consume(self, thread: int, rng: random.Random) -> None:
        plan, log = self.plan, self.log
        asked = 0
        while True:
            if plan.consume_pause:
                time.sleep(rng.expovariate(1 / plan.consume_pause))
            how = rng.choice(plan.take)
            count = rng.randint(1, 10) if how != "get" and how != "reserve" else 1
            if asked < count:  # an unanswered ASK is not repeated: a log that grows means progress, and only that
                log(ASK, thread, count=count)
                asked = count
            stopping = self.stopping()  # looked at before the get: what was put before the stop is still found
            try:
                self.take(how, count, thread, rng)
                asked = 0
                if count > 1:
                    log(NOTHING, thread)  # a batch may be smaller than what was asked for
            except queue.Empty:
                if stopping:
                    log(NOTHING, thread)
                    return
            except durableq.ShutDown:
                log(NOTHING, thread)
                return

    def take(self, how: str, count: int, thread: int, rng: random.Random) -> None:
        q = self.q
        timeout = None if self.plan.end == "shutdown" else rng.choice((0.02, 0.2, 0.5))
        if how == "reserve":
            self.settle([q.reserve(timeout=timeout)], thread, rng)
        elif how == "reserve_many":
            self.settle(q.reserve_many(count, timeout=timeout), thread, rng)
        elif how == "get_many":
            self.done([self.got(item, thread) for item in q.get_many(count, timeout=timeout)], thread)
        elif how == "hold":  # several single gets, then as many task_done: it must take the oldest of this thread
            held = [self.got(q.get(timeout=timeout), thread)]
            while len(held) < count:
                try:
                    held.append(self.got(q.get_nowait(), thread))
                except (queue.Empty, durableq.ShutDown):
                    break
            self.done(held, thread)
        else:
            self.done([self.got(q.get(timeout=timeout), thread)], thread)

    def got(self, item: Any, thread: int, deliveries: int = 0) -> tuple[int, int]:
        origin, seq, content = item
        self.log(GOT, thread, origin, seq, deliveries)
        if content != filler(origin, seq, self.plan.payload):
            raise AssertionError(f"item {origin}/{seq} came out with {len(content)} wrong bytes")
        return origin, seq

    def done(self, held: list[tuple[int, int]], thread: int) -> None:
        if self.plan.at_most_once:
            return
        for origin, seq in held:
            self.log(SETTLING, thread, origin, seq)
            self.q.task_done()
            self.log(DONE, thread, origin, seq)

    def settle(self, deliveries: list[Any], thread: int, rng: random.Random) -> None:
        keys = [self.got(one.item, thread, one.deliveries) for one in deliveries]
        pairs = list(zip(keys, deliveries, strict=True))
        rng.shuffle(pairs)
        for (origin, seq), delivery in pairs:
            fate = rng.random()
            if fate < 0.1:
                self.log(GIVING_BACK, thread, origin, seq)
                delivery.nack(delay=0 if fate < 0.05 else 0.01)
            elif fate < 0.12:
                self.log(REJECTING, thread, origin, seq)
                delivery.reject()
                self.log(REJECTED, thread, origin, seq)
            elif fate < 0.4:
                with delivery:
                    self.log(SETTLING, thread, origin, seq)
                self.log(DONE, thread, origin, seq)
            else:
                self.log(SETTLING, thread, origin, seq)
                delivery.ack()
                self.log(DONE, thread, origin, seq)


def main(folder: str, plan: Plan, role: str, worker: int, seed: int, q: Any = None) -> int:
    """The whole life of a worker; `q` is a handle inherited over a fork, None means: open one."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        if q is None:
            q = durableq.DurableQueue(os.path.join(folder, "q.dq"), **plan.options)
        return Worker(folder, plan, role, worker, seed, q).run()
    except BaseException:
        traceback.print_exc()
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], by_name(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
