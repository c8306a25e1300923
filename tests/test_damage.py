"""Damaged bytes cost the damaged record and no other; it is kept aside, counted and reported."""

from __future__ import annotations

import pytest
from processes import Child

from durableq import DurableQueue, check, repair

MARKED = [f"payload number {number:03} ".encode() * 40 for number in range(50)]


def spoil(path, item, *, before=0, length=16):
    """Overwrite bytes of one item (or of what lies `before` bytes before it) in the file."""
    data = path.read_bytes()
    at = data.index(item) - before
    assert at > 4096
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(byte ^ 0x5A for byte in data[at : at + length]))


PUT_AND_STAY = """
q = DurableQueue(path, serializer="bytes")
q.put_many([f"payload number {number:03} ".encode() * 40 for number in range(50)])
q.sync()
say("synced")
hear()
"""


def cut_off(path):
    """Have `MARKED` put and synced by a process that gets SIGKILL, and the machine lose its power."""
    child = Child(PUT_AND_STAY, path)
    assert child.hear() == "synced"
    child.kill()
    child.dispose()
    path.with_name(path.name + "-shm").unlink()


@pytest.fixture(params=["open", "closed", "after a reboot", "after a power cut"])
def damaged(request, path):
    """`damaged(**how)`: a queue of `MARKED` with item 20 spoiled while it was open, closed, or to be recovered."""
    handles = []

    def damage(**how):
        if request.param == "after a power cut":
            cut_off(path)
        else:
            handles.append(DurableQueue(path, serializer="bytes"))
            handles[-1].put_many(MARKED)
        if request.param not in ("open", "after a power cut"):
            handles[-1].close()
        if request.param == "after a reboot":
            path.with_name(path.name + "-shm").unlink()
        spoil(path, MARKED[20], **how)
        if request.param != "open":
            handles.append(DurableQueue(path, serializer="bytes"))
        return handles[-1]

    yield damage
    for handle in handles:
        handle.close()


def drain(q):
    items = []
    while not q.empty():
        try:
            items += q.get_many(100, block=False)
        except Exception as error:
            items.append(type(error).__name__)
    return items


PLACES = {
    "in the payload": {"before": -100},
    "at the start of the payload": {"before": 0},
    "in the header's sum": {"before": 4, "length": 4},
    "in the header's length": {"before": 24, "length": 4},
    "in the header's magic": {"before": 48, "length": 4},
    "in the whole header": {"before": 48, "length": 48},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_everything_but_the_damaged_item_is_delivered(damaged, place):
    q = damaged(**place)
    got = [item for item in drain(q) if item in MARKED]
    assert got == MARKED[:20] + MARKED[21:]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_the_damage_is_counted(damaged, place):
    q = damaged(**place)
    drain(q)
    stats = q.stats()
    assert stats.damaged == 1
    assert 0 < stats.damaged_bytes < 2 * len(MARKED[20])


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_the_damaged_bytes_are_kept_aside(damaged, place, path):
    drain(damaged(**place))
    kept = path.with_name(path.name + "-damaged")
    assert MARKED[20][200:400] in kept.read_bytes()
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_damage_of_the_last_item_before_a_power_cut_is_told_from_a_torn_tail(path, place):
    cut_off(path)
    at = path.read_bytes().index(MARKED[49])
    spoil(path, MARKED[49], **place)
    report = check(path)
    assert [damage.offset for damage in report.damaged] == [at - 48]
    with DurableQueue(path, serializer="bytes") as q:
        stats = q.stats()
        assert q.get_many(100) == MARKED[:49]
    assert stats.damaged == 1
    assert 0 < stats.damaged_bytes < 2 * len(MARKED[49])
    assert MARKED[49][200:] in path.with_name(path.name + "-damaged").read_bytes()


def test_what_a_power_cut_left_out_of_the_last_item_is_no_damage(path):
    """Whole sectors are missing, as of an append that the disk had done a part of."""
    cut_off(path)
    at = path.read_bytes().index(MARKED[49])
    with open(path, "r+b") as file:
        file.seek(at + 511 & -512)
        file.write(bytes(512))
    report = check(path)
    assert (report.ok, [torn.offset for torn in report.torn]) == (True, [at - 48])
    with DurableQueue(path, serializer="bytes") as q:
        assert q.stats().damaged == 0
        assert q.get_many(100) == MARKED[:49]


def test_the_queue_goes_on_after_damage(damaged):
    q = damaged(before=48, length=48)
    for item in drain(q):
        if item in MARKED:
            q.task_done()
    q.put(b"after")
    assert q.get_nowait() == b"after"
    q.task_done()
    q.join()
    assert q.stats().unfinished == 0


def test_damage_of_a_returned_item_costs_only_that(path):
    with DurableQueue(path, serializer="bytes") as q:
        q.put_many(MARKED)
        deliveries = q.reserve_many(30)
        spoil(path, MARKED[20], before=-100)
        for delivery in deliveries:
            delivery.nack()
        assert [item for item in drain(q) if item in MARKED] == MARKED[:20] + MARKED[21:]
        assert q.stats().damaged == 1


def test_a_repair_counts_what_is_broken_at_the_end_once(path):
    cut_off(path)
    spoil(path, MARKED[49])
    assert len(repair(path).damaged) == 1
    with DurableQueue(path, serializer="bytes") as q:
        assert q.get_many(100) == MARKED[:49]
        assert q.stats().damaged == 1
