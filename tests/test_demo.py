"""`durableq demo` and the command line as a user runs them: real programs, real kills, and what they print."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from durableq import DurableQueue, cli

DURABLEQ = [sys.executable, "-m", "durableq"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DURABLEQ, *arguments],
        capture_output=True,
        timeout=50,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} not in:\n{text}"
    return int(found[1])


def alive_with(word: str) -> list[str]:
    """The processes, by their command lines, that have `word` in it. Zombies have none."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            lines.append(line)
    return lines


def wait_until(condition, seconds: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


def test_the_demo_counts_every_file_though_its_workers_and_the_whole_program_are_killed() -> None:
    done = run("demo", "--limit", "120", "--seconds", "6", "--workers", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "120 files queued, 120 counted, 0 lost" in done.stdout
    assert "half way: SIGKILL to this whole program, 3 workers and itself" in done.stdout
    assert "run 2 (process" in done.stdout and "run 3" not in done.stdout
    assert "half way the whole program with its 3" in done.stdout
    assert number(r"SIGKILL: (\d+) workers at random", done.stdout) >= 1
    once = number(r"(\d+) delivered once", done.stdout)
    again = number(r"(\d+) again after a kill", done.stdout)
    assert once + again == 120
    assert again >= 1, "they are killed while they hold a file"
    for label in ("full", "a quarter done", "half way", "started again", "three quarters", "nearly done", "all done"):
        assert f"  {label:15}|" in done.stdout
    assert "\x1b" not in done.stdout, "no terminal, no escape sequences"
    assert "\u2588" in done.stdout


def test_the_demo_draws_in_ascii_where_the_output_can_carry_no_more() -> None:
    done = run("demo", "--limit", "10", "--seconds", "0", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    assert "# data" in done.stdout


def test_a_demo_that_was_killed_carries_on_in_its_directory_and_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [*DURABLEQ, "demo", "--limit", "60", "--seconds", "30", "--dir", str(tmp_path)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert demo.stdout is not None
    try:
        wait_until(lambda: len([line for line in alive_with(str(tmp_path)) if "--role worker" in line]) == 4)
        time.sleep(1.0)
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.wait()
        demo.stdout.close()
    wait_until(lambda: not alive_with(str(tmp_path)))
    with DurableQueue(tmp_path / "demo-jobs.dq") as jobs:
        assert jobs.stats().puts == 60
    again = run("demo", "--seconds", "2", "--dir", str(tmp_path))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "carrying on" in again.stdout
    assert "60 files queued, 60 counted, 0 lost" in again.stdout
    assert json.loads((tmp_path / "demo.json").read_text())["state"] == "checked"


def test_an_interrupted_demo_stops_its_programs_and_says_how_to_carry_on(tmp_path: Path) -> None:
    command = [*DURABLEQ, "demo", "--limit", "60", "--seconds", "30", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        wait_until(lambda: any("--role worker" in line for line in alive_with(str(tmp_path))))
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=20)
    assert demo.returncode == -signal.SIGINT  # what a shell calls 130
    assert "carries on" in out
    assert err == "durableq: interrupted\n"
    wait_until(lambda: not alive_with(str(tmp_path)))


def test_a_finished_demo_starts_anew_in_the_same_directory(tmp_path: Path) -> None:
    for _ in range(2):
        done = run("demo", "--limit", "8", "--seconds", "0", "--dir", str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "8 files queued, 8 counted, 0 lost" in done.stdout
        assert "carrying on" not in done.stdout


def test_the_demo_leaves_a_queue_alone_that_is_not_its_own(tmp_path: Path) -> None:
    with DurableQueue(tmp_path / "demo-jobs.dq") as jobs:
        jobs.put("precious")
    done = run("demo", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert one_line(done.stderr).endswith("use another --dir")
    with DurableQueue(tmp_path / "demo-jobs.dq") as jobs:
        assert jobs.peek() == ["precious"]


def test_a_lost_file_makes_the_demo_fail_and_is_named(tmp_path: Path) -> None:
    assert run("demo", "--limit", "8", "--seconds", "0", "--dir", str(tmp_path)).returncode == 0
    plan = json.loads((tmp_path / "demo.json").read_text())
    plan["files"].append("never_queued.py")
    plan["state"] = "running"
    (tmp_path / "demo.json").write_text(json.dumps(plan))
    done = run("demo", "--seconds", "0", "--dir", str(tmp_path))
    # The queue says that everything put into it is done, the plan names one more: the check must not believe the queue.
    assert done.returncode == 1
    assert "LOST: never_queued.py" in done.stdout


# -- the command line --------------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    assert text.startswith("durableq: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text.rstrip("\n")


def test_stat_of_a_missing_queue_is_one_line_and_creates_nothing(tmp_path: Path) -> None:
    done = run("stat", str(tmp_path / "none.dq"))
    assert done.returncode == 1
    assert "none.dq" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_stat_of_a_file_that_is_no_spool_is_one_line_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear all,\n" * 1000)
    done = run("stat", str(path))
    assert done.returncode == 1
    assert "letter.txt" in one_line(done.stderr)
    assert path.read_text() == "Dear all,\n" * 1000


def test_a_wrong_command_line_is_exit_code_2() -> None:
    assert run().returncode == 2
    assert run("frobnicate").returncode == 2
    assert run("demo", "--workers", "0").returncode == 2


def test_the_help_names_every_subcommand() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in map(cli.command, cli.COMMANDS):
        assert command.name in done.stdout and command.summary in " ".join(done.stdout.split())


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    DurableQueue(tmp_path / "q.dq").close()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*DURABLEQ, "stat", str(tmp_path / "q.dq")], stdout=writer, stderr=subprocess.PIPE, timeout=30)
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE  # what a shell calls 141
    assert done.stderr == b""


def test_an_interrupt_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("durableq.cli.demo.COMMAND", cli.Command("demo", "waits", lambda parser: None, interrupted))
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "durableq: interrupted\n"


def test_stat_shows_what_is_in_the_queue_and_who_else_has_it_open(tmp_path: Path) -> None:
    with DurableQueue(tmp_path / "q.dq") as jobs:
        jobs.put_many(range(5))
        jobs.get()
        text = run("stat", str(tmp_path / "q.dq"))
        assert text.returncode == 0, text.stderr
        assert "4 ready, 1 lent" in text.stdout
        found = json.loads(run("stat", "--json", str(tmp_path / "q.dq")).stdout)
    assert (found["ready"], found["lent"], found["unfinished"], found["puts"]) == (4, 1, 5, 5)
    assert [owner["pid"] for owner in found["owners"]] == [os.getpid()]
