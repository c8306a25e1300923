"""`durableq put` and `durableq get` in a shell: what goes in comes out, whatever it is and whatever happens in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
from powercut.real import Unavailable, make, mounted
from processes import PATIENCE, until
from shells import heard, one_line

from durableq import DurableQueue
from durableq._store import Store
from durableq.cli import main
from durableq.cli._command import EXIT_CODES

BYTES = int(os.environ.get("DURABLEQ_SHELL_BYTES", 64 << 20))
"""Of the stream that goes through whole: 1 GiB was tried, DURABLEQ_SHELL_BYTES=1073741824 does it again."""


# -- framing -----------------------------------------------------------------------------------------------------------


def test_lines_that_go_in_come_out_in_order(shell):
    assert shell.out("seq 1 5000 | durableq put q.dq && durableq get q.dq") == b"".join(b"%d\n" % n for n in range(1, 5001))


def test_arguments_are_items_too(shell):
    assert shell.out("durableq put q.dq one 'two words' '' && durableq get q.dq") == b"one\ntwo words\n\n"


def test_empty_lines_are_items_and_the_last_line_needs_no_newline(shell):
    assert shell.out("printf 'a\\n\\n\\nb' | durableq put q.dq && durableq get --framing nul q.dq") == b"a\0\0\0b\0"


def test_nothing_on_stdin_is_no_item(shell):
    shell.run("durableq put q.dq </dev/null && durableq get q.dq", code=3)


def test_items_with_newlines_go_through_between_zero_bytes(shell):
    items = b"one\ntwo\0three\n\0\0last"
    assert shell.out("durableq put q.dq --framing nul && durableq get --framing nul q.dq", stdin=items) == items + b"\0"


def test_any_items_at_all_go_through_behind_their_lengths(shell):
    items = [b"", b"\0\n\0", os.urandom(300_000), b"\xff" * 3]
    stream = b"".join(len(item).to_bytes(4, "big") + item for item in items)
    assert shell.out("durableq put q.dq --framing length && durableq get --framing length q.dq", stdin=stream) == stream


def test_a_stream_that_breaks_off_inside_an_item_is_told_and_what_was_whole_is_put(shell):
    stream = b"\0\0\0\2ok" + b"\0\0\0\x09half"
    done = shell.run("durableq put q.dq --framing length", stdin=stream, code=1)
    assert "ends inside an item" in one_line(done.stderr)
    assert shell.out("durableq get q.dq") == b"ok\n"


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_blocks_are_as_large_as_they_are_told_to_be(shell, size):
    stream = os.urandom(size * 5 + size // 2)
    shell.run(f"durableq put q.dq --framing block --size {size}", stdin=stream)
    with DurableQueue(shell.folder / "q.dq", ack="get") as q:
        blocks = q.get_many(100)
    assert b"".join(blocks) == stream
    assert {len(block) for block in blocks[:-1]} == {size}


def test_the_whole_of_a_stream_can_be_one_item(shell):
    stream = os.urandom(3_000_000)
    assert shell.out("durableq put q.dq --framing whole && durableq get --raw -n 1 q.dq", stdin=stream) == stream


@pytest.mark.timeout(60 + BYTES // (4 << 20))
def test_a_binary_stream_goes_through_with_its_checksum(shell):
    script = f"""
        set -o pipefail
        head -c {BYTES} /dev/urandom | tee >(sha256sum >before) | durableq put q.dq --framing block
        durableq get --raw q.dq | sha256sum >after
        while [ ! -s before ]; do sleep 0.01; done
        cmp before after && du -k q.dq
    """
    left = shell.out(script, patience=60 + BYTES // (4 << 20))
    assert int(left.split()[0]) < 4096  # and its space has come back


def test_both_ends_work_at_the_same_time(shell):
    stream = os.urandom(5_000_000)
    script = "durableq get -f --raw q.dq | head -c 5000000 | sha256sum & durableq put q.dq --framing block; wait"
    assert shell.out(script, stdin=stream).split()[0].decode() == hashlib.sha256(stream).hexdigest()


# -- items of Python programs ------------------------------------------------------------------------------------------


def test_json_of_a_python_program_comes_as_its_text_and_bytes_as_they_are(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="json") as q:
        q.put_many([{"a": [1, 2.50]}, "text", None])
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put(b"\xff\x00")
    assert shell.out("durableq get q.dq") == b'{"a":[1,2.5]}\n"text"\nnull\n\xff\x00\n'


def test_json_that_the_shell_puts_is_an_object_in_python_and_other_text_is_refused(shell):
    shell.run("""durableq put --json q.dq '{"resize": "cat.png"}' '[1, 2]'""")
    with DurableQueue(shell.folder / "q.dq") as q:
        assert q.peek(2) == [{"resize": "cat.png"}, [1, 2]]
    assert "no JSON" in one_line(shell.run("durableq put --json q.dq nonsense", code=1).stderr)


def test_what_comes_before_something_that_is_no_json_is_put(shell):
    (shell.folder / "items").write_text("1\n2\nnonsense\n4\n")
    said = shell.run("durableq put --json q.dq <items", code=1).stderr
    assert b"no JSON" in said and b"the items before it were put" in said
    assert b"up to 2 items that had been read were not put" in said
    assert shell.out("durableq get q.dq") == b"1\n2\n"


def test_json_that_is_no_utf_8_comes_out_as_json(shell):
    assert shell.out(r"""durableq put --json q.dq '"\udcff"' '"\u00ff"' && durableq get q.dq""") == b'"\\udcff"\n"\xc3\xbf"\n'


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_not_unpickled_unless_asked_for_and_stays_where_it_is(shell):
    trap = shell.folder / "sprung"
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put("before")
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q._store.untake([])
    shell.run("durableq get --unpickle q.dq")
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put(Trap(str(trap)))
    shell.run("durableq put q.dq behind")
    for command in ("get q.dq", "get --json q.dq", "get --keep q.dq", "get --raw -n 1 q.dq"):
        done = shell.run(f"durableq {command}", code=1)
        assert done.stdout == b"" and "--unpickle" in one_line(done.stderr)
    shell.run("durableq peek q.dq && durableq peek --json q.dq && durableq stat q.dq && durableq map q.dq")
    assert not trap.exists()
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        assert q.qsize() == 2


def test_what_comes_before_a_pickle_is_delivered_once(shell):
    shell.run("durableq put q.dq 1 2 3 4 5")
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put(object)
    done = shell.run("durableq get q.dq | { sleep 0.3; cat; }; exit ${PIPESTATUS[0]}", code=1)
    assert done.stdout == b"1\n2\n3\n4\n5\n"
    assert shell.out("durableq get --unpickle q.dq") == b"<class 'object'>\n"


def test_json_output_tells_the_history_of_each_item(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many([b"text", b"\xff"])
        q.reserve().nack()
    first, second = map(json.loads, shell.out("durableq get --json q.dq").splitlines())
    assert (first["item"], first["deliveries"], first["serializer"]) == ("text", 2, "bytes")
    assert (second["base64"], second["deliveries"]) == ("/w==", 1)
    assert first["id"] != second["id"]


# -- how much and how long ---------------------------------------------------------------------------------------------


def test_so_many_items_and_no_more(shell):
    assert shell.out("seq 1 9 | durableq put q.dq; durableq get -n 3 q.dq; echo; durableq get -n 100 q.dq") == (
        b"1\n2\n3\n\n4\n5\n6\n7\n8\n9\n"
    )


def test_items_that_are_kept_are_still_there(shell):
    script = "seq 1 300 | durableq put q.dq; durableq get --keep q.dq; durableq get --keep -n 2 q.dq; durableq get q.dq"
    assert shell.out(script).split() == [b"%d" % n for n in (*range(1, 301), 1, 2, *range(1, 301))]


def test_large_items_that_are_kept_are_read_one_by_one(path, capfdbinary, monkeypatch):
    with DurableQueue(path, serializer="bytes") as q:
        q.put_many([bytes(1 << 20)] * 5)
    peek, asked = Store.peek, []

    def counted(self, n, *rest):
        asked.append(n)
        return peek(self, n, *rest)

    monkeypatch.setattr(Store, "peek", counted)
    assert main(["get", "--keep", "--raw", str(path)]) == 0
    assert len(capfdbinary.readouterr().out) == 5 << 20
    assert set(asked) == {1}


def test_what_was_given_back_is_kept_in_its_place_too(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many([b"%d" % n for n in range(200)])
        deliveries = q.reserve_many(100)
        for delivery in deliveries[::2]:
            delivery.ack()
        for delivery in deliveries[1::2]:
            delivery.nack()
    expected = [b"%d" % n for n in (*range(1, 100, 2), *range(100, 200))]
    assert shell.out("durableq get --keep q.dq").split() == expected
    assert shell.out("durableq get q.dq").split() == expected


def test_dead_letters_can_be_taken(shell):
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many([b"good", b"bad"])
        q.reserve_many(2)[1].reject()
    assert shell.out("durableq get --dead --keep q.dq; durableq get --dead q.dq") == b"bad\nbad\n"
    shell.run("durableq get --dead q.dq", code=3)
    assert shell.out("durableq get q.dq") == b"good\n"


def test_a_follower_gets_what_comes_later_and_ends_with_the_number_it_was_told(shell):
    follower = shell.start("exec durableq get -f -n 3 q.dq")
    path = shell.folder / "q.dq"
    until(lambda: path.exists() and path.stat().st_size)
    with DurableQueue(path, serializer="bytes") as q:
        until(lambda: any(owner.waiting for owner in q.stats().owners))
        q.put(b"one")
        assert heard(follower, 4) == b"one\n"
        q.put(b"two")
        assert heard(follower, 4) == b"two\n"
        q.put(b"three")
        assert heard(follower, 6) == b"three\n"
    assert follower.wait(PATIENCE) == 0


def test_what_a_slow_producer_has_said_is_in_the_queue_while_it_is_silent(shell):
    producer = shell.start("exec durableq put q.dq")
    path = shell.folder / "q.dq"
    producer.stdin.write(b"first\nsec")
    until(lambda: path.exists() and path.stat().st_size)
    with DurableQueue(path, ack="get", serializer="bytes") as q:
        assert q.get(timeout=PATIENCE) == b"first"
        producer.stdin.write(b"ond\nlast")
        assert q.get(timeout=PATIENCE) == b"second"
        producer.stdin.close()
        assert q.get(timeout=PATIENCE) == b"last"


def test_a_block_does_not_wait_to_be_filled(shell):
    producer = shell.start("exec durableq put q.dq --framing block --size 1M")
    path = shell.folder / "q.dq"
    producer.stdin.write(b"a piece")
    until(lambda: path.exists() and path.stat().st_size)
    with DurableQueue(path, ack="get", serializer="bytes") as q:
        assert q.get(timeout=PATIENCE) == b"a piece"


def test_delayed_items_wait_for_their_time(shell):
    shell.run("durableq put q.dq --delay 1h later && durableq get q.dq", code=3)
    assert json.loads(shell.out("durableq stat --json q.dq"))["delayed"] == 1


def test_a_shut_down_queue_ends_a_follower_in_order_and_refuses_a_put(shell):
    shell.run("durableq put q.dq one")
    with DurableQueue(shell.folder / "q.dq") as q:
        follower = shell.start("exec durableq get -f q.dq")
        assert heard(follower, 4) == b"one\n"
        q.shutdown()
        assert follower.wait(PATIENCE) == 0
        assert "shut down" in one_line(shell.run("durableq put q.dq two", code=1).stderr)


# -- a bound -----------------------------------------------------------------------------------------------------------


def test_a_bounded_log_keeps_the_last_events_and_outlives_a_crash(shell):
    shell.run("seq 1 20000 | durableq put --max-bytes 64K --on-full drop_oldest log.dq")
    (shell.folder / "log.dq-shm").unlink()  # as after a power cut
    kept = [int(line) for line in shell.out("durableq get --keep log.dq").split()]
    assert kept == list(range(kept[0], 20001))
    assert 500 < len(kept) < 1400
    assert json.loads(shell.out("durableq stat --json log.dq"))["drops"] == 20000 - len(kept)


def test_a_full_queue_can_be_an_error_that_says_how_far_it_came(shell):
    done = shell.run("seq 1 5000 | durableq put --max-bytes 8K --on-full fail q.dq", code=6)
    assert b"the queue is full" in done.stderr
    kept = [int(line) for line in shell.out("durableq get q.dq").split()]
    assert kept == list(range(1, len(kept) + 1))
    assert f"{5000 - len(kept)} items that had been read were not put".encode() in done.stderr


def test_a_full_queue_makes_its_producer_wait(shell):
    shell.run("durableq put --max-bytes 8K q.dq </dev/null")
    producer = shell.start("seq 1 3000 | durableq put q.dq")
    with DurableQueue(shell.folder / "q.dq") as q:
        until(lambda: any(owner.waiting for owner in q.stats().owners))
    assert shell.out("durableq get -f -n 3000 q.dq").split() == [b"%d" % n for n in range(1, 3001)]
    assert producer.wait(PATIENCE) == 0


def test_dropping_without_a_bound_is_a_wrong_command_line(shell):
    assert "--max-bytes" in one_line(shell.run("durableq put --on-full drop_oldest q.dq x", code=2).stderr)


@pytest.mark.parametrize("option", ["fail", "block"])
def test_a_queue_that_was_told_to_drop_neither_waits_nor_fails_and_says_so(shell, option):
    shell.run("durableq put --max-bytes 64K --on-full drop_oldest log.dq one")
    told = one_line(shell.run(f"durableq put --on-full {option} log.dq two", code=2).stderr)
    assert "drops its oldest items" in told and f"leave --on-full {option} away" in told
    assert shell.out("durableq put log.dq three; durableq get log.dq") == b"one\nthree\n"


@pytest.mark.parametrize("options", ["", "--delay 1ms"])
@pytest.mark.parametrize("length", [9000, 90_000], ids=["among short ones", "by itself"])
def test_an_item_that_never_fits_is_told_and_those_before_it_are_put(shell, length, options):
    (shell.folder / "items").write_bytes(b"1\n2\n%s\n3\n" % bytes(length))  # a file, so that they are read together
    said = shell.run(f"durableq put --max-bytes 8K {options} q.dq <items", code=1).stderr
    assert b"never fits" in said and b"the items before it were put" in said
    assert b"up to 2 items that had been read were not put" in said
    assert shell.out("durableq get -n 2 --timeout 10 q.dq") == b"1\n2\n"
    assert json.loads(shell.out("durableq stat --json q.dq"))["unfinished"] == 0


def test_an_argument_that_never_fits_is_one_line_and_those_before_it_are_put(shell):
    told = one_line(shell.run('durableq put --max-bytes 1K q.dq small "$(printf %2000s x)" other', code=1).stderr)
    assert "never fits" in told and "the items before it were put" in told
    assert shell.out("durableq get q.dq") == b"small\n"


def test_a_reader_who_leaves_when_it_has_read_all_is_no_broken_pipe(shell):
    shell.run("durableq put q.dq one two")
    # The reader comes late, when `get` waits for it, and goes at once.
    script = "durableq get q.dq | (durableq stat q.dq >stat.txt; head -c 8 >all.txt); echo ${PIPESTATUS[0]}; cat all.txt"
    assert shell.out(script) == b"0\none\ntwo\n"
    shell.run("durableq get q.dq", code=3)


# -- odd surroundings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_bytes_are_bytes_in_every_locale(shell, locale):
    script = r"durableq put q.dq $'caf\xc3\xa9' $'\xff\xfe' && printf 'na\xc3\xafve\n' | durableq put q.dq && durableq get q.dq"
    assert shell.out(script, env={"LC_ALL": locale, "PYTHONUTF8": "0"}) == b"caf\xc3\xa9\n\xff\xfe\nna\xc3\xafve\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [("get q.dq >&-", 1), ("get -f q.dq >&-", 1), ("stat q.dq >&-", 1), ("map q.dq >&-", 1), ("put q.dq <&-", 1)],
)
def test_a_closed_stream_is_an_error_and_nothing_is_lost(shell, command, code):
    shell.run("durableq put q.dq one two")
    assert "closed" in one_line(shell.run(f"durableq {command}", code=code).stderr)
    assert shell.out("durableq get q.dq") == b"one\ntwo\n"


def test_a_closed_stderr_is_no_problem(shell):
    assert shell.out("durableq put q.dq one 2>&-; durableq get q.dq 2>&-; durableq get q.dq 2>&-", code=3) == b"one\n"


def test_what_would_be_told_on_a_closed_stderr_is_not_told_among_the_items(shell):
    (shell.folder / "letter.txt").write_text("Dear all,\n" * 1000)
    assert shell.out("durableq get letter.txt 2>&-", code=1) == b""


def test_a_purge_on_a_closed_stdin_does_not_ask(shell):
    assert shell.out("durableq put q.dq one; durableq purge q.dq <&-") == b"1 item thrown away\n"


@pytest.mark.parametrize("command", ["stat", "check"])
def test_a_path_that_is_no_utf_8_is_printed_as_it_is(shell, command):
    shell.run(r"durableq put $'caf\xe9.dq' one")
    assert b"caf\xe9.dq" in shell.out(rf"durableq {command} $'caf\xe9.dq'", env={"PYTHONIOENCODING": "utf-8:strict"})


def test_what_the_encoding_has_no_letters_for_is_shown_by_its_codes(shell):
    shell.run("durableq put q.dq 'd\u00e9j\u00e0 \u0432\u0438\u0434\u0435\u043b\u0438'")
    shown = shell.out("durableq peek q.dq", env={"PYTHONIOENCODING": "latin-1"})
    assert shown.endswith(b"d\xe9j\xe0 \\u0432\\u0438\\u0434\\u0435\\u043b\\u0438\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "--version", "get --help", "stat q.dq", "man"])
def test_a_full_disk_under_what_is_printed_is_one_line(shell, command, unbuffered):
    shell.run("durableq put q.dq one")
    done = shell.run(f"durableq {command} >/dev/full", code=1, env={"PYTHONUNBUFFERED": unbuffered})
    assert "No space left" in one_line(done.stderr)


def test_what_a_full_disk_did_not_take_stays_in_the_queue(shell):
    shell.run("seq 1 1000 | durableq put q.dq")
    assert "No space left" in one_line(shell.run("durableq get q.dq >/dev/full", code=1).stderr)
    lines = [json.loads(line) for line in shell.out("durableq get --json q.dq").splitlines()]
    assert [line["item"] for line in lines] == [str(n) for n in range(1, 1001)]
    assert {line["deliveries"] for line in lines} == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_what_the_disk_did_not_take_stays_in_the_queue_though_the_file_had_accepted_it(shell):
    """A file system that promised more than lies under it: writes go to memory and succeed, and the sync fails."""
    small, broken = shell.folder / "small", shell.folder / "broken"
    shell.run("head -c 24M /dev/urandom | durableq put --framing block q.dq; durableq stat --json q.dq > before")
    small.mkdir()
    with contextlib.ExitStack() as mounts:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6M", "tmpfs", small], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounts.callback(subprocess.run, ["umount", small], check=True)
        try:
            make(small / "image", "ext4", 64 << 20)
            mounts.enter_context(mounted(small / "image", broken, "ext4"))
        except Unavailable as why:
            pytest.skip(str(why))
        mounts.callback(shell.dispose)
        told = one_line(shell.run("durableq get --raw q.dq > broken/out", code=1).stderr)
        assert "cannot write the output" in told and "still in the queue" in told
    before, after = (shell.folder / "before").read_bytes(), shell.out("durableq stat --json q.dq")
    done = json.loads(before)["ready"] - json.loads(after)["ready"]
    assert done * (64 << 10) <= 6 << 20, "done, and not on the disk"
    lines = shell.out("durableq get --json q.dq").splitlines()
    assert {json.loads(line)["deliveries"] for line in lines} == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_under_the_queue_refuses_the_put_and_lets_the_queue_drain(shell):
    small = shell.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = shell.run("head -c 20M /dev/urandom | durableq put --framing block small/q.dq", code=None)
        assert b"No space left" in done.stderr and b"Traceback" not in done.stderr
        count = json.loads(shell.out("durableq stat --json small/q.dq"))["ready"]
        assert count > 10
        assert len(shell.out("durableq get --raw small/q.dq")) >= (count - 1) * (64 << 10)
        shell.run("head -c 1M /dev/urandom | durableq put --framing block small/q.dq")
    finally:
        shell.dispose()
        subprocess.run(["umount", small], check=True)


# -- ends in the middle ------------------------------------------------------------------------------------------------


READ_SOME = """python -c '
import os, sys
left = int(sys.argv[1])
while left:
    left -= len(os.read(0, left))
