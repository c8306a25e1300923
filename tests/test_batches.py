"""put_many, get_many and reserve_many."""

from __future__ import annotations

import threading

import pytest
from processes import PATIENCE

from durableq import Empty, Full


def test_put_many_puts_all_in_order(q):
    assert q.put_many(["a", "b", "c"]) is None
    assert [q.get_nowait() for _ in range(3)] == ["a", "b", "c"]


def test_put_many_takes_any_iterable(q):
    q.put_many(number * number for number in range(4))
    assert q.get_many(10) == [0, 1, 4, 9]


def test_put_many_of_nothing_does_nothing(q):
    q.put_many([])
    assert q.empty()


def test_put_many_of_many_megabytes_arrives(q):
    items = [bytes([number]) * 100_000 for number in range(100)]
    q.put_many(items)
    assert q.get_many(100) == items


def test_put_many_wakes_several_waiting_processes(q, start, path):
    code = "q = DurableQueue(path); say('open'); say(q.get()); hear()"
    consumers = [start(code, path) for _ in range(2)]
    for consumer in consumers:
        consumer.expect("open")
    q.put_many(["x", "y"])
    assert sorted(consumer.hear() for consumer in consumers) == ["x", "y"]


def test_put_many_beyond_maxsize_waits_for_room(open_queue):
    q = open_queue(maxsize=2)
    producer = threading.Thread(target=q.put_many, args=(range(10),), kwargs={"timeout": PATIENCE})
    producer.start()
    got = [q.get(timeout=PATIENCE) for _ in range(10)]
    producer.join(PATIENCE)
    assert got == list(range(10))


def test_put_many_raises_full_when_there_is_no_room(open_queue):
    q = open_queue(maxsize=1)
    q.put(1)
    with pytest.raises(Full):
        q.put_many([2, 3], block=False)
    with pytest.raises(Full):
        q.put_many([2, 3], timeout=0.01)


def test_put_many_with_one_unpicklable_item_puts_nothing(q):
    with pytest.raises((TypeError, AttributeError, ValueError)):
        q.put_many(["good", threading.Lock()])
    assert q.empty()


def test_get_many_takes_what_is_there_up_to_its_maximum(q):
    q.put_many("abcde")
    assert q.get_many(3) == ["a", "b", "c"]
    assert q.get_many(3) == ["d", "e"]


def test_get_many_of_an_empty_queue_raises_empty(q):
    with pytest.raises(Empty):
        q.get_many(3, block=False)
    with pytest.raises(Empty):
        q.get_many(3, timeout=0.01)


def test_get_many_waits_for_one_item_and_no_more(q, start, path):
    consumer = start("q = DurableQueue(path); say('open'); say(*q.get_many(100))", path)
    consumer.expect("open")
    q.put("x")
    consumer.expect("x")


def test_get_many_lends_every_item(q):
    q.put_many("abc")
    q.get_many(3)
    assert q.stats().lent == 3
    for _ in range(3):
        q.task_done()
    q.join()


def test_reserve_many_lends_up_to_its_maximum(q):
    q.put_many("abc")
    deliveries = q.reserve_many(2)
    assert [delivery.item for delivery in deliveries] == ["a", "b"]
    assert q.stats().lent == 2
    deliveries[1].ack()
    deliveries[0].nack()
    assert q.get_many(5) == ["a", "c"]


def test_reserve_many_of_an_empty_queue_raises_empty(q):
    with pytest.raises(Empty):
        q.reserve_many(2, block=False)


def test_a_batch_of_a_killed_process_returns_whole_and_in_order(q, start, path):
    q.put_many("abcd")
    holder = start("q = DurableQueue(path); say(*q.get_many(3)); hear()", path)
    holder.expect("a b c")
    holder.kill()
    got = [q.get(timeout=PATIENCE) for _ in range(4)]
    assert got == ["a", "b", "c", "d"]


def test_the_done_part_of_a_killed_process_s_batch_does_not_return(q, start, path):
    q.put_many("abcd")
    holder = start("q = DurableQueue(path); q.get_many(3); q.task_done(); q.task_done(); say('done'); hear()", path)
    holder.expect("done")
    holder.kill()
    assert [q.get(timeout=PATIENCE), q.get(timeout=PATIENCE)] == ["c", "d"]
    assert q.empty()


@pytest.mark.parametrize("maximum", [0, -1])
def test_a_batch_of_less_than_one_raises_value_error(q, maximum):
    q.put("x")
    with pytest.raises(ValueError):
        q.get_many(maximum)
    with pytest.raises(ValueError):
        q.reserve_many(maximum)
    assert q.qsize() == 1


def test_the_timeout_of_put_many_is_for_all_of_it(open_queue, monkeypatch):
    q = open_queue(maxsize=1)
    deadlines = []

    def make_room(_, deadline):
        deadlines.append(deadline)
        q.get()
        q.task_done()

    monkeypatch.setattr(q._store, "wait_for_room", make_room)
    q.put_many([bytes(1 << 20)] * 3, timeout=PATIENCE)  # so large that each is written by itself
    assert len(deadlines) == 2
    assert deadlines[0] is deadlines[1]
