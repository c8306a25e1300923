"""Handles travel to other processes: by fork, spawn and forkserver, and as pickled bytes to unrelated processes."""

from __future__ import annotations

import multiprocessing
import pickle
import signal

import pytest
from processes import PATIENCE

from durableq import DurableQueue

METHODS = ["fork", "spawn", "forkserver"]


def echo(q, replies):
    item = q.get(timeout=PATIENCE)
    replies.put(("echo", item))
    q.task_done()


def hold(q, replies):
    replies.put(q.get(timeout=PATIENCE))
    signal.pause()


@pytest.mark.parametrize("method", METHODS)
def test_a_handle_works_in_a_child_process(open_queue, tmp_path, method):
    q, replies = open_queue(), open_queue(tmp_path / "replies.dq")
    child = multiprocessing.get_context(method).Process(target=echo, args=(q, replies))
    child.start()
    q.put("x")
    assert replies.get(timeout=PATIENCE) == ("echo", "x")
    child.join(PATIENCE)
    assert child.exitcode == 0
    q.join()


@pytest.mark.parametrize("method", METHODS)
def test_an_item_of_a_killed_child_comes_back(open_queue, tmp_path, method):
    q, replies = open_queue(), open_queue(tmp_path / "replies.dq")
    q.put("x")
    child = multiprocessing.get_context(method).Process(target=hold, args=(q, replies))
    child.start()
    assert replies.get(timeout=PATIENCE) == "x"
    replies.task_done()
    assert q.empty()
    child.kill()
    child.join(PATIENCE)
    assert q.get(timeout=PATIENCE) == "x"


@pytest.mark.parametrize("method", METHODS)
def test_children_of_a_pool_share_the_queue(open_queue, method):
    q = open_queue()
    context = multiprocessing.get_context(method)
    children = [context.Process(target=put_numbers, args=(q, name)) for name in range(2)]
    for child in children:
        child.start()
    got = sorted(q.get(timeout=PATIENCE) for _ in range(40))
    for child in children:
        child.join(PATIENCE)
    assert got == sorted((name, number) for name in range(2) for number in range(20))


def put_numbers(q, name):
    for number in range(20):
        q.put((name, number))


def test_a_handle_reaches_an_unrelated_process_as_bytes(q, start):
    q.put("x")
    code = "import pickle; q = pickle.loads(bytes.fromhex(sys.argv[1])); say(q.get()); q.task_done()"
    other = start(code, pickle.dumps(q).hex())
    other.expect("x")
    other.finish()
    q.join()


def test_an_unpickled_handle_in_the_same_process_is_a_handle_of_its_own(q):
    other = pickle.loads(pickle.dumps(q))
    q.put("x")
    assert other.get_nowait() == "x"
    other.close()
    assert q.get(timeout=PATIENCE) == "x"
    assert not q.closed


def test_the_ack_mode_travels(open_queue):
    copy = pickle.loads(pickle.dumps(open_queue(ack="get")))
    copy.put("x")
    copy.get_nowait()
    assert copy.stats().unfinished == 0
    copy.close()


def test_the_serializer_travels(open_queue):
    copy = pickle.loads(pickle.dumps(open_queue(serializer="json")))
    with pytest.raises(TypeError):
        copy.put({1, 2})
    copy.close()


def test_a_serializer_of_one_s_own_travels(open_queue):
    copy = pickle.loads(pickle.dumps(open_queue(serializer=Shout())))
    copy.put("word")
    assert copy.get_nowait() == "WORD"
    copy.close()


class Shout:
    def dumps(self, item):
        return item.upper().encode()

    def loads(self, data):
        return bytes(data).decode()


def test_the_class_travels(q):
    copy = pickle.loads(pickle.dumps(q))
    assert type(copy) is DurableQueue
    assert copy.path == q.path
    copy.close()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_carries_a_handle(q, protocol):
    copy = pickle.loads(pickle.dumps(q, protocol))
    copy.put("x")
    copy.close()
    assert q.get_nowait() == "x"


def test_no_descriptor_travels(q, path):
    # The path and options are all there is, so the bytes are good in any process and at any time.
    data = pickle.dumps(q)
    assert str(path).encode() in data
    q.put("x")
    q.close()
    late = pickle.loads(data)
    assert late.get_nowait() == "x"
    late.close()


def test_a_queue_can_carry_a_handle_of_another_queue(q, open_queue, tmp_path):
    replies = open_queue(tmp_path / "replies.dq")
    q.put(replies)
    carried = q.get_nowait()
    carried.put("reply")
    carried.close()
    assert replies.get_nowait() == "reply"
