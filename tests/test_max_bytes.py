"""max_bytes: a bound on what the queue keeps on disk."""

from __future__ import annotations

import threading
import time

import pytest
from processes import PATIENCE

from durableq import Full

MEBIBYTE = 1 << 20
ITEM = bytes(100_000)


def fill(q):
    placed = 0
    try:
        while True:
            q.put_nowait((placed, ITEM))
            placed += 1
    except Full:
        return placed


def test_a_put_beyond_max_bytes_raises_full(open_queue):
    q = open_queue(max_bytes=MEBIBYTE)
    placed = fill(q)
    assert 5 <= placed <= 10
    assert q.qsize() == placed
    assert q.stats().bytes_live <= MEBIBYTE


def test_a_put_beyond_max_bytes_raises_full_after_its_timeout(open_queue):
    q = open_queue(max_bytes=MEBIBYTE)
    fill(q)
    began = time.monotonic()
    with pytest.raises(Full):
        q.put(ITEM, timeout=0.1)
    assert time.monotonic() - began >= 0.1


def test_a_put_that_waits_for_bytes_goes_on_when_items_are_done(open_queue):
    q = open_queue(max_bytes=MEBIBYTE)
    placed = fill(q)
    producer = threading.Thread(target=q.put, args=(("last", ITEM),), kwargs={"timeout": PATIENCE})
    producer.start()
    for number in range(placed):
        assert q.get_nowait()[0] == number
        q.task_done()
    producer.join(PATIENCE)
    assert q.get(timeout=PATIENCE)[0] == "last"


def test_many_times_max_bytes_pass_through_a_bounded_queue(open_queue, start, path):
    q = open_queue(max_bytes=MEBIBYTE)
    producer = start(
        """
        q = DurableQueue(path)
        for number in range(100):
            q.put((number, bytes(100_000)))
        say("put")
        """,
        path,
    )
    for number in range(100):
        assert q.get(timeout=PATIENCE)[0] == number
        q.task_done()
        assert q.stats().bytes_live <= MEBIBYTE
    producer.expect("put")


def test_small_items_are_bounded_too(open_queue):
    q = open_queue(max_bytes=64 * 1024)
    placed = 0
    with pytest.raises(Full):
        for placed in range(100_000):
            q.put_nowait(placed)
    assert 100 <= placed <= 64 * 1024
    assert q.qsize() == placed


def test_drop_oldest_never_waits_and_keeps_the_newest(open_queue):
    q = open_queue(max_bytes=MEBIBYTE, on_full="drop_oldest")
    for number in range(50):
        q.put_nowait((number, ITEM))
    numbers = [number for number, _ in q.get_many(100)]
    assert 5 <= len(numbers) <= 10
    assert numbers == list(range(50 - len(numbers), 50))


def test_drop_oldest_counts_its_drops(open_queue):
    q = open_queue(max_bytes=MEBIBYTE, on_full="drop_oldest")
    for number in range(50):
        q.put((number, ITEM))
    stats = q.stats()
    assert stats.drops == 50 - stats.ready
    assert stats.puts == 50
    assert stats.bytes_live <= MEBIBYTE


def test_dropped_items_count_as_finished(open_queue):
    q = open_queue(max_bytes=MEBIBYTE, on_full="drop_oldest")
    for number in range(50):
        q.put((number, ITEM))
    for _ in q.get_many(100):
        q.task_done()
    q.join()


def test_dropped_items_do_not_come_back_after_a_reopening(open_queue):
    q = open_queue(max_bytes=MEBIBYTE, on_full="drop_oldest")
    for number in range(50):
        q.put((number, ITEM))
    expected = [number for number, _ in q.peek(100)]
    q.close()
    again = open_queue()
    assert [number for number, _ in again.get_many(100)] == expected
    assert again.stats().drops == 50 - len(expected)


def test_drop_oldest_gives_the_dropped_items_blocks_back(open_queue, path, punches_holes):
    q = open_queue(max_bytes=MEBIBYTE, on_full="drop_oldest")
    for number in range(200):
        q.put((number, ITEM))
    assert path.stat().st_blocks * 512 <= MEBIBYTE + (4 << 20)


def test_on_full_without_sense_raises_value_error(open_queue):
    with pytest.raises(ValueError, match="on_full"):
        open_queue(max_bytes=MEBIBYTE, on_full="explode")


def test_max_bytes_is_stored_with_the_queue(open_queue):
    open_queue(max_bytes=MEBIBYTE).close()
    assert 5 <= fill(open_queue()) <= 10


def test_after_full_there_is_room_once_items_are_done(open_queue):
    q = open_queue(max_bytes=MEBIBYTE)
    for _ in range(3):
        for _ in range(fill(q)):
            q.get_nowait()
            q.task_done()
    assert q.empty()
