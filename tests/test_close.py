"""close, closed, and the handle as a context manager."""

from __future__ import annotations

import threading

import pytest
from processes import PATIENCE, until

from durableq import ClosedError, DurableQueue


def test_closed_says_whether_the_handle_is_closed(q):
    assert not q.closed
    q.close()
    assert q.closed


def test_a_second_close_does_nothing(q):
    q.close()
    q.close()


def test_leaving_the_context_closes(path):
    with DurableQueue(path) as q:
        assert not q.closed
    assert q.closed


def test_leaving_the_context_by_an_exception_closes_and_lets_it_through(path):
    with pytest.raises(ZeroDivisionError), DurableQueue(path) as q:
        raise ZeroDivisionError
    assert q.closed


OPERATIONS = {
    "put": lambda q: q.put("x"),
    "put_nowait": lambda q: q.put_nowait("x"),
    "put_many": lambda q: q.put_many(["x"]),
    "get": lambda q: q.get(),
    "get_nowait": lambda q: q.get_nowait(),
    "get_many": lambda q: q.get_many(2),
    "reserve": lambda q: q.reserve(),
    "reserve_many": lambda q: q.reserve_many(2),
    "task_done": lambda q: q.task_done(),
    "join": lambda q: q.join(),
    "qsize": lambda q: q.qsize(),
    "empty": lambda q: q.empty(),
    "full": lambda q: q.full(),
    "peek": lambda q: q.peek(),
    "stats": lambda q: q.stats(),
    "sync": lambda q: q.sync(),
    "purge": lambda q: q.purge(),
    "compact": lambda q: q.compact(),
    "redrive": lambda q: q.redrive(),
    "shutdown": lambda q: q.shutdown(),
    "dead_letters": lambda q: q.dead_letters.qsize(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_a_closed_handle_raises_value_error(q, operation, path):
    q.close()
    with pytest.raises(ValueError) as caught:
        operation(q)
    assert isinstance(caught.value, ClosedError)
    assert str(path) in str(caught.value)


def test_path_and_maxsize_of_a_closed_handle_are_readable(q, path):
    q.close()
    assert q.path == str(path)
    assert q.maxsize == 0


def test_close_gives_back_what_the_handle_held(q, open_queue):
    other = open_queue()
    q.put_many("abc")
    q.get_nowait()
    q.reserve(timeout=0)
    q.close()
    assert [other.get_nowait() for _ in range(3)] == ["a", "b", "c"]


def test_close_leaves_what_other_handles_hold(q, open_queue):
    q.put_many("ab")
    other = open_queue()
    assert other.get_nowait() == "a"
    q.close()
    assert other.stats().lent == 1
    assert other.get_nowait() == "b"


def test_what_close_gives_back_reaches_a_process_that_waits(q, start, path):
    q.put("x")
    q.get_nowait()
    consumer = start("say(DurableQueue(path).get())", path)
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.close()
    consumer.expect("x")


def test_a_handle_that_is_closed_while_a_thread_waits_in_get_ends_the_wait(q):
    outcome = []

    def wait():
        try:
            q.get()
        except ValueError as error:
            outcome.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: any(owner.waiting for owner in q.stats().owners))
    q.close()
    waiter.join(PATIENCE)
    assert len(outcome) == 1


def test_a_program_that_ends_without_close_loses_nothing(start, path, open_queue):
    start("q = DurableQueue(path); q.put_many('abc'); q.get(); q.task_done(); q.get()", path).finish()
    assert open_queue().get_many(5) == ["b", "c"]


def test_a_program_that_ends_by_an_exception_gives_back_what_it_held(start, path, q):
    q.put("x")
    failing = start("q = DurableQueue(path); say(q.get()); raise ValueError", path)
    failing.expect("x")
    failing.process.wait(PATIENCE)
    assert q.get(timeout=PATIENCE) == "x"


def test_a_handle_that_is_forgotten_gives_back_what_it_held(start, path):
    start(
        """
        import gc
        q = DurableQueue(path)
        q.put("x")
        q.get()
        del q
        gc.collect()
        assert DurableQueue(path).get(timeout=30) == "x"
        """,
        path,
    ).finish()


def test_opening_and_closing_leaks_no_descriptor(start, path):
    start(
        """
        def use():
            with DurableQueue(path) as q:
                q.put("x")
                q.get()
            return len(os.listdir("/proc/self/fd"))
        first = use()
        assert [use() for _ in range(20)] == [first] * 20
        """,
        path,
    ).finish()


def test_a_close_waits_for_the_thread_that_another_thread_s_first_put_is_about_to_start(q, monkeypatch):
    waited = []
    closer = threading.Thread(target=q.close)
    start = threading.Thread.start

    def late(thread):
        if thread.name == "durableq-sync":
            start(closer)
            assert q._store._committer._stop.wait(PATIENCE)
            closer.join(0.3)
            waited.append(closer.is_alive())  # it must not come to its end before there is a thread to wait for
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    q.put("x")
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert waited == [True]


def test_join_thread_after_close_returns(q):
    q.put("x")
    q.close()
    q.join_thread()


def test_the_representation_names_the_file_and_survives_closing(q, path):
    assert str(path) in repr(q)
    q.close()
    assert str(path) in repr(q)


def test_closing_a_handle_whose_files_were_deleted_leaves_nothing_behind(path):
    q = DurableQueue(path)
    q.put("x")
    for file in path.parent.iterdir():
        file.unlink()
    q.close()
    assert list(path.parent.iterdir()) == []
