"""Options that belong to the queue are stored in the file; a handle adopts them or contradicts them."""

from __future__ import annotations

import os
import pickle
import stat

import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, Empty, InsecureSpoolError, OptionMismatchError, repair

STORED = {
    "maxsize": (5, 6),
    "max_bytes": (1 << 20, 2 << 20),
    "max_deliveries": (2, 3),
    "lease": (30, 60),
}


@pytest.mark.parametrize("option", STORED)
def test_the_same_value_again_is_fine(path, option):
    first, _ = STORED[option]
    DurableQueue(path, **{option: first}).close()
    DurableQueue(path, **{option: first}).close()


@pytest.mark.parametrize("option", STORED)
def test_leaving_an_option_out_adopts_what_is_stored(path, option):
    first, _ = STORED[option]
    DurableQueue(path, **{option: first}).close()
    DurableQueue(path).close()


@pytest.mark.parametrize("option", STORED)
def test_another_value_contradicts_the_file_and_says_which(path, option):
    first, second = STORED[option]
    with DurableQueue(path, **{option: first}) as q:
        q.put("x")
    with pytest.raises(OptionMismatchError, match=option) as caught:
        DurableQueue(path, **{option: second})
    assert str(path) in str(caught.value)
    with DurableQueue(path) as q:
        assert q.get_nowait() == "x"


@pytest.mark.parametrize("option", STORED)
def test_a_value_contradicts_a_queue_created_without_it(path, option):
    first, _ = STORED[option]
    with DurableQueue(path) as q:
        q.put("x")
    with pytest.raises(OptionMismatchError, match=option):
        DurableQueue(path, **{option: first})


def test_another_policy_contradicts_the_file(path):
    DurableQueue(path, max_bytes=1 << 20, on_full="drop_oldest").close()
    DurableQueue(path).close()
    DurableQueue(path, max_bytes=1 << 20, on_full="drop_oldest").close()


def test_an_adopted_maxsize_is_in_force_and_readable(path):
    DurableQueue(path, maxsize=2).close()
    with DurableQueue(path) as q:
        assert q.maxsize == 2
        q.put_many("ab")
        assert q.full()


def test_an_adopted_lease_is_in_force(path):
    DurableQueue(path, lease=0.2).close()
    with DurableQueue(path) as q:
        q.put("x")
        q.get_nowait()
        assert q.get(timeout=10) == "x"


def test_options_of_the_handle_are_not_stored(path):
    with DurableQueue(path, ack="get", sync=0, serializer="json") as q:
        q.put(["x"])
    with DurableQueue(path) as q:
        q.get_nowait()
        assert q.stats().lent == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_bytes", -1), ("max_bytes", 0), ("max_deliveries", -1), ("max_deliveries", 0), ("lease", -1), ("lease", 0)],
)
def test_a_value_without_sense_raises_and_creates_no_file(path, option, value):
    with pytest.raises(ValueError, match=option):
        DurableQueue(path, **{option: value})
    assert not path.exists()


def test_a_negative_maxsize_is_no_bound_as_in_the_standard_library(open_queue):
    q = open_queue(maxsize=-1)
    q.put_many("abc")
    assert not q.full()


def test_a_contradiction_does_not_disturb_the_handles_that_are_open(path, open_queue):
    q = open_queue(maxsize=2)
    with pytest.raises(OptionMismatchError):
        open_queue(maxsize=3)
    q.put_many("ab")
    assert q.get_many(2) == ["a", "b"]
    with pytest.raises(Empty):
        q.get_nowait()
    until(lambda: len(q.stats().owners) == 1)


SOMEBODY = 12345


def refused(path):
    with pytest.raises(InsecureSpoolError):
        DurableQueue(path)


ROOTS_TOUCHES = {
    "an opening": lambda path: DurableQueue(path, serializer="bytes").close(),
    "a repair": repair,
    "a refused opening": refused,
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
@pytest.mark.parametrize("touch", ROOTS_TOUCHES.values(), ids=ROOTS_TOUCHES.keys())
def test_what_root_creates_beside_the_spool_of_somebody_is_that_users(path, touch):
    with DurableQueue(path, serializer="bytes") as q:
        q.put(b"item")
    for file in path.parent.glob("q.dq-*"):
        file.unlink()
    if touch is repair:
        path.write_bytes(path.read_bytes().replace(b"item", b"itex"))
    path.chmod(0o640)
    os.chown(path, SOMEBODY, SOMEBODY)
    touch(path)
    files = {file.name: file.stat() for file in path.parent.iterdir()}
    assert "q.dq-lock" in files
    assert {(info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) for info in files.values()} == {(SOMEBODY, SOMEBODY, 0o640)}
    assert touch is not repair or {"q.dq-damaged", "q.dq-backup"} <= files.keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
def test_root_gives_away_no_file_that_was_there(path):
    DurableQueue(path, serializer="bytes").close()
    os.chown(path, SOMEBODY, SOMEBODY)
    DurableQueue(path, serializer="bytes").close()
    assert (path.parent / "q.dq-lock").stat().st_uid == 0


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_who_may_write_to_the_spool_may_use_its_companions(path, mode):
    with DurableQueue(path, mode=mode, serializer="bytes"):
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes["q.dq"] == modes["q.dq-shm"] == modes["q.dq-lock"] == mode
    with DurableQueue(path, serializer="bytes"):
        assert stat.S_IMODE((path.parent / "q.dq-lock").stat().st_mode) == mode


@pytest.mark.parametrize(
    "options",
    [
        *({"maxsize": 2.5}, {"maxsize": 1 << 63}, {"max_deliveries": 2.5}, {"max_deliveries": 1 << 32}, {"max_bytes": 1e9}),
        *({"max_bytes": 1 << 63}, {"lease": float("nan")}, {"lease": float("inf")}, {"sync": float("nan")}),
        *({"sync": float("inf")}, {"sync": 1e10}),
    ],
    ids=repr,
)
def test_a_number_that_cannot_be_stored_is_refused_by_name_before_there_is_a_file(path, options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=f"^{name}="):
        DurableQueue(path, **options)
    assert not path.exists()


def test_a_handle_whose_maxsize_was_assigned_travels_on(path, open_queue):
    q = open_queue(maxsize=10)
    q.maxsize = 20
    with pickle.loads(pickle.dumps(q)) as there:
        assert there.maxsize == 20
    if (pid := os.fork()) == 0:
        try:
            q.put("from the child")
        finally:
            os._exit(0 if q.maxsize == 20 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert q.get(timeout=PATIENCE) == "from the child"
