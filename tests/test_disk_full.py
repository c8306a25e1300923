"""A full disk: the put raises, the queue stays readable and drains, and goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from processes import PRELUDE

BALLAST = """
def fill():
    with open(os.path.dirname(path) + "/ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
"""


@pytest.fixture
def on_a_small_disk(tmp_path):
    """Run code with `path` on a file system of few mebibytes that is its own and goes with it."""
    where = tmp_path / "small"
    where.mkdir()
    for inside in (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"]):
        probe = [*inside, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(where)]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("no permission to mount a small file system")

    def run(code, size="8m"):
        mount = f'mount -t tmpfs -o size={size} none "$1" && exec "$2" -c "$3" "$1/q.dq"'
        done = subprocess.run(
            [*inside, "sh", "-c", mount, "sh", str(where), sys.executable, PRELUDE + BALLAST + code],
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


FILL = """
import errno
q = DurableQueue(path, sync=None)
placed = 0
try:
    while True:
        q.put((placed, os.urandom(50_000)))
        placed += 1
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert path in str(error), error
assert placed > 20
"""


def test_a_put_on_a_full_disk_raises_enospc_and_names_the_file(on_a_small_disk):
    on_a_small_disk(FILL)


def test_what_was_put_before_the_disk_was_full_is_delivered(on_a_small_disk):
    on_a_small_disk(
        FILL
        + """
assert q.qsize() == placed
for number in range(placed):
    assert q.get_nowait()[0] == number
    q.task_done()
assert q.empty() and q.stats().unfinished == 0
"""
    )


def test_after_draining_there_is_room_again(on_a_small_disk):
    on_a_small_disk(
        FILL
        + """
for _ in range(placed):
    q.get_nowait()
    q.task_done()
for number in range(20):
    q.put(os.urandom(50_000))
assert q.qsize() == 20
"""
    )


def test_a_batch_that_does_not_fit_leaves_no_part_of_itself_unreadable(on_a_small_disk):
    on_a_small_disk(
        """
q = DurableQueue(path, sync=None)
q.put("before")
try:
    q.put_many(os.urandom(50_000) for _ in range(500))
except OSError:
    pass
assert q.get_nowait() == "before"
while not q.empty():
    assert len(q.get_nowait()) == 50_000
    q.task_done()
q.task_done()
q.put("after")
assert q.get_nowait() == "after"
"""
    )


def test_a_full_queue_can_be_closed_and_opened_again(on_a_small_disk):
    on_a_small_disk(
        FILL
        + """
q.close()
with DurableQueue(path) as again:
    assert again.qsize() == placed
    assert again.get_nowait()[0] == 0
"""
    )


def test_a_full_queue_can_be_recovered_with_the_control_words_of_another_boot(on_a_small_disk):
    # They take room that the new ones need.
    on_a_small_disk(
        FILL
        + """
q.close()
import gc
del q
gc.collect()
with open(path + "-shm", "r+b") as file:
    file.write(bytes(64))
with DurableQueue(path) as again:
    assert again.qsize() == placed
    assert [again.get_nowait()[0] for _ in range(placed)] == list(range(placed))
"""
    )


def test_a_full_queue_can_be_recovered_without_its_companions(on_a_small_disk):
    on_a_small_disk(
        FILL
        + """
q.close()
import gc
del q
gc.collect()
os.unlink(path + "-shm")
with DurableQueue(path) as again:
    assert again.qsize() == placed
    assert [again.get_nowait()[0] for _ in range(placed)] == list(range(placed))
"""
    )


NO_ROOM = """
import subprocess
from durableq import failures
from durableq.failures import Failure

q = DurableQueue(path, sync=None)
for item in ("bad", "good"):
    q.put(item)
delivery = q.reserve()
failures.reject(q, delivery, "no such customer")
id = delivery.id

def gone():
    failures.note(q, Failure("an item that is gone", "told long ago", "", 1, 0.0, "here", 1, "'x'"))

def durableq(*arguments):
    done = subprocess.run([sys.executable, "-m", "durableq", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(path + "-failures.new")
    return done
"""


def test_a_pool_whose_dead_letters_have_their_stories_starts_and_works_on_a_full_disk(on_a_small_disk):
    on_a_small_disk(
        NO_ROOM
        + """
fill()
assert "-failures" not in durableq("work", path, "builtins:repr", "--until-empty").stderr
assert q.stats().unfinished == 0 and id in failures.read(q)
"""
    )


def test_a_pool_that_cannot_sweep_on_a_full_disk_says_so_and_works_and_the_stories_stay(on_a_small_disk):
    on_a_small_disk(
        NO_ROOM
        + """
gone()
fill()
said = durableq("work", path, "builtins:repr", "--until-empty").stderr
assert path + "-failures: stories of items that are gone stay there" in said and "No space left" in said, said
assert q.stats().unfinished == 0 and id in failures.read(q) and failures.latest(q, "an item that is gone")
"""
    )


def test_a_purge_of_the_dead_letters_on_a_full_disk_says_how_many(on_a_small_disk):
    on_a_small_disk(
        NO_ROOM
        + """
gone()
fill()
done = durableq("purge", "--dead", path)
assert done.stdout == "1 dead letter thrown away\\n", done.stdout
assert path + "-failures: stories" in done.stderr
assert q.stats().dead == 0 and q.get_nowait() == "good"
"""
    )


def test_a_story_that_fits_is_told_though_there_is_no_room_to_sweep_before(on_a_small_disk):
    on_a_small_disk(
        NO_ROOM
        + """
failures.SWEEP_FROM = 10_000
while os.stat(path + "-failures").st_size <= failures.SWEEP_FROM:
    gone()
fill()
failures.note(q, Failure.now(id, 2, "'bad'", "failed again"))
assert failures.read(q)[id].reason == "failed again"
assert not os.path.exists(path + "-failures.new")
"""
    )


def test_a_queue_that_cannot_be_created_names_the_file(on_a_small_disk):
    on_a_small_disk(
        """
import errno
fill()
try:
    DurableQueue(path)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert path in str(error), error
else:
    raise AssertionError("created without room")
os.unlink(os.path.dirname(path) + "/ballast")
DurableQueue(path).close()
""",
        "1m",
    )


def test_the_ack_that_empties_a_large_ledger_needs_no_room(on_a_small_disk):
    on_a_small_disk(
        """
q = DurableQueue(path, sync=None, serializer="bytes")
q.put_many([b"x"] * 16_500)
deliveries = q.reserve_many(16_500)
fill()
for delivery in deliveries:
    delivery.ack()
assert q.stats().unfinished == 0
"""
    )


def test_a_repair_without_room_for_its_copy_names_the_file_leaves_nothing_behind_and_ends_when_there_is_room(on_a_small_disk):
    said = on_a_small_disk(
        """
with DurableQueue(path, serializer="bytes", sync=None) as q:
    q.put_many(os.urandom(50_000) for _ in range(100))
with open(path, "r+b") as file:
    file.seek(200_000)
    file.write(bytes(8))
before = open(path, "rb").read(), sorted(os.listdir(os.path.dirname(path)))
for _ in range(2):
    try:
        durableq.repair(path)
    except OSError as error:
        say(error)
assert before == (open(path, "rb").read(), sorted(os.listdir(os.path.dirname(path))))
os.system(f"mount -o remount,size=16m {os.path.dirname(path)}")
backup = durableq.repair(path).backup
assert open(backup, "rb").read() == before[0]
say(os.path.basename(backup))
"""
    ).splitlines()
    assert said[2:] == ["q.dq-backup"]
    assert all("make room" in line and "q.dq" in line for line in said[:2])


ANOTHER_BOOT = """
fill()
with open(path + "-shm", "r+b") as file:
    file.write(bytes(64))
q = DurableQueue(path, sync=None, serializer="bytes")
"""


def test_a_queue_that_was_consumed_past_its_checkpoint_needs_no_room_to_be_recovered(on_a_small_disk):
    on_a_small_disk(
        """
if not os.fork():
    q = DurableQueue(path, sync=None, serializer="bytes")
    q.put_many([os.urandom(50_000) for _ in range(80)])
    for _ in range(60):
        q.get()
        q.task_done()
    os._exit(0)
os.wait()
"""
        + ANOTHER_BOOT
        + """
assert q.qsize() == 20
assert len(q.get_many(20)) == 20
""",
        size="16m",
    )


def test_a_queue_whose_ledger_has_moved_needs_no_room_to_be_recovered(on_a_small_disk):
    on_a_small_disk(
        """
if not os.fork():
    q = DurableQueue(path, sync=None, serializer="bytes")
    q.put_many([b"x"] * 6000)
    taken = q.reserve_many(4000)
    for delivery in taken[1:]:
        delivery.ack()
    while len(taken) < 5500:
        taken += q.reserve_many(1500)
    os._exit(0)
os.wait()
"""
        + ANOTHER_BOOT
        + """
assert q.qsize() == 2001
""",
        size="16m",
    )
