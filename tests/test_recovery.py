"""Deriving the control words from the spool, where that is cut short, or where little evidence is left."""

from __future__ import annotations

import shutil
import struct

import pytest
from processes import PATIENCE, Child

import durableq
from durableq import DurableQueue, Empty, _ledger, _os
from durableq._ledger import Ledger
from durableq._record import DONE_BYTE, HEADER_SIZE, STATE_OFFSET
from durableq._spool import CHECKPOINT_SECTORS, SECTOR, SUPERBLOCK
from durableq._state import BASE, EPOCH, MOUNT, REGION


def reopened(path):
    """A queue on a copy of the spool alone: what the next boot finds."""
    copy = path.with_name("copy.dq")
    shutil.copyfile(path, copy)
    copy.chmod(0o600)
    return DurableQueue(copy, serializer="bytes")


@pytest.mark.parametrize("cut_short_by", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_recovery_that_is_cut_short_is_begun_once_more(path, monkeypatch, cut_short_by):
    """Also when what came back is so much that its ledger has grown in the middle of it."""
    with DurableQueue(path, serializer="bytes", sync=None) as q:
        q.put_many([b"%06d" % n for n in range(12_000)])
        taken = []
        while len(taken) < 12_000:
            taken += q.reserve_many(12_000)
        for delivery in taken:
            delivery.nack()
        monkeypatch.setattr(_ledger.Ledger, "append", _that_fails(6000, cut_short_by))
        with pytest.raises(type(cut_short_by)):
            reopened(path)
        monkeypatch.undo()
    with DurableQueue(path.with_name("copy.dq"), serializer="bytes") as again:
        assert again.qsize() == 12_000


def _that_fails(calls, error):
    real = Ledger.append
    count = 0

    def append(self, *args):
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(self, *args)

    return append


@pytest.fixture
def second_turn(path):
    """A queue that began at the front of its file again, and holds five items there; what lies behind them is done."""
    with DurableQueue(path, serializer="bytes", sync=None) as q:
        while not q._store._words[BASE]:
            q.put(b"x" * 100)
            q.get()
            q.task_done()
        q.put_many([b"keep %d" % n for n in range(5)])
        q.sync()
        yield path


def spoil(path, sectors, data):
    with open(path, "r+b") as file:
        for sector in sectors:
            file.seek(sector * SECTOR)
            file.write(data)


@pytest.mark.parametrize("lost", ["all", "the last of each pair"])
def test_without_its_checkpoints_what_was_put_last_is_still_found(second_turn, lost):
    copy = second_turn.with_name("spoiled.dq")
    shutil.copyfile(second_turn, copy)
    pairs = CHECKPOINT_SECTORS[:2], CHECKPOINT_SECTORS[2:]
    sectors = CHECKPOINT_SECTORS if lost == "all" else [_newest(copy, pair) for pair in pairs]
    spoil(copy, sectors, b"\xa5" * SECTOR)
    with reopened(copy) as q:
        assert q.get_many(10) == [b"keep %d" % n for n in range(5)]


def _newest(path, sectors):
    data = path.read_bytes()
    return max(sectors, key=lambda sector: struct.unpack_from("<Q", data, sector * SECTOR))


def test_without_its_superblock_what_was_put_last_is_still_repaired(second_turn):
    copy = second_turn.with_name("spoiled.dq")
    shutil.copyfile(second_turn, copy)
    spoil(copy, range(SUPERBLOCK // SECTOR), bytes(SECTOR))
    assert durableq.repair(copy).waiting == 5
    with DurableQueue(copy, serializer="bytes") as q:
        assert q.get_many(10) == [b"keep %d" % n for n in range(5)]


def test_what_fell_due_far_behind_the_head_s_checkpoint_and_was_done_is_not_counted(path):
    with DurableQueue(path, serializer="bytes") as q:
        for n in range(30_000):
            q.put(b"x" * 500, delay=1e6)
            if not n % 1000:
                q.sync()
        for _ in range(10):
            q.put(b"y", delay=3)
        with pytest.raises(Empty):
            q.get_nowait()  # the head passes all of them
        for _ in range(10):
            assert q.get(timeout=PATIENCE) == b"y"
            q.task_done()
        q.sync()
        with reopened(path) as again:
            assert (again.qsize(), again.unfinished_tasks) == (30_000, 30_000)


def test_what_is_done_beyond_the_limit_of_a_checkpoint_whose_successor_was_lost_is_not_counted(path):
    items = [b"%06d" % n + b"x" * 500 for n in range(24_000)]
    with DurableQueue(path, serializer="bytes") as q:
        for first in range(0, len(items), 1000):
            q.put_many(items[first : first + 1000])
            q.sync()
        copy = path.with_name("cut.dq")
        shutil.copyfile(path, copy)  # as it was before anything was taken
    with open(copy, "r+b") as file:
        data = file.read()
        for item in items[9000:9010]:  # whose page of marks is on the disk
            file.seek(data.index(item) - HEADER_SIZE + STATE_OFFSET)
            file.write(DONE_BYTE)
    with reopened(copy) as q:
        assert q.qsize() == len(items) - 10
        assert q.get_many(len(items)) == items[:9000] + items[9010:]


def test_the_last_thing_that_recovery_does_is_a_sync(path, monkeypatch):
    with DurableQueue(path) as q:
        q.put(1)
    path.with_name(path.name + "-shm").unlink()
    done = []
    monkeypatch.setattr(_os, "pwrite", _noted(done, "write", _os.pwrite))
    monkeypatch.setattr(_os, "fdatasync", _noted(done, "sync", _os.fdatasync))
    recover = durableq._handle.rebuild

    def rebuild(*args):
        done.clear()
        recover(*args)
        done.append("end")

    monkeypatch.setattr(durableq._handle, "rebuild", rebuild)
    with DurableQueue(path):
        assert done[done.index("end") - 1] == "sync"


def test_what_is_purged_is_buried_after_its_checkpoints_are_on_the_disk(q, monkeypatch):
    q.put_many(range(100))
    done = []
    for name in ("pwrite", "fdatasync"):
        monkeypatch.setattr(_os, name, _noted(done, name, getattr(_os, name)))
    bury = q._store._reclaimer.bury

    def noted(*args):
        assert done[-1] == "fdatasync" and "pwrite" in done[done.index("fdatasync") :]
        done.append("bury")
        bury(*args)

    monkeypatch.setattr(q._store._reclaimer, "bury", noted)
    assert q.purge() == 100
    assert "bury" in done


def _noted(done, what, call):
    def noted(*args):
        done.append(what)
        return call(*args)

    return noted


def test_a_rewind_that_has_to_be_on_the_disk_is_not_over_before_that(q, monkeypatch):
    """Nobody may write over what was buried: so whoever comes after a kill in between has to find the rewind under way."""
    q.put_many(range(100))
    q.purge()
    words = q._store._words
    under_way = []
    real = _os.fdatasync

    def fdatasync(fd):
        under_way.append((words[BASE], words[EPOCH] & 1))
        real(fd)

    monkeypatch.setattr(_os, "fdatasync", fdatasync)
    while not words[BASE]:
        q.put(b"x" * 1000)
        q.get()
        q.task_done()
    assert (words[BASE], 1) in under_way


def test_nonsense_in_the_ledger_of_another_mount_costs_nothing(path):
    child = Child("q = DurableQueue(path); q.put(b'x'); q.get(); say('has it'); hear()", path)
    child.expect("has it")
    child.kill()
    child.dispose()
    with open(f"{path}-shm", "r+b") as file:
        words = memoryview(file.read()).cast("Q")
        region = words[REGION] & -_os.BLOCK
        positions = [at for at in range(region // 8, (region + 4096) // 8) if words[at] == SUPERBLOCK]
        for at in positions:
            file.seek(8 * at)
            file.write(struct.pack("<Q", (1 << 64) - 8))
        assert positions
        file.seek(8 * MOUNT)
        file.write(struct.pack("<Q", words[MOUNT] + 1))
    with DurableQueue(path) as q:
        assert q.get(timeout=PATIENCE) == b"x"
