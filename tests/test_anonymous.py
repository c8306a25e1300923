"""Queues without a path: private files that go with their creator."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import PATIENCE

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


STARTS = """
import multiprocessing, sys
from multiprocessing.util import Finalize
import durableq

def work(q, begin):
    begin.recv()
    while (item := q.get()) is not None:
        print("got", item, flush=True)

def start_it(context, begin):
    q = durableq.Queue()
    process = context.Process(target=work, args=(q, begin))
    process.start()
    for item in (1, 2, None):
        q.put(item)
    print(q.path, flush=True)
    return process, q

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    begin, now = context.Pipe(duplex=False)
    process, q = start_it(context, begin)
    how = sys.argv[2]
    if how == "closed":
        q.close()
        q.join_thread()
    elif how == "forgotten":
        del q
    if how == "ended":
        Finalize(None, now.send, args=(1,), exitpriority=0)  # the last thing before the children are joined
    else:
        now.send(1)
        process.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["closed", "forgotten", "ended"])
def test_its_files_stay_for_the_children_that_were_given_it(how, method, tmp_path):
    """As multiprocessing's documentation has it: the producer closes its queue before it joins the consumer."""
    program = tmp_path / "program.py"
    program.write_text(STARTS)
    done = subprocess.run([sys.executable, program, method, how], capture_output=True, text=True, timeout=PATIENCE)
    path, *lines = done.stdout.splitlines()
    assert (lines, done.stderr, done.returncode) == (["got 1", "got 2"], "", 0)
    assert companions(path) == []
    assert not os.path.exists(os.path.dirname(path))


def test_its_files_are_gone_when_the_child_that_used_it_has_ended_before():
    q = durableq.Queue()
    process = multiprocessing.get_context("fork").Process(target=q.put, args=(1,))
    process.start()
    process.join(PATIENCE)
    assert q.get(timeout=PATIENCE) == 1
    q.close()
    assert not os.path.exists(os.path.dirname(q.path))


def test_files_that_stayed_for_children_go_with_the_next_queue_whatever_other_children_there_are():
    context = multiprocessing.get_context("fork")
    event, end = context.Event(), context.Event()
    other = context.Process(target=end.wait, args=(PATIENCE,))
    other.start()
    q = durableq.Queue()
    process = context.Process(target=event.wait, args=(PATIENCE,))
    process.start()
    q.close()
    assert os.path.exists(q.path)
    event.set()
    process.join(PATIENCE)
    durableq.Queue().close()
    assert not os.path.exists(os.path.dirname(q.path))
    end.set()
    other.join(PATIENCE)


def test_a_child_that_the_program_has_joined_and_closed_is_no_user_any_more():
    context = multiprocessing.get_context("fork")
    end = context.Event()
    q = durableq.Queue()
    process = context.Process(target=end.wait, args=(PATIENCE,))
    process.start()
    q.close()
    end.set()
    process.join(PATIENCE)
    process.close()
    durableq.Queue().close()
    assert not os.path.exists(os.path.dirname(q.path))


def test_after_a_change_of_user_that_may_not_see_its_directory_it_works_on(start):
    if os.getuid():
        pytest.skip("only root can become another user")
    worker = start(
        """
        q = durableq.JoinableQueue()
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.stat(q.path)
        except PermissionError:
            q.put(1)
            say(q.get())
        q.task_done()
        os._exit(0)
        """
    )
    worker.expect("1")
    worker.finish()


LIVE = """
import multiprocessing, socket, sys
import durableq

def work(q):
    end = q.get()
    end.sendall(b"reply") if hasattr(end, "sendall") else end.send_bytes(b"reply")
    end.close()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    q = durableq.Queue()
    process = context.Process(target=work, args=(q,))
    process.start()
    ours, theirs = socket.socketpair() if sys.argv[2] == "socket" else multiprocessing.Pipe()
    q.put_many([theirs]) if sys.argv[3] == "together" else q.put(theirs)
    print(ours.recv(5) if sys.argv[2] == "socket" else ours.recv_bytes())
    process.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["socket", "connection"])
@pytest.mark.parametrize("put", ["alone", "together"])
def test_a_connection_reaches_the_process_that_gets_it(method, kind, put, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(LIVE)
    command = [sys.executable, program, method, kind, put]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr, done.returncode) == ("b'reply'\n", "", 0)
