"""Queues without a path: private files that go with their creator."""

from __future__ import annotations

import os
import pickle
import stat
import tempfile
from pathlib import Path

import pytest

import durableq


def companions(path):
    return sorted(Path(path).parent.glob(Path(path).name + "*"))


@pytest.mark.parametrize("kind", [durableq.Queue, durableq.JoinableQueue, durableq.SimpleQueue])
def test_a_queue_without_a_path_works(kind):
    q = kind()
    q.put("x")
    assert q.get() == "x"
    assert q.empty()
    q.close()


@pytest.mark.parametrize("kind", [durableq.Queue, durableq.JoinableQueue])
def test_its_files_are_gone_when_its_creator_has_closed_it(kind):
    q = kind()
    path = q.path
    assert os.path.isabs(path)
    assert os.path.exists(path)
    q.put("x")
    q.close()
    assert companions(path) == []


def test_a_simple_queue_s_files_are_gone_when_its_creator_has_closed_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    q = durableq.SimpleQueue()
    q.put("x")
    assert list(tmp_path.rglob("*"))
    q.close()
    assert list(tmp_path.rglob("*")) == []


def test_its_files_are_gone_when_its_creator_has_left_its_context():
    with durableq.Queue() as q:
        path = q.path
        q.put("x")
    assert companions(path) == []


def test_its_files_are_gone_when_its_creator_has_ended(start):
    creator = start("q = durableq.Queue(); q.put('x'); say(q.path)")
    path = creator.hear()
    creator.finish()
    assert companions(path) == []


def test_two_of_them_are_two_queues():
    with durableq.Queue() as one, durableq.Queue() as two:
        assert one.path != two.path
        one.put("x")
        assert two.empty()


def test_nobody_else_may_read_its_file():
    with durableq.Queue() as q:
        assert stat.S_IMODE(os.stat(q.path).st_mode) & 0o077 == 0


def test_its_file_lies_in_the_temporary_directory(start, tmp_path):
    creator = start("q = durableq.Queue(); say(q.path); hear()", env={"TMPDIR": str(tmp_path)})
    assert Path(creator.hear()).is_relative_to(tmp_path)
    creator.tell()
    creator.finish()
    assert list(tmp_path.rglob("*")) == []


def test_another_process_that_closes_it_does_not_take_it_away(start):
    with durableq.Queue() as q:
        q.put("x")
        other = start(
            """
            import pickle
            q = pickle.loads(bytes.fromhex(sys.argv[1]))
            say(q.get())
            q.put("y")
            q.close()
            """,
            pickle.dumps(q).hex(),
        )
        other.expect("x")
        other.finish()
        assert os.path.exists(q.path)
        assert q.get(timeout=10) == "y"


def test_a_forked_child_that_ends_does_not_take_it_away(start):
    creator = start(
        """
        q = durableq.Queue()
        child = os.fork()
        if child == 0:
            q.put("from the child")
            q.close()
            sys.exit(0)
        os.waitpid(child, 0)
        say(os.path.exists(q.path), q.get(timeout=10))
        """
    )
    creator.expect("True from the child")
    creator.finish()


def test_a_named_file_stays_when_it_is_closed(path):
    with durableq.Queue(path=path) as q:
        q.put("x")
    with durableq.Queue(path=path) as again:
        assert again.get(timeout=10) == "x"
