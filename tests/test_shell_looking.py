"""What the shell shows of a queue, and what it does to one beside putting and getting."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import pytest
from shells import heard, one_line

from durableq import DurableQueue, check, cli
from durableq.cli._command import EXIT_CODES


@pytest.fixture
def busy(shell):
    """A queue with one of each: dead, lent (to this process), delayed, and three that wait."""
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many([b"dead", b"lent", b"delayed", b"one", b"two", b"three"])
        dead, _, delayed = q.reserve_many(3)
        dead.reject()
        delayed.nack(3600)
        yield shell


# -- stat --------------------------------------------------------------------------------------------------------------


def test_stat_tells_the_counts_and_who_has_what(busy):
    text = busy.out("durableq stat q.dq").decode()
    assert "3 ready, 1 lent, 1 delayed, 1 dead letter" in text
    assert f"held by  {os.getpid()} " in text and "1 lent" in text
    assert "delivered once" in text
    found = json.loads(busy.out("durableq stat --json q.dq"))
    assert (found["ready"], found["lent"], found["delayed"], found["dead"]) == (3, 1, 1, 1)
    (owner,) = found["owners"]
    assert (owner["pid"], owner["lent"], owner["oldest"]["deliveries"]) == (os.getpid(), 1, 1)


def test_stat_speaks_prometheus(busy):
    parser = pytest.importorskip("prometheus_client.parser", reason="python -m pip install 'durableq[prometheus]'")
    text = busy.out("durableq stat --prometheus q.dq").decode()
    samples = {s.name: s for family in parser.text_fd_to_metric_families(io.StringIO(text)) for s in family.samples}
    assert samples["durableq_ready_items"].value == 3
    assert samples["durableq_put_items_total"].value == 6
    assert samples["durableq_ready_items"].labels == {"queue": str(busy.folder / "q.dq")}


def test_stat_prometheus_is_what_the_collector_collects(busy):
    prometheus_client = pytest.importorskip("prometheus_client", reason="python -m pip install 'durableq[prometheus]'")
    from durableq.integrations._metrics import exposition
    from durableq.integrations.prometheus import QueueCollector

    registry = prometheus_client.CollectorRegistry()
    with DurableQueue(busy.folder / "q.dq", serializer="bytes") as q:
        registry.register(QueueCollector(q))
        collected = prometheus_client.generate_latest(registry).decode()
        written = exposition([q.stats()])

    def names(text):
        return {line.split()[0] for line in text.splitlines() if not line.startswith("#")}

    assert names(written) == names(collected)


def test_stat_watch_draws_on_a_terminal_until_ctrl_c(busy, terminal):
    watch = terminal("durableq stat --watch --every 50ms q.dq")
    watch.until(b"3 waiting")
    busy.run("durableq put q.dq more")
    watch.until(b"4 waiting")
    watch.type(b"\x03")
    assert watch.end() == -signal.SIGINT


def test_stat_watch_shows_items_of_python_programs_by_name_and_to_who_trusts_them_as_they_are(shell, terminal):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put({"resize": "cat.png"})
        delivery = q.reserve()
        for options, shown in (("", f"item {delivery.id}"), (" --unpickle", "{'resize': 'cat.png'}")):
            watch = terminal(f"durableq stat --watch --every 50ms{options} q.dq")
            watch.until(shown.encode())
            watch.type(b"\x03")
            assert watch.end() == -signal.SIGINT
    assert "--watch" in one_line(shell.run("durableq stat --unpickle q.dq", code=2).stderr)


def test_stat_watch_as_json_is_a_line_each_time(busy):
    watch = busy.start("exec durableq stat --watch --json --every 50ms q.dq")
    first, second = (json.loads(watch.stdout.readline()) for _ in range(2))
    assert first["ready"] == second["ready"] == 3
    assert second["done_per_second"] == 0
    watch.send_signal(signal.SIGINT)


# -- peek --------------------------------------------------------------------------------------------------------------


def test_peek_shows_what_comes_next_and_takes_nothing(busy):
    lines = busy.out("durableq peek q.dq").decode().splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "two", "three"]
    assert busy.out("durableq peek -n 1 q.dq").decode().split()[-1] == "one"
    assert [json.loads(line)["item"] for line in busy.out("durableq peek --json q.dq").splitlines()] == ["one", "two", "three"]


def test_peek_shows_what_is_lent_and_to_whom(busy):
    assert f"with {os.getpid()}  lent" in busy.out("durableq peek --lent q.dq").decode()
    assert json.loads(busy.out("durableq peek --lent --json q.dq"))["pid"] == os.getpid()


def test_peek_tells_when_there_is_nothing(shell):
    shell.run("durableq put q.dq </dev/null; durableq peek q.dq", code=3)


def test_what_is_in_an_item_cannot_steer_the_terminal(shell):
    shell.run(r"printf 'bell\a\033[31mred' | durableq put q.dq --framing whole")
    assert shell.out("durableq peek q.dq").decode().rstrip("\n").isprintable()


# -- purge, redrive, compact -------------------------------------------------------------------------------------------


def test_purge_removes_what_waits_and_says_how_much(busy):
    assert busy.out("durableq purge q.dq") == b"4 items thrown away\n"
    assert json.loads(busy.out("durableq stat --json q.dq"))["lent"] == 1


def test_purge_removes_dead_letters_and_their_stories(busy):
    busy.run("durableq run q.dq -n 1 --retries 0 -- sh -c 'exit 1'", code=1)
    assert busy.out("durableq purge --dead q.dq") == b"2 dead letters thrown away\n"
    assert json.loads(busy.out("durableq stat --json q.dq"))["dead"] == 0


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 3), (b"\n", 3), (b"y\n", 0)])
def test_purge_asks_on_a_terminal(busy, terminal, answer, left):
    asked = terminal("durableq purge q.dq")
    asked.until(b"[y/N] ")
    asked.type(answer)
    assert asked.end() == (0 if left == 0 else 1)
    assert json.loads(busy.out("durableq stat --json q.dq"))["ready"] == left


def test_redrive_gives_dead_letters_another_chance(busy):
    assert busy.out("durableq redrive q.dq && durableq get -n 1 q.dq") == b"1 dead letter is back in the queue\ndead\n"


def test_compact_says_what_it_gave_back(shell, punches_holes):
    shell.run("head -c 900K /dev/urandom | durableq put q.dq --framing block; durableq put q.dq last; durableq get -n 14 q.dq")
    given = shell.out("durableq compact q.dq").decode()
    assert re.match(r"\d+\.\d KiB given back", given), given
    assert "128 B live" in given or "live" in given


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_finds_damage_and_repairs_it(shell, tmp_path):
    shell.run("durableq put q.dq first second third")
    assert b"sound" in shell.out("durableq check q.dq")
    spool = shell.folder / "q.dq"
    at = spool.read_bytes().index(b"second")
    with spool.open("r+b") as file:
        file.seek(at)
        file.write(b"SECOND")
    (shell.folder / "q.dq-shm").unlink()
    found = shell.out("durableq check q.dq", code=5).decode()
    assert "damaged" in found and "check --repair" in found
    assert json.loads(shell.out("durableq check --json q.dq", code=5))["damaged"][0]["reason"] == "payload"
    mended = shell.out("durableq check --repair q.dq").decode()
    assert "q.dq-backup" in mended
    assert shell.out("durableq check q.dq && durableq get q.dq").decode().endswith("first\nthird\n")


def test_a_repair_beside_users_is_refused(busy):
    spool = busy.folder / "q.dq"
    assert "in use" in one_line(busy.run("durableq check --repair q.dq", code=1).stderr)
    assert check(spool).ok


# -- map ---------------------------------------------------------------------------------------------------------------


def cells(text):
    """The cells of a map in ASCII, one after the other."""
    return "".join(re.findall(r"^ *[\d.]+ \w+  (.*)$", text, re.MULTILINE))


@pytest.fixture
def stretched(shell, punches_holes):
    """Ten megabytes, of which the first six are done but for two items that are lent and one that is dead."""
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many([os.urandom(1000) for _ in range(10_000)])
        for n in range(6000):
            delivery = q.reserve()
            if n == 4500:
                delivery.reject()
            elif n not in (1500, 3000):
                delivery.ack()
        yield shell


def test_the_map_shows_to_scale_what_lies_where(stretched):
    text = stretched.out("durableq map --ascii q.dq").decode()
    drawn = cells(text)
    cell = int(re.search(r"a cell is (\d+)\.0 KiB", text)[1]) << 10
    assert len(drawn) == -(-(stretched.folder / "q.dq").stat().st_size // cell)
    found = {sign: drawn.index(sign) * cell for sign in "SLX><"}
    assert found["S"] == 0
    for sign, record in (("L", 1500), ("X", 4500), (">", 6000), ("<", 10_000)):
        assert 0 <= 4096 + record * 1048 - found[sign] < cell, sign
    assert drawn.rindex("L") * cell <= 4096 + 3000 * 1048 < (drawn.rindex("L") + 1) * cell
    assert set(drawn[drawn.index(">") + 1 : drawn.index("<")]) == {"#"}
    assert drawn[: drawn.index(">")].count(".") * cell > 3_000_000
    assert "1 dead letter " in text and "2 lent" in text and "4000 waiting" in text


def test_the_map_of_an_empty_queue_is_small(shell):
    assert set(cells(shell.out("durableq put q.dq </dev/null; durableq map --ascii q.dq").decode())) <= set("S|-.><")


@pytest.mark.parametrize(("number", "words"), [(0, "0 dead letters"), (1, "1 dead letter"), (2, "2 dead letters")])
def test_the_map_counts_dead_letters_in_proper_words(shell, number, words):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put_many("ab")
        for delivery in q.reserve_many(2)[:number]:
            delivery.reject()
    assert f" {words}  " in shell.out("durableq map --ascii q.dq").decode()


def test_the_map_has_block_characters_where_they_can_be_written_and_plain_ones_elsewhere(stretched):
    assert "\u2588" in stretched.out("durableq map q.dq", env={"LC_ALL": "C.UTF-8"}).decode()
    assert stretched.out("durableq map q.dq", env={"LC_ALL": "", "PYTHONIOENCODING": "ascii"}).isascii()
    assert stretched.out("durableq map q.dq", env={"LC_ALL": "C"}).isascii()


def test_the_map_has_colours_on_a_terminal_that_has_them(stretched, terminal):
    assert b"\x1b[" not in stretched.out("durableq map q.dq")
    drawn = terminal("durableq map q.dq")
    assert drawn.end() == 0
    assert b"\x1b[32m" in drawn.seen
    plain = terminal("durableq map q.dq", env={"NO_COLOR": "1"})
    assert plain.end() == 0
    assert b"\x1b[" not in plain.seen


def test_the_map_moves_with_the_queue(shell, terminal):
    shell.run("seq 1 3 | durableq put q.dq")
    watch = terminal("durableq map --watch --every 50ms q.dq")
    watch.until(b"3 waiting")
    shell.run("durableq get -n 2 q.dq")
    redrawn = watch.until(b"1 waiting")
    assert re.search(rb"\x1b\[\d+A\r\x1b\[J", redrawn)  # over the one before
    watch.type(b"\x03")
    assert watch.end() == -signal.SIGINT


def test_the_map_is_a_picture_too(stretched):
    stretched.run("durableq map --svg q.svg q.dq")
    picture = ElementTree.parse(stretched.folder / "q.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(picture.itertext())
    assert "4000 waiting" in text and "given back to the disk" in text
    assert ElementTree.fromstring(stretched.out("durableq map --svg - q.dq")).tag == picture.tag


def test_the_map_does_not_draw_over_the_queue(stretched):
    assert "queue itself" in one_line(stretched.run("durableq map --svg q.dq q.dq", code=2).stderr)


# -- help, completion, manual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples_that_can_be_parsed(name):
    this = cli.command(name)
    assert this.examples
    text = cli.subparser(this).format_help()
    for line, _ in this.examples:
        assert line in text
        for words in commands_in(line):
            if words[0] != "completion" or len(words) == 2:
                cli.parse(cli.command(words[0]), words[1:])


def commands_in(line):
    """What follows `durableq` in each command of a line."""
    for part in re.findall(r"durableq (.*?)(?= \||\)|$| &&| > )", line):
        try:
            words = shlex.split(part)
        except ValueError:  # a quote that is closed behind a bar
            words = shlex.split(line.partition("durableq ")[2])
        yield words


def test_the_help_explains_every_exit_code(shell):
    text = shell.out("durableq --help").decode()
    for code, meaning in EXIT_CODES.items():
        assert f"{code}" in text and meaning in text


def complete(shell, *words):
    script = f"""
        eval "$(durableq completion bash)"
        COMP_WORDS=({" ".join(map(shlex.quote, words))})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _durableq
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return set(shell.out(script).decode().split())


