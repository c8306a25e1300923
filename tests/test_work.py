"""`durableq work` as a user runs it: the real program, on a function of theirs, told to stop, killed, started again."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest
from pool_jobs import told
from processes import PATIENCE, alive, until

from durableq import DurableQueue, failures

DURABLEQ = [sys.executable, "-m", "durableq"]

JOBS = '''
import time
from pathlib import Path

def handle(item):
    """Tell that it has begun; then wait for the word, if the item says so."""
    name, waits = item
    with open(name, "a") as file:
        file.write(f"{__import__('os').getpid()}\\n")
    while waits and not Path(f"{name}-go").exists():
        time.sleep(0.005)
    return name.upper()

def hang(item):
    Path("hangs").touch()
    time.sleep(600)

class Shop:
    @staticmethod
    def sell(item):
        return f"sold {item}"
'''


@pytest.fixture
def shop(tmp_path):
    """A user's directory, with a module of theirs in it."""
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


@pytest.fixture
def durableq(shop):
    """`durableq(*arguments)` starts the program there, in a process group of its own; it is gone after the test."""
    started = []

    def starter(*arguments, **options):
        options = {"stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen([*DURABLEQ, *arguments], cwd=shop, start_new_session=True, **options))
        return started[-1]

    yield starter
    for program in started:
        if program.poll() is None:
            program.kill()
        program.communicate()


def end(program, code):
    """Wait for its end; what it has logged."""
    _, log = program.communicate(timeout=PATIENCE)
    assert program.returncode == code, log
    assert "Traceback" not in log, log
    return log


def workers_of(program):
    return [child for child in psutil.Process(program.pid).children() if "spawn_main" in " ".join(child.cmdline())]


# -- working -----------------------------------------------------------------------------------------------------------


def test_a_function_of_the_users_is_called_with_every_item(q, durableq, shop):
    q.put_many([(f"item{n}", False) for n in range(20)])
    log = end(durableq("work", "q.dq", "jobs:handle", "-j", "2", "--results", "results.dq", "--until-empty"), 0)
    assert "20 items done, 0 attempts failed, 0 dead letters" in log
    with DurableQueue(shop / "results.dq") as results:
        assert sorted(result.value for result in results.get_many(100)) == sorted(f"ITEM{n}" for n in range(20))
        for _ in range(20):
            results.task_done()


def test_a_function_inside_of_a_class_is_found(open_queue, durableq, shop):
    open_queue(serializer="json").put("bread")
    arguments = ("--serializer", "json", "--results", "r.dq", "--until-empty")
    end(durableq("work", "q.dq", "jobs:Shop.sell", "-j", "1", *arguments), 0)
    with DurableQueue(shop / "r.dq", serializer="json", ack="get") as results:
        assert results.get()[1] == "sold bread"


def test_killed_and_started_again_it_goes_on_where_it_was(q, durableq, shop):
    q.put_many([("slow", True), ("other", True), *((f"item{n}", False) for n in range(30))])
    first = durableq("work", "q.dq", "jobs:handle", "-j", "2", "--results", "results.dq")
    until(lambda: told(shop / "slow") and told(shop / "other"))
    workers = workers_of(first)
    assert len(workers) == 2
    first.kill()
    until(lambda: not any(alive(worker.pid) for worker in workers))
    (shop / "slow-go").touch()
    (shop / "other-go").touch()
    log = end(durableq("work", "q.dq", "jobs:handle", "-j", "2", "--results", "results.dq", "--until-empty"), 0)
    assert "32 items done" in log
    assert len(told(shop / "slow")) == len(told(shop / "other")) == 2
    assert all(len(told(shop / f"item{n}")) == 1 for n in range(30))


def test_dead_letters_make_a_run_until_empty_fail_and_their_stories_are_beside_them(q, durableq):
    q.put_many([("good", False), "no pair"])
    end(durableq("work", "q.dq", "jobs:handle", "-j", "1", "--max-deliveries", "2", "--backoff", "0", "--until-empty"), 1)
    (story,) = failures.read(q).values()
    assert story.reason.startswith("ValueError: too many values to unpack")
    assert 'jobs.py", line 7, in handle' in story.details


def test_an_item_that_hangs_is_a_dead_letter_after_its_time(q, durableq):
    q.put("x")
    arguments = ("--timeout", "300ms", "--max-deliveries", "1", "--until-empty")
    log = end(durableq("work", "q.dq", "jobs:hang", "-j", "1", *arguments), 1)
    assert re.search(r"worker 1 \(pid \d+\) killed after 0.3 s \(timeout\), with item [0-9a-f-]+ \(delivery 1\)", log)


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_stop_it_finishes_what_runs_and_takes_no_more(q, durableq, shop, number):
    q.put_many([("slow", True), ("next", False)])
    program = durableq("work", "q.dq", "jobs:handle", "-j", "1")
    until(lambda: told(shop / "slow"))
    program.send_signal(number)
    assert f"{number.name}: stopping" in read_until(program, "stopping")
    (shop / "slow-go").touch()
    assert "1 items done" in end(program, 0)
    assert not told(shop / "next")
    assert q.peek(5) == [("next", False)]


def read_until(program, words):
    text = ""
    while words not in text:
        line = program.stderr.readline()
        assert line, text
        text += line
    assert "Traceback" not in text, text
    return text


def test_what_does_not_finish_in_its_grace_is_given_back_and_the_delivery_does_not_count(q, durableq, shop):
    q.put("x")
    program = durableq("work", "q.dq", "jobs:hang", "-j", "1", "--grace", "200ms")
    until(lambda: (shop / "hangs").exists())
    program.terminate()
    assert "not finished within 0.2 s: what is in hand is given back at once" in end(program, 0)
    assert q.reserve(timeout=0).deliveries == 1


def test_a_second_signal_gives_back_at_once_what_runs(q, durableq, shop):
    q.put("x")
    program = durableq("work", "q.dq", "jobs:hang", "-j", "1", "--grace", "600")
    until(lambda: (shop / "hangs").exists())
    program.terminate()
    read_until(program, "stopping")
    program.terminate()
    assert "SIGTERM: what is in hand is given back at once" in end(program, 0)
    assert q.reserve(timeout=0).deliveries == 1


def test_a_worker_that_does_not_hear_is_killed_in_the_end(q, durableq):
    q.put(("hog", 600))
    program = durableq("work", "q.dq", "pool_jobs:work", "-j", "1", "--grace", "0", env=WITH_TESTS)
    until(lambda: q.peek_lent())
    program.terminate()
    assert "does not end: SIGKILL" in end(program, 0)
    assert q.reserve(timeout=0).deliveries == 2, "nobody was there to give it back"


WITH_TESTS = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}


