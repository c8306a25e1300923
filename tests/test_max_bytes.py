"""max_bytes: a bound on what the queue keeps on disk."""

from __future__ import annotations

import threading
import time

import pytest
from processes import PATIENCE, until

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


# -- what cannot be dropped --------------------------------------------------------------------------------------------

LARGE, LARGER = b"x" * 8000, b"y" * 4000
SMALL = [b"a", b"b", b"c", b"d", b"e"]


@pytest.fixture
def ring(open_queue):
    return open_queue(max_bytes=10_000, on_full="drop_oldest", serializer="bytes", sync=None)


def lend(ring):
    ring.put(LARGE)
    return ring.reserve()


def bury(ring):
    ring.put(LARGE)
    ring.reserve().reject()


def put_off(ring):
    ring.put(LARGE)
    ring.reserve().nack(delay=60)


def put_for_later(ring):
    """Nobody has come to it yet."""
    ring.put(LARGE, delay=60)


@pytest.mark.parametrize("keep", [lend, bury, put_off, put_for_later])
def test_a_put_for_which_dropping_makes_no_room_drops_nothing(ring, keep):
    kept = keep(ring)
    for item in SMALL:
        ring.put(item)
    with pytest.raises(Full):
        ring.put_nowait(LARGER)
    assert ring.stats().drops == 0
    assert ring.get_many(9) == SMALL
    del kept


def test_a_put_that_waits_for_what_cannot_be_dropped_leaves_alone_what_others_put(ring, open_queue, monkeypatch):
    ring.put(LARGE)
    lent = ring.reserve()
    putter, tries, looks = open_queue(serializer="bytes"), [], []
    append, may_put = putter._store.append, putter._store.may_put
    monkeypatch.setattr(putter._store, "append", lambda *args: tries.append(args) or append(*args))
    monkeypatch.setattr(putter._store, "may_put", lambda body: looks.append(body) or may_put(body))
    waiting = threading.Thread(target=putter.put, args=(LARGER,), kwargs={"timeout": PATIENCE}, daemon=True)
    waiting.start()
    for item in SMALL:
        ring.put(item)
        seen = len(looks)
        until(lambda seen=seen: len(looks) > seen + 1)  # one look may have begun before
    assert ring.qsize() == len(SMALL)
    assert len(tries) < 5  # it slept
    lent.ack()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert ring.get_many(9) == [*SMALL, LARGER]
    assert ring.stats().drops == 0


def test_a_put_waits_asleep_although_there_is_something_that_could_be_dropped(ring, monkeypatch):
    ring.put_many([LARGE, b"a", b"b"])
    lent = ring.reserve()
    ring.reserve().nack()
    tries = []
    real = ring._store.append
    monkeypatch.setattr(ring._store, "append", lambda *args: tries.append(args) or real(*args))
    with pytest.raises(Full):
        ring.put(LARGER, timeout=0.5)
    assert len(tries) < 5
    assert ring.get_many(9) == [b"a", b"b"]
    lent.ack()


def test_what_was_given_back_is_dropped_before_what_waits(ring):
    ring.put_many([b"x" * 5000, b"y" * 1000, b"z" * 1000, b"v" * 1000, b"w"])
    lent, *others = ring.reserve_many(4)
    for other in others:
        other.nack()
    ring.put_nowait(b"n" * 3000)
    assert ring.get_many(9) == [b"v" * 1000, b"w", b"n" * 3000]
    assert ring.stats().drops == 2
    lent.ack()


def test_of_a_batch_as_many_are_put_as_dropping_makes_room_for_and_nothing_is_dropped_for_the_rest(ring):
    ring.put(LARGE)
    lent = ring.reserve()
    ring.put_many([b"a" * 500, b"b" * 500])
    with pytest.raises(Full, match="2 items were put"):
        ring.put_many([b"c" * 500, b"d" * 500, LARGER], block=False)
    assert [item[:1] for item in ring.get_many(9)] == [b"b", b"c", b"d"]
    assert ring.stats().drops == 1
    lent.ack()