def test_bash_completes_commands_options_and_values(shell):
    assert complete(shell, "durableq", "pu") == {"put", "purge"}
    assert complete(shell, "durableq", "get", "--f") == {"--follow", "--framing"}
    assert complete(shell, "durableq", "put", "--framing", "") == {"line", "nul", "length", "block", "whole"}
    assert complete(shell, "durableq", "put", "q.dq", "--on-full", "d") == {"drop_oldest"}
    assert complete(shell, "durableq", "completion", "") == {"bash", "zsh", "fish"}
    assert complete(shell, "durableq", "get", "q") == set()  # bash completes the file


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed (apt-get install fish)")
def test_fish_completes_commands_options_and_values(shell):
    def complete(line):
        script = f'durableq completion fish | source; complete -C "{line}"'
        done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=shell.env, timeout=30)
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    assert complete("durableq red") == {"redrive"}
    assert complete("durableq put --on") == {"--on-full"}
    assert complete("durableq put --framing n") == {"nul"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed (apt-get install zsh)")
def test_zsh_completes_commands_options_and_values(shell, terminal):
    zsh = terminal("zsh -f -i")
    zsh.type(b"PS1='ready'; unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u -D\n")
    zsh.type(b"eval \"$(durableq completion zsh)\"; print 'so' 'far'\n")
    zsh.until(b"so far")
    for keys, completed in ((b"durableq redr\t", b"redrive"), (b"durableq put --on-f\t", b"--on-full")):
        zsh.type(keys)
        zsh.until(completed)
        zsh.type(b"\x15")
        time.sleep(0.05)
    zsh.type(b"exit\n")


def test_the_manual_names_every_command_and_option(shell):
    page = shell.out("durableq man").decode()
    for this in map(cli.command, cli.COMMANDS):
        assert f'.SS "{this.name}"' in page
        for action in cli.subparser(this)._actions:
            if action.help != "==SUPPRESS==":
                for option in action.option_strings:
                    assert option.replace("-", r"\-") in page, (this.name, option)


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed (apt-get install mandoc)")
def test_the_manual_is_good_roff(shell):
    done = shell.run("durableq man | mandoc -T lint -W warning", code=None)
    complaints = [line for line in done.stdout.decode().splitlines() if "missing date" not in line]
    assert complaints == []


def test_the_version_is_told(shell):
    import durableq

    assert shell.out("durableq --version").decode() == f"durableq {durableq.__version__}\n"


def test_a_reader_that_goes_away_ends_every_command_quietly(busy):
    done = busy.run("durableq peek q.dq | true; exit ${PIPESTATUS[0]}", code=None)
    assert done.returncode in (0, 128 + signal.SIGPIPE)
    assert done.stderr == b""
    follower = busy.start("exec durableq stat --watch --json --every 10ms q.dq")
    heard(follower, 10)
    follower.stdout.close()
    assert follower.wait(30) == -signal.SIGPIPE
