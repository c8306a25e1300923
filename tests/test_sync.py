"""The sync option and sync(). What a power cut does is not for a test of this kind; that every setting works, is."""

from __future__ import annotations

import threading

import pytest
from processes import PATIENCE, until

from durableq import _os
from durableq._handle import Handle


@pytest.mark.parametrize("sync", [0, 0.01, 1.0, 30, None])
def test_every_setting_queues_and_delivers(open_queue, sync):
    q = open_queue(sync=sync)
    q.put_many("ab")
    assert [q.get_nowait(), q.get_nowait()] == ["a", "b"]
    q.task_done()
    q.close()
    assert open_queue().get_nowait() == "b"


@pytest.mark.parametrize("sync", [0, 1.0, None])
def test_sync_may_be_called_at_any_time(open_queue, sync):
    q = open_queue(sync=sync)
    assert q.sync() is None
    q.put("x")
    q.sync()
    q.get_nowait()
    q.task_done()
    q.sync()


def test_many_threads_that_sync_each_put_lose_none(open_queue):
    q = open_queue(sync=0)

    def produce(name):
        for number in range(25):
            q.put((name, number))

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(q.get_many(200)) == [(name, number) for name in range(4) for number in range(25)]


def test_handles_with_different_settings_share_one_queue(open_queue):
    careful, careless = open_queue(sync=0), open_queue(sync=None)
    careless.put("a")
    careful.put("b")
    assert [careful.get_nowait(), careless.get_nowait()] == ["a", "b"]


def test_a_process_with_a_sync_interval_ends_by_itself(start, path, open_queue):
    start("DurableQueue(path, sync=60).put('x')", path).finish()
    assert open_queue().get_nowait() == "x"


def test_a_forked_child_of_a_syncing_process_can_put(start, path, open_queue):
    start(
        """
        q = DurableQueue(path, sync=0.01)
        q.put("parent")
        child = os.fork()
        if child == 0:
            q.put("child")
            q.sync()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        path,
    ).finish()
    assert open_queue().get_many(5) == ["parent", "child"]


def test_a_negative_interval_raises_value_error(open_queue):
    with pytest.raises(ValueError, match="sync"):
        open_queue(sync=-1)


@pytest.fixture
def syncs(monkeypatch):
    """How often this process has synced by now."""
    calls = []
    real = _os.fdatasync

    def counted(fd):
        calls.append(fd)
        return real(fd)

    monkeypatch.setattr(_os, "fdatasync", counted)
    return calls


def test_who_opens_syncs_for_all_who_were_killed_before_their_sync(start, path, open_queue, syncs):
    idle = start("q = DurableQueue(path, sync=60); say('open'); hear()", path)
    idle.expect("open")
    writer = start("q = DurableQueue(path, sync=60); q.put('x'); say('put'); hear()", path)
    writer.expect("put")
    for child in (writer, idle):
        child.kill()
    open_queue(sync=None)
    assert syncs


def test_who_only_counts_syncs_for_the_killed_when_it_looks_around(start, path, q, syncs):
    writer = start("q = DurableQueue(path, sync=60); q.put('x'); q.get(); say('put'); hear()", path)
    writer.expect("put")
    writer.kill()
    assert q.qsize() == 1
    q._store.reap()
    assert len(syncs) == 1


def test_who_buries_a_writer_and_is_killed_before_its_sync_leaves_it_to_the_next(start, path, q, syncs):
    writer = start("q = DurableQueue(path, sync=60); q.put('x'); say('put'); hear()", path)
    undertaker = start(
        """
        from durableq import _os
        q = DurableQueue(path, sync=None)
        say("open")
        hear()
        _os.fdatasync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        q._store.reap()
        """,
        path,
    )
    undertaker.expect("open")
    writer.expect("put")
    writer.kill()
    undertaker.tell()
    undertaker.process.wait(PATIENCE)
    assert not syncs
    q._store.reap()
    assert len(syncs) == 1


def test_where_no_thread_can_be_started_each_write_is_synced(open_queue, monkeypatch, syncs):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    q = open_queue(sync=60)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        before = len(syncs)
        q.put("x")
        q.put("y")
        assert len(syncs) == before + 2
    q.put("z")
    assert len(syncs) == before + 2


@pytest.mark.parametrize("compiled", [True, False])
def test_an_interrupt_while_the_thread_is_told_costs_no_sync(path, open_queue, monkeypatch, compiled):
    monkeypatch.setattr(Handle, "compiled", compiled)
    q = open_queue(sync=0.01, serializer="bytes")
    q.put(b"first")
    committer = q._store._committer
    until(lambda: not committer.armed)
    real = committer._wanted.set

    def interrupted():
        committer._wanted.set = real
        raise KeyboardInterrupt

    committer._wanted.set = interrupted
    with pytest.raises(KeyboardInterrupt):
        q.put_many([b"x"])
    synced = threading.Event()
    fdatasync = _os.fdatasync
    monkeypatch.setattr(_os, "fdatasync", lambda fd: (fdatasync(fd), synced.set()))
    q.put_many([b"y"])
    assert synced.wait(PATIENCE)
