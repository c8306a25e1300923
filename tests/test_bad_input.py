"""Bad input: every error names the file, what is wrong and the remedy, and what was refused is left as it was."""

from __future__ import annotations

import os
import pickle
import re
import struct
import threading
import time
from types import SimpleNamespace

import pytest

import durableq
from durableq import (
    DamagedError,
    DurableQueue,
    InsecureSpoolError,
    NewerFormatError,
    NotASpoolError,
    SpoolReplacedError,
)

VERSION_OFFSET = 8
SALT_OFFSET = 12
COPY_OFFSET = 7 * 512  # of the superblock's first sector


def refuses(path, error, **options):
    """Opening fails with this error and leaves the file alone; returns the message."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error, match=re.escape(str(path))) as caught:
        DurableQueue(path, **options)
    if before is not None:
        assert path.read_bytes() == before
    return str(caught.value)


STRANGERS = {
    "text": b"hello\n",
    "zeros": bytes(4096),
    "a database": b"SQLite format 3\0" + bytes(8000),
    "noise": bytes(range(1, 256)) * 50,
}


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_file_that_is_no_spool_is_refused(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    assert "not a durableq spool" in refuses(path, NotASpoolError)


def test_a_spool_of_a_newer_format_is_refused(path):
    DurableQueue(path).close()
    with open(path, "r+b") as file:
        for copy in (0, COPY_OFFSET):
            file.seek(copy + VERSION_OFFSET)
            file.write(struct.pack("<I", 99))
    assert "upgrade" in refuses(path, NewerFormatError)


def test_a_spool_with_one_damaged_sector_in_its_superblock_opens_as_if_nothing_had_been(path):
    with DurableQueue(path, maxsize=7) as q:
        q.put("x")
    for offset in range(0, 4096, 512):
        before = path.read_bytes()
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 512)
        path.with_name(path.name + "-shm").unlink()
        with DurableQueue(path) as q:
            assert (q.peek(), q.qsize(), q.maxsize) == (["x"], 1, 7)
        path.write_bytes(before)


def test_a_spool_with_a_damaged_superblock_is_refused_and_names_the_repair(path):
    DurableQueue(path).close()
    with open(path, "r+b") as file:
        for copy in (0, COPY_OFFSET):
            file.seek(copy + SALT_OFFSET)
            file.write(b"\xff\xff\xff\xff")
    assert "repair" in refuses(path, DamagedError)


def test_a_spool_cut_off_inside_its_superblock_is_refused_and_names_the_repair(path):
    DurableQueue(path).close()
    os.truncate(path, 20)
    assert "repair" in refuses(path, DamagedError)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_pickle_spool_that_others_can_write_to_is_refused(path, mode):
    DurableQueue(path).close()
    path.chmod(mode)
    assert "chmod" in refuses(path, InsecureSpoolError)


@pytest.mark.parametrize("serializer", ["json", "bytes"])
def test_a_spool_that_others_can_write_to_may_be_opened_without_pickle(path, serializer):
    DurableQueue(path).close()
    path.chmod(0o666)
    DurableQueue(path, serializer=serializer).close()


@pytest.mark.parametrize("serializer", [pickle, SimpleNamespace(dumps=pickle.dumps, loads=pickle.loads)])
def test_with_a_serializer_object_a_spool_that_others_can_write_to_is_refused_as_with_pickle(path, serializer):
    DurableQueue(path).close()
    path.chmod(0o666)
    assert "chmod" in refuses(path, InsecureSpoolError, serializer=serializer)


def test_a_serializer_object_that_says_it_runs_no_code_may_open_a_spool_that_others_can_write_to(path):
    DurableQueue(path).close()
    path.chmod(0o666)
    DurableQueue(path, serializer=SimpleNamespace(dumps=str.encode, loads=bytes.decode, runs_code=False)).close()


def test_a_spool_that_others_can_only_read_is_not_refused(path):
    DurableQueue(path).close()
    path.chmod(0o644)
    DurableQueue(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_somebody_else_s_pickle_spool_is_refused(path):
    DurableQueue(path).close()
    os.chown(path, 12345, -1)
    assert "12345" in refuses(path, InsecureSpoolError)


def test_the_refusal_of_an_insecure_spool_can_be_overridden(path, start):
    DurableQueue(path).close()
    path.chmod(0o666)
    override = {"DURABLEQ_ALLOW_INSECURE": "1"}
    start("DurableQueue(path).put('x')", path, env=override).finish()


def test_a_new_spool_is_nobody_else_s_to_read(path):
    old = os.umask(0)
    try:
        with DurableQueue(path) as q:
            q.put("x")
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob(path.name + "*")}
    finally:
        os.umask(old)
    assert modes
    assert set(modes.values()) == {0o600}


def test_mode_is_the_spool_s_mode_whatever_the_umask_says(path):
    old = os.umask(0o077)
    try:
        DurableQueue(path, mode=0o640).close()
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_directory_is_refused(tmp_path):
    refuses(tmp_path, IsADirectoryError)


def test_a_missing_parent_is_refused_and_not_created(tmp_path):
    refuses(tmp_path / "missing" / "q.dq", FileNotFoundError)
    assert not (tmp_path / "missing").exists()


def test_a_fifo_is_refused_without_waiting_for_its_other_end(path):
    os.mkfifo(path, 0o600)
    with pytest.raises((NotASpoolError, OSError), match=re.escape(str(path))):
        DurableQueue(path)


def test_a_fifo_is_not_checked_and_its_other_end_is_not_waited_for(path):
    os.mkfifo(path, 0o600)
    with pytest.raises(NotASpoolError, match="is a FIFO"):
        durableq.check(path)


@pytest.mark.parametrize("path_like", [None, 5, 1.5, ["q.dq"]])
def test_a_path_that_is_none_raises_type_error(path_like):
    with pytest.raises(TypeError):
        DurableQueue(path_like)


def test_an_item_that_cannot_be_pickled_raises_in_put_and_leaves_the_queue_as_it_was(q):
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        q.put(lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        q.put(threading.Lock())
    assert q.empty()
    q.put("fine")
    assert q.get_nowait() == "fine"


TIMED = {
    "put": lambda q, timeout: q.put("x", timeout=timeout),
    "put_many": lambda q, timeout: q.put_many(["x"], timeout=timeout),
    "get": lambda q, timeout: q.get(timeout=timeout),
    "get_many": lambda q, timeout: q.get_many(2, timeout=timeout),
    "reserve": lambda q, timeout: q.reserve(timeout=timeout),
    "reserve_many": lambda q, timeout: q.reserve_many(2, timeout=timeout),
}


@pytest.mark.parametrize("method", TIMED.values(), ids=TIMED.keys())
def test_a_negative_timeout_raises_value_error(q, method):
    q.put("there")
    with pytest.raises(ValueError, match="timeout"):
        method(q, -1)
    assert q.qsize() == 1


def test_without_block_the_timeout_is_not_looked_at(q):
    q.put("x", False, -1)
    assert q.get(False, -1) == "x"


def test_an_unknown_option_raises_type_error(path):
    with pytest.raises(TypeError):
        DurableQueue(path, colour="red")
    assert not path.exists()


@pytest.mark.parametrize("operation", ["put", "get"])
def test_a_deleted_file_is_noticed_under_an_open_handle(path, operation):
    q = DurableQueue(path, sync=None)
    q.put_many(range(10_000))
    path.unlink()
    assert "deleted" in noticed(q, operation, path)
    q.close()


@pytest.mark.parametrize("operation", ["put", "get"])
def test_a_replaced_file_is_noticed_under_an_open_handle(path, tmp_path, operation):
    DurableQueue(tmp_path / "other.dq").close()
    q = DurableQueue(path, sync=None)
    q.put_many(range(10_000))
    os.replace(tmp_path / "other.dq", path)
    assert "replaced" in noticed(q, operation, path)
    q.close()


def noticed(q, operation, path):
    # The path is looked at now and then, not at every call.
    deadline = time.monotonic() + 20
    with pytest.raises(SpoolReplacedError, match=re.escape(str(path))) as caught:
        while time.monotonic() < deadline:
            if operation == "put":
                q.put("x")
            elif not q.get_many(1, timeout=0.01):
                raise AssertionError
    return str(caught.value)


def every_error():
    return [
        getattr(durableq, name)
        for name in dir(durableq)
        if isinstance(getattr(durableq, name), type) and issubclass(getattr(durableq, name), Exception)
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_errors_survive_pickling(error):
    original = error("q.dq: what is wrong; the remedy")
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert str(copy) == str(original)


@pytest.mark.parametrize("error", [e for e in every_error() if e.__name__.endswith("Error")])
def test_errors_have_one_base(error):
    assert issubclass(error, durableq.DurableQError)
