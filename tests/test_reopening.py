"""Opening a queue again: after an orderly close, after a kill, after a reboot, and from the spool alone."""

from __future__ import annotations

import os
import shutil

import pytest
from processes import PATIENCE

from durableq import DamagedError, DurableQueue, Empty

MEBIBYTE = 1 << 20


def forget_nothing(path):
    pass


def forget_control_words(path):
    # What a reboot amounts to: control words of another boot are not used.
    os.unlink(f"{path}-shm")


def forget_lock_file(path):
    os.unlink(f"{path}-lock")


def forget_all_but_the_spool(path):
    for companion in path.parent.glob(path.name + "-*"):
        companion.unlink()


def spoil_control_words(path):
    with open(f"{path}-shm", "r+b") as file:
        file.write(os.urandom(os.path.getsize(f"{path}-shm")))


def cut_control_words_short(path):
    os.truncate(f"{path}-shm", 100)


def empty_control_words(path):
    os.truncate(f"{path}-shm", 0)


def move_to_a_new_file(path):
    # A new inode with the old companions, as after a copy or a restored backup.
    shutil.copyfile(path, f"{path}.copy")
    os.replace(f"{path}.copy", path)


BETWEEN = [
    forget_nothing,
    forget_control_words,
    forget_lock_file,
    forget_all_but_the_spool,
    spoil_control_words,
    cut_control_words_short,
    empty_control_words,
    move_to_a_new_file,
]


@pytest.fixture(params=BETWEEN, ids=lambda function: function.__name__)
def between(request):
    """What happens to the files while nobody has the queue open."""
    return request.param


def test_waiting_items_are_there_in_their_order(path, between):
    with DurableQueue(path) as q:
        q.put_many(range(500))
    between(path)
    with DurableQueue(path) as q:
        assert q.qsize() == 500
        assert q.get_many(1000) == list(range(500))


def test_done_items_are_not_there(path, between):
    with DurableQueue(path) as q:
        q.put_many(range(500))
        for _ in range(200):
            q.get_nowait()
            q.task_done()
    between(path)
    with DurableQueue(path) as q:
        assert q.get_nowait() == 200
        assert q.qsize() == 299


def test_items_done_out_of_order_are_not_there(path, between):
    with DurableQueue(path) as q:
        q.put_many(range(100))
        for delivery in q.reserve_many(100):
            if delivery.item % 3 == 0:
                delivery.ack()
    between(path)
    with DurableQueue(path) as q:
        assert q.get_many(100) == [number for number in range(100) if number % 3]


def test_items_that_a_killed_process_held_come_first(path, between, start):
    with DurableQueue(path) as q:
        q.put_many("abcd")
    holder = start("q = DurableQueue(path); say(*q.get_many(2)); hear()", path)
    holder.expect("a b")
    holder.kill()
    between(path)
    with DurableQueue(path) as q:
        assert [q.get(timeout=PATIENCE) for _ in range(4)] == list("abcd")


def test_dead_letters_are_still_dead(path, between):
    with DurableQueue(path) as q:
        q.put_many("ab")
        q.reserve(timeout=0).reject()
    between(path)
    with DurableQueue(path) as q:
        assert q.stats().dead == 1
        assert q.get_nowait() == "b"
        assert q.empty()
        assert q.dead_letters.get_nowait() == "a"


def test_delayed_items_are_still_delayed(path, between):
    with DurableQueue(path) as q:
        q.put("later", delay=600)
        q.put("soon", delay=0.3)
        q.put("now")
    between(path)
    with DurableQueue(path) as q:
        assert q.get_nowait() == "now"
        assert q.get(timeout=PATIENCE) == "soon"
        with pytest.raises(Empty):
            q.get_nowait()
        assert q.stats().delayed == 1


def test_unfinished_items_are_still_counted(path, between):
    with DurableQueue(path) as q:
        q.put_many("abc")
        q.get_nowait()
        q.task_done()
        q.get_nowait()
    between(path)
    with DurableQueue(path) as q:
        assert q.stats().unfinished == 2
        assert q.qsize() == 2


def test_the_options_of_the_queue_are_still_in_force(path, between):
    with DurableQueue(path, maxsize=3, max_deliveries=1) as q:
        q.put("x")
    between(path)
    with DurableQueue(path) as q:
        assert q.maxsize == 3
        q.reserve(timeout=0).nack()
        assert q.stats().dead == 1


def test_new_items_come_after_the_old_ones(path, between):
    with DurableQueue(path) as q:
        q.put_many("ab")
    between(path)
    with DurableQueue(path) as q:
        q.put("c")
        assert q.get_many(5) == ["a", "b", "c"]