' {}"""


@pytest.mark.parametrize("items", [1, 2, 7, 1000, 40_000])
def test_what_a_reader_that_dies_has_not_read_is_still_there(shell, items):
    total = 60_000
    lines = [b"%06d\n" % n for n in range(total)]
    shell.run("durableq put q.dq", stdin=b"".join(lines))
    done = shell.run(f"durableq get q.dq | {READ_SOME.format(7 * items)}; exit ${{PIPESTATUS[0]}}", code=None)
    assert done.returncode == 128 + signal.SIGPIPE
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        assert q.qsize() == total - items
        first = q.reserve()
        assert (first.item, first.deliveries) == (lines[items][:-1], 1)


def test_a_reader_that_dies_inside_an_item_leaves_that_item_too(shell):
    shell.run("durableq put q.dq aaaa bbbb cccc")
    shell.run(f"durableq get q.dq | {READ_SOME.format(7)}", code=None)
    assert shell.out("durableq get q.dq") == b"bbbb\ncccc\n"


def test_a_get_ends_when_its_reader_has_read_all_of_it(shell):
    shell.run("durableq put q.dq one two")
    getter = shell.start("exec durableq get q.dq")
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        until(lambda: q.stats().lent == 2 or q.stats().unfinished == 0)
        assert q.stats().lent == 2  # both are in the pipe, nobody has read them
        assert getter.poll() is None
        assert heard(getter, 8) == b"one\ntwo\n"
        assert getter.wait(PATIENCE) == 0
        assert q.unfinished_tasks == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_follower_and_leaves_what_it_has_not_written(shell, number):
    shell.run("seq 1 100000 | durableq put q.dq")
    getter = shell.start("exec durableq get -f q.dq")
    head = heard(getter, 20)
    getter.send_signal(number)
    tail = getter.stdout.read()
    assert getter.wait(PATIENCE) == -number
    got = (head + tail).split()
    rest = shell.out("durableq get --framing line --json q.dq").splitlines()
    assert got + [json.loads(line)["item"].encode() for line in rest] == [b"%d" % n for n in range(1, 100_001)]
    assert {json.loads(line)["deliveries"] for line in rest} <= {1}


