"""Faults at random, for as long as one likes: `python -m tests.engines --seconds 60 [--only redis] [--seed N]`

A producer puts numbered items, `durableq forward` sends them on through a network that is cut, muted, refusing or slow, to an
engine that is killed and restarted, and is itself killed with SIGKILL and started again. In the end everything must have
arrived, the first arrivals in their order, whatever came twice under its own id, and nothing be left in the queue. One
line of sums for each engine; exit code 1 if anything was lost or out of order.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import itertools

from durableq import DurableQueue
from engines.proxy import Proxy
from engines.rabbitmq import RabbitMQ
from engines.redis_server import RedisServer
from engines.targets import KafkaTarget, RabbitTarget, RedisTarget, Target

PATIENCE = 120.0


class Producer(threading.Thread):
    """Puts numbered items until it is told to stop."""

    def __init__(self, queue: DurableQueue) -> None:
        super().__init__(daemon=True)
        self.queue, self.count, self.ended = queue, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.queue.put_many(b"%d" % n for n in range(self.count, self.count + 5))
            self.count += 5


def make(kind: str, folder: Path) -> Target:
    if kind == "kafka":
        return KafkaTarget(Proxy(0))
    if kind == "redis":
        server = RedisServer(folder / "redis", *RedisTarget.options)
        return RedisTarget(server, Proxy(server.port))
    broker = RabbitMQ(folder / "rabbitmq")
    broker.start()
    return RabbitTarget(broker, Proxy(broker.port))


def forwarder(path: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "durableq", "forward", str(path), url]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def soak(kind: str, folder: Path, seconds: float, dice: random.Random) -> bool:
    target, path = make(kind, folder), folder / "q.dq"
    kills = restarts = faults = 0
    running = None
    try:
        with DurableQueue(path, serializer="bytes") as queue:
            producer = Producer(queue)
            producer.start()
            running = forwarder(path, target.url)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(dice.uniform(0.05, 0.6))
                fault = dice.choices(["cut", "part", "mute", "refuse", "slow", "kill", "restart"], [4, 4, 3, 2, 2, 3, 1])[0]
                faults += 1
                if fault == "cut":
                    target.proxy.cut()
                elif fault == "part":
                    target.proxy.cut_after(dice.randrange(1, 20_000))
                elif fault == "mute":
                    target.proxy.mute()
                    time.sleep(dice.uniform(0.05, 0.5))
                    target.proxy.cut()
                elif fault == "refuse":
                    target.proxy.refuse()
                    time.sleep(dice.uniform(0.05, 0.5))
                    target.proxy.accept()
                elif fault == "slow":
                    target.proxy.delay = dice.choice([0.0, 0.002, 0.02])
                elif fault == "kill":
                    kills += 1
                    running.kill()
                    running.wait()
                    running = forwarder(path, target.url)
                else:
                    restarts += 1
                    target.kill()
                    target.restart()
            producer.ended.set()
            producer.join()
            target.proxy.cut()
            target.proxy.delay = 0.0
            until = time.monotonic() + PATIENCE
            while queue.stats().unfinished and time.monotonic() < until:
                time.sleep(0.05)
            left, dead = queue.stats().unfinished, queue.stats().dead
            running.terminate()
            running.wait()
        arrived = target.arrived()
        found: dict[str, int] = {}
        for one in arrived:
            found.setdefault(one.id, int(one.value))
        first = list(found.values())
        lost, disorder = producer.count - len(set(first)), sum(a > b for a, b in itertools.pairwise(first))
        ok = not (lost or disorder or left or dead or len(first) != producer.count)
        print(
            f"{kind:9} put={producer.count} arrived={len(arrived)} repeats={len(arrived) - len(first)} faults={faults} "
            f"kills={kills} restarts={restarts} lost={lost} disorder={disorder} left={left} dead={dead}",
            "ok" if ok else "FAILED",
            flush=True,
        )
        return ok
    finally:
        if running is not None:
            running.kill()
            running.wait()
        target.proxy.close()
        target.dispose()
        if isinstance(target, RabbitTarget):
            target.broker.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each engine")
    parser.add_argument("--only", choices=["kafka", "redis", "rabbitmq"], action="append")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    ok = True
    for kind in options.only or ["kafka", "redis", "rabbitmq"]:
        with tempfile.TemporaryDirectory(prefix="durableq-engines-") as folder:
            ok &= soak(kind, Path(folder), options.seconds, random.Random(options.seed))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
