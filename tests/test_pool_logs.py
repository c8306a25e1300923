"""WorkerPool: what it logs, and what the functions log in its workers. No line of a log costs an item, or the pool."""

from __future__ import annotations

import logging
import os
import re

import pool_jobs
import pytest


def from_the_function(caplog):
    """What the function of the workers has logged."""
    return [record for record in caplog.records if record.name == "jobs"]


def test_each_event_is_one_line_of_the_log(q, pool, caplog):
    caplog.set_level(logging.INFO)
    q.put_many([1, ("raise", "two\nlines"), ("exit", 7)])
    pool(max_deliveries=2).run(until_empty=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "durableq.pool"]
    assert not any("\n" in line for line in lines)
    for words in ("1 workers on", "failed, again in 0.0 s: ValueError: two lines", "is a dead letter after delivery 2"):
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert sum("ended with exit code 7, with item" in line for line in lines) == 2
    assert "stopped: 1 items done, 2 attempts failed, 2 dead letters" in lines[-1]
    assert "is done" not in "".join(lines), "that is for DEBUG"


def test_what_a_function_logs_goes_to_the_handlers_of_the_pool(q, pool, caplog):
    q.put(("log", "from the worker"))
    pool().run(until_empty=True)
    (record,) = from_the_function(caplog)
    assert record.getMessage() == "from the worker"
    assert record.process != os.getpid()


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}"])
def test_a_very_long_log_line_is_cut_and_not_lost(q, pool, caplog, letter):
    q.put(("log", letter * 1_000_000))
    pool().run(until_empty=True)
    (record,) = from_the_function(caplog)
    assert record.getMessage().startswith(3 * letter) and len(record.getMessage()) < 100_000


@pytest.mark.parametrize(
    ("what", "arrives"),
    [
        ("unpickle", "ApiError('503: busy')"),
        ("import", "a local one"),
        ("pickle", "<unlocked _thread.lock object at 0x"),
        ("show", "<Shy instance at 0x"),
        ("nest", "['first', "),
        ("inside", {"errors": ("ApiError('503: busy')", 1.5, None, True), 25: ["as", "it", "is"]}),
        ("long", "xxx"),
    ],
)
def test_an_extra_that_the_pool_cannot_have_arrives_as_its_text_and_costs_nothing_else(q, pool, caplog, what, arrives):
    q.put_many([("log_extra", what), "next"])
    tally = pool().run(until_empty=True)
    assert (tally.done, tally.deaths) == (2, 0)
    (record,) = from_the_function(caplog)
    assert (record.getMessage(), record.request) == ("from the worker", 7)
    assert record.about == arrives or record.about.startswith(arrives)


def test_a_record_that_is_too_large_as_a_whole_arrives_without_its_extras(q, pool, caplog):
    q.put(("log_extra", "many"))
    pool().run(until_empty=True)
    (record,) = from_the_function(caplog)
    assert record.getMessage() == "from the worker"
    assert not hasattr(record, "about")


def test_a_level_of_a_class_of_its_own_is_a_number(q, pool, caplog):
    q.put(("log_at", pool_jobs.Level.NOTICE))
    caplog.set_level(logging.INFO)
    pool().run(until_empty=True)
    (record,) = from_the_function(caplog)
    assert (type(record.levelno), record.levelno) == (int, 25)


def test_a_message_that_is_no_log_record_is_told_with_its_worker_and_costs_no_item(q, pool, caplog):
    q.put_many([("log_garbage", None), "next"])
    tally = pool().run(until_empty=True)
    assert (tally.done, tally.deaths) == (2, 0)
    assert re.search(r"a log record of worker 1 \(pid \d+\) is lost, it cannot be read or handled", caplog.text)


def test_a_filter_that_fails_in_the_pool_costs_no_item(q, pool, caplog, monkeypatch):
    q.put_many([("log", "from the worker"), "next"])
    monkeypatch.setattr(logging.getLogger("jobs"), "filters", [lambda record: record.customer])
    tally = pool().run(until_empty=True)
    assert (tally.done, tally.deaths) == (2, 0)
    assert "AttributeError: 'LogRecord' object has no attribute 'customer'" in caplog.text
