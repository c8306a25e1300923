"""`durableq run -j` while the reader of its output takes its time: what else runs is looked after, and one signal is no end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import queue
import signal

import psutil
import pytest
from processes import PATIENCE, alive, until
from shell_runs import DEAD, DONE, READY, stat, story
from shells import heard

from durableq import DurableQueue
from durableq.cli._output import Outlet
from durableq.cli._pipe import unread
from durableq.cli._signals import Signals

BIG = 3_000_000
"""More bytes than a pipe holds."""


def blocked(shell, options, other):
    """A runner that waits for its reader: it has written some of the output of the item `big`.

    `other` is the shell command for all other items; `go` is there when the runner waits.
    """
    command = f"case {{}} in big) head -c {BIG} /dev/zero;; *) {other};; esac"
    runner = shell.start(f"exec durableq run q.dq {options} -- sh -c '{command}'")
    pipe = runner.stdout.fileno()
    until(lambda: unread(pipe) == fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ))
    (shell.folder / "go").touch()
    return runner


def noted(process):
    """Whether no signal is on its way to a process any more: it sleeps again, or has ended."""
    with open(f"/proc/{process.pid}/status") as file:
        about = dict(line.split(":\t", 1) for line in file)
    state = about["State"][0]
    return state == "Z" or (state == "S" and not any(int(about[name], 16) for name in ("SigPnd", "ShdPnd")))


def signalled(runner):
    """Send it one signal, which does not end it."""
    runner.send_signal(signal.SIGTERM)
    until(lambda: noted(runner))
    assert runner.poll() is None


def pid_of(shell):
    """The command that has written its pid down."""
    told = shell.folder / "pid"
    until(lambda: told.exists() and told.read_text().endswith("\n"))
    return int(told.read_text())


def test_the_first_signal_waits_for_the_reader_and_for_what_else_runs(shell):
    shell.run("durableq put q.dq big slow later")
    runner = blocked(shell, "-j 2", "while [ ! -e end ]; do sleep 0.01; done; echo done")
    signalled(runner)
    assert heard(runner, BIG) == bytes(BIG)
    assert b"waiting for 1 command" in runner.stderr.readline()
    (shell.folder / "end").touch()
    assert heard(runner, 5) == b"done\n"
    assert runner.wait(PATIENCE) == -signal.SIGTERM
    assert stat(shell) == READY
    assert shell.out("durableq get q.dq") == b"later\n"


def test_the_second_signal_waits_for_nobody(shell):
    shell.run("durableq put q.dq big slow")
    runner = blocked(shell, "-j 2", "echo $$ >pid; sleep 600")
    pid = pid_of(shell)
    signalled(runner)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(PATIENCE) == -signal.SIGTERM
    until(lambda: not alive(pid))
    items = [json.loads(line) for line in shell.out("durableq get --json q.dq").splitlines()]
    assert [(item["item"], item["deliveries"]) for item in items] == [("big", 1), ("slow", 1)]


def test_who_takes_too_long_is_stopped_and_who_had_ended_in_time_is_not(shell):
    shell.run("durableq put q.dq big quick slow")
    other = "[ {} = slow ] && echo $$ >pid && sleep 600; while [ ! -e go ]; do sleep 0.01; done; echo quick"
    runner = blocked(shell, "-j 3 --retries 0 --timeout 5", other)
    pid = pid_of(shell)
    until(lambda: not alive(pid))
    assert heard(runner, BIG + 6) == bytes(BIG) + b"quick\n"
    assert runner.wait(PATIENCE) == 1
    assert (stat(shell), story(shell)["item"]) == (DEAD, "slow")


def test_who_had_ended_before_a_halt_is_not_halted(shell):
    shell.run("durableq put q.dq big bad good")
    other = "while [ ! -e go ]; do sleep 0.01; done; echo {}; [ {} = good ]"
    runner = blocked(shell, "-j 3 --retries 0 --halt now,fail=1", other)
    children = psutil.Process(runner.pid).children
    until(lambda: sum(child.status() == psutil.STATUS_ZOMBIE for child in children()) == 2)
    assert heard(runner, BIG + 9) == bytes(BIG) + b"bad\ngood\n"
    assert runner.wait(PATIENCE) == 1
    assert (stat(shell), story(shell)["item"]) == (DEAD, "bad")


def test_leases_are_extended(shell):
    DurableQueue(shell.folder / "q.dq", lease=0.5).close()
    shell.run("durableq put q.dq big slow")
    runner = blocked(shell, "-j 2", "while [ ! -e end ]; do sleep 0.01; done")
    with DurableQueue(shell.folder / "q.dq") as q, pytest.raises(queue.Empty):
        q.get(timeout=2)
    (shell.folder / "end").touch()
    assert heard(runner, BIG) == bytes(BIG)
    assert runner.wait(PATIENCE) == 0
    assert (stat(shell), runner.stderr.read()) == (DONE, b"")


def test_what_others_say_on_stderr_is_heard(shell):
    shell.run("durableq put q.dq big loud")
    runner = blocked(shell, "-j 2", "while [ ! -e go ]; do sleep 0.01; done; echo news >&2")
    assert runner.stderr.readline() == b"news\n"
    assert heard(runner, BIG) == bytes(BIG)
    assert runner.wait(PATIENCE) == 0


def test_on_an_older_kernel_too_no_write_waits_for_the_reader(monkeypatch):
    """One that cannot say how much of a write would not have to wait."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "pwritev", refuse)
    reading, writing = os.pipe()
    read = []

    def meanwhile():
        waits.append(len(read))
        if len(waits) > 2:  # the wait before this one was in vain
            read.append(os.read(reading, 1 << 20))
        return 1

    waits = []
    with Signals() as signals:
        Outlet(writing, signals).write([bytes(BIG)], meanwhile)
    os.close(writing)
    while data := os.read(reading, 1 << 20):
        read.append(data)
    os.close(reading)
    assert waits[:3] == [0, 0, 0] and b"".join(read) == bytes(BIG)
