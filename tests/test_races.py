"""Races between handles, threads, forks, garbage collection and interrupts, each forced and none slept for."""

from __future__ import annotations

import gc
import threading

import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, _os


@pytest.mark.usefixtures("in_python")
def test_a_handle_that_is_garbage_is_collected_under_the_locks_of_another_without_a_hang(path, open_queue, monkeypatch):
    q = open_queue(sync=None)
    q.put("x")
    forgotten = DurableQueue(path, sync=None)
    assert forgotten.get() == "x"
    cycle = [forgotten]
    cycle.append(cycle)
    del forgotten, cycle
    real = _os.pwrite

    def collect(*args):
        gc.collect()
        return real(*args)

    monkeypatch.setattr(_os, "pwrite", collect)
    done = threading.Thread(target=q.put, args=("y",), daemon=True)
    done.start()
    done.join(PATIENCE)
    assert not done.is_alive()
    monkeypatch.undo()
    assert q.qsize() == 2
    assert q.get_many(5) == ["x", "y"]


@pytest.mark.usefixtures("in_python")
def test_an_item_that_another_takes_after_an_interrupt_is_not_given_back_once_more(path, open_queue, monkeypatch):
    q, other = open_queue(sync=None, ack="get"), open_queue(sync=None, ack="get")
    q.put("x")
    got = []
    mark = q._store._mark_done
    untake = q._store.untake

    def interrupted(*args):
        mark(*args)
        raise KeyboardInterrupt

    def meanwhile(*args):
        got.append(other.get(timeout=1))
        return untake(*args)

    real = _os.pwrite

    def pwrite(fd, data, offset):
        written = real(fd, data, offset)
        if data == b"\xf0" and not got:
            monkeypatch.setattr(_os, "pwrite", real)
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr(q._store, "_mark_done", interrupted)
    monkeypatch.setattr(q._store, "untake", meanwhile)
    monkeypatch.setattr(_os, "pwrite", pwrite)
    with pytest.raises(KeyboardInterrupt):
        q.get()
    monkeypatch.undo()
    while not other.empty():
        got.append(other.get())
    assert got == ["x"]


def test_a_dead_holder_shows_in_qsize_without_a_get(start, path, q):
    q.put_many(["held", "waiting"])
    holder = start("q = DurableQueue(path); say(q.get()); hear()", path)
    holder.expect("held")
    assert q.qsize() == 1
    holder.kill()
    assert q.qsize() == 2
    assert q.stats().lent == 0


def test_a_dead_sleeper_is_not_counted_for_ever(start, path, q):
    sleeper = start("DurableQueue(path).get()", path)
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    sleeper.kill()
    q._store.reap()
    assert q._store._words[72] == 0


def test_a_lent_dead_letter_returns_although_its_holder_had_slept_in_get(start, path, q):
    q.put("x")
    q.reserve().reject()
    holder = start(
        """
        q = DurableQueue(path)
        letter = q.dead_letters.reserve()
        try:
            q.get(timeout=0.01)
        except durableq.Empty:
            say("slept")
        hear()
        """,
        path,
    )
    holder.expect("slept")
    holder.kill()
    assert q.dead_letters.qsize() == 1
    assert q.dead_letters.peek() == ["x"]


def test_a_child_does_not_finish_what_its_dead_parent_had_taken(start, path, q):
    q.put_many(["parent's", "child's"])
    parent = start(
        """
        q = DurableQueue(path)
        q.get()
        if os.fork() == 0:
            say("forked")
            hear()
            say(q.get(), q.get())
            q.task_done()
            say("done")
            hear()
            os._exit(0)
        signal.pause()
        """,
        path,
    )
    parent.expect("forked")
    parent.kill()
    assert q.qsize() == 2
    parent.tell()
    parent.expect("parent's child's")
    parent.expect("done")
    parent.tell()
    assert q.get(timeout=PATIENCE) == "child's"
    assert q.empty()


def test_a_poisoned_holder_s_items_return_although_its_child_lives(start, path, q):
    q.put("x")
    parent = start(
        """
        from durableq import _os
        q = DurableQueue(path, sync=0)
        q.get()
        def fail(fd):
            raise OSError(5, "sick disk")
        _os.fdatasync = fail
        try:
            q.put("y")
        except OSError:
            pass
        if os.fork() == 0:
            say("poisoned")
            hear()
            os._exit(0)
        signal.pause()
        """,
        path,
    )
    parent.expect("poisoned")
    parent.kill()
    assert q.qsize() >= 1
    items = q.get_many(5)
    while not q.empty():
        items += q.get_many(5)
    assert "x" in items
    parent.tell()


def test_closing_a_handle_wakes_its_threads_in_get_put_and_join(open_queue, path):
    q = open_queue(maxsize=1)
    watcher = open_queue()
    raised = []

    def run(work):
        try:
            work()
        except ValueError as error:
            raised.append(type(error).__name__)

    q.put("x")
    waiting = [threading.Thread(target=run, args=(work,)) for work in (lambda: q.put("y"), q.join)]
    for thread in waiting:
        thread.start()
    until(lambda: sum(watcher._store._words[word] for word in (80, 88)) == 2)
    q.close()
    for thread in waiting:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert raised == ["ClosedError"] * 2
    assert [watcher._store._words[word] for word in (72, 80, 88)] == [0, 0, 0]


@pytest.mark.parametrize("bound", [{"maxsize": 1}, {"max_bytes": 64}], ids=lambda bound: next(iter(bound)))
def test_a_put_is_not_left_waiting_for_room_that_came_between_its_try_and_its_wait(open_queue, monkeypatch, bound):
    q, other = open_queue(ack="get", **bound), open_queue(ack="get")
    q.put("x")
    order = []

    def before_the_wait(*args):
        order.append(other.get())
        monkeypatch.undo()
        return real(*args)

    real = q._store.wait_for_room
    monkeypatch.setattr(q._store, "wait_for_room", before_the_wait)
    putter = threading.Thread(target=q.put, args=("y",), daemon=True)
    putter.start()
    putter.join(PATIENCE)
    assert not putter.is_alive()
    assert order == ["x"]
    assert other.get_nowait() == "y"


def test_a_put_that_may_drop_the_oldest_goes_on_when_there_is_something_to_drop_again(path, open_queue, start):
    q = open_queue(max_bytes=130, on_full="drop_oldest", sync=None)
    q.put("a")
    lent = q.reserve()
    holder = start(
        """
        q = DurableQueue(path)
        q.put("b")
        delivery = q.reserve()
        say("has it")
        hear()
        delivery.nack()
        say("back")
        hear()
        """,
        path,
    )
    holder.expect("has it")
    putter = threading.Thread(target=q.put, args=("c",), daemon=True)
    putter.start()
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    holder.tell()
    holder.expect("back")
    putter.join(PATIENCE)
    assert not putter.is_alive()
    assert q.get() == "c"
    q.task_done()
    lent.ack()
    assert q.stats().drops == 1
