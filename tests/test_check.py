"""check() finds every damaged place and names it; repair() keeps all the rest."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from processes import Child

import durableq
from durableq import DurableQueue, NotASpoolError

ITEMS = [f"item {n:04} ".encode() * 20 for n in range(100)]
COPY = 7 * 512


@pytest.fixture
def spool(path):
    """A closed queue of `ITEMS` of which the first ten are done and the eleventh is a dead letter."""
    with DurableQueue(path, maxsize=1000, serializer="bytes") as q:
        q.put_many(ITEMS)
        assert q.get_many(10) == ITEMS[:10]
        for _ in range(10):
            q.task_done()
        q.reserve().reject()
    return path


def spoil(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def reboot(path):
    path.with_name(path.name + "-shm").unlink()


def drain(path):
    with DurableQueue(path, serializer="bytes") as q:
        return q.get_many(1000), q.dead_letters.get_many(10), q.stats()


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_sound_spool_is_reported_as_such_with_its_records_by_state(spool, rebooted):
    if rebooted:
        reboot(spool)
    report = durableq.check(spool)
    assert (report.ok, report.damaged, report.torn) == (True, (), ())
    assert (report.waiting, report.dead, report.done, report.delayed) == (89, 1, 10, 0)
    assert report.live is not rebooted
    assert report.path == str(spool)


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_damaged_record_is_named_by_its_place_in_the_file(spool, rebooted):
    if rebooted:
        reboot(spool)
    at = spool.read_bytes().index(ITEMS[50])
    spoil(spool, at + 5, b"\xff")
    report = durableq.check(spool)
    assert not report.ok
    (damage,) = report.damaged
    assert damage.offset == at - 48
    assert damage.length == 48 + len(ITEMS[50])
    assert report.waiting == 88


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_zeroed_block_behind_the_head_is_damage(spool, rebooted):
    if rebooted:
        reboot(spool)
    spoil(spool, 3 * 4096, bytes(4096))
    assert sum(d.length for d in durableq.check(spool).damaged) >= 4096
    got, _, stats = drain(spool)
    assert 70 < len(got) < 89
    assert set(got) < set(ITEMS)
    assert stats.damaged >= 1
    assert stats.damaged_bytes >= 4096


def test_check_changes_nothing(spool):
    reboot(spool)
    spoil(spool, 9000, b"\xff" * 600)
    spoil(spool, 0, b"\xff" * 600)
    before = {name: (spool.parent / name).read_bytes() for name in os.listdir(spool.parent)}
    assert not durableq.check(spool).ok
    assert {name: (spool.parent / name).read_bytes() for name in os.listdir(spool.parent)} == before


def test_check_beside_users_at_work_finds_nothing(path):
    stop = threading.Event()

    def work():
        with DurableQueue(path, serializer="bytes", sync=None) as q:
            while not stop.is_set():
                q.put_many(os.urandom(300) for _ in range(60))
                for _ in range(60):
                    q.get()
                    q.task_done()

    DurableQueue(path).close()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        reports = [durableq.check(path) for _ in range(60)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [r.damaged for r in reports if not r.ok] == []


def test_what_is_no_spool_is_refused(path):
    path.write_bytes(b"hello" * 2000)
    with pytest.raises(NotASpoolError):
        durableq.check(path)
    with pytest.raises(NotASpoolError):
        durableq.repair(path)
    with pytest.raises(FileNotFoundError):
        durableq.check(path.with_name("other"))
    assert path.read_bytes() == b"hello" * 2000


def test_repair_of_a_sound_spool_changes_nothing(spool):
    before = spool.read_bytes()
    report = durableq.repair(spool)
    assert report.ok
    assert report.backup is None
    assert spool.read_bytes() == before


def test_repair_keeps_a_copy_first_and_everything_that_is_whole(spool):
    at = spool.read_bytes().index(ITEMS[50])
    spoil(spool, at - 48, b"\xff" * 60)
    before = spool.read_bytes()
    report = durableq.repair(spool)
    assert report.ok
    assert [d.offset for d in report.damaged] == [at - 48]
    assert report.backup is not None
    with open(report.backup, "rb") as file:
        assert file.read() == before
    assert os.stat(report.backup).st_mode & 0o777 == 0o600
    assert durableq.check(spool).ok
    got, dead, stats = drain(spool)
    assert got == ITEMS[11:50] + ITEMS[51:]
    assert dead == [ITEMS[10]]
    assert stats.damaged == 1
    assert before[at : at + 100] in spool.with_name("q.dq-damaged").read_bytes()


@pytest.mark.parametrize("sectors", [[0], [7], [0, 7], [1, 2], [3, 4], [0, 1, 2, 3, 4, 7]], ids=str)
def test_repair_writes_the_superblock_anew_from_what_the_records_say(spool, sectors):
    for sector in sectors:
        spoil(spool, 512 * sector + 8, b"\xa5" * 400)
    reboot(spool)
    assert not durableq.check(spool).ok
    report = durableq.repair(spool)
    assert report.ok
    assert {d.offset for d in report.damaged} <= {512 * sector for sector in sectors}
    assert durableq.check(spool).damaged == ()
    got, dead, _ = drain(spool)
    assert got == ITEMS[11:]
    assert dead == [ITEMS[10]]


def test_a_superblock_that_was_zeroed_is_written_anew_if_records_follow_it(spool):
    spoil(spool, 0, bytes(4096))
    with pytest.raises(NotASpoolError, match="repair"):
        DurableQueue(spool)
    assert {damage.offset for damage in durableq.check(spool).damaged} == {0, COPY}
    assert durableq.repair(spool).ok
    got, dead, _ = drain(spool)
    assert got == ITEMS[11:]
    assert dead == [ITEMS[10]]


@pytest.mark.parametrize("front, records", [(bytes(4095) + b"x", 100), (bytes(4096), 2)], ids=["not all zeros", "few records"])
def test_a_few_records_or_records_behind_something_else_make_no_spool_of_a_file(spool, front, records):
    end = spool.read_bytes().index(ITEMS[records - 1]) + len(ITEMS[0])
    spool.write_bytes(front + spool.read_bytes()[4096:end])
    before = spool.read_bytes()
    with pytest.raises(NotASpoolError):
        durableq.repair(spool)
    assert spool.read_bytes() == before


def test_repair_refuses_a_queue_in_use(spool):
    at = spool.read_bytes().index(ITEMS[50])
    spoil(spool, at, b"\xff")
    with DurableQueue(spool, serializer="bytes") as q:
        with pytest.raises(OSError, match="in use"):
            durableq.repair(spool)
        assert q.qsize() == 89
    assert durableq.repair(spool).ok


def test_a_spool_that_was_cut_off_keeps_what_is_left(spool):
    at = spool.read_bytes().index(ITEMS[50])
    os.truncate(spool, at + 7)
    reboot(spool)
    report = durableq.check(spool)
    assert not report.ok
    got, _, stats = drain(spool)
    assert got == ITEMS[11:50]
    assert stats.damaged == 1


def test_an_older_copy_of_the_spool_in_its_place_is_sound_and_repair_leaves_it_alone(spool):
    """The control words are those of the newer spool: opening throws them away."""
    shutil.copyfile(spool, f"{spool}.copy")
    with DurableQueue(spool, serializer="bytes", ack="get") as q:
        q.get_many(100)
        q.put_many(bytes(1 << 20) for _ in range(2))
        q.get_many(2)
        q.qsize()
        q.put_many([b"later"] * 100)
    shutil.copyfile(f"{spool}.copy", spool)
    report = durableq.check(spool)
    assert (report.ok, report.waiting, report.live) == (True, 89, False)
    assert durableq.repair(spool).backup is None
    assert drain(spool)[0] == ITEMS[11:]


KILLED_IN_COMPACT = """
q = DurableQueue(path, serializer="bytes")
q.put_many(f"item {n:04} ".encode() * 20 for n in range(200))
q.get_many(100)
for _ in range(100):
    q.task_done()

