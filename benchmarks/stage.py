"""One run of one peer: processes that start together, timed, their CPU counted, and an end to those that hang.

What a process does is written as a generator, a *role*: up to its first `yield` it gets ready, from there to the second it
works and is timed, and what it returns after that is its result. All processes of a run start their work at one moment.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any

import psutil

from benchmarks.common import Failed
from benchmarks.peers import Peer
from benchmarks.peers.memory import FORK

Role = Callable[[Peer], Generator[None, None, Any]]

PATIENCE = 60.0
"""Seconds after which a run that has not ended hangs."""


@dataclass
class Part:
    """What one process of a run reports."""

    begin: float
    end: float
    cpu: float
    result: Any


@dataclass
class Run:
    """What a whole run reports: seconds from the start to the end of the last one, CPU seconds, and the roles' results."""

    wall: float
    cpu: float
    results: list[Any]


def play(peer: Peer, roles: list[Role]) -> Run:
    """Each role in a process of its own. Raises Failed, and leaves no process behind."""
    start = FORK.Barrier(len(roles))
    cast = []
    served = _server_cpu(peer)
    try:
        for role in roles:
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_perform, args=(peer, role, start, theirs), daemon=True)
            process.start()
            theirs.close()
            cast.append((process, ours))
        parts = _hear([pipe for _, pipe in cast])
        for process, _ in cast:
            process.join(PATIENCE)
    finally:
        for process, pipe in cast:
            process.kill()
            process.join()
            pipe.close()
    wall = max(part.end for part in parts) - min(part.begin for part in parts)
    cpu = sum(part.cpu for part in parts) + _server_cpu(peer) - served
    return Run(wall, cpu, [part.result for part in parts])


def _hear(pipes: list[Connection]) -> list[Part]:
    """The report of each process. The first that fails ends the run: the others may wait for it for ever."""
    parts: dict[Connection, Part] = {}
    deadline = time.monotonic() + PATIENCE
    while len(parts) < len(pipes):
        ready = wait([pipe for pipe in pipes if pipe not in parts], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"it hangs (no end after {PATIENCE:.0f} s)")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                part = pipe.recv()
            except EOFError:
                raise Failed("a process died") from None
            if not isinstance(part, Part):
                raise Failed(part)
            parts[pipe] = part
    return [parts[pipe] for pipe in pipes]


def _perform(peer: Peer, role: Role, start: Barrier, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        peer.connect()
        acting = role(peer)
        next(acting)
        start.wait()
        begin, cpu = time.perf_counter(), _cpu_seconds()
        next(acting)
        end = time.perf_counter()
        peer.close()
        cpu = _cpu_seconds() - cpu
        report: Part | str = Part(begin, end, cpu, _result(acting))
    except Exception as exc:
        report = f"{type(exc).__name__}: {exc}"
    pipe.send(report)


def _result(acting: Generator[None, None, Any]) -> Any:
    try:
        next(acting)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a role yields twice")


def _server_cpu(peer: Peer) -> float:
    server = peer.served_by()
    if server is None:
        return 0.0
    times = psutil.Process(server).cpu_times()
    return times.user + times.system


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