def test_what_was_written_when_a_signal_comes_is_not_delivered_again(shell):
    shell.run("seq 1 100 | durableq put q.dq")
    getter = "sh -c 'echo $$ >pid; exec durableq get -f q.dq'"
    got = shell.out(f"{getter} | {{ read -r first; kill -TERM $(cat pid); sleep 0.2; echo $first; cat; }}")
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        rest = [item + b"\n" for item in q.peek(1000)]
    assert got + b"".join(rest) == b"".join(b"%d\n" % n for n in range(1, 101))


def test_a_signal_ends_a_put_and_what_it_has_read_is_in_the_queue(shell):
    producer = shell.start("exec durableq put q.dq")
    path = shell.folder / "q.dq"
    producer.stdin.write(b"one\ntwo\nthr")
    until(lambda: path.exists() and path.stat().st_size)
    with DurableQueue(path, serializer="bytes") as q:
        until(lambda: q.qsize() == 2)
        producer.send_signal(signal.SIGTERM)
        assert producer.wait(PATIENCE) == -signal.SIGTERM
        assert q.peek(5) == [b"one", b"two"]
    assert b"3 bytes of an item that was not complete" in producer.stderr.read()


def test_a_stream_that_a_signal_cuts_off_is_put_up_to_there(shell):
    producer = shell.start("exec durableq put q.dq --framing block")
    path = shell.folder / "q.dq"
    until(lambda: path.exists() and path.stat().st_size)
    with DurableQueue(path, ack="get", serializer="bytes") as q:
        until(lambda: producer.pid in [owner.pid for owner in q.stats().owners])
        producer.stdin.write(b"some bytes")
        first = q.get(timeout=PATIENCE)
        producer.send_signal(signal.SIGINT)
        assert producer.wait(PATIENCE) == -signal.SIGINT
        assert first + b"".join(q.get_many(9, block=False) if q.qsize() else []) == b"some bytes"


