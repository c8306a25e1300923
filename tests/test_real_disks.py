"""On real file systems, where root may mount them: power cuts, and disks that are full. Skipped elsewhere."""

from __future__ import annotations

import os
import shutil
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


SICK = """
def refused(call):
    try:
        call()
    except OSError as error:
        assert path in str(error), error
        return error.errno
    return 0

q = DurableQueue(path, serializer="bytes", sync=None)
g = DurableQueue(path, serializer="bytes", sync=None, ack="get")
items = [b"%06d" % n * 40 for n in range(400)]
q.put_many(items)
for n in range(4):
    assert q.get() == items[n]
    q.task_done()
assert g.get() == items[4]
held = q.reserve_many(3)
q.sync()
"""


def test_marks_on_a_full_copy_on_write_file_are_refused_with_an_error_and_made_when_there_is_room(tmp_path):
    image = tmp_path / "fs.img"
    try:
        make(image, "xfs", 300 << 20)
        with mounted(image, tmp_path / "mnt", "xfs") as where:
            code = (
                SICK
                + """
import errno, subprocess
folder = os.path.dirname(path)
subprocess.run(["cp", "--reflink=always", path, folder + "/clone"], check=True)  # each change now takes a block
os.sync()
with open(folder + "/rest", "wb", buffering=0) as rest:
    for size in (1 << 20, 4096):
        try:
            while True:
                rest.write(bytes(size))
        except OSError:
            pass
os.sync()
for _ in range(3):
    for call in (held[0].ack, g.get_nowait, lambda: g.get_many(3, False)):
        refused(call) or say("took")
left = q.stats()
os.unlink(folder + "/rest")
os.unlink(folder + "/clone")
os.sync()
got = g.get_many(1000, False)
assert len(got) == left.ready and got == items[400 - len(got):], len(got)
q.close()
"""
            )
            _run_sick(code, where / "q.dq")
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("name", ["xfs", "ext4"])
def test_marks_on_a_file_system_that_shut_down_end_in_an_error_and_no_signal(name, tmp_path):
    if not shutil.which("xfs_io"):
        pytest.skip("needs xfs_io")
    image = tmp_path / "fs.img"
    try:
        make(image, name, {"xfs": 300 << 20, "ext4": 32 << 20}[name])
        with mounted(image, tmp_path / "mnt", name) as where:
            code = (
                SICK
                + """
import subprocess
subprocess.run(["xfs_io", "-x", "-c", "shutdown", os.path.dirname(path)], check=True, capture_output=True)
for call in (held[0].ack, q.get_nowait, g.get_nowait, lambda: g.get_many(3, False), lambda: q.put(b"x")):
    # ext4 still takes a change of a mapped page that has its blocks; what is in memory only, the sync refuses.
    assert refused(call) or refused(q.sync), call
assert refused(q.sync)
os._exit(0)
"""
            )
            _run_sick(code, where / "q.dq")
        with mounted(image, tmp_path / "mnt", name) as where:
            # What was synced, four acks and a get, is done; what came after it may have reached the disk, or not.
            code = """
with DurableQueue(path, serializer="bytes", ack="get") as q:
    left = {int(item[:6]) for item in q.get_many(1000, False)}
    assert set(range(9, 400)) <= left <= set(range(5, 400)), left
"""
            _run_sick(code, where / "q.dq")
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_control_words_that_were_left_on_the_disk_are_not_believed_under_another_mount(name, tmp_path):
    image, copy = tmp_path / "fs.img", tmp_path / "copy.img"
    try:
        make(image, name, {"ext4": 32 << 20, "xfs": 300 << 20, "btrfs": 112 << 20}[name])
        with mounted(image, tmp_path / "mnt", name) as where:
            code = """
q = DurableQueue(path, serializer="bytes")
q.put(b"first")
subprocess.run(["sync", "-f", path], check=True)
q.put_many([b"second", b"third"])
assert q.get() == b"first"
q.task_done()
q.sync()
shutil.copy(image, image.parent / "copy.img")
q.close()
"""
            header = f"import pathlib, shutil, subprocess\nimage = pathlib.Path({str(image)!r})\n"
            _run_sick(header + code, where / "q.dq")
        with mounted(copy, tmp_path / "mnt", name) as where:
            code = "with DurableQueue(path, serializer='bytes') as q: assert q.get_many(9) == [b'second', b'third']"
            _run_sick(code, where / "q.dq")
    except Unavailable as exc:
        pytest.skip(str(exc))


def _run_sick(code, path):
    done = subprocess.run([sys.executable, "-c", PRELUDE + code, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, f"{done.returncode} {done.stdout} {done.stderr}"
