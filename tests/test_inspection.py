"""peek and stats: looking at a queue without changing it."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest
from processes import PATIENCE, until

from durableq import DurableQueue, Owner, Stats


def test_peek_shows_the_next_item_and_leaves_it(q):
    q.put_many("ab")
    assert q.peek() == ["a"]
    assert q.qsize() == 2
    assert q.get_nowait() == "a"


def test_peek_shows_several_items_oldest_first(q):
    q.put_many("abc")
    assert q.peek(2) == ["a", "b"]
    assert q.peek(10) == ["a", "b", "c"]


def test_peek_of_an_empty_queue_is_an_empty_list(q):
    assert q.peek() == []


def test_peek_shows_returned_items_first(q):
    q.put_many("ab")
    delivery = q.reserve(timeout=0)
    assert q.peek(5) == ["b"]
    delivery.nack()
    assert q.peek(5) == ["a", "b"]


def test_peek_does_not_show_items_that_are_not_due(q):
    q.put("later", delay=60)
    assert q.peek() == []


def test_peek_shows_what_a_dead_process_had(q, start, path):
    q.put_many("ab")
    child = start("q = DurableQueue(path); q.get(); say('holds it'); hear()", path)
    child.expect("holds it")
    child.kill()
    assert q.peek(5) == ["a", "b"]


def test_peek_counts_no_delivery(q):
    q.put("x")
    q.peek()
    assert q.reserve(timeout=0).deliveries == 1


def test_stats_of_a_new_queue_are_zeros(q, path):
    stats = q.stats()
    assert isinstance(stats, Stats)
    assert stats.path == str(path)
    counts = (stats.ready, stats.lent, stats.delayed, stats.dead, stats.unfinished, stats.drops, stats.damaged)
    assert counts == (0, 0, 0, 0, 0, 0, 0)
    assert stats.oldest is None


def test_stats_count_every_state(q):
    q.put_many(["reject", "lend", "done", "wait", "wait"])
    q.put("later", delay=60)
    q.reserve(timeout=0).reject()
    q.reserve(timeout=0)
    q.reserve(timeout=0).ack()
    stats = q.stats()
    assert (stats.ready, stats.lent, stats.delayed, stats.dead) == (2, 1, 1, 1)
    assert stats.unfinished == 4
    assert stats.puts == 6


def test_stats_are_the_same_in_every_process(q, start, path):
    q.put_many("abc")
    q.reserve(timeout=0)
    other = start("s = DurableQueue(path).stats(); say(s.ready, s.lent, s.unfinished, s.puts)", path)
    other.expect("2 1 3 3")


def test_stats_cannot_be_changed(q):
    with pytest.raises(AttributeError):
        q.stats().ready = 5


def test_stats_name_the_oldest_waiting_item_s_time(q):
    before = time.time()
    q.put("x")
    after = time.time()
    q.put("y")
    assert before - 0.01 <= q.stats().oldest <= after + 0.01


def test_stats_tell_the_bytes_of_the_file(q, path):
    q.put(os.urandom(200_000))
    stats = q.stats()
    assert stats.bytes_live >= 200_000
    assert stats.bytes_logical == path.stat().st_size
    assert stats.bytes_on_disk == path.stat().st_blocks * 512


def test_stats_name_the_processes_that_have_the_queue_open(q, start, path):
    q.put("x")
    other = start("q = DurableQueue(path); say(q.get()); hear()", path)
    other.expect("x")
    owners = {owner.pid: owner for owner in q.stats().owners}
    assert set(owners) == {os.getpid(), other.pid}
    theirs = owners[other.pid]
    assert isinstance(theirs, Owner)
    assert theirs.lent == 1
    assert not theirs.waiting
    assert "hear()" in str(theirs.command)
    assert abs(theirs.started - psutil.Process(other.pid).create_time()) < 2
    assert owners[os.getpid()].lent == 0


def test_stats_tell_who_waits(q, start, path):
    consumer = start("DurableQueue(path).get()", path)
    until(lambda: [owner for owner in q.stats().owners if owner.pid == consumer.pid and owner.waiting])
    q.put("x")
    consumer.finish()


def test_stats_do_not_name_a_process_that_was_killed(q, start, path):
    other = start("q = DurableQueue(path); say('open'); hear()", path)
    other.expect("open")
    other.kill()
    assert [owner.pid for owner in q.stats().owners] == [os.getpid()]


def test_puts_are_counted_across_a_reopening(q, open_queue):
    q.put_many("abc")
    q.close()
    again = open_queue()
    again.put("d")
    assert again.stats().puts == 4


# -- what is lent ------------------------------------------------------------------------------------------------------


def test_peek_lent_shows_what_each_process_has(q, start, path):
    q.put_many("abc")
    child = start("q = DurableQueue(path); q.get(); q.get(); say('holds two'); hear()", path)
    child.expect("holds two")
    mine = q.reserve(timeout=0)
    seen = {(lent.pid, lent.item, lent.deliveries) for lent in q.peek_lent(5)}
    assert seen == {(child.pid, "a", 1), (child.pid, "b", 1), (os.getpid(), "c", 1)}
    assert [lent.id for lent in q.peek_lent() if lent.pid == os.getpid()] == [mine.id]
    assert len(q.peek_lent()) == 2


def test_peek_lent_does_not_show_what_a_dead_process_had(q, start, path):
    q.put("x")
    child = start("q = DurableQueue(path); q.get(); say('holds it'); hear()", path)
    child.expect("holds it")
    child.kill()
    assert q.peek_lent() == []


def test_peek_deliveries_tells_how_often_an_item_was_delivered(q):
    q.put_many("ab")
    first = q.reserve(timeout=0)
    first.nack()
    (seen, *_) = q.peek_deliveries(5)
    assert (seen.id, seen.item, seen.deliveries) == (first.id, "a", 1)
    assert [seen.deliveries for seen in q.peek_deliveries(5)] == [1, 0]


def test_a_queue_tells_its_own_options(open_queue):
    q = open_queue(max_deliveries=3, lease=2.5)
    assert (q.max_deliveries, q.lease) == (3, 2.5)


def test_a_queue_without_these_options_tells_none(q):
    assert (q.max_deliveries, q.lease) == (None, None)


def test_others_take_items_while_stats_looks_for_the_names_of_the_owners(q, open_queue, monkeypatch):
    other = open_queue()
    q.put("x")
    taken = []
    taker = threading.Thread(target=lambda: taken.append(other.get(timeout=PATIENCE)))

    def process(pid):
        if taker.ident is None:
            taker.start()
        taker.join(PATIENCE)
        return psutil_process(pid)

    psutil_process = psutil.Process
    monkeypatch.setattr(psutil, "Process", process)
    q.stats()
    assert taken == ["x"]


@pytest.mark.parametrize("look", [DurableQueue.qsize, DurableQueue.stats, DurableQueue.peek, lambda q: q.dead_letters.qsize()])
def test_who_looks_finds_the_dead_letter_that_a_death_has_left(look, start, path, open_queue):
    q = open_queue(max_deliveries=1)
    q.put("x")
    child = start("q = DurableQueue(path); q.get(); say('got'); hear()", path)
    child.expect("got")
    child.kill()
    look(q)
    assert (q.qsize(), q.dead_letters.qsize(), q.unfinished_tasks) == (0, 1, 0)
    assert q.dead_letters.get(timeout=PATIENCE) == "x"
    q.join()
