"""Celery without a broker: durableq beside kombu's own filesystem transport. `python -m benchmarks.celery_broker [--dir DIR]`

    publish, consume   messages a second through kombu alone, in one process, acked; with a backlog of that many
    tasks              tasks a second: a worker with one process does tasks that append a byte to a file
    latency            milliseconds from `delay()` until that byte is there, one task at a time: median and worst
    idle               processor time of a worker with nothing to do, in percent of one core
    lost, repeated     of tasks with `acks_late`, when the worker and its pool are killed with SIGKILL while they run and a
                       new worker does the rest: how many were never done, how many were done twice
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import psutil
from celery import Celery

import durableq.integrations.kombu  # noqa: F401
from benchmarks.growth import environment

SUBJECTS = ("durableq", "filesystem")
PATIENCE = 60.0


def broker(subject: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """URL and options of the transport."""
    if subject == "durableq":
        return f"durableq://{folder}/broker", {}
    spool, control = folder / "spool", folder / "control"
    for path in (spool, control):
        path.mkdir(exist_ok=True)
    return "filesystem://", {"data_folder_in": str(spool), "data_folder_out": str(spool), "control_folder": str(control)}


def make_app(subject: str, folder: Path) -> Celery:
    """The app, in whichever process."""
    url, options = broker(subject, folder)
    app = Celery("bench", broker=url)
    app.conf.update(
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=4,
    )

    def note(n: int, seconds: float = 0) -> None:
        time.sleep(seconds)
        with open(folder / "done", "a") as file:
            file.write(f"{n}\n")

    app.task(note, name="note", acks_late=True, shared=False)
    return app


def start_worker(subject: str, folder: Path) -> subprocess.Popen[bytes]:
    """A worker with one process in its pool, ready to work."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.celery_broker", "--worker", subject, "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = done(folder)
    make_app(subject, folder).send_task("note", (-1,))
    wait(lambda: done(folder) > before)
    return worker


def kill(worker: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the worker and its pool."""
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    worker.wait()


def done(folder: Path) -> int:
    """How many tasks have left their line."""
    path = folder / "done"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait(holds: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def through_kombu(subject: str, folder: Path, count: int) -> dict[str, float]:
    """Publish, then consume, in this process."""
    url, options = broker(subject, folder)
    queue = kombu.Queue("plain")
    with kombu.Connection(url, transport_options=options) as connection, connection.channel() as channel:
        producer = kombu.Producer(channel)
        began = time.perf_counter()
        for n in range(count):
            producer.publish({"n": n}, routing_key="plain", declare=[queue])
        published = time.perf_counter()
        left = count

        def on_message(message: Any) -> None:
            nonlocal left
            message.ack()
            left -= 1

        with kombu.Consumer(channel, [queue], on_message=on_message):
            while left:
                connection.drain_events(timeout=PATIENCE)
        consumed = time.perf_counter()
    return {f"publish {count:,}": count / (published - began), f"consume {count:,}": count / (consumed - published)}


def through_celery(subject: str, folder: Path, count: int) -> dict[str, float]:
    """A worker: throughput, latency, idle time, and what is left of the tasks when it is killed."""
    result: dict[str, float] = {}
    note = make_app(subject, folder).tasks["note"]
    worker = start_worker(subject, folder)
    try:
        before, began = done(folder), time.perf_counter()
        for n in range(count):
            note.delay(n)
        wait(lambda: done(folder) >= before + count)
        result["tasks/s"] = count / (time.perf_counter() - began)

        times = []
        for n in range(20):
            before, began = done(folder), time.perf_counter()
            note.delay(n)
            wait(lambda before=before: done(folder) > before)  # type: ignore[misc]
            times.append((time.perf_counter() - began) * 1000)
        result["latency ms, median"], result["latency ms, worst"] = statistics.median(times), max(times)

        process, cpu = psutil.Process(worker.pid), sum(psutil.Process(worker.pid).cpu_times()[:2])
        time.sleep(5)
        result["idle % of a core"] = (sum(process.cpu_times()[:2]) - cpu) / 5 * 100

        (folder / "done").unlink()
        for n in range(40):
            note.delay(n, 0.02)
        wait(lambda: done(folder) >= 10)
    finally:
        kill(worker)
    worker = start_worker(subject, folder)
    try:
        wait(lambda: len(set((folder / "done").read_text().split())) >= 41, patience=10)  # with the -1 of start_worker
    finally:
        kill(worker)
    numbers = [n for n in (folder / "done").read_text().split() if n != "-1"]
    result["lost of 40"] = 40 - len(set(numbers))
    result["repeated"] = len(numbers) - len(set(numbers))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--worker", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        app = make_app(options.worker, Path(options.dir))
        app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--loglevel=ERROR"])
        return 0
    os.environ["PYTHONWARNINGS"] = "ignore"  # Celery's, about running as root
    print(environment(Path(options.dir or tempfile.gettempdir())), f"celery {sys.modules['celery'].__version__}")
    results: dict[str, dict[str, float]] = {}
    for subject in SUBJECTS:
        results[subject] = {}
        for count in (1000, 4000):
            with tempfile.TemporaryDirectory(dir=options.dir) as folder:
                results[subject] |= through_kombu(subject, Path(folder), count)
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            results[subject] |= through_celery(subject, Path(folder), 500)
    print(f"{'':20}" + "".join(f"{subject:>14}" for subject in SUBJECTS))
    for name in results["durableq"]:
        print(f"{name:20}" + "".join(f"{results[subject][name]:14,.1f}" for subject in SUBJECTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