def test_a_drained_queue_is_usable(path, between):
    with DurableQueue(path) as q:
        q.put_many(os.urandom(MEBIBYTE // 8) for _ in range(16))
        for _ in range(16):
            q.get_nowait()
            q.task_done()
    between(path)
    with DurableQueue(path) as q:
        assert q.empty()
        q.put("x")
        assert q.get_nowait() == "x"


def test_a_queue_whose_front_was_given_back_is_whole(path, between):
    with DurableQueue(path) as q:
        q.put_many((number, bytes(MEBIBYTE // 16)) for number in range(80))
        for _ in range(60):
            q.get_nowait()
            q.task_done()
    between(path)
    with DurableQueue(path) as q:
        assert [number for number, _ in q.get_many(100)] == list(range(60, 80))
        q.put("next")
        assert q.get_nowait() == "next"


def test_a_stuck_item_with_holes_behind_it_is_there(path, between, start):
    with DurableQueue(path) as q:
        q.put_many((number, bytes(MEBIBYTE // 16)) for number in range(80))
    worker = start(
        """
        q = DurableQueue(path)
        stuck = q.reserve()
        for _ in range(60):
            q.get()
            q.task_done()
        say("stuck")
        hear()
        """,
        path,
    )
    worker.expect("stuck")
    worker.kill()
    between(path)
    with DurableQueue(path) as q:
        assert [number for number, _ in q.get_many(100)] == [0, *range(61, 80)]


def test_nothing_changes_over_many_reopenings(path, between):
    expected = []
    for number in range(10):
        with DurableQueue(path) as q:
            q.put_many([(number, "a"), (number, "b")])
            expected += [(number, "a"), (number, "b")]
            assert q.get_nowait() == expected.pop(0)
            q.task_done()
        between(path)
    with DurableQueue(path) as q:
        assert q.get_many(100) == expected


def test_the_queue_lies_where_a_relative_path_says_even_after_chdir(tmp_path, start):
    mover = start(
        """
        os.chdir(sys.argv[1])
        q = DurableQueue("rel.dq")
        os.chdir("/")
        q.put("x")
        say(q.path)
        """,
        tmp_path,
    )
    mover.expect(str(tmp_path / "rel.dq"))
    mover.finish()
    with DurableQueue(tmp_path / "rel.dq") as q:
        assert q.get_nowait() == "x"


def test_two_names_of_one_file_are_one_queue(path, tmp_path, open_queue):
    q = open_queue()
    (tmp_path / "link.dq").symlink_to(path)
    q.put("x")
    linked = open_queue(tmp_path / "link.dq")
    assert linked.get_nowait() == "x"
    assert q.stats().lent == 1


def link(path, other):
    os.link(path, other)


NAMES = {"hard link": (link, lambda other, path: None), "moved away and back": (os.rename, os.rename)}
PUT_UNDER_ANOTHER_NAME = """
q = DurableQueue(path, sync=None)
q.put_many(range(1, 100))
q.sync()
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "q.close()"], ids=["killed", "closed"])
@pytest.mark.parametrize("there, back", NAMES.values(), ids=NAMES.keys())
def test_what_was_put_under_another_name_of_the_file_is_there(path, tmp_path, start, there, back, end):
    other = tmp_path / "other.dq"
    with DurableQueue(path) as q:
        q.put(0)
    there(path, other)
    start(PUT_UNDER_ANOTHER_NAME + end, other).process.wait(PATIENCE)
    back(other, path)
    with DurableQueue(path) as q:
        assert q.get_many(200) == list(range(100))


def test_a_file_in_use_is_not_opened_under_another_name_by_the_control_words_of_that(path, tmp_path, open_queue):
    other = tmp_path / "other.dq"
    with DurableQueue(path) as q:
        q.put("x")
    os.link(path, other)
    q = open_queue(other)
    with pytest.raises(DamagedError, match="another name"):
        DurableQueue(path)
    assert q.get_nowait() == "x"


@pytest.mark.parametrize("order", ["kill(); note(*arguments)", "note(*arguments); kill()"], ids=["before", "after"])
def test_a_kill_around_the_note_of_the_control_file_in_force_leaves_no_wrong_one(path, tmp_path, start, order):
    other = tmp_path / "other.dq"
    with DurableQueue(path) as q:
        q.put_many("ab")
    os.link(path, other)
    killed = f"""
        from durableq._spool import Spool
        def kill():
            os.kill(os.getpid(), signal.SIGKILL)
        def note_and_kill(*arguments, note=Spool.note_control):
            {order}
        Spool.note_control = note_and_kill
        DurableQueue(path)
        """
    assert start(killed, other).process.wait(PATIENCE) < 0
    for name in (other, path, other):
        with DurableQueue(name) as q:
            q.put("c")
            assert q.get_many(9)[:2] == ["a", "b"]


def test_a_copy_of_the_spool_is_a_queue_of_its_own(q, path, tmp_path, open_queue):
    q.put_many("ab")
    q.sync()
    shutil.copyfile(path, tmp_path / "copy.dq")
    (tmp_path / "copy.dq").chmod(0o600)
    copy = open_queue(tmp_path / "copy.dq")
    assert copy.get_many(5) == ["a", "b"]
    assert q.qsize() == 2


def test_an_empty_file_becomes_a_queue(path, open_queue):
    # A process that is killed while it creates a queue leaves such a file.
    path.touch(mode=0o600)
    q = open_queue()
    q.put("x")
    assert q.get_nowait() == "x"
