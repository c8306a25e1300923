"""Space on disk: what was consumed goes back to the file system, also between items that wait."""

from __future__ import annotations

import os

import pytest

from durableq import DurableQueue

MEBIBYTE = 1 << 20
SLACK = 4 * MEBIBYTE
"""What the blocks on disk may exceed the live bytes by."""

pytestmark = pytest.mark.usefixtures("punches_holes")


def on_disk(path):
    return path.stat().st_blocks * 512


def pieces(count, size=MEBIBYTE // 16):
    # Not zeros: those might be holes for reasons of their own.
    return [(number, os.urandom(size)) for number in range(count)]


def test_blocks_shrink_as_items_are_consumed(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(256))
        full = on_disk(path)
        assert full >= 16 * MEBIBYTE
        for number in range(192):
            q.get_nowait()
            q.task_done()
            if number % 16 == 15:
                assert on_disk(path) <= (255 - number) * MEBIBYTE // 16 + SLACK + MEBIBYTE
        assert on_disk(path) <= full - 12 * MEBIBYTE + SLACK


def test_eight_mebibytes_that_were_put_and_drained_leave_few_blocks(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(128))
        assert on_disk(path) >= 8 * MEBIBYTE
        for _ in range(128):
            q.get_nowait()
            q.task_done()
        assert on_disk(path) <= SLACK
    assert on_disk(path) <= MEBIBYTE


def test_a_drained_queue_s_file_is_cut_short(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(128))
        for _ in range(128):
            q.get_nowait()
            q.task_done()
        q.compact()
        assert path.stat().st_size <= SLACK


def test_items_consumed_for_good_by_get_give_their_blocks_back_too(path):
    with DurableQueue(path, ack="get", sync=None) as q:
        q.put_many(pieces(256))
        for _ in range(255):
            q.get_nowait()
        assert on_disk(path) <= MEBIBYTE // 16 + SLACK


def test_items_consumed_in_batches_give_their_blocks_back_too(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(256))
        for delivery in q.reserve_many(255):
            delivery.ack()
        assert on_disk(path) <= MEBIBYTE // 16 + SLACK


def test_many_small_items_give_their_blocks_back(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(os.urandom(100) for _ in range(60_000))
        assert on_disk(path) > 2 * SLACK
        for _ in range(59_999):
            q.get_nowait()
            q.task_done()
        assert on_disk(path) <= SLACK


def test_one_stuck_item_pins_its_block_and_not_what_passes_it(path):
    with DurableQueue(path, sync=None) as q:
        q.put(("stuck", b""))
        stuck = q.reserve(timeout=0)
        for _ in range(4):
            for piece in pieces(64):
                q.put(piece)
                q.get_nowait()
                q.task_done()
            assert on_disk(path) <= 4096 + SLACK
        stuck.nack()
        assert q.get_nowait() == ("stuck", b"")


def test_several_stuck_items_with_dead_ones_between_pin_only_themselves(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(256))
        deliveries = q.reserve_many(256)
        for delivery in deliveries:
            if delivery.item[0] % 64:
                delivery.ack()
        assert on_disk(path) <= 4 * (MEBIBYTE // 16 + 2 * 4096) + SLACK
        for delivery in deliveries[::64]:
            delivery.nack()
        assert [q.get_nowait()[0] for _ in range(4)] == [0, 64, 128, 192]


def test_a_queue_that_is_never_drained_does_not_grow(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(8))
        for piece in pieces(512):
            q.put(piece)
            q.get_nowait()
            q.task_done()
            assert on_disk(path) <= 9 * MEBIBYTE // 16 + SLACK + MEBIBYTE // 16
        assert q.qsize() == 8


def test_space_is_given_back_although_producer_and_consumer_are_two_processes(path, start):
    with DurableQueue(path, sync=None, maxsize=32) as q:
        producer = start(
            """
            q = DurableQueue(path, sync=None)
            for number in range(300):
                q.put((number, os.urandom(65536)))
            say("put")
            """,
            path,
        )
        for number in range(300):
            assert q.get(timeout=30)[0] == number
            q.task_done()
            assert on_disk(path) <= 33 * MEBIBYTE // 16 + SLACK
        producer.expect("put")


def test_a_waiting_backlog_is_not_touched_by_giving_space_back(path):
    with DurableQueue(path, sync=None) as q:
        expected = pieces(200)
        q.put_many(expected)
        for item in expected[:150]:
            assert q.get_nowait() == item
            q.task_done()
        assert q.get_many(100) == expected[150:]


def test_a_purge_gives_the_blocks_back(path):
    with DurableQueue(path, sync=None) as q:
        q.put_many(pieces(256))
        q.purge()
        assert on_disk(path) <= SLACK


def test_marks_in_a_page_that_the_kernel_keeps_in_one_piece_with_punched_ones_do_not_fill_the_hole_again(path):
    # A batch lies in large pieces of the kernel's cache, and a mark through a mapped page takes blocks for its whole piece.
    with DurableQueue(path, sync=None) as q:
        for _ in range(60):
            q.put_many([bytes(range(100))] * 1000)
        for _ in range(59_000):
            q.get_nowait()
            q.task_done()
        done = path.stat().st_size - q.stats().bytes_live
        with open(path, "rb") as file:
            assert os.lseek(file.fileno(), 4096, os.SEEK_DATA) > done - SLACK