def test_kills_in_the_middle_lose_nothing(shell):
    """Getters are killed one after the other; what they had written may come again, and nothing is missing."""
    total = 30_000
    shell.run(f"seq 1 {total} | durableq put q.dq")
    got: set[bytes] = set()
    for n in range(8):
        getter = shell.start("exec durableq get -f q.dq")
        data = heard(getter, 1 + 3000 * n)
        getter.kill()
        data += getter.stdout.read()
        got.update(data[: data.rindex(b"\n") + 1].split() if b"\n" in data else [])
    got.update(shell.out("durableq get q.dq").split())
    assert got == {b"%d" % n for n in range(1, total + 1)}


def test_kills_in_the_middle_of_a_stream_into_a_file_lose_nothing(shell):
    """What a killed getter has not acked is in its file already, at least to the beginning of an item."""
    blocks = [os.urandom(64 << 10) for _ in range(600)]
    path, out = shell.folder / "q.dq", shell.folder / "out"
    with DurableQueue(path, serializer="bytes") as q:
        q.put_many(blocks)
    got: list[bytes] = []
    for n in range(1, 4):
        getter = shell.start("exec durableq get --raw q.dq >out")
        until(lambda n=n: out.exists() and out.stat().st_size >= n * (3 << 20))
        getter.kill()
        getter.wait(PATIENCE)
        data = out.read_bytes()
        got += [data[at : at + (64 << 10)] for at in range(0, len(data), 64 << 10)]
        out.unlink()
    data = shell.out("durableq get --raw q.dq >out; cat out")
    got += [data[at : at + (64 << 10)] for at in range(0, len(data), 64 << 10)]
    assert set(blocks) <= set(got)


