"""`durableq run` in a shell: a command for each item, and what becomes of the item when the command fails or dies."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from processes import PATIENCE, alive, until
from shell_runs import DEAD, DONE, READY, started, stat, story
from shells import heard, one_line

from durableq import DurableQueue, Empty


def test_the_item_is_the_command_s_stdin_byte_for_byte(shell):
    item = os.urandom(1_000_000)
    assert shell.out("durableq put q.dq --framing whole && durableq run q.dq -- cat", stdin=item) == item
    assert stat(shell) == DONE


def test_the_item_stands_in_place_of_braces(shell):
    shell.run("durableq put q.dq -- one 'two words' --three")
    assert shell.out("durableq run q.dq -- echo 'a{}b' {}") == b"aoneb one\natwo wordsb two words\na--threeb --three\n"


def test_options_of_the_command_are_its_own(shell):
    shell.run("durableq put q.dq x")
    assert shell.out("""durableq run q.dq -n 1 -- sh -c 'echo "$@"' sh -j 9 -- -n --json {}""") == b"-j 9 -- -n --json x\n"


def test_the_command_knows_the_item_s_id_and_how_often_it_came(shell):
    shell.run("durableq put q.dq x")
    item = json.loads(shell.out("durableq get --keep --json q.dq"))
    script = "durableq run q.dq --backoff 1ms -- sh -c 'echo $DURABLEQ_ID $DURABLEQ_DELIVERIES; [ $DURABLEQ_DELIVERIES = 3 ]'"
    assert shell.out(script).split() == [item["id"].encode(), b"1", item["id"].encode(), b"2", item["id"].encode(), b"3"]


def test_a_command_that_fails_to_the_end_leaves_a_dead_letter_with_its_code_and_its_last_words(shell):
    shell.run("durableq put q.dq bad")
    command = "sh -c 'echo tried; echo it is broken >&2; exit 7'"
    done = shell.run(f"durableq run q.dq --retries 2 --backoff 1ms -- {command}", code=1)
    assert done.stdout == b"tried\n" * 3
    assert done.stderr.count(b"it is broken\n") == 3 and b"exit code 7" in done.stderr
    assert stat(shell) == DEAD
    letter = story(shell)
    assert (letter["item"], letter["failure"]["reason"], letter["failure"]["details"]) == (
        "bad",
        "exit code 7",
        "it is broken\n",
    )
    assert b"it is broken" in shell.out("durableq peek --dead q.dq")


@pytest.mark.parametrize(
    ("options", "command", "reason"),
    [
        ("", "sh -c 'kill -SEGV $$'", "killed by SIGSEGV"),
        ("--timeout 0.2", "sh -c 'sleep 600'", "timed out after 0.2 s"),
        ("", "{}", "the command could not be started"),
    ],
)
def test_other_ends_are_told_by_their_names(shell, options, command, reason):
    shell.run("durableq put q.dq no-such-command")
    shell.run(f"durableq run q.dq --retries 0 {options} -- {command}", code=1)
    assert story(shell)["failure"]["reason"].startswith(reason)


def test_an_item_that_no_command_line_can_hold_is_a_dead_letter(shell):
    shell.run("durableq put q.dq --framing whole", stdin=b"zero\0byte")
    shell.run("durableq run q.dq --retries 0 -- echo {}", code=1)
    assert "null byte" in story(shell)["failure"]["reason"]


def test_a_command_that_does_not_exist_costs_no_item(shell):
    shell.run("durableq put q.dq x")
    assert "no such command" in one_line(shell.run("durableq run q.dq -- no-such-command", code=2).stderr)
    assert stat(shell) == READY


def test_a_pickle_is_left_alone(shell):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put(object)
    assert "--unpickle" in one_line(shell.run("durableq run q.dq -- cat", code=1).stderr)
    assert stat(shell) == READY
    assert shell.out("durableq run q.dq --unpickle -- cat") == b"<class 'object'>"


def test_a_pickle_that_must_not_be_unpickled_lets_what_runs_end(shell):
    with DurableQueue(shell.folder / "q.dq") as q:
        for item in (b"first", object, b"last"):
            q.put(item)
    runner = shell.start("exec durableq run q.dq -j 3 -- sh -c 'while [ ! -e go ]; do sleep 0.01; done; cat'")
    until(lambda: "poll" in Path(f"/proc/{runner.pid}/wchan").read_text())
    (shell.folder / "go").touch()
    assert runner.stdout.read() == b"first"
    assert runner.wait(PATIENCE) == 1
    assert "--unpickle" in one_line(runner.stderr.read())
    items = [json.loads(line) for line in shell.out("durableq get --unpickle --json q.dq").splitlines()]
    assert [(item["item"], item["deliveries"]) for item in items] == [("<class 'object'>", 1), ("last", 1)]


class Lost:
    """An item whose module is not there any more."""

    def __reduce__(self):
        return __import__, ("no_such_module",)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Lost(), "cannot be unpickled (ModuleNotFoundError: No module named 'no_such_module')"),
        (10**5000, "has no text (ValueError: Exceeds the limit"),
    ],
    ids=["lost", "endless"],
)
def test_an_item_that_cannot_be_unpickled_is_a_dead_letter_at_once_and_the_rest_goes_on(shell, item, reason):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put_many([item, b"good"])
    done = shell.run("durableq run q.dq --unpickle -- cat", code=1)
    assert done.stdout == b"good" and reason in one_line(done.stderr)
    assert stat(shell) == DEAD
    assert story(shell)["failure"]["reason"].startswith(reason)


def test_it_counts_for_halt(shell):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put_many([Lost(), b"good"])
    shell.run("durableq run q.dq --unpickle --halt soon,fail=1 -- cat", code=1)
    assert stat(shell) == {**DEAD, "ready": 1}


def test_the_queue_s_own_bound_holds_where_it_is_smaller(shell):
    DurableQueue(shell.folder / "q.dq", max_deliveries=2).close()
    shell.run("durableq put q.dq bad later")
    done = shell.run("durableq run q.dq --backoff 0 --halt soon,fail=1 -- sh -c 'echo tried; exit 7'", code=1)
    assert done.stdout == b"tried\n" * 2
    assert stat(shell) == {**DEAD, "ready": 1}
    assert story(shell)["failure"]["reason"] == "exit code 7"
    assert b"exit code 7" in done.stderr


def test_an_empty_queue_is_done_at_once_and_a_missing_one_is_an_error(shell):
    shell.run("durableq put q.dq </dev/null && durableq run q.dq -- false")
    assert "no queue here" in one_line(shell.run("durableq run none.dq -- true", code=1).stderr)


# -- several at a time -------------------------------------------------------------------------------------------------


def test_several_run_at_a_time(shell):
    """Each waits for all four: one after the other they would wait for ever."""
    shell.run("durableq put q.dq 1 2 3 4")
    shell.run("durableq run q.dq -j 4 -- sh -c 'touch here.{}; while [ $(ls here.* | wc -l) != 4 ]; do sleep 0.01; done'")
    assert stat(shell) == DONE


def test_no_more_run_at_a_time_than_they_should(shell):
    shell.run("seq 1 12 | durableq put q.dq")
    script = "durableq run q.dq -j 3 -- sh -c 'touch at.{}; ls at.* | wc -l; sleep 0.05; rm at.{}'"
    assert max(map(int, shell.out(script).split())) <= 3


def test_outputs_of_several_do_not_mix_unless_they_may(shell):
    shell.run("durableq put q.dq a b c d")
    command = "sh -c 'for n in 1 2 3; do echo {}; sleep 0.05; done'"
    lines = shell.out(f"durableq run q.dq -j 4 -- {command}").split()
    assert [lines[n : n + 3] for n in range(0, 12, 3)] == [[line] * 3 for line in lines[::3]]
    shell.run("durableq put q.dq a b c d")
    assert sorted(shell.out(f"durableq run q.dq -u -j 4 -- {command}").split()) == sorted(lines)


def test_lines_on_stderr_stay_whole(shell):
    shell.run("seq 1 20 | durableq put q.dq")
    command = "sh -c 'for n in 1 2 3 4 5; do printf begin- >&2; printf end >&2; echo >&2; done'"
    assert set(shell.run(f"durableq run q.dq -j 4 -- {command}").stderr.split()) == {b"begin-end"}


def test_so_many_commands_and_no_more(shell):
    assert len(shell.out("seq 1 9 | durableq put q.dq; durableq run q.dq -n 4 -j 2 -- echo {}").split()) == 4
    assert stat(shell)["ready"] == 5


# -- stderr -----------------------------------------------------------------------------------------------------------


MUCH = 16 << 20


def written(pid):
    """Bytes that a process has written."""
    return int(re.search(r"^wchar: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)[1])


def test_a_command_that_never_stops_talking_is_held_to_its_time(shell):
    shell.run("durableq put q.dq x")
    command = "durableq run q.dq --timeout 1 --retries 0 -- sh -c 'cat /dev/zero >&2' 2>/dev/null"
    shell.run(f"timeout -k 3 15 {command}", code=1)
    assert stat(shell) == DEAD
    assert story(shell)["failure"]["reason"] == "timed out after 1 s"


def test_the_first_signal_is_heard_while_a_command_never_stops_talking(shell):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, "exec cat /dev/zero >&2", before="2> >(grep -a -m 1 -o waiting.* >told)")
    until(lambda: written(pid) > MUCH)
    runner.send_signal(signal.SIGTERM)
    until(lambda: (shell.folder / "told").read_text().startswith("waiting for 1 command to end"))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(PATIENCE) == -signal.SIGTERM
    assert stat(shell) == READY


def test_others_are_started_while_a_command_never_stops_talking(shell):
    shell.run("durableq put q.dq loud 1 2 3")
    others = "while [ ! -e go ]; do sleep 0.01; done; echo {}"
    command = f"sh -c 'if [ {{}} = loud ]; then echo $$; exec cat /dev/zero >&2; else {others}; fi'"
    runner = shell.start(f"exec durableq run q.dq -u -j 2 -- {command} 2>/dev/null")
    pid = int(runner.stdout.readline())
    until(lambda: written(pid) > MUCH)
    (shell.folder / "go").touch()
    assert heard(runner, 6) == b"1\n2\n3\n"


def test_the_lease_is_extended_while_a_command_never_stops_talking(shell):
    DurableQueue(shell.folder / "q.dq", lease=0.5).close()
    shell.run("durableq put q.dq x")
    started(shell, "exec cat /dev/zero >&2", before="2>/dev/null")
    with DurableQueue(shell.folder / "q.dq") as q, pytest.raises(Empty):
        q.get(timeout=2)


def test_a_line_that_never_ends_comes_through_in_pieces_and_is_not_kept(shell):
    (shell.folder / "measured.py").write_text("""if True:
        import resource, sys
        from durableq.cli import main

        code = main(["run", "q.dq", "--", "sh", "-c", "head -c 50M /dev/zero >&2; echo end >&2"])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        sys.exit(code)
    """)
    shell.run("durableq put q.dq x")
    kib = int(shell.out(f'"{sys.executable}" measured.py 2>told'))
    told = (shell.folder / "told").read_bytes()
    assert told.replace(b"\n", b"") == bytes(50 << 20) + b"end"
    assert kib < 100 << 10
    assert max(map(len, told.split(b"\n"))) <= 128 << 10


# -- halting -----------------------------------------------------------------------------------------------------------


def test_halt_soon_starts_no_more_and_waits_for_what_runs(shell):
    shell.run("durableq put q.dq slow bad later later")
    command = (
        "sh -c 'case {} in bad) exit 3;; slow) while [ ! -e failed ]; do sleep 0.01; done; sleep 0.2; echo finished;; esac'"
    )
    runner = shell.start(f"exec durableq run q.dq -j 2 --retries 0 --halt soon,fail=1 -- {command}")
    assert b"exit code 3" in runner.stderr.readline()
    (shell.folder / "failed").touch()
    assert heard(runner, 9) == b"finished\n"
    assert runner.wait(PATIENCE) == 1
    assert stat(shell) == {"ready": 2, "lent": 0, "delayed": 0, "dead": 1}


def test_halt_now_stops_what_runs_and_leaves_its_item_as_if_untouched(shell):
    shell.run("durableq put q.dq slow bad later")
    command = "sh -c 'case {} in bad) while [ ! -e slow ]; do sleep 0.01; done; exit 3;; slow) touch slow; sleep 600;; esac'"
    shell.run(f"durableq run q.dq -j 2 --retries 0 --halt now,fail=1 -- {command}", code=1)
    assert stat(shell) == {"ready": 2, "lent": 0, "delayed": 0, "dead": 1}
    first = json.loads(shell.out("durableq get -n 1 --json q.dq"))
    assert (first["item"], first["deliveries"]) == ("slow", 1)


def test_without_a_policy_one_failure_does_not_stop_the_others(shell):
    shell.run("durableq put q.dq bad good")
    assert shell.out("durableq run q.dq --retries 0 -- sh -c 'echo {}; [ {} = good ]'", code=1) == b"bad\ngood\n"


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_waits_for_the_command(shell, number):
    shell.run("durableq put q.dq x y")
    runner, _ = started(shell, "while [ ! -e go ]; do sleep 0.01; done; echo done")
    runner.send_signal(number)
    assert b"waiting for 1 command" in runner.stderr.readline()
    (shell.folder / "go").touch()
    assert heard(runner, 5) == b"done\n"
    assert runner.wait(PATIENCE) == -number
    assert stat(shell) == READY


def test_the_second_signal_kills_the_command_and_leaves_its_item_uncounted(shell):
    shell.run("durableq put q.dq x")
    runner, pid = started(shell, "sleep 600")
    runner.send_signal(signal.SIGTERM)
    assert b"once more" in runner.stderr.readline()
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(PATIENCE) == -signal.SIGTERM
    until(lambda: not alive(pid))
    again = json.loads(shell.out("durableq get --json q.dq"))
    assert (again["item"], again["deliveries"]) == ("x", 1)


def test_a_follower_starts_what_comes_later_while_others_run(shell):
    path = shell.folder / "q.dq"
    runner = shell.start("exec durableq run -f q.dq -j 2 -u -- sh -c 'echo {}; [ {} = quick ] || sleep 600'")
    until(lambda: path.exists() and path.stat().st_size)
    shell.run("durableq put q.dq slow")
    assert heard(runner, 5) == b"slow\n"
    shell.run("durableq put q.dq quick")
    assert heard(runner, 6) == b"quick\n"
    shell.run("durableq put q.dq quick")
    assert heard(runner, 6) == b"quick\n"
    runner.send_signal(signal.SIGTERM)
    runner.stderr.readline()
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(PATIENCE) == -signal.SIGTERM


def test_a_lease_is_extended_while_a_command_runs(shell):
    DurableQueue(shell.folder / "q.dq", lease=0.3).close()
    shell.run("durableq put q.dq x")
    runner, _ = started(shell, "while [ ! -e go ]; do sleep 0.01; done")
    with DurableQueue(shell.folder / "q.dq") as q:
        for _ in range(10):
            with pytest.raises(__import__("queue").Empty):
                q.get(timeout=0.1)
    (shell.folder / "go").touch()
    assert runner.wait(PATIENCE) == 0
    assert stat(shell) == DONE


def test_a_shut_down_queue_ends_a_follower_when_all_is_done_that_waits_or_comes_again(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put(b"later", delay=0.5)
        q.put(b"fails")
        q.shutdown()
        fails_at_first = "[ {} != fails ] || [ $DURABLEQ_DELIVERIES = 2 ]"
        script = f"durableq run -f q.dq -j 2 --backoff 1s -- sh -c 'echo {{}} $DURABLEQ_DELIVERIES; {fails_at_first}'"
        assert sorted(shell.out(script).splitlines()) == [b"fails 1", b"fails 2", b"later 1"]
        q.join()


def test_an_item_that_fails_while_the_queue_is_shut_down_comes_again(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put(b"fails")
        fails_at_first = "echo $DURABLEQ_DELIVERIES; read -r line <go; [ $DURABLEQ_DELIVERIES = 2 ]"
        os.mkfifo(shell.folder / "go")
        runner = shell.start(f"exec durableq run -f q.dq -j 2 -u --backoff 1ms -- sh -c '{fails_at_first}'")
        assert heard(runner, 2) == b"1\n"
        until(lambda: any(owner.waiting for owner in q.stats().owners))
        q.shutdown()
        until(lambda: not any(owner.waiting for owner in q.stats().owners))
        for number in (1, 2):
            with open(shell.folder / "go", "w") as go:
                go.write("go\n")
            if number == 1:
                assert heard(runner, 2) == b"2\n"
        assert runner.wait(PATIENCE) == 0
        assert stat(shell) == DONE
