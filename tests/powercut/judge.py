"""The verdict over a spool as a power cut left it, from the log of what was done and promised before."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durableq import DurableQueue, Empty, NotASpoolError

from .disk import STYLES, after_cut
from .recorder import Entry, Recorder
from .workload import LATER, number_of, payload, small_distances

_NEVER = 1 << 60
_TAKES = ("done", "purged", "purged, if it waited")


class Promises:
    """What was going on with each item when the power failed after `cut` entries of a log.

    Nobody can tell on the entry when a real disk stopped: it had all before `cut`, and nothing from `possible` on.
    """

    def __init__(self, log: list[Entry], cut: int, possible: int | None = None) -> None:
        possible = cut if possible is None else possible
        syncs: list[tuple[int, int]] = []
        begun: dict[str, int] = {}
        for i, entry in enumerate(log[:cut]):
            if entry[0] == "sb":
                begun[entry[1]] = i
            elif entry[0] == "se":
                syncs.append((begun[entry[1]], i))
        last_begin = max((b for b, _ in syncs), default=-1)
        self.created = bool(syncs)
        """Whether the superblock was synced: before that, half of it may be there."""
        starts: dict[str, int] = {}
        self.put: set[int] = set()
        """Items whose put had begun."""
        self.kept: set[int] = set()
        """Items that the disk has to have, unless they were taken."""
        self.taken: set[int] = set()
        """Items that somebody had begun to finish or to purge."""
        self.finished: set[int] = set()
        """Items that must not come back."""
        self.delayed: set[int] = set()
        self.touched: set[int] = set()
        """Items whose place among the living may have changed since: dead letters, delays."""
        self.buried: set[int] = set()
        """Items that must be among the dead letters."""
        for i, entry in enumerate(log):
            if entry[0] == "begin":
                starts[entry[1]] = i
            elif entry[0] == "end":
                _, n, kind, ids, synced = entry
                if starts[n] >= possible:
                    continue
                sure = i < cut and (synced or i < last_begin)
                if kind in ("put", "delayed put"):
                    self.put.update(ids)
                    if sure:
                        self.kept.update(ids)
                if kind in ("delayed put", "delayed"):
                    self.delayed.update(ids)
                if kind in _TAKES:
                    self.taken.update(ids)
                    if sure and kind != "purged, if it waited":
                        self.finished.update(ids)
                if kind == "rejected" and sure:
                    self.buried.update(ids)
                if kind == "redriven":
                    self.buried.difference_update(ids)


def check_state(
    log: list[Entry], cut: int, seed: int, where: Path, style: str | None = None, image: bytes = b"", deep: bool = True
) -> None:
    """Put the disk into a state that is legal after a cut, open the queue, and hold it against what was promised.

    Raises AssertionError with the words to try the very same again.
    """
    rng = random.Random(seed)
    style = style or rng.choice(STYLES)
    data = after_cut(log, cut, rng, style, image)
    try:
        _judge(data, Promises(log, cut), rng, where, deep)
    except Exception as exc:
        raise AssertionError(f"cut {cut} of {len(log)}, seed {seed}, style {style!r}: {exc!r}") from exc


def _judge(data: bytes, promises: Promises, rng: random.Random, where: Path, deep: bool) -> None:
    path = _lay_out(data, rng, where)
    if not data:  # the cut came before the file was ever synced, so nobody was told that it is there
        assert not promises.kept
        return
    recorder = Recorder(path)
    with small_distances():
        try:
            with recorder.installed():
                queue = DurableQueue(path, sync=None, serializer="bytes")
        except NotASpoolError:
            assert not promises.created, "not recognised any more"
            return
        try:
            hold_against(queue, promises, path)
        finally:
            queue.close()
        if deep and rng.random() < 0.3:  # the power fails again, in the middle of the recovery
            log = recorder.entries()
            again = after_cut(log, rng.randint(0, len(log)), rng, rng.choice(STYLES), data)
            path = _lay_out(again, rng, where)
            with DurableQueue(path, sync=None, serializer="bytes") as queue:
                hold_against(queue, promises, path)


def _lay_out(data: bytes, rng: random.Random, where: Path) -> Path:
    """The files as the next boot finds them."""
    path = where / "q.dq"
    for old in where.glob("q.dq*"):
        old.unlink()
    path.write_bytes(data)
    companion = where / "q.dq-shm"
    kind = rng.choice(("lost", "lost", "zeros", "garbage", "short"))
    if kind != "lost":
        companion.write_bytes({"zeros": bytes(1 << 18), "garbage": rng.randbytes(1 << 18), "short": b"DQSHM"}[kind])
    return path


def hold_against(queue: DurableQueue, promises: Promises, path: Path, producers: bool = False) -> None:
    """Drain the queue and compare. `producers`: several were at work, so each one's items are in order, not all."""
    size = queue.qsize()
    waiting = _drain(queue)
    with _clock_turned_on():
        late = _drain(queue)
    dead = [number_of(d.item) for d in _reserve_all(queue.dead_letters)]
    found = waiting + late + dead
    assert size == len(waiting) + len(late), f"qsize() said {size}, there were {len(waiting)} and {len(late)} delayed"
    assert len(set(found)) == len(found), f"delivered twice: {sorted(i for i in set(found) if found.count(i) > 1)}"
    assert set(found) <= promises.put, f"never put: {sorted(set(found) - promises.put)}"
    lost = promises.kept - promises.taken - set(found)
    assert not lost, f"lost: {sorted(lost)}"
    back = promises.finished & set(found)
    assert not back, f"done, and came back: {sorted(back)}"
    unburied = promises.buried - promises.taken - set(dead)
    assert not unburied, f"no longer dead letters: {sorted(unburied)}"
    in_order = [i for i in waiting if i not in promises.delayed]
    if producers:
        in_order.sort(key=lambda i: i // 1_000_000)  # stable
    assert in_order == sorted(in_order), f"out of order: {in_order}"
    stats = queue.stats()
    assert stats.unfinished == 0, f"{stats.unfinished} unfinished, but nothing is there"
    assert stats.damaged == 0, (path.parent / "q.dq-damaged").read_bytes()[:200]
    new = [payload(i, 100 * (i & 7)) for i in range(_NEVER, _NEVER + 40)]
    queue.put_many(new)
    assert [queue.get_nowait() for _ in new] == new
    for _ in new:
        queue.task_done()
    assert queue.empty() and not queue.stats().unfinished


def _reserve_all(queue: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found += queue.reserve_many(50, block=False)
        except Empty:
            return found


def _drain(queue: DurableQueue) -> list[int]:
    ids = []
    for delivery in _reserve_all(queue):
        ids.append(number_of(delivery.item))
        delivery.ack()
    return ids


@contextmanager
def _clock_turned_on() -> Iterator[None]:
    real = time.time_ns
    time.time_ns = lambda: real() + int(2 * LATER * 1e9)
    try:
        yield
    finally:
        time.time_ns = real