def test_an_ack_that_fails_beside_the_writing_is_an_error_and_the_items_are_still_there(shell):
    """From the third time on that a box is acked its disk is sick."""
    blocks = [os.urandom(1 << 20) for _ in range(32)]
    with DurableQueue(shell.folder / "q.dq", serializer="bytes") as q:
        q.put_many(blocks)
    (shell.folder / "sick.py").write_text("""if True:
        import errno, itertools, sys
        from durableq._store import Store
        from durableq.cli import main

        well, count = Store.ack_many, itertools.count()

        def sick(self, box):
            if next(count) >= 2:
                raise OSError(errno.EIO, "Input/output error", "q.dq")
            return well(self, box)

        Store.ack_many = sick
        sys.exit(main(["get", "--raw", "q.dq"]))
    """)
    done = shell.run(f'"{sys.executable}" sick.py >out', code=1)
    assert "Input/output error" in one_line(done.stderr)
    written = (shell.folder / "out").read_bytes()
    rest = shell.out("durableq get --raw q.dq >rest; cat rest")
    assert b"".join(blocks).endswith(rest)
    assert len(blocks) << 20 < len(written) + len(rest)


def test_a_put_that_is_killed_has_put_whole_lines_in_order(shell):
    producer = shell.start("seq 1 100000000 | { echo $BASHPID >&2; exec durableq put q.dq; }")
    pid = int(producer.stderr.readline())
    path = shell.folder / "q.dq"
    until(lambda: path.exists() and path.stat().st_size > 1 << 20)
    os.kill(pid, signal.SIGKILL)
    producer.wait(PATIENCE)
    with DurableQueue(path, serializer="bytes", ack="get") as q:
        lines = q.get_many(5000)
    assert lines == [b"%d" % n for n in range(1, 5001)]
    shell.run("durableq purge q.dq")