def test_a_ctrl_c_at_the_terminal_reaches_all_and_harms_none(q, durableq, shop):
    q.put_many([("slow", True), ("next", False)])
    program = durableq("work", "q.dq", "jobs:handle", "-j", "2")
    until(lambda: told(shop / "slow") and told(shop / "next"))
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    read_until(program, "SIGINT: stopping")
    (shop / "slow-go").touch()
    assert "2 items done" in end(program, -signal.SIGINT)
    assert len(told(shop / "slow")) == 1


def test_a_ctrl_c_while_workers_are_starting_leaves_no_traceback(q, durableq, shop):
    (shop / "slow.py").write_text(SLOW)
    program = durableq("work", "q.dq", "slow:handle", "-j", "2")
    until(lambda: len(list(shop.glob("importing-*"))) == 2)
    os.killpg(program.pid, signal.SIGINT)
    read_until(program, "SIGINT: stopping")
    (shop / "go").touch()
    end(program, -signal.SIGINT)


SLOW = """
import os, sys, time
from pathlib import Path

if "--multiprocessing-fork" in sys.orig_argv:
    Path(f"importing-{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.005)

def handle(item):
    pass
"""


def test_sigterm_to_the_whole_group_as_from_systemd_is_an_orderly_end(q, durableq, shop):
    q.put(("slow", True))
    program = durableq("work", "q.dq", "jobs:handle", "-j", "2")
    until(lambda: told(shop / "slow"))
    os.killpg(program.pid, signal.SIGTERM)
    read_until(program, "SIGTERM: stopping")
    (shop / "slow-go").touch()
    assert "1 items done" in end(program, 0)


def test_sigterm_to_one_worker_ends_it_after_its_item_and_it_is_replaced(q, durableq, shop):
    q.put(("slow", True))
    program = durableq("work", "q.dq", "jobs:handle", "-j", "1")
    until(lambda: told(shop / "slow"))
    (before,) = told(shop / "slow")
    os.kill(before, signal.SIGTERM)
    (shop / "slow-go").touch()
    assert "ended: SIGTERM" in read_until(program, "ended: ")
    q.put(("next", False))
    until(lambda: told(shop / "next"))
    assert told(shop / "next") != [before]
    program.terminate()
    assert "2 items done" in end(program, 0)


