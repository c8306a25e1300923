"""DurableHandler: log records survive the crash that they tell of, and are shipped by `forward`."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import PATIENCE

import durableq
from durableq import DurableQueue, OptionMismatchError
from durableq.integrations.logging import DurableHandler


@pytest.fixture
def logger(path):
    """`logger(**options)` is a logger with a DurableHandler on the queue of the test."""
    made = []

    def make(**options):
        found = logging.getLogger(f"test.{len(made)}")
        found.propagate = False
        found.setLevel(logging.DEBUG)
        found.addHandler(DurableHandler(path, **options))
        made.append(found)
        return found

    yield make
    for found in made:
        for handler in list(found.handlers):
            found.removeHandler(handler)
            handler.close()


def test_a_record_becomes_one_json_object(logger, q):
    before = time.time()
    logger().warning("%d of %s", 3, "four", extra={"user": "ada"})
    fields = q.get()
    assert before <= fields.pop("time") <= time.time()
    assert fields.pop("line") > 0
    assert fields == {
        "level": "WARNING",
        "logger": "test.0",
        "message": "3 of four",
        "host": fields["host"],
        "pid": os.getpid(),
        "process": "MainProcess",
        "thread": "MainThread",
        "file": __file__,
        "function": "test_a_record_becomes_one_json_object",
        "user": "ada",
    }


def test_a_traceback_goes_along(logger, q):
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        logger().exception("failed", stack_info=True)
    fields = q.get()
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("ZeroDivisionError: by zero")
    assert "Stack" in fields["stack"]


def test_what_json_has_no_word_for_goes_as_text(logger, q):
    extra = {"path": os.sep, "what": {1, 2}, "nested": {"a": [None]}, "odd": object, "share": float("nan"), "seconds": 0.5}
    logger().info("x", extra=extra)
    fields = q.get()
    assert (fields["path"], fields["what"], fields["nested"]) == ("/", "{1, 2}", {"a": [None]})
    assert fields["odd"] == "<class 'object'>"
    assert (fields["share"], fields["seconds"]) == ("nan", 0.5)


def test_records_survive_the_process_that_is_killed_right_after_them(path, q, start):
    child = start(
        """
        import logging
        from durableq.integrations.logging import DurableHandler
        logging.basicConfig(level="INFO", handlers=[DurableHandler(path)])
        for n in range(100):
            logging.info("line %d", n)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    assert child.process.wait(PATIENCE) == -signal.SIGKILL
    assert [item["message"] for item in q.get_many(1000)] == [f"line {n}" for n in range(100)]


def test_a_bounded_file_drops_the_oldest_records(logger, open_queue):
    log = logger(max_bytes=20_000, on_full="drop_oldest")
    for n in range(200):
        log.info("line %d", n)
    q = open_queue()
    assert q.stats().drops > 0
    left = [item["message"] for item in q.get_many(1000)]
    assert left == [f"line {n}" for n in range(200 - len(left), 200)]


def test_it_is_bounded_unless_it_is_told_otherwise(logger, path):
    logger()
    with pytest.raises(OptionMismatchError, match=str(1 << 30)):
        DurableQueue(path, max_bytes=1)


def test_it_is_bounded_in_a_file_that_was_created_empty(logger, path):
    path.touch(0o600)
    logger()
    with pytest.raises(OptionMismatchError, match=str(1 << 30)):
        DurableQueue(path, max_bytes=1)


def test_a_full_disk_or_any_other_trouble_is_told_and_the_program_goes_on(logger, capsys):
    log = logger(max_bytes=2000, on_full="block")
    for n in range(50):
        log.info("line %d", n)
    assert "Logging error" in capsys.readouterr().err


def test_a_signal_handler_that_logs_in_the_middle_of_a_put_loses_nothing(logger, q, monkeypatch):
    log = logger()
    (handler,) = (one for one in log.handlers if isinstance(one, DurableHandler))
    queue = handler._queue
    put = queue.put

    def interrupted(item, block):
        monkeypatch.undo()
        log.info("from the signal handler")
        put(item, block)

    monkeypatch.setattr(queue, "put", interrupted)
    log.info("first")
    assert [item["message"] for item in q.get_many(5)] == ["first", "from the signal handler"]


