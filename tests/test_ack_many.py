"""Many lent items made done in one go: what is marked, what is left alone, and what the rest of the queue sees of it."""

from __future__ import annotations

import os

import pytest
from processes import until

from durableq import DurableQueue
from durableq._leases import RESERVED, Taken


@pytest.fixture
def items(open_queue):
    return open_queue(serializer="bytes")


def take(q: DurableQueue, most: int = 256) -> list[Taken]:
    box: list[Taken] = []
    q._store.take(box, most, False, RESERVED)
    return box


def numbers(*spans: range) -> list[bytes]:
    return [b"%d" % n for span in spans for n in span]


def test_what_is_acked_is_done_and_the_rest_stays_lent(items):
    items.put_many(numbers(range(10)))
    box = take(items)
    assert items._store.ack_many(box[:7]) == 7
    assert (items.stats().lent, items.unfinished_tasks) == (3, 3)
    assert items._store.ack_many(box[7:]) == 3
    items.join()


def test_nothing_to_ack_is_no_error(items):
    assert items._store.ack_many([]) == 0


def test_items_that_do_not_lie_side_by_side_are_acked_too(items):
    items.put_many(numbers(range(100)))
    box = take(items)
    assert items._store.ack_many(box[::3]) == len(box[::3])
    items._store.untake([taken for n, taken in enumerate(box) if n % 3])
    assert [d.item for d in items.reserve_many(100)] == [b"%d" % n for n in range(100) if n % 3]


def test_the_order_of_what_is_acked_does_not_matter(items):
    items.put_many(numbers(range(50)))
    assert items._store.ack_many(take(items, 40)[::-1]) == 40
    assert items.get() == b"40"
    assert items.unfinished_tasks == 10


def test_what_was_given_back_before_is_acked_with_what_is_new(items):
    items.put_many(numbers(range(6)))
    items._store.untake(take(items, 2))
    box = take(items, 2) + take(items, 10)
    assert [taken[5] for taken in box] == numbers(range(6))
    assert items._store.ack_many(box) == 6
    items.join()


def test_what_is_not_ours_any_more_is_left_alone(items):
    items.put_many(numbers(range(5)))
    box = take(items)
    items._store.nack(*box[2][:3])
    other = items.reserve()
    assert other.item == b"2"
    assert items._store.ack_many(box) == 4
    assert items.stats().lent == 1
    assert items._store.ack_many(box) == 0
    other.ack()


def test_items_whose_lease_ran_out_and_were_taken_by_others_are_left_alone(open_queue):
    q = open_queue(lease=0.05, serializer="bytes")
    q.put_many([b"a", b"b", b"c"])
    box = take(q)
    other = q.reserve(timeout=30)  # once the lease is over
    assert other.item == b"a"
    assert q._store.ack_many(box) == 2
    other.ack()
    assert q.unfinished_tasks == 0


def test_an_ack_of_many_ends_a_join_of_another_process(items, start, path):
    items.put_many([b"a", b"b"])
    waiter = start("q = DurableQueue(path); say('go'); q.join(); say('joined')", path)
    waiter.expect("go")
    until(lambda: any(owner.waiting for owner in items.stats().owners))
    items._store.ack_many(take(items))
    waiter.expect("joined", 5)


def test_done_items_do_not_come_back_after_a_boot(items, path, open_queue):
    items.put_many(numbers(range(1000)))
    items._store.ack_many(take(items)[:100])
    items.close()
    os.unlink(f"{path}-shm")
    again = open_queue(serializer="bytes")
    assert [d.item for d in again.reserve_many(2000)] == numbers(range(100, 1000))


@pytest.mark.parametrize("size", [100, 3000])
def test_the_disk_space_comes_back(items, punches_holes, size):
    for _ in range(10):
        items.put_many([os.urandom(size) for _ in range(1000)])
        while not items.empty():
            items._store.ack_many(take(items))
    stats = items.stats()
    assert (stats.bytes_live, stats.unfinished) == (0, 0)
    assert stats.bytes_on_disk < 4 << 20


def test_the_disk_space_between_items_that_stay_comes_back(items, punches_holes):
    for _ in range(10):
        items.put_many([os.urandom(1000) for _ in range(1000)])
        items.reserve()
        while not items.empty():
            items._store.ack_many(take(items))
    assert items.stats().bytes_live == 10 * 1048
    assert items.stats().bytes_on_disk < 4 << 20