def test_a_deploy_hands_over_to_new_workers_without_a_gap_and_no_item_is_delivered_twice(q, durableq, shop):
    q.put(("slow", True))
    old = durableq("work", "q.dq", "jobs:handle", "-j", "1")
    until(lambda: told(shop / "slow"))
    new = durableq("work", "q.dq", "jobs:handle", "-j", "1")
    q.put(("during", False))
    until(lambda: told(shop / "during"))  # the new one is at work, so the old one may go
    old.terminate()
    q.put_many([(f"after{n}", False) for n in range(5)])
    until(lambda: all(told(shop / f"after{n}") for n in range(5)))
    (shop / "slow-go").touch()
    assert "1 items done" in end(old, 0)
    new.terminate()
    assert "6 items done" in end(new, 0)
    assert all(len(told(shop / name)) == 1 for name in ("slow", "during", "after0", "after4"))


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("jobs:nothing", "jobs has no 'nothing'"),
        ("nowhere:handle", "there is no module 'nowhere' on the path"),
        ("jobs.nowhere:handle", "there is no module 'jobs.nowhere' on the path"),
        ("handle", "write MODULE:FUNCTION"),
        ("jobs:__doc__", "cannot be called"),
        ("broken:handle", "broken cannot be imported: ZeroDivisionError: division by zero"),
        ("needs:handle", "needs cannot be imported: ModuleNotFoundError: No module named 'something_else'"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(durableq, shop, function, words):
    (shop / "broken.py").write_text("1 / 0\n")
    (shop / "needs.py").write_text("import something_else\n")
    program = durableq("work", "q.dq", function)
    _, said = program.communicate(timeout=PATIENCE)
    assert program.returncode in (1, 2)
    assert said.startswith("durableq: ") and said.count("\n") == 1 and words in said


def test_a_file_that_is_no_spool_is_one_line(durableq, shop):
    (shop / "letter.txt").write_text("Dear all,\n" * 1000)
    program = durableq("work", "letter.txt", "jobs:handle")
    _, said = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert "letter.txt: is not a durableq spool" in said and "Traceback" not in said
    assert (shop / "letter.txt").read_text() == "Dear all,\n" * 1000


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_that_makes_no_sense_is_a_wrong_command_line(durableq, number):
    program = durableq("work", "q.dq", "jobs:handle", "-j", number)
    assert program.wait(PATIENCE) == 2


def test_on_a_terminal_it_shows_what_it_is_doing_with_the_log_above_it(q, durableq, shop):
    q.put_many([("slow", True), ("next", False)])
    terminal, end_of_program = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    program = durableq("work", "q.dq", "jobs:handle", "-j", "2", stderr=end_of_program, env=environment)
    os.close(end_of_program)
    shown = b""
    until(lambda: told(shop / "slow"))
    deadline = time.monotonic() + PATIENCE
    while not (b"'slow', True" in shown and b"1 in flight" in shown and b"1 done" in shown):
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536)
    (shop / "slow-go").touch()
    program.terminate()
    while select.select([terminal], [], [], PATIENCE)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # that is how the end of a terminal looks
            break
    os.close(terminal)
    assert program.wait(PATIENCE) == 0
    assert b"2 workers on" in shown and b"stopped: 2 items done" in shown
    assert b"2 done, 0 failed, 0 in flight" in shown, "the last view tells of the end"


def test_without_a_terminal_it_only_logs_one_line_for_each_event(q, durableq):
    q.put(("item", False))
    log = end(durableq("work", "q.dq", "jobs:handle", "-j", "1", "--until-empty"), 0)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", line) for line in log.splitlines())
    assert len(log.splitlines()) == 3


def test_a_shutdown_is_one_request_to_stop_however_many_workers_tell_of_it(q, durableq, shop):
    q.put(("slow", True))
    program = durableq("work", "q.dq", "jobs:handle", "-j", "4")
    until(lambda: told(shop / "slow"))
    until(lambda: len([owner for owner in q.stats().owners if owner.waiting]) == 3)
    program.send_signal(signal.SIGSTOP)  # so that it finds all of them gone at once
    idle = [owner.pid for owner in q.stats().owners if owner.waiting]
    q.shutdown()
    until(lambda: not any(alive(pid) or len(os.listdir(f"/proc/{pid}/task")) > 1 for pid in idle))  # none of their threads
    program.send_signal(signal.SIGCONT)
    read_until(program, "stopping")
    (shop / "slow-go").touch()
    log = end(program, 0)
    assert "1 items done" in log and "given back" not in log


def test_a_terminal_that_is_gone_is_an_orderly_end(q, durableq, shop):
    q.put(("slow", True))
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    program = durableq("work", "q.dq", "jobs:handle", "-j", "1", stderr=theirs, env=environment)
    os.close(theirs)
    until(lambda: told(shop / "slow"))
    os.close(terminal)
    program.send_signal(signal.SIGHUP)  # by the shell
    program.send_signal(signal.SIGHUP)  # and by the kernel
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(1.0)  # several views would have been shown
    (shop / "slow-go").touch()
    assert program.wait(PATIENCE) == 0
    assert q.unfinished_tasks == 0


def ignores(pid, number):
    """Whether a process ignores a signal."""
    with open(f"/proc/{pid}/status") as file:
        (ignored,) = (line.split()[1] for line in file if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_when_it_starts_is_ignored(q, durableq, shop, number):
    """`nohup`, and the background of a script."""
    q.put(("slow", True))
    program = durableq("work", "q.dq", "jobs:handle", "-j", "1", preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    until(lambda: told(shop / "slow"))
    (worker,) = told(shop / "slow")
    assert ignores(worker, number), "and so will whatever it starts"
    program.send_signal(number)
    (shop / "slow-go").touch()
    until(lambda: not q.unfinished_tasks)
    assert program.poll() is None
    program.terminate()
    log = end(program, 0)
    assert "SIGTERM: stopping" in log and number.name not in log


def test_a_module_that_ends_the_program_when_it_is_imported_is_one_line(durableq, shop):
    (shop / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    program = durableq("work", "q.dq", "leaves:handle")
    _, log = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert "leaves cannot be imported: SystemExit: 0" in log and log.count("\n") == 1
