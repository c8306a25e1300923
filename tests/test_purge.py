"""purge and compact."""

from __future__ import annotations

import os

import pytest

from durableq import Empty


def test_purge_removes_what_waits_and_says_how_many(q):
    q.put_many("abc")
    q.put("later", delay=60)
    assert q.purge() == 4
    assert q.empty()
    with pytest.raises(Empty):
        q.get_nowait()


def test_purge_of_an_empty_queue_is_zero(q):
    assert q.purge() == 0


def test_purge_leaves_what_is_lent(q):
    q.put_many("ab")
    delivery = q.reserve(timeout=0)
    assert q.purge() == 1
    assert q.stats().lent == 1
    delivery.nack()
    assert q.get_nowait() == "a"


def test_purge_leaves_the_dead_letters(q):
    q.put_many("ab")
    q.reserve(timeout=0).reject()
    q.purge()
    assert q.dead_letters.get_nowait() == "a"


def test_purge_removes_returned_items_too(q):
    q.put_many("ab")
    q.reserve(timeout=0).nack()
    assert q.purge() == 2
    assert q.empty()


def test_purged_items_count_as_finished(q):
    q.put_many("abc")
    q.purge()
    q.join()


def test_purged_items_do_not_come_back_after_a_reopening(q, open_queue):
    q.put_many("abc")
    q.purge()
    q.close()
    assert open_queue().empty()


def test_purge_makes_room_for_a_put_that_waits(open_queue, start, path):
    q = open_queue(maxsize=1)
    q.put("first")
    producer = start("q = DurableQueue(path); say('open'); q.put('second'); say('put')", path)
    producer.expect("open")
    q.purge()
    producer.expect("put")
    assert q.get_nowait() == "second"


def test_items_put_after_a_purge_arrive(q):
    q.put_many("abc")
    q.purge()
    q.put("d")
    assert q.get_nowait() == "d"


def test_compact_gives_back_bytes_and_keeps_every_item(q):
    q.put_many(os.urandom(10_000) for _ in range(300))
    expected = q.peek(300)[200:]
    for _ in range(200):
        q.get_nowait()
        q.task_done()
    given_back = q.compact()
    assert isinstance(given_back, int)
    assert given_back >= 0
    stats = q.stats()
    assert stats.bytes_on_disk <= stats.bytes_live + (1 << 20)
    assert [q.get_nowait() for _ in range(100)] == expected


def test_compact_of_an_empty_queue_leaves_almost_nothing_on_disk(q, path):
    q.put_many(os.urandom(10_000) for _ in range(300))
    for _ in range(300):
        q.get_nowait()
        q.task_done()
    q.compact()
    assert path.stat().st_blocks * 512 <= 64 * 1024


def test_compact_while_other_processes_put_and_get_loses_nothing(q, start, path):
    producer = start(
        """
        q = DurableQueue(path, maxsize=0)
        for number in range(400):
            q.put((number, bytes(5000)))
        say("put")
        """,
        path,
    )
    seen = []
    for _ in range(400):
        number, _ = q.get(timeout=30)
        q.task_done()
        seen.append(number)
        if number % 20 == 0:
            q.compact()
    producer.expect("put")
    assert seen == list(range(400))


def test_what_was_compacted_is_there_after_a_reopening(q, open_queue):
    q.put_many((number, bytes(9000)) for number in range(200))
    for _ in range(150):
        q.get_nowait()
        q.task_done()
    held = q.reserve(timeout=0)
    q.compact()
    held.nack()
    q.close()
    again = open_queue()
    assert [again.get_nowait()[0] for _ in range(50)] == list(range(150, 200))
    again.put("after")
    assert again.get_nowait() == "after"
