"""A disk that fails: the call says so, the handle refuses further writes, and others can open the queue again."""

from __future__ import annotations

import errno
import os
import threading

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
