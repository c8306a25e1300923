"""`durableq forward`: what it says, how it ends, and what it takes for a URL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from processes import PATIENCE, until

import durableq
from durableq import BadURLError, MissingExtraError
from durableq.cli import main


@pytest.fixture
def command(path):
    """`command(*arguments)` is a running `durableq forward PATH`; `ignores`: a signal that is ignored when it starts."""
    running = []

    def start(*arguments, ignores=None, **env):
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "durableq", "forward", str(path), *arguments],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **env},
                cwd=path.parent,
                preexec_fn=ignores and (lambda: signal.signal(ignores, signal.SIG_IGN)),
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()


def ended(process):
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def test_with_drain_it_ends_when_the_queue_is_empty(q, make_redis, command):
    server = make_redis()
    q.put_many([b"a", b"b"])
    assert ended(command(f"redis://127.0.0.1:{server.port}/0/events", "--drain")) == (0, "durableq: 2 items forwarded\n")
    with server.client() as client:
        assert [fields[b"value"] for _, fields in client.xrange("events")] == [b"a", b"b"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_ends_it_in_order(q, make_redis, command, number, code):
    server = make_redis()
    running = command(f"redis://127.0.0.1:{server.port}/0/events")
    q.put(b"a")
    until(lambda: q.stats().unfinished == 0)
    running.send_signal(number)
    assert ended(running) == (code, "durableq: 1 item forwarded\n")


def test_an_interrupt_that_is_ignored_when_it_starts_is_ignored(q, make_redis, command):
    """As in the background of a script."""
    server = make_redis()
    running = command(f"redis://127.0.0.1:{server.port}/0/events", ignores=signal.SIGINT)
    q.put(b"a")
    until(lambda: q.stats().unfinished == 0)
    running.send_signal(signal.SIGINT)
    q.put(b"b")
    until(lambda: q.stats().unfinished == 0)
    running.terminate()
    assert ended(running) == (0, "durableq: 2 items forwarded\n")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_ends_it_while_the_engine_is_away_and_the_items_stay(q, make_redis, command, number, code):
    server = make_redis()
    server.kill()
    q.put_many([b"a", b"b"])
    running = command(f"redis://127.0.0.1:{server.port}/0/events")
    assert "is away, next try in" in running.stderr.readline()
    running.send_signal(number)
    assert ended(running)[0] == code
    assert [(one.item, one.deliveries) for one in q.peek_deliveries(2)] == [(b"a", 0), (b"b", 0)]


def test_a_stalled_engine_does_not_hold_up_the_second_signal(q, make_redis, command):
    server = make_redis()
    running = command(f"redis://127.0.0.1:{server.port}/0/events")
    q.put(b"a")
    until(lambda: q.stats().unfinished == 0)
    server.stall()
    q.put(b"b")
    until(lambda: q.stats().lent == 1)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGINT)
    assert ended(running)[0] == -signal.SIGINT
    assert q.stats().ready == 1


def test_key_header_value_and_topic_are_fields_of_the_item(q, make_redis, command):
    server = make_redis()
    q.put({"user": "ada", "kind": "login", "text": "hello", "to": "elsewhere"})
    url = f"redis://127.0.0.1:{server.port}/0/events"
    options = ["--key", "user", "--header", "kind", "--header", "what=text", "--value", "text", "--topic", "to"]
    assert ended(command(url, "--drain", *options))[0] == 0
    with server.client() as client:
        ((_, fields),) = client.xrange("elsewhere")
    fields.pop(b"id")
    assert fields == {b"value": b"hello", b"key": b"ada", b"kind": b"login", b"what": b"hello"}


@pytest.mark.parametrize(
    ("url", "name"),
    [("redis://localhost/0/x", "id"), ("amqp://localhost/?queue=x", "tag"), ("kafka://localhost/x", "durableq-id")],
)
def test_a_header_under_a_name_of_durableq_s_own_is_told_in_one_line_with_what_to_do(q, capsys, url, name):
    q.put({name: 1})
    assert main(["forward", q.path, url, "--drain", "--header", name]) == 2
    assert re.fullmatch(rf"durableq: header '{name}': .*\(--header NAME=FIELD, or .*\n", capsys.readouterr().err)
    assert q.stats().ready == 1


def test_a_part_may_be_a_function_of_a_module_in_this_folder(q, make_redis, command, path):
    server = make_redis()
    (path.parent / "shapes.py").write_text("def shout(item):\n    return item.upper()\n")
    q.put("hello")
    assert ended(command(f"redis://127.0.0.1:{server.port}/0/events", "--drain", "--value", "shapes:shout"))[0] == 0
    with server.client() as client:
        assert client.xrange("events")[0][1][b"value"] == b"HELLO"


def test_a_function_that_is_not_there_is_told_in_one_line(q, capsys):
    assert main(["forward", q.path, "redis://localhost/0/x", "--key", "nowhere:f"]) == 2
    assert capsys.readouterr().err.startswith("durableq: nowhere:f: there is no such function")


@pytest.mark.parametrize(
    ("code", "what"), [("1 / 0", "ZeroDivisionError: division by zero"), ("import sys; sys.exit(3)", "SystemExit: 3")]
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(q, command, path, code, what):
    (path.parent / "broken.py").write_text(code)
    q.put(b"a")
    told = f"durableq: broken:f: broken cannot be imported: {what}\n"
    assert ended(command("redis://localhost/0/x", "--key", "broken:f")) == (1, told)
    assert q.stats().ready == 1


def test_what_went_to_the_dead_letters_is_told_with_its_reason(q, make_redis, command):
    server = make_redis()
    q.put({"n": 1})
    code, errors = ended(command(f"redis://127.0.0.1:{server.port}/0/events", "--drain", "--value", "m"))
    assert code == 0
    assert "goes to the dead letters: no message can be made of it (LookupError: it has no field 'm')" in errors
    assert errors.endswith("durableq: 0 items forwarded, 1 went to the dead letters\n")


def test_the_url_may_come_from_the_environment(q, make_redis, command):
    server = make_redis()
    q.put(b"a")
    running = command("--drain", DURABLEQ_FORWARD_URL=f"redis://127.0.0.1:{server.port}/0/events")
    assert ended(running) == (0, "durableq: 1 item forwarded\n")


def test_without_a_url_it_says_how_to_give_one(q, capsys, monkeypatch):
    monkeypatch.delenv("DURABLEQ_FORWARD_URL", raising=False)
    assert main(["forward", q.path]) == 2
    assert "DURABLEQ_FORWARD_URL" in capsys.readouterr().err


def test_a_queue_that_is_not_there_is_not_created(tmp_path, capsys):
    assert main(["forward", str(tmp_path / "none.dq"), "redis://localhost/0/x"]) == 1
    assert not (tmp_path / "none.dq").exists()
    assert "no queue here" in capsys.readouterr().err


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("carrier-pigeon://roof", "carrier-pigeon:// is no engine"),
        ("somewhere", "this is no URL"),
        ("redis://localhost/0", "name a stream or a list"),
        ("redis://localhost/0/a?list=b", "name a stream or a list"),
        ("redis://localhost/a/b/c", "too many parts"),
        ("redis://localhost/0/a?envelope=json", "envelope=json is for lists"),
        ("redis://localhost/0/a?socket_timeout=soon", "redis-py does not take this URL"),
        ("redis://localhost:port/0/a", "redis-py does not take this URL"),
        ("kafka:///topic", "the URL is kafka://"),
        ("kafka://me:secret@host/topic", "the URL is kafka://"),
        ("kafka://localhost/topic?no.such.property=1", "librdkafka does not take this configuration"),
        ("amqp://localhost", "name the queue or the exchange"),
        ("amqp://localhost/?queue=a&exchange=b", "name the queue or the exchange"),
    ],
)
def test_a_url_that_makes_no_sense_is_told_and_nothing_is_taken(q, url, complaint):
    q.put(b"a")
    with pytest.raises(BadURLError, match=re.escape(complaint)):
        durableq.forward(q, url, drain=True)
    assert q.stats().ready == 1


def test_a_url_that_makes_no_sense_is_a_wrong_command_line(q, path, capsys):
    assert main(["forward", str(path), "somewhere"]) == 2
    assert "this is no URL" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["redis://me:secret@127.0.0.1:1/0/a", "amqp://me:secret@127.0.0.1:1/?queue=a"])
def test_a_password_is_not_told_to_the_log(q, url, caplog, command):
    q.put(b"a")
    running = command(url)
    line = running.stderr.readline()
    assert "is away" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url, module, extra",
    [
        ("kafka://localhost/a", "confluent_kafka", "kafka"),
        ("redis://localhost/0/a", "redis", "redis"),
        ("amqp://localhost/?queue=a", "kombu", "kombu"),
    ],
)
def test_a_library_that_is_missing_is_told_with_its_pip_command(q, monkeypatch, url, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=re.escape(f"python -m pip install 'durableq[{extra}]'")):
        durableq.forward(q, url, drain=True)
