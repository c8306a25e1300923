"""`durableq run` leaves no command behind when it is killed, and leaves alone what goes on when all has gone well."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest
from processes import PATIENCE, alive, until
from shell_runs import READY, started, stat

LEAVE = "setsid sleep 600 >/dev/null 2>&1 & echo $! >left"
"""Leaves a process behind, in a session of its own."""
WAIT = "while [ ! -e go ]; do sleep 0.01; done"


def guard_of(runner, *commands):
    """The process that is no command."""
    (guard,) = {child.pid for child in psutil.Process(runner.pid).children()} - {*commands}
    return guard


def end_of(runner, guard):
    """Wait for both to end; the exit code."""
    code = runner.wait(PATIENCE)
    until(lambda: not alive(guard))
    return code


@pytest.fixture
def left(shell):
    """The process that was left behind."""

    def pid():
        return int((shell.folder / "left").read_text())

    yield pid
    if alive(pid()):
        os.kill(pid(), signal.SIGKILL)


def test_a_kill_of_the_runner_takes_its_command_along_and_the_item_comes_again(shell):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, "sleep 600 & sleep 600")
    children = [pid, *(child.pid for child in psutil.Process(pid).children())]
    runner.kill()
    runner.wait(PATIENCE)
    until(lambda: not any(map(alive, children)))
    again = json.loads(shell.out("durableq get -n 1 --json --timeout 30 q.dq"))
    assert (again["item"], again["deliveries"]) == ("x", 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_so_does_a_kill_of_its_whole_process_group(shell, number):
    """What a terminal sends for Ctrl-\\, and `timeout -s KILL`."""
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, "sleep 600", before="setsid")
    os.killpg(runner.pid, number)
    assert runner.wait(PATIENCE) == -number
    until(lambda: not alive(pid))


def test_what_a_command_that_timed_out_has_started_ends_with_it(shell):
    shell.run("durableq put q.dq x")
    shell.run("durableq run q.dq --retries 0 --timeout 0.3 -- sh -c 'sleep 600 & echo $! >pid; wait'", code=1)
    pid = int((shell.folder / "pid").read_text())
    until(lambda: not alive(pid))


def test_also_what_has_left_its_group(shell, left):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, f"{LEAVE}; sleep 600", "--retries 0 --timeout 0.3")
    assert end_of(runner, guard_of(runner, pid)) == 1
    assert not alive(left())


@pytest.mark.parametrize("command_s_code", [0, 1])
def test_what_a_command_left_in_the_background_goes_on_when_all_ends_in_order(shell, left, command_s_code):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, f"{LEAVE}; {WAIT}; exit {command_s_code}", "--retries 0")
    guard = guard_of(runner, pid)
    (shell.folder / "go").touch()
    assert end_of(runner, guard) == command_s_code
    assert alive(left())


def test_it_goes_on_though_it_talks_if_its_stderr_is_elsewhere(shell):
    shell.run("durableq put q.dq x")
    background = f"{{ {WAIT}; echo news >&2; touch after; }} >/dev/null 2>>log &"
    shell.run(f"durableq run q.dq -- sh -c '{background}'")
    (shell.folder / "go").touch()
    until(lambda: (shell.folder / "after").exists())
    assert (shell.folder / "log").read_bytes() == b"news\n"


def test_it_goes_on_when_a_first_signal_has_ended_it(shell, left):
    shell.run("durableq put q.dq x y")
    runner, pid = started(shell, f"{LEAVE}; {WAIT}")
    guard = guard_of(runner, pid)
    runner.send_signal(signal.SIGTERM)
    assert b"waiting for 1 command" in runner.stderr.readline()
    (shell.folder / "go").touch()
    assert end_of(runner, guard) == -signal.SIGTERM
    assert stat(shell) == READY
    assert alive(left())


def test_nobody_who_reads_what_is_printed_waits_for_the_guard(shell):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, WAIT)
    guard = guard_of(runner, pid)
    until(lambda: os.listdir(f"/proc/{guard}/fd") == ["0"])
    (shell.folder / "go").touch()
    assert end_of(runner, guard) == 0
