"""A disk that fails: the call says so, the handle refuses further writes, and others can open the queue again."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial

import pytest

from durableq import DurableQueue, PoisonedError, _os
from durableq._record import record_size
from durableq._spool import SUPERBLOCK

pytestmark = pytest.mark.usefixtures("in_python")


@pytest.fixture
def failing(monkeypatch):
    """`failing(name)`: calls of this name at the seam to the system fail with EIO from now on; a context ends it."""

    def fail(name, code=errno.EIO):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(_os, name, refuse)

    yield fail
    monkeypatch.undo()


def test_a_failed_sync_is_raised_and_poisons_the_handle(path, failing, monkeypatch):
    q = DurableQueue(path, sync=0)
    q.put("before")
    failing("fdatasync")
    with pytest.raises(OSError) as caught:
        q.put("lost, perhaps")
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()  # the disk says yes again, and may be lying
    for call in (lambda: q.put("x"), q.get_nowait, q.sync, q.task_done):
        with pytest.raises(PoisonedError, match="open the queue again"):
            call()
    q.close()


def test_others_can_open_the_queue_after_a_failed_sync(path, failing, monkeypatch):
    q = DurableQueue(path, sync=0)
    q.put("before")
    failing("fdatasync")
    with pytest.raises(OSError):
        q.put("perhaps")
    monkeypatch.undo()
    with DurableQueue(path) as other:
        assert other.get_nowait() == "before"
        other.task_done()
        other.put("after")
        other.sync()
    q.close()
    with DurableQueue(path) as again:
        assert again.get_many(5)[-1] == "after"


def test_a_failed_sync_in_the_background_is_raised_by_a_later_put(path, failing):
    q = DurableQueue(path, sync=0.01)
    failed = threading.Event()
    failing("fdatasync")
    refuse = _os.fdatasync

    def tell(fd):
        try:
            refuse(fd)
        finally:
            failed.set()

    _os.fdatasync = tell
    q.put("x")
    assert failed.wait(10)
    with pytest.raises(PoisonedError):
        for _ in range(10_000):
            q.put("y")
    q.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_put_that_cannot_be_written_raises_and_puts_nothing(path, failing, monkeypatch, code):
    q = DurableQueue(path)
    q.put("before")
    failing("pwrite", code)
    with pytest.raises(OSError, match=str(path)) as caught:
        q.put("never")
    assert caught.value.errno == code
    monkeypatch.undo()
    assert q.qsize() == 1
    q.put("after")
    assert q.get_many(5) == ["before", "after"]
    q.close()


def test_a_done_mark_that_cannot_be_written_leaves_the_item_lent(path, failing, monkeypatch):
    q = DurableQueue(path)
    q.put_many("ab")
    delivery = q.reserve()
    failing("pwrite")
    with pytest.raises(OSError):
        delivery.ack()
    monkeypatch.undo()
    assert q.stats().lent == 1
    delivery.ack()
    assert q.get_nowait() == "b"
    q.task_done()
    assert q.stats().unfinished == 0
    q.close()


def test_a_short_write_is_undone(path, monkeypatch):
    q = DurableQueue(path, serializer="bytes")
    q.put(b"before")
    real = _os.pwrite
    monkeypatch.setattr(_os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[: len(data) // 2], offset))
    with pytest.raises(OSError) as caught:
        q.put(bytes(1000))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert os.stat(path).st_size == SUPERBLOCK + record_size(len(b"before"))
    assert q.get_many(5) == [b"before"]
    q.close()


SETTLING = {
    "nack": lambda q, delivery: delivery.nack(),
    "nack later": lambda q, delivery: delivery.nack(delay=60),
    "release": lambda q, delivery: delivery.release(),
    "reject": lambda q, delivery: delivery.reject(),
    "purge": lambda q, delivery: q.purge(),
    "compact": lambda q, delivery: q.compact(),
    "maxsize": lambda q, delivery: setattr(q, "maxsize", 5),
}


@pytest.mark.parametrize("name", SETTLING)
def test_whatever_the_disk_refuses_is_told_with_the_file_and_can_be_done_later(path, failing, monkeypatch, name):
    q = DurableQueue(path, sync=None)
    q.put_many("ab")
    delivery = q.reserve()
    failing("pwrite")
    with pytest.raises(OSError, match=str(path)) as caught:
        SETTLING[name](q, delivery)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    SETTLING[name](q, delivery)
    q.close()


def test_what_cannot_be_read_is_told_with_the_file(path, failing, monkeypatch):
    q = DurableQueue(path, sync=None)
    q.put_many("ab")
    failing("pread")
    with pytest.raises(OSError, match=str(path)) as caught:
        q.peek()
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    assert q.peek(2) == ["a", "b"]
    q.close()


@pytest.mark.parametrize("call", [lambda q: q.purge(), lambda q: q.sync(), lambda q: q.put("y")], ids=["purge", "sync", "put"])
def test_a_failed_sync_poisons_the_handle_whoever_called_for_it(path, failing, monkeypatch, call):
    q = DurableQueue(path, sync=0)
    q.put("x")
    failing("fdatasync")
    with pytest.raises(PoisonedError, match=str(path)):
        call(q)
    monkeypatch.undo()
    with pytest.raises(PoisonedError, match=str(path)):
        q.sync()
    q.close()


# -- space that cannot be given back -----------------------------------------------------------------------------------

ACKING = {
    "ack": lambda q: [delivery.ack for delivery in q.reserve_many(6)],
    "task_done": lambda q: [q.task_done for _ in q.get_many(6)],
    "ack_oldest": lambda q: [q._store.ack_oldest for _ in q.get_many(6)],
    "ack_many": lambda q: [
        partial(q._store.ack_many, [(d._position, d._index, d._count, 0, 0, b"")]) for d in q.reserve_many(6)
    ],
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("how", ACKING)
def test_an_ack_is_done_though_the_disk_refuses_to_take_space_back(path, failing, monkeypatch, how, code):
    q, other = DurableQueue(path, sync=None), DurableQueue(path, sync=None)
    q.put_many([bytes(300_000)] * 6)
    acks = ACKING[how](q)
    failing("punch", code)
    for left, ack in zip(reversed(range(6)), acks, strict=True):
        ack()
        assert q.stats().lent == left
    monkeypatch.undo()
    for handle in (q, other):
        assert handle.stats().unfinished == 0
        handle.put("after")
        assert handle.get_nowait() == "after"
        handle.task_done()
    q.close()
    other.close()


def test_dead_letters_that_are_done_when_taken_are_handed_out_though_the_disk_refuses_to_take_space_back(
    path, failing, monkeypatch
):
    q = DurableQueue(path, sync=None, ack="get")
    q.put_many([(n, bytes(300_000)) for n in range(6)])
    for delivery in q.reserve_many(6):
        delivery.reject()
    failing("punch", errno.ENOSPC)
    assert [number for number, _ in q.dead_letters.get_many(5)] == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    assert [number for number, _ in q.dead_letters.get_many(5)] == [5]
    q.close()


def test_a_sync_that_fails_when_space_is_given_back_poisons_the_handle_and_the_item_is_done(path, failing, monkeypatch):
    q, other = DurableQueue(path, sync=None), DurableQueue(path, sync=None)
    q.put_many([bytes(300_000)] * 4)
    deliveries = q.reserve_many(4)
    failing("fdatasync")
    for delivery in deliveries:  # with the last one the file is begun anew, which needs a sync
        delivery.ack()
    monkeypatch.undo()
    with pytest.raises(PoisonedError, match=str(path)):
        q.put("x")
    assert other.stats().unfinished == 0
    other.put("after")
    assert other.get_nowait() == "after"
    other.task_done()
    q.close()
    other.close()


def test_a_sync_that_fails_behind_a_take_for_good_poisons_the_handle(path, failing, monkeypatch):
    q = DurableQueue(path, sync=None, ack="get")
    q.put_many([bytes(300_000)] * 4)
    for delivery in q.reserve_many(4):
        delivery.release()
    failing("fdatasync")
    assert len(q.get_many(4)) == 4
    monkeypatch.undo()
    with pytest.raises(PoisonedError, match=str(path)):
        q.put("x")
    q.close()