def collapse(*arguments, collapse=durableq._os.collapse):
    say(collapse(*arguments))
    hear()
    os.kill(os.getpid(), signal.SIGKILL)

durableq._os.collapse = collapse
q.compact()
say("not killed")
"""


@pytest.fixture
def compacting(path):
    """The only user of a spool of 100 items, where it has cut out the front and has not stored BASE yet. Told, it is killed."""
    child = Child(KILLED_IN_COMPACT, path)
    try:
        if child.hear() != "True":
            pytest.skip("this file system collapses no range")
        yield child
    finally:
        child.dispose()


@pytest.fixture
def half_compacted(path, compacting):
    """What is left after that."""
    compacting.tell()
    compacting.process.wait()
    return path


@pytest.mark.usefixtures("compacting")
def test_a_check_beside_a_compact_that_does_not_end_finds_all_that_is_there(path):
    report = durableq.check(path)
    assert (report.ok, report.waiting) == (True, 100)


def test_what_a_kill_inside_compact_left_is_all_found(half_compacted):
    report = durableq.check(half_compacted)
    assert (report.ok, report.waiting) == (True, 100)


def test_damage_is_found_and_mended_after_a_kill_inside_compact(half_compacted):
    at = half_compacted.read_bytes().index(b"item 0150 ")
    spoil(half_compacted, at, b"\xff" * 4)
    assert [damage.offset for damage in durableq.check(half_compacted).damaged] == [at - 48]
    assert durableq.repair(half_compacted).backup is not None
    with DurableQueue(half_compacted, serializer="bytes") as q:
        assert len(q.get_many(1000)) == 99


HOLD_AND_DIE = """
q = DurableQueue(path, max_deliveries=3, serializer="bytes")
held = q.reserve_many(5)
say(*(delivery.deliveries for delivery in held))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_deliveries_are_counted_over_kills_with_a_repair_between(path):
    with DurableQueue(path, max_deliveries=3, serializer="bytes") as q:
        q.put_many(ITEMS)
    for count in (1, 2, 3):
        child = Child(HOLD_AND_DIE, path)
        assert child.hear() == " ".join(5 * str(count))
        child.process.wait()
        child.dispose()
        spoil(path, path.read_bytes().index(ITEMS[10 + count]), b"\xff")
        assert durableq.repair(path).backup is not None
    with DurableQueue(path, serializer="bytes") as q:
        assert q.get_many(100) == ITEMS[5:11] + ITEMS[14:]
        assert q.dead_letters.get_many(10) == ITEMS[:5]


