"""The benchmark suite: only who did the work has figures, ratios are what they say, errors name the remedy."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import durable, growth, messages, stage
from benchmarks.common import Failed, medians, percentile, take_turns
from benchmarks.matrix import TARGETS, WORKS, Target
from benchmarks.peers import memory, own
from benchmarks.report import BEGIN, END, Result, judge, lines, markdown, write_into
from benchmarks.works import Backlog, Passing, Putting, RoundTrip

ROOT = Path(__file__).parent.parent
ONE = Passing("fifo", "1 to 1", (own.Queue, memory.Queue))


class Forgetful(memory.Queue):
    """Forgets the third message."""

    name = "forgetful"

    def __init__(self, place, room):
        super().__init__(place, room)
        self.put = self.put_but

    def put_but(self, message):
        for sent in self.altered(message) if message[8:16] == b"00000002" else [message]:
            self.queue.put(sent)

    def altered(self, message):
        return []


class Repeating(Forgetful):
    def altered(self, message):
        return [message, message]


class Damaging(Forgetful):
    def altered(self, message):
        return [message[:-1] + bytes([message[-1] ^ 1])]


class Mixing(Forgetful):
    """The right head on the body of another message."""

    def altered(self, message):
        return [message[:16] + messages.message(0, 3, len(message))[16:]]


class Inventing(Forgetful):
    def altered(self, message):
        return [message, messages.message(7, 0, len(message))]


# -- what a figure stands for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1 << 16])
@pytest.mark.parametrize(
    ("peer", "complaint"),
    [
        (Forgetful, "of 20 messages: 1 lost"),
        (Repeating, "of 20 messages: 1 more than once"),
        (Damaging, "of 20 messages: 1 lost, 1 damaged"),
        (Mixing, "of 20 messages: 1 lost, 1 damaged"),
        (Inventing, "of 20 messages: 1 never put"),
    ],
)
def test_a_peer_that_does_not_deliver_each_message_once_and_intact_has_no_figures(tmp_path, peer, complaint, size):
    with pytest.raises(Failed) as failure:
        Passing("fifo", "1 to 1", (peer,), size).run(peer, tmp_path, 20)
    assert str(failure.value) == complaint


def test_what_is_only_put_while_the_clock_runs_is_checked_as_well(tmp_path):
    with pytest.raises(Failed, match="2 lost"):
        Putting("durable", "puts", (Forgetful,), producers=2).run(Forgetful, tmp_path, 20)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_every_subject_that_is_there_does_its_work(tmp_path, work):
    for peer in work.subjects:
        if not peer.missing():
            figures = work.run(peer, tmp_path, 10_000 if isinstance(work, Backlog) else 10)
            assert figures[work.key] > 0, peer
    assert list(tmp_path.iterdir()) == []


def test_processes_of_all_producers_and_consumers_have_a_part_in_wall_time_and_cpu_seconds(tmp_path):
    def busy(peer):
        yield
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        yield
        return os.getpid()

    peer = memory.SimpleQueue(tmp_path, 0)
    run = stage.play(peer, [busy, busy, busy])
    peer.remove()
    assert len(set(run.results)) == 3
    assert run.cpu >= 0.15
    assert run.wall >= 0.05


def test_an_error_in_a_process_of_a_run_is_its_result_and_ends_the_others(tmp_path):
    class Refusing(memory.Queue):
        def __init__(self, place, room):
            super().__init__(place, room)
            self.put = self.refuse

        def refuse(self, message):
            raise OSError("no room")

    with pytest.raises(Failed, match="OSError: no room"):
        ONE.run(Refusing, tmp_path, 20)
    assert multiprocessing.active_children() == []


def test_a_run_that_hangs_is_ended(tmp_path, monkeypatch):
    class Silent(memory.Queue):
        def __init__(self, place, room):
            super().__init__(place, room)
            self.put = len

    monkeypatch.setattr(stage, "PATIENCE", 0.5)
    with pytest.raises(Failed, match="it hangs"):
        ONE.run(Silent, tmp_path, 20)
    assert multiprocessing.active_children() == []


# -- statistics --------------------------------------------------------------------------------------------------------


def test_subjects_take_turns_and_their_medians_count():
    turns = []
    speeds = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 4.0, 6.0])}

    def measure(subject):
        turns.append(subject)
        return {"rate": next(speeds[subject])}

    found, failed = take_turns("ab", 3, measure)
    assert turns == list("ababab")
    assert found == {"a": {"rate": 2.0}, "b": {"rate": 5.0}}
    assert failed == {}


def test_who_fails_once_has_no_figures_and_no_further_turn():
    turns = []

    def measure(subject):
        turns.append(subject)
        if turns.count("a") == 2 and subject == "a":
            raise Failed("3 lost")
        return {"rate": 1.0}

    found, failed = take_turns("ab", 3, measure)
    assert turns == list("ababb")
    assert found == {"b": {"rate": 1.0}}
    assert failed == {"a": "3 lost"}


def test_each_figure_has_a_median_of_its_own():
    assert medians([{"x": 1.0, "y": 9.0}, {"x": 3.0, "y": 7.0}, {"x": 2.0, "y": 8.0}]) == {"x": 2.0, "y": 8.0}


def test_a_percentile_is_a_value_that_was_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([4.0], 0.99) == 4.0


# -- the verdicts ------------------------------------------------------------------------------------------------------


def rates(**figures):
    peers = {"ours": own.Queue, "queue": memory.Queue, "simple": memory.SimpleQueue}
    return Result(ONE, {peers[name]: {"rate": rate, "cpu": 1 / rate} for name, rate in figures.items()})


def verdict(target, result):
    (found,) = judge([target], {ONE: result})
    return found.measured, found.word


def test_a_target_is_judged_by_the_best_of_those_it_names():
    target = Target(ONE, "messages/s", (memory.Queue, memory.SimpleQueue), 1.5)
    assert verdict(target, rates(ours=30, queue=15, simple=20)) == ("1.50 (multiprocessing.SimpleQueue)", "reached")
    assert verdict(target, rates(ours=29, queue=20, simple=10)) == ("1.45 (multiprocessing.Queue)", "not reached")


def test_a_target_that_is_an_upper_bound_is_judged_by_the_lowest():
    target = Target(ONE, "CPU", (memory.Queue, memory.SimpleQueue), 0.5, "cpu", at_most=True)
    assert verdict(target, rates(ours=30, queue=15, simple=10)) == ("0.50 (multiprocessing.Queue)", "reached")
    assert verdict(target, rates(ours=30, queue=15, simple=20)) == ("0.67 (multiprocessing.SimpleQueue)", "not reached")


def test_a_target_against_a_peer_without_figures_is_not_measured():
    target = Target(ONE, "messages/s", (memory.Queue, memory.SimpleQueue), 1.5)
    assert verdict(target, rates(ours=30, queue=15)) == ("", "not measured")


def test_every_target_is_about_subjects_of_its_work():
    assert [target for target in TARGETS if not {target.ours, *target.theirs} <= set(target.work.subjects)] == []


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_a_table_has_a_line_for_every_subject_with_its_ratio_its_failure_or_the_command_that_installs_it():
    work = Passing("fifo", "1 to 1", (own.Queue, memory.Queue, memory.FasterFifo, memory.SimpleQueue))
    result = Result(work, {own.Queue: {"rate": 300_000.0}, memory.Queue: {"rate": 200_000.0}})
    result.failed[memory.SimpleQueue] = "of 20 messages: 1 lost"
    result.missing[memory.FasterFifo] = memory.FasterFifo.remedy
    ours, queue, fifo, simple = lines(result)[1:]
    assert ours.split() == ["durableq", "300,000"]
    assert queue.split() == ["multiprocessing.Queue", "200,000", "1.50", "x"]
    assert fifo.split(maxsplit=1) == ["faster-fifo", "missing; it comes with: pip install faster-fifo"]
    assert simple.split(maxsplit=1) == ["multiprocessing.SimpleQueue", "FAILED: of 20 messages: 1 lost"]


def test_ratios_say_how_many_times_better_durableq_is_also_where_less_is_better():
    trip = Result(RoundTrip("roundtrip", "trip", (own.Queue, memory.Queue)))
    trip.figures = {own.Queue: {"median": 10.0}, memory.Queue: {"median": 50.0}}
    assert trip.times_better(memory.Queue) == 5.0
    assert rates(ours=50, queue=10).times_better(memory.Queue) == 5.0
    assert rates(ours=50, queue=10).times_better(own.Queue) is None


def test_a_peer_that_is_not_installed_is_missing_by_its_module_or_its_program():
    class NoModule(memory.Queue):
        module, remedy = "durableq_has_no_such_peer", "pip install it"

    class NoProgram(memory.Queue):
        module, program, remedy = "os", "durableq-has-no-such-program", "apt-get install it"

    result = program.measure(
        Passing("fifo", "1 to 1", (NoModule, NoProgram)), lambda peer: True, Path("unused"), rounds=1, seconds=0.01
    )
    assert result.missing == {NoModule: "pip install it", NoProgram: "apt-get install it"}


def test_the_extra_brings_every_peer_that_pip_installs():
    extra = re.search(r"^bench = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL).group(1)
    brought = {name.lower() for name in re.findall(r'"([A-Za-z-]+)', extra)}
    remedies = {peer.remedy for work in WORKS for peer in work.subjects if peer.module}
    named = {re.search(r"pip install '?([a-z-]+)", remedy).group(1) for remedy in remedies}
    assert named | {"matplotlib"} == brought
    assert named == set(program.PACKAGES)


def test_the_readme_s_tables_are_replaced_between_the_marks_and_nothing_else_is(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = rates(ours=30, queue=20)
    write_into(readme, markdown("2 CPUs", [result], judge([Target(ONE, "messages/s", (memory.Queue,), 2.0)], {ONE: result})))
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n2 CPUs\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "| 1 to 1: messages/s | at least 2 x multiprocessing.Queue | 1.50 | not reached |" in text
    assert "| 1 to 1 | 30 messages/s, 0.03 CPU s/million | multiprocessing.Queue 1.50 |" in text
    assert "old" not in text


def test_the_charts_are_small_png_files(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    results = [
        Result(work, {peer: {"rate": 1e5 + n, "median": 9.0} for n, peer in enumerate(work.subjects)})
        for works in plot.CHARTS.values()
        for work in works
    ]
    files = plot.draw(results, tmp_path)
    assert sorted(file.name for file in files) == sorted(f"{name}.png" for name in plot.CHARTS)
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size < 150_000


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_program_prints_environment_table_and_targets_and_its_exit_code_says_whether_all_are_reached(capsys, tmp_path):
    code = program.main(
        ["--only", "drain", "--peers", "multiprocessing", "--rounds", "1", "--seconds", "0.01", "--dir", str(tmp_path)]
    )
    said = capsys.readouterr().out
    assert re.match(r"\d+ CPUs.*Python 3\.\d+.*medians of 1 rounds", said)
    assert re.search(r"^  durableq +[\d,]+ +[\d.,]+$", said, re.MULTILINE)
    assert re.search(r"^  multiprocessing.Queue +[\d,]+ +[\d.,]+ +[\d.]+ x$", said, re.MULTILINE)
    assert not re.search(r"^  faster-fifo", said, re.MULTILINE)
    assert re.search(r"fill, then drain, 100 B: messages/s +at least 1.5 x multiprocessing.Queue +[\d.]+ +(not )?reached", said)
    assert code == (1 if "not reached" in said else 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--only", "fifo,nonsense"], "there is no work nonsense; there is fifo, large, drain"),
        (["--rounds", "0"], "0 is not positive"),
        (["--seconds", "soon"], "invalid number value: 'soon'"),
        (["--dir", "/nonexistent/folder"], "/nonexistent/folder is not a directory; create it first"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_would_be_right(capsys, argv, complaint):
    with pytest.raises(SystemExit) as exit:
        program.main(argv)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_readme_without_the_marks_is_refused_before_anything_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("nothing\n")
    with pytest.raises(SystemExit):
        program.main(["--readme"])
    assert f"put the lines {BEGIN} and {END}" in capsys.readouterr().err


# -- the other programs ------------------------------------------------------------------------------------------------


PROGRAMS = {
    "growth": ("--scale 0.001 --rounds 1 --burst 10", list(growth.SCENARIOS)),
    "durable": ("--rounds 1 --seconds 0.05", list(durable.SUBJECTS)),
    "shell": ("--rounds 1 --lines 1000 --mib 1", ["loop", "put", "get", "cat", "put block", "get raw"]),
    "idle": ("--consumers 1 --seconds 0.2", ["get() on an empty queue", "time.sleep(0.1) in a loop"]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_a_line_for_every_subject_and_its_exit_code_says_whether_all_holds(tmp_path, name):
    options, subjects = PROGRAMS[name]
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split()]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert re.match(r"\d+ CPUs.*Python 3\.\d+", done.stdout), done.stderr
    for subject in subjects:
        assert re.search(rf"^{re.escape(subject)} +[\d.,]+ ", done.stdout, re.MULTILINE), (subject, done.stdout, done.stderr)
    assert done.returncode == (1 if re.search("MISSED|does not hold", done.stdout) else 0), done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