def test_after_a_reboot_the_pipe_goes_on(shell):
    shell.run("seq 1 100 | durableq put q.dq; durableq get -n 40 q.dq")
    (shell.folder / "q.dq-shm").unlink()  # it does not outlive a boot
    assert shell.out("durableq get q.dq").split() == [b"%d" % n for n in range(41, 101)]


@pytest.mark.timeout(180)
def test_eight_shells_at_both_ends_share_the_work_without_loss_or_repetition(shell):
    script = """
        for shell in 1 2 3 4 5 6 7 8; do
            bash -c "seq -f '$shell-%.0f' 1 4000 | durableq put q.dq" &
            bash -c "durableq get -f -n 4000 q.dq >out.$shell" &
        done
        wait
        cat out.*
    """
    lines = shell.out(script, patience=150).split()
    assert len(lines) == 32_000
    assert set(lines) == {b"%d-%d" % (s, n) for s in range(1, 9) for n in range(1, 4001)}
    for s in range(1, 9):
        for part in range(1, 9):
            own = [line for line in (shell.folder / f"out.{part}").read_bytes().split() if line.startswith(b"%d-" % s)]
            assert own == sorted(own, key=lambda line: int(line.split(b"-")[1]))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("get none.dq", 1, "there is no queue here"),
        ("get -n 0 none.dq", 2, "at least 1"),
        ("get --keep -f none.dq", 2, "--keep"),
        ("put", 2, "PATH"),
        ("put q.dq --framing sideways x", 2, "invalid choice"),
        ("put q.dq --max-bytes many x", 2, "64K"),
        ("put q.dq --delay soon x", 2, "10m"),
        ("put no/where.dq x", 1, "no/where.dq"),
        ("put . x", 1, "directory"),
        ("get letter.dq.txt", 1, "letter.dq.txt"),
        ("get q.dq --timeout 0.01", 4, ""),
        ("frobnicate", 2, "invalid choice"),
    ],
)
def test_an_error_is_one_line_with_its_remedy_and_an_exit_code(shell, command, code, says):
    (shell.folder / "letter.dq.txt").write_text("Dear all,\n" * 1000)
    done = shell.run(f"durableq {command}", code=code)
    assert code in EXIT_CODES
    assert not done.stdout
    assert says in (one_line(done.stderr) if says else "")