@pytest.mark.parametrize("step", ["Spool.cover", "Spool.store_options"])
def test_a_kill_inside_repair_costs_nothing_that_is_whole(spool, step):
    """The spool is mended or not, and nobody believes the control words of the one before."""
    at = spool.read_bytes().index(ITEMS[50])
    spoil(spool, at, b"\xff")
    child = Child(
        f"""
        from durableq._spool import Spool
        def kill(*arguments, step={step}):
            step(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        {step} = kill
        durableq.repair(path)
        """,
        spool,
    )
    assert child.process.wait() < 0
    child.dispose()
    assert not durableq.check(spool).live
    got, dead, _ = drain(spool)
    assert got == ITEMS[11:50] + ITEMS[51:]
    assert dead == [ITEMS[10]]


def test_an_older_copy_from_between_two_openings_is_sound_too(path):
    """Nothing was synced, and no checkpoint was due: what tells the two apart is that it was opened in between."""

    def opened():
        return DurableQueue(path, sync=None, serializer="bytes")

    with opened() as q:
        q.put_many(ITEMS[:10])
    shutil.copyfile(path, f"{path}.copy")
    with opened() as q:
        assert q.get_many(10) == ITEMS[:10]
        for _ in range(10):
            q.task_done()
    shutil.copyfile(f"{path}.copy", path)
    report = durableq.check(path)
    assert (report.ok, report.waiting, report.live) == (True, 10, False)
    with opened() as q:
        assert q.get_many(10) == ITEMS[:10]
