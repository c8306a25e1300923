"""On real file systems, where root may mount them: power cuts, and disks that are full. Skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from powercut.real import FILE_SYSTEMS, Unavailable, cut_many, make, mounted
from processes import PRELUDE


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_a_power_cut_on_a_real_file_system_keeps_what_was_promised(name):
    said = []
    try:
        assert cut_many(name, 4, seed=1, say=said.append) == 0, said
    except Unavailable as exc:
        pytest.skip(str(exc))


FILL = """
import errno
q = DurableQueue(path, sync=%s, serializer="bytes")
placed = 0
item = os.urandom(30_000)
try:
    while True:
        q.put(placed.to_bytes(4, "big") + item)
        placed += 1
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert path in str(error), error
assert placed > 10
"""


REFILL = """
q.compact()
for n in range(5):
    q.put(item)
q.close()
with DurableQueue(path, serializer="bytes") as q:
    assert q.qsize() == 5
"""
"""On btrfs the room that draining makes comes with some later commit of its own."""


@pytest.fixture(params=["tmpfs", *FILE_SYSTEMS])
def on_full(request, tmp_path):
    """Run code with `path` on a small file system of each kind."""
    name = request.param
    where = tmp_path / "mnt"

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code, str(where / "q.dq")], capture_output=True, text=True, timeout=50
        )
        assert done.returncode == 0, f"{done.returncode} {done.stderr}"

    if name == "tmpfs":
        where.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(where)]).returncode:
            pytest.skip("no permission to mount")
        yield run
        subprocess.run(["umount", str(where)], check=True)
        return
    image = tmp_path / "fs.img"
    try:
        make(image, name, {"ext4": 16 << 20, "xfs": 300 << 20, "btrfs": 112 << 20}[name])
        with mounted(image, where, name):
            _fill_up(where / "ballast", 2 << 20)  # btrfs takes milliseconds for each write when it is full
            yield run
    except Unavailable as exc:
        pytest.skip(str(exc))


def _fill_up(ballast, leave):
    """Take all room on a file system but `leave` bytes."""
    size, step = 0, 1 << 20
    with open(ballast, "wb") as file:
        with suppress(OSError):
            while True:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
        os.ftruncate(file.fileno(), size - leave)
    os.sync()


def test_a_full_disk_refuses_the_put_and_everything_put_before_is_delivered(on_full, request):
    on_full(
        FILL % "None"
        + """
assert q.qsize() == placed
for n in range(placed):
    assert q.get_nowait() == n.to_bytes(4, "big") + item
    q.task_done()
assert q.stats().unfinished == 0 and q.stats().damaged == 0
q.sync()
"""
        + REFILL * ("btrfs" not in request.node.name)
    )


def test_puts_that_are_synced_one_by_one_tear_nothing_on_a_full_disk(on_full):
    on_full(
        FILL % "0"
        + """
q.close()
del q
os.unlink(path + "-shm")
with DurableQueue(path, serializer="bytes", sync=None) as q:
    assert q.qsize() == placed, (q.qsize(), placed)
    assert q.get_many(10 ** 6) == [n.to_bytes(4, "big") + item for n in range(placed)]
    assert q.stats().damaged == 0
"""
    )


def test_a_batch_on_a_full_disk_is_in_the_queue_up_to_what_fits_or_not_at_all(on_full):
    on_full(
        """
q = DurableQueue(path, sync=None, serializer="bytes")
try:
    q.put_many(n.to_bytes(4, "big") + bytes(3000) for n in range(40_000))
except OSError as error:
    assert path in str(error), error
n = q.qsize()
assert [int.from_bytes(item[:4], "big") for item in q.peek(10 ** 6)] == list(range(n))
assert q.stats().damaged == 0
"""
    )


def test_lending_more_items_than_the_control_file_has_room_for_loses_none(on_full, request):
    if "btrfs" in request.node.name:
        pytest.skip("a full btrfs takes milliseconds for each write, and this writes 5,000 times")
    on_full(
        """
import errno
q = DurableQueue(path, sync=None, serializer="bytes")
small = os.urandom(16)
placed = 0
try:
    while placed < 5_000:
        q.put_many([small] * 1000)
        placed += 1000
except OSError:
    placed = q.qsize()
with open(os.path.dirname(path) + "/rest", "wb", buffering=0) as rest:
    for size in (1 << 16, 4096):
        try:
            while True:
                rest.write(bytes(size))
        except OSError:
            pass
taken = 0
try:
    while taken < placed:
        taken += len(q.reserve_many(100, block=False))
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert path in str(error), error
    assert q.qsize() + taken == placed, (q.qsize(), taken, placed)
os.unlink(os.path.dirname(path) + "/rest")
os.sync()
q.close()
with DurableQueue(path, serializer="bytes", sync=None) as q:
    assert q.qsize() == placed
    left = 0
    while not q.empty():
        left += len(q.get_many(1000))
        for _ in range(min(1000, q.stats().lent)):
            q.task_done()
    assert left == placed
"""
    )


def test_creating_a_queue_on_a_full_disk_names_the_file(on_full):
    on_full(
        """
import errno
with open(os.path.dirname(path) + "/rest", "wb", buffering=0) as rest:
    for size in (1 << 16, 4096):
        try:
            while True:
                rest.write(bytes(size))
        except OSError:
            pass
try:
    q = DurableQueue(path)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert path in str(error), error
else:
    q.close()
os.unlink(os.path.dirname(path) + "/rest")
os.sync()
with DurableQueue(path) as q:
    q.put("x")
    assert q.get() == "x"
"""
    )