def test_a_pickle_in_its_place_is_shown_when_asked_for(shell):
    with DurableQueue(shell.folder / "q.dq") as q:
        q.put({"a": (1, 2)})
        q.put(b"bytes")
    assert shell.out("durableq get --keep --unpickle q.dq") == b"{'a': (1, 2)}\nbytes\n"
    first = json.loads(shell.out("durableq get -n 1 --json --unpickle q.dq"))
    assert (first["item"], first["serializer"]) == ({"a": [1, 2]}, "pickle")
    assert pickle.loads(pickle.dumps(1)) == 1


def test_a_get_into_a_file_keeps_few_items_unacked_however_small_they_are(shell):
    (shell.folder / "counting.py").write_text("""if True:
        import sys
        from durableq._store import Store
        from durableq.cli import main

        most, lent, take, ack = 0, 0, Store.take, Store.ack_many

        def counted(self, box, *rest):
            global most, lent
            took = take(self, box, *rest)
            lent += len(box)
            most = max(most, lent)
            return took

        def acked(self, box):
            global lent
            lent -= len(box)
            return ack(self, box)

        Store.take, Store.ack_many = counted, acked
        main(["get", "--raw", "q.dq"])
        print(most, file=sys.stderr)
    """)
    done = shell.run(f'yes "" | head -n 200000 | durableq put q.dq; "{sys.executable}" counting.py >out')
    assert 256 < int(done.stderr) <= 40_000
    assert json.loads(shell.out("durableq stat --json q.dq"))["unfinished"] == 0
