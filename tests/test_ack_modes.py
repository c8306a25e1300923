"""ack="task_done" lends items, ack="get" hands them over for good."""

from __future__ import annotations

import shutil

import pytest
from processes import PATIENCE, until

import durableq
from durableq import DecodeError, Empty, ShutDown


def test_the_default_lends(q, open_queue):
    q.put("x")
    q.get_nowait()
    assert q.stats().lent == 1
    q.close()
    assert open_queue().get_nowait() == "x"


def test_with_ack_get_an_item_is_done_when_get_returns(open_queue):
    q = open_queue(ack="get")
    q.put("x")
    assert q.get_nowait() == "x"
    assert (q.stats().lent, q.stats().unfinished) == (0, 0)
    q.join()


def test_with_ack_get_an_item_does_not_come_back_after_a_kill(q, start, path):
    q.put("x")
    consumer = start("q = DurableQueue(path, ack='get'); say(q.get()); hear()", path)
    consumer.expect("x")
    consumer.kill()
    assert q.empty()
    assert q.stats().unfinished == 0


def test_with_ack_task_done_an_item_comes_back_after_a_kill(q, start, path):
    q.put("x")
    consumer = start("q = DurableQueue(path, ack='task_done'); say(q.get()); hear()", path)
    consumer.expect("x")
    consumer.kill()
    assert q.get(timeout=10) == "x"


def test_with_ack_get_a_batch_is_done_when_get_many_returns(open_queue):
    q = open_queue(ack="get")
    q.put_many("abc")
    assert q.get_many(2) == ["a", "b"]
    assert q.stats().unfinished == 1


def test_with_ack_get_task_done_raises_value_error(open_queue):
    q = open_queue(ack="get")
    q.put("x")
    q.get_nowait()
    with pytest.raises(ValueError):
        q.task_done()


def test_with_ack_get_a_reserved_item_is_still_lent(open_queue):
    q = open_queue(ack="get")
    q.put("x")
    with q.reserve(timeout=0) as delivery:
        assert delivery.item == "x"
        assert q.stats().lent == 1
    assert q.stats().unfinished == 0


def test_handles_with_different_modes_share_one_queue(open_queue):
    lends, hands_over = open_queue(ack="task_done"), open_queue(ack="get")
    lends.put_many("ab")
    assert hands_over.get_nowait() == "a"
    assert lends.get_nowait() == "b"
    assert hands_over.stats().lent == 1


def test_an_unknown_mode_raises_value_error(open_queue):
    with pytest.raises(ValueError, match="ack"):
        open_queue(ack="sometimes")


class Trap:
    """Items are bytes; what `spring` does happens while the next one is decoded."""

    def __init__(self):
        self.spring = None

    @staticmethod
    def dumps(item):
        return item

    def loads(self, data):
        spring, self.spring = self.spring, None
        if spring:
            spring()
        return data


class Unreadable:
    """Whatever was put cannot be decoded."""

    dumps = staticmethod(bytes)
    loads = staticmethod(lambda data: 1 / 0)


@pytest.fixture
def trap():
    return Trap()


def interrupting(*calls):
    def spring():
        for call in calls:
            call()
        raise KeyboardInterrupt

    return spring


def test_an_interrupted_get_gives_the_item_back_into_a_queue_that_has_become_full(open_queue, trap):
    q, other = open_queue(ack="get", maxsize=1, serializer=trap), open_queue(serializer=Trap())
    q.put(b"old")
    trap.spring = interrupting(lambda: other.put_nowait(b"new"))
    with pytest.raises(KeyboardInterrupt):
        q.get()
    assert sorted([q.get_nowait(), q.get_nowait()]) == [b"new", b"old"]


def test_an_interrupted_get_gives_the_item_back_into_a_queue_that_was_shut_down(open_queue, trap):
    q = open_queue(ack="get", serializer=trap)
    q.put(b"old")
    trap.spring = interrupting(q.shutdown)
    with pytest.raises(KeyboardInterrupt):
        q.get()
    assert q.get_nowait() == b"old"
    with pytest.raises(ShutDown):
        q.get()


