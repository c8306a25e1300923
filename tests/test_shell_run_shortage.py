"""`durableq run` where descriptors, processes or room are short: no item pays for what is not its fault."""

from __future__ import annotations

import resource

import psutil
import pytest
from processes import PATIENCE, until
from shell_runs import DONE, READY, stat, story
from shells import one_line

from durableq import DurableQueue


def deliveries(shell):
    """How often each item that waits was delivered."""
    with DurableQueue(shell.folder / "q.dq") as q:
        return [peeked.deliveries for peeked in q.peek_deliveries(9)]


def broken(shell, code):
    """An environment in which every Python runs this first, and so has a system that refuses something."""
    (shell.folder / "sitecustomize.py").write_text(f"import errno, os, subprocess, tempfile\n{code}")
    return {"PYTHONPATH": str(shell.folder)}


def test_with_too_few_descriptors_for_all_jobs_as_many_run_as_can(shell):
    shell.run("seq 1 20 | durableq put q.dq")
    runner = shell.start(
        "ulimit -n 40; exec durableq run q.dq -j 20 --retries 0 --"
        " sh -c 'touch at.{}; ls at.* | wc -l >>counts; while [ ! -e go ]; do sleep 0.01; done; rm at.{}'"
    )
    until(lambda: len(list(shell.folder.glob("at.*"))) >= 3)
    (shell.folder / "go").touch()
    assert runner.wait(PATIENCE) == 0
    counts = (shell.folder / "counts").read_text().split()
    assert len(counts) == 20 and max(map(int, counts)) < 20
    assert stat(shell) == DONE


def test_with_too_few_descriptors_for_any_it_says_so_and_no_delivery_is_counted(shell):
    shell.run("durableq put q.dq 1 2 3")
    for limit in range(14, 60):
        done = shell.run(f"ulimit -n {limit}; durableq run q.dq -j 2 --retries 0 -- true", code=None)
        if done.returncode == 0:
            break
        error = one_line(done.stderr)
        assert done.returncode == 1 and "Too many open files" in error
        assert deliveries(shell) == [0, 0, 0]
    assert limit > 14
    assert "q.dq: no command can be started" in error and "raise `ulimit -n`" in error
    assert stat(shell) == DONE


@pytest.mark.parametrize(
    ("name", "number", "remedy"),
    [
        ("os.fork", "EAGAIN", "raise `ulimit -u`"),
        ("subprocess.Popen", "EAGAIN", "raise `ulimit -u`"),
        ("os.memfd_create", "ENOMEM", "free some memory"),
        ("tempfile.TemporaryFile", "ENOSPC", "set TMPDIR"),
        ("os.pidfd_open", "ENOSYS", "Linux 5.3"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_the_item_s(shell, name, number, remedy):
    shell.run("durableq put q.dq x")
    code = f"""
def refuse(*arguments, **options):
    raise OSError(errno.{number}, os.strerror(errno.{number}))
{name} = refuse
"""
    done = shell.run("durableq run q.dq -j 2 --retries 0 -- true", code=1, env=broken(shell, code))
    assert remedy in one_line(done.stderr)
    assert deliveries(shell) == [0]


def test_what_was_not_started_does_not_count_as_one_of_so_many(shell):
    shell.run("durableq put q.dq 1 2 3")
    code = """
start, calls = subprocess.Popen, []
def refuse_the_second(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 2:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return start(*arguments, **options)
subprocess.Popen = refuse_the_second
"""
    script = "durableq run q.dq -j 2 -n 2 -- echo {}"
    assert shell.out(script, env=broken(shell, code)) == b"1\n2\n"
    assert stat(shell) == READY


def test_a_command_that_runs_and_cannot_be_watched_is_killed_and_comes_again(shell):
    shell.run("durableq put q.dq 1 2")
    code = """
import time
watch, calls = os.pidfd_open, []
def refuse_the_second(pid, flags=0):
    calls.append(len(os.listdir("/proc/self/fd")))
    if len(calls) == 2:
        with open("files", "w") as file:
            file.write(str(calls[0]))
        while not os.path.exists("second"):
            time.sleep(0.01)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return watch(pid, flags)
os.pidfd_open = refuse_the_second
"""
    shell.env.update(broken(shell, code))
    command = "[ {} = 1 ] || { echo $$ >new; mv new second; }; while [ ! -e go ]; do sleep 0.01; done; echo {}"
    runner = shell.start(f"exec durableq run q.dq -j 2 --retries 0 -- sh -c '{command}'")
    until((shell.folder / "second").exists)
    pid = int((shell.folder / "second").read_text())
    until(lambda: not psutil.pid_exists(pid))  # nor is it a zombie

    before = int((shell.folder / "files").read_text())  # the directory was open then, and the end of the first is now
    until(lambda: psutil.Process(runner.pid).num_fds() == before)
    (shell.folder / "go").touch()
    assert runner.stdout.read() == b"1\n2\n"
    assert runner.wait(PATIENCE) == 0
    assert stat(shell) == DONE


@pytest.mark.parametrize(("items", "output"), [("", b""), ("x", b"x\n")])
def test_without_the_thread_that_waits_for_more_it_ends_once_nothing_runs_any_more(shell, items, output):
    shell.run(f"printf '%s' '{items}' | durableq put q.dq")
    code = """
import threading
start = threading.Thread.start
def refuse(thread):
    if thread.name == "durableq-watch":
        open("go", "w").close()
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
"""
    script = "durableq run -f q.dq -j 2 --retries 0 -- sh -c 'while [ ! -e go ]; do sleep 0.01; done; echo {}'"
    done = shell.run(script, code=1, env=broken(shell, code))
    assert "raise `ulimit -u`" in one_line(done.stderr)
    assert done.stdout == output
    assert stat(shell) == DONE


def test_that_there_are_descriptors_beyond_a_thousand_makes_no_difference(shell):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 1200:
        pytest.skip("no process here may have so many")
    shell.run("durableq put q.dq good bad")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, {hard}))
while os.open(os.devnull, os.O_RDONLY) < 1100:
    pass
"""
    script = "durableq run q.dq -j 2 --retries 0 -- sh -c 'echo {}; [ {} = good ]'"
    assert sorted(shell.out(script, code=1, env=broken(shell, code)).split()) == [b"bad", b"good"]
    assert story(shell)["failure"]["reason"] == "exit code 1"
    assert stat(shell)["ready"] == 0


def test_a_parent_that_ignores_the_ends_of_its_children_hides_none_from_us(shell):
    shell.run("durableq put q.dq x")
    code = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""
    shell.run("durableq run q.dq --retries 0 -- sh -c 'sleep 0.1; exit 3'", code=1, env=broken(shell, code))
    assert story(shell)["failure"]["reason"] == "exit code 3"
