"""The story beside a dead letter: what it holds, which letters have one, and what a crash or a full disk leaves of it."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest
from processes import PATIENCE

from durableq import DecodeError, StaleDeliveryError, failures
from durableq.failures import Failure


def fail(q, item="x", reason="ValueError: no such customer", details="Traceback ...\n"):
    """Put an item and make it a dead letter with a story; its id."""
    q.put(item)
    delivery = q.reserve(timeout=0)
    failures.reject(q, delivery, reason, details)
    return delivery.id


def lines(path):
    return path.with_name("q.dq-failures").read_text().splitlines()


def test_a_rejected_item_is_a_dead_letter_with_its_story(q):
    before = time.time()
    where = fail(q, {"customer": 7})
    story = failures.read(q)[where]
    assert q.dead_letters.peek() == [{"customer": 7}]
    assert (story.reason, story.details, story.deliveries) == ("ValueError: no such customer", "Traceback ...\n", 1)
    assert (story.host, story.pid, story.item) == (socket.gethostname(), os.getpid(), "{'customer': 7}")
    assert before <= story.time <= time.time()


def test_stories_are_read_in_another_process_after_the_first_one_was_killed(open_queue, start, path):
    code = """
    from durableq import failures
    q = DurableQueue(path); q.put("x"); d = q.reserve(); failures.reject(q, d, "exit code 3", "no such file")
    say(d.id); hear()
    """
    child = start(code, path)
    where = child.hear(PATIENCE)
    child.kill()
    q = open_queue()
    assert failures.read(q)[where].reason == "exit code 3"
    assert failures.read(q)[where].pid == child.pid


def test_the_story_of_an_item_that_is_no_dead_letter_is_not_read(q):
    q.put("x")
    failures.note(q, Failure.of(q.reserve(timeout=0), "killed before it was rejected"))
    assert failures.read(q) == {}


def test_a_holder_killed_between_the_story_and_the_rejection_loses_no_item(open_queue, start, path):
    code = """
    from durableq import failures, Delivery
    Delivery.reject = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    q = DurableQueue(path); q.put("x"); failures.reject(q, q.reserve(), "too bad")
    """
    child = start(code, path)
    child.process.wait(PATIENCE)
    q = open_queue()
    assert len(lines(path)) == 1
    assert failures.read(q) == {}
    assert q.reserve(timeout=PATIENCE).deliveries == 2


def test_a_dead_letter_that_was_redriven_has_no_story_until_it_fails_again(q):
    where = fail(q)
    q.redrive()
    assert failures.read(q) == {}
    failures.reject(q, q.reserve(timeout=0), "failed again")
    assert [story.reason for story in failures.read(q).values()] == ["failed again"]
    assert where in failures.read(q)


def test_the_story_of_a_dead_letter_that_somebody_has_taken_is_still_read(q):
    where = fail(q)
    with q.dead_letters.reserve(timeout=0):
        assert where in failures.read(q)
    assert failures.read(q) == {}


def test_a_sweep_drops_the_stories_of_items_that_are_gone_and_keeps_the_others(q, path, monkeypatch):
    gone, kept = fail(q, "gone"), fail(q, "kept")
    q.dead_letters.get(timeout=0)
    q.dead_letters.task_done()
    monkeypatch.setattr(failures, "FRESH", 0.0)
    assert failures.sweep(q) == 1
    assert [json.loads(line)["id"] for line in lines(path)[1:]] == [kept]
    assert gone not in failures.read(q) and kept in failures.read(q)


def test_a_sweep_with_nothing_to_drop_leaves_the_file_as_it_is(q, path, monkeypatch):
    monkeypatch.setattr(failures, "FRESH", 0.0)
    fail(q)
    before = path.with_name("q.dq-failures").stat()
    assert failures.sweep(q) == 0
    after = path.with_name("q.dq-failures").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_sweep_leaves_stories_alone_whose_items_are_just_being_rejected(q, path):
    q.put("x")
    delivery = q.reserve(timeout=0)
    failures.note(q, Failure.of(delivery, "too bad"))
    assert failures.sweep(q) == 0
    delivery.reject()
    assert failures.read(q)[delivery.id].reason == "too bad"


def test_the_file_stays_bounded_when_dead_letters_come_and_go(q, path, monkeypatch):
    monkeypatch.setattr(failures, "FRESH", 0.0)
    monkeypatch.setattr(failures, "SWEEP_FROM", 4096)
    kept = fail(q, "kept")
    letters = q.dead_letters
    with letters.reserve(timeout=0) as held:
        for n in range(100):
            fail(q, n, details="y" * 200)
            letters.get(timeout=0)
            letters.task_done()
        held.nack()
    assert path.with_name("q.dq-failures").stat().st_size < 3 * 4096
    assert list(failures.read(q)) == [kept]


def test_a_file_of_living_stories_is_not_swept_again_and_again(q, path, monkeypatch):
    monkeypatch.setattr(failures, "SWEEP_FROM", 4096)
    sweeps = []
    sweep = failures._sweep_locked
    monkeypatch.setattr(failures, "_sweep_locked", lambda *args, **options: sweeps.append(1) or sweep(*args, **options))
    told = [fail(q, n) for n in range(200)]
    assert list(failures.read(q)) == told
    assert len(sweeps) < 6


def test_a_torn_line_costs_no_other_story(q, path):
    first = fail(q)
    with path.with_name("q.dq-failures").open("ab") as file:
        file.write(b'{"id": "torn')
    second = fail(q)
    assert list(failures.read(q)) == [first, second]


def test_lines_that_are_something_else_are_passed_over(q, path):
    where = fail(q)
    with path.with_name("q.dq-failures").open("ab") as file:
        file.write(b'[]\n{}\n"x"\n\xff\xfe\n\0\0\n' + json.dumps({"id": "a", "new in 9.0": 1}).encode() + b"\n")
    assert list(failures.read(q)) == [where]


def test_a_story_of_a_later_version_with_more_in_it_is_read(q, path):
    where = fail(q)
    line = json.loads(lines(path)[0]) | {"added later": 1, "reason": "from the future"}
    with path.with_name("q.dq-failures").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert failures.read(q)[where].reason == "from the future"


def test_only_the_end_of_long_details_is_kept(q):
    where = fail(q, details="a" * 100_000 + "the end")
    assert failures.read(q)[where].details.endswith("the end")
    assert len(failures.read(q)[where].details) == failures.LONGEST


def test_a_story_that_the_disk_does_not_take_costs_no_item(q, path, caplog):
    path.with_name("q.dq-failures").mkdir()
    fail(q)
    assert q.dead_letters.peek() == ["x"]
    assert "the story of" in caplog.text and "no such customer" in caplog.text


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_file_is_as_private_as_the_spool_whatever_the_umask_and_so_it_stays(open_queue, path, mode, monkeypatch):
    monkeypatch.setattr(failures, "FRESH", 0.0)
    umask = os.umask(0o077)
    try:
        q = open_queue(mode=mode, serializer="json")
        fail(q)
        assert path.with_name("q.dq-failures").stat().st_mode & 0o777 == mode
        q.redrive()
        assert failures.sweep(q) == 1
        assert path.with_name("q.dq-failures").stat().st_mode & 0o777 == mode
    finally:
        os.umask(umask)


def test_a_link_in_its_place_is_not_followed(q, path, tmp_path, caplog):
    (tmp_path / "victim").write_text("precious")
    path.with_name("q.dq-failures").symlink_to(tmp_path / "victim")
    fail(q)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_rejection_that_comes_too_late_raises_and_changes_nothing(q):
    q.put("x")
    delivery = q.reserve(timeout=0)
    delivery.ack()
    with pytest.raises(StaleDeliveryError):
        failures.reject(q, delivery, "too late")
    assert failures.read(q) == {}


@pytest.mark.parametrize("item", ["x" * 10**7, b"x" * 10**7, list(range(10**5)), {n: n for n in range(10**5)}])
def test_a_short_text_of_a_big_item_is_short(item):
    assert 1 < len(failures.short(item)) < 200


def test_an_item_that_cannot_be_shown_has_a_short_text_all_the_same():
    class Shy:
        def __repr__(self):
            raise RuntimeError("no")

    assert "Shy" in failures.short(Shy())


# -- looking at items with their ids -----------------------------------------------------------------------------------


def test_dead_letters_are_looked_at_with_the_ids_of_their_stories(q):
    first, second = fail(q, "a"), fail(q, "b")
    assert [(seen.id, seen.item, seen.deliveries) for seen in q.dead_letters.peek_deliveries(5)] == [
        (first, "a", 1),
        (second, "b", 1),
    ]
    assert q.dead_letters.ids() == {first, second}


def test_an_item_that_cannot_be_decoded_is_looked_at_all_the_same(q, open_queue):
    q.put("pickled")
    other = open_queue(serializer="json")
    (seen,) = other.peek_deliveries()
    assert isinstance(seen.item, DecodeError)
    assert seen.id == q.reserve(timeout=0).id


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
def test_the_stories_that_root_tells_are_of_who_owns_the_queue(q, path, monkeypatch):
    os.chown(path, 12345, 12345)
    file = path.with_name("q.dq-failures")
    fail(q)
    told = file.stat()
    q.dead_letters.reserve().ack()
    monkeypatch.setattr(failures, "FRESH", 0.0)
    assert failures.sweep(q) == 1
    assert file.stat().st_ino != told.st_ino
    assert told.st_uid == file.stat().st_uid == 12345
