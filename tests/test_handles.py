"""Several handles on one path in one process: one queue, independent owners."""

from __future__ import annotations

import threading

import pytest
from processes import PATIENCE

from durableq import Empty


def test_what_one_handle_puts_the_other_gets(open_queue):
    one, two = open_queue(), open_queue()
    one.put("x")
    assert two.get_nowait() == "x"


def test_an_item_is_lent_to_one_of_them_only(open_queue):
    one, two = open_queue(), open_queue()
    one.put("x")
    one.get_nowait()
    with pytest.raises(Empty):
        two.get_nowait()


def test_closing_one_leaves_the_other_usable(open_queue):
    one, two = open_queue(), open_queue()
    one.put("a")
    one.close()
    two.put("b")
    assert [two.get_nowait(), two.get_nowait()] == ["a", "b"]


def test_closing_one_leaves_the_other_s_locks_in_force(open_queue, start, path):
    # Closing any descriptor of a file drops the classic locks of the whole process; the kind used here must not.
    one, two = open_queue(), open_queue()
    two.put("x")
    two.get_nowait()
    one.close()
    other = start(
        """
        q = DurableQueue(path)
        try:
            q.get(timeout=0.3)
        except durableq.Empty:
            say("still lent")
        """,
        path,
    )
    other.expect("still lent")


def test_a_thread_that_waits_on_one_is_woken_by_the_other(open_queue):
    one, two = open_queue(), open_queue()
    got = []
    waiter = threading.Thread(target=lambda: got.append(one.get(timeout=PATIENCE)))
    waiter.start()
    two.put("x")
    waiter.join(PATIENCE)
    assert got == ["x"]


def test_threads_on_handles_of_their_own_lose_and_double_nothing(open_queue):
    source = open_queue()
    got = []

    def consume():
        mine = open_queue()
        while True:
            item = mine.get(timeout=PATIENCE)
            mine.task_done()
            if item is None:
                return
            got.append(item)

    def produce(name):
        mine = open_queue()
        for number in range(200):
            mine.put((name, number))

    producers = [threading.Thread(target=produce, args=(name,)) for name in range(2)]
    consumers = [threading.Thread(target=consume) for _ in range(2)]
    for thread in producers + consumers:
        thread.start()
    for thread in producers:
        thread.join(PATIENCE)
    source.put_many([None, None])
    for thread in consumers:
        thread.join(PATIENCE)
    assert sorted(got) == [(name, number) for name in range(2) for number in range(200)]


def test_both_are_named_among_the_owners(open_queue):
    one, _two = open_queue(), open_queue()
    assert len(one.stats().owners) == 2


def test_many_handles_may_be_open_at_once(open_queue):
    handles = [open_queue() for _ in range(50)]
    for number, handle in enumerate(handles):
        handle.put(number)
    assert [handle.get_nowait() for handle in handles] == list(range(50))


def test_one_handle_may_be_shared_by_many_threads(q):
    got = []

    def work():
        for number in range(100):
            q.put(number)
            got.append(q.get(timeout=PATIENCE))
            q.task_done()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == sorted(list(range(100)) * 4)
    assert q.stats().unfinished == 0


def test_a_ledger_that_moves_is_followed_by_the_other_handles(open_queue):
    # More than four times what the smallest ledger holds, so that it is laid out anew when all of it is done.
    one, two = open_queue(), open_queue()
    one.put_many(range(20_001))
    one.get_many(20_000)
    assert two.get() == 20_000  # so it knows the ledger as it is now
    two.task_done()
    for _ in range(20_000):
        one.task_done()
    one.put("x")
    assert two.get() == "x"
    assert [owner.lent for owner in one.stats().owners] == [0, 1]
    two.close()
    assert one.get_nowait() == "x"