def test_dict_config_makes_it(path, q):
    name = "test.configured"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "durable": {
                    "class": "durableq.integrations.logging.DurableHandler",
                    "path": str(path),
                    "level": "INFO",
                }
            },
            "loggers": {name: {"handlers": ["durable"], "level": "DEBUG", "propagate": False}},
        }
    )
    log = logging.getLogger(name)
    log.debug("not this")
    log.info("this")
    (handler,) = (one for one in log.handlers if isinstance(one, DurableHandler))
    handler.close()
    assert [item["message"] for item in q.get_many(5)] == ["this"]


def test_processes_share_the_file(path, q, start):
    code = """
    import logging
    from durableq.integrations.logging import DurableHandler
    logging.basicConfig(level="INFO", handlers=[DurableHandler(path)])
    for n in range(50):
        logging.info("%s %d", sys.argv[2], n)
    """
    children = [start(code, path, name) for name in "ab"]
    for child in children:
        child.finish()
    found = [item["message"].split() for item in q.get_many(1000)]
    for name in "ab":
        assert [int(n) for who, n in found if who == name] == list(range(50))


def test_the_records_of_a_crashed_program_are_shipped_to_kafka(path, q, start, kafka):
    kafka.tell("topic", "logs")
    child = start(
        """
        import logging
        from durableq.integrations.logging import DurableHandler
        logging.basicConfig(level="INFO", handlers=[DurableHandler(path)])
        logging.getLogger("shop.cart").error("it breaks")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    child.process.wait(PATIENCE)
    url = f"kafka://127.0.0.1:{kafka.port}/logs"
    command = [sys.executable, "-m", "durableq", "forward", str(path), url, "--drain", "--key", "logger", "--header", "level"]
    subprocess.run(command, check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)
    (message,) = kafka.messages("logs")
    assert (message.key(), dict(message.headers())["level"]) == (b"shop.cart", b"ERROR")
    assert json.loads(message.value())["message"] == "it breaks"
    assert q.empty()


def test_the_standard_queue_handler_does_as_well(q):
    handler = logging.handlers.QueueHandler(q)
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    assert q.get().msg == "x"


def test_forward_can_ship_what_the_standard_queue_handler_put(q, make_redis):
    server = make_redis()
    logging.handlers.QueueHandler(q).emit(logging.makeLogRecord({"msg": "x", "levelname": "INFO"}))
    url = f"redis://127.0.0.1:{server.port}/0/logs"
    assert durableq.forward(q, url, drain=True, value="message", headers={"level": "levelname"}) == (1, 0)
    with server.client() as client:
        fields = client.xrange("logs")[0][1]
    assert (fields[b"value"], fields[b"level"]) == (b"x", b"INFO")


def test_a_name_that_is_no_utf_8_goes_along(path, q, start):
    """In a process of its own: pytest-xdist cannot carry such a name to who reports the tests."""
    program = start(
        """
        import logging
        from durableq.integrations.logging import DurableHandler
        logging.getLogger().addHandler(DurableHandler(path))
        name = os.fsdecode(b"caf\\xe9")
        logging.error("cannot open %s", name, extra={"name_of_it": name})
        """,
        path,
    )
    program.finish()
    fields = q.get(timeout=PATIENCE)
    name = os.fsdecode(b"caf\xe9")
    assert (fields["message"], fields["name_of_it"]) == (f"cannot open {name}", name)


def test_an_extra_under_a_name_of_the_record_s_own_goes_along_under_another(logger, q):
    logger().info("x", extra={"host": "db1", "user": "ada"})
    fields = q.get()
    assert (fields["extra_host"], fields["user"]) == ("db1", "ada")
    assert fields["host"] != "db1"
