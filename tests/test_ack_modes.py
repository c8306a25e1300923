"""ack="task_done" lends items, ack="get" hands them over for good."""

from __future__ import annotations

import pytest


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