def test_interrupted_all_of_a_batch_goes_back_though_its_space_was_given_to_others(open_queue, trap):
    items = [b"%02d" % n + bytes(100_000) for n in range(30)]
    q, other = open_queue(ack="get", maxsize=30, serializer=trap), open_queue(serializer=Trap())
    for item in items:
        q.put(item)
    trap.spring = interrupting(lambda: other.put_many([b"new"] * 30, False))
    with pytest.raises(KeyboardInterrupt):
        q.get_many(30)
    assert sorted(q.get_many(100)) == sorted(items + [b"new"] * 30)


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("take", [lambda q: q.get(False), lambda q: q.get_many(1, False), lambda q: q.get_many(5, False)])
def test_an_item_that_cannot_be_decoded_is_one_dead_letter(open_queue, take, size):
    q, readable = open_queue(ack="get", serializer=Unreadable()), open_queue(ack="get", serializer=Trap())
    readable.put(bytes(size))
    with pytest.raises(DecodeError):
        take(q)
    for _ in range(3):
        with pytest.raises(Empty):
            take(q)
    assert (q.qsize(), q.dead_letters.qsize()) == (0, 1)
    assert readable.dead_letters.get(False) == bytes(size)
    assert (q.qsize(), q.dead_letters.qsize()) == (0, 0)


def test_a_dead_letter_that_cannot_be_decoded_stays_one(open_queue):
    q, readable = open_queue(ack="get", serializer=Unreadable()), open_queue(serializer=Trap())
    readable.put(bytes(3_000_000))
    readable.reserve().reject()
    for _ in range(2):
        with pytest.raises(DecodeError):
            q.dead_letters.get(False)
    assert q.stats().unfinished == 0
    assert (q.qsize(), q.dead_letters.qsize()) == (0, 1)


def test_join_waits_for_no_item_that_could_not_be_decoded(path, open_queue):
    q, writer = durableq.Queue(path=path, serializer="json"), open_queue()
    try:
        q.put(1)
        writer.put({1, 2})  # a pickle
        q.put(2)
        for _ in q.get_many(3):
            q.task_done()
        q.join()
        writer.put({3})
        with pytest.raises(DecodeError):
            q.get(False)
        q.join()
    finally:
        q.close()


def test_what_was_given_back_is_seen_by_who_had_read_ahead_when_it_was_taken(open_queue):
    options = {"ack": "get", "max_deliveries": 5}
    trap = Trap()
    q, other = open_queue(serializer=trap, **options), open_queue(serializer=Trap(), **options)
    q.put(b"before")
    delivery = q.reserve()
    q.put(b"x")

    def meanwhile():
        delivery.nack()
        assert other.get() == b"before"  # and has read on

    trap.spring = interrupting(meanwhile)
    with pytest.raises(KeyboardInterrupt):
        q.get()
    assert other.get(timeout=0) == b"x"


def test_the_space_of_what_came_back_and_was_taken_for_good_comes_back(path, open_queue, punches_holes):
    q = open_queue(ack="get", sync=None, serializer="bytes", max_deliveries=5)
    q.put_many([bytes(100_000)] * 100)
    for delivery in q.reserve_many(100):
        delivery.nack()
    for _ in range(99):
        q.get(False)
    assert path.stat().st_blocks * 512 < 4 << 20


class Picky:
    """Items are bytes; those that begin with x cannot be decoded."""

    dumps = staticmethod(bytes)

    @staticmethod
    def loads(data):
        if data[:1] == b"x":
            raise ValueError("x")
        return data


def test_a_delayed_item_behind_one_that_cannot_be_decoded_is_delivered(open_queue):
    """What was read ahead for the first delayed item ends where the tail was at that time."""
    q = open_queue(ack="get", sync=None, serializer=Picky())
    q.put_many([b"a" * 4000] * 517)
    for _ in range(517):
        q.get()
    q.put(b"first", delay=0.7)
    q.put(b"now")
    assert q.get() == b"now"  # and has passed the first
    q.put(b"x" * 16_000)
    q.put(b"second", delay=0.8)
    until(q._store.is_due)
    assert q.get() == b"first"
    with pytest.raises(DecodeError):
        q.get()
    assert q.get(timeout=PATIENCE) == b"second"
    assert (q.stats().damaged, q.dead_letters.qsize()) == (0, 1)


def _fail():
    raise RuntimeError


class Undecodable:
    def __reduce__(self):
        return _fail, ()


def test_what_was_given_back_below_the_pad_of_a_punch_is_there_after_a_reboot(open_queue, path):
    q = open_queue(ack="get", sync=None)
    q.put_many([b"x" * 100] * 199 + [Undecodable()] + [b"x" * 100] * 50)
    assert len(q.get_many(200)) == 199
    assert q.dead_letters.qsize() == 1
    q.sync()
    copy = path.with_name("copy.dq")
    shutil.copyfile(path, copy)
    copy.chmod(0o600)
    with durableq.DurableQueue(copy, ack="get") as after_a_reboot:
        assert after_a_reboot.dead_letters.qsize() == 1
        assert after_a_reboot.qsize() == 50
