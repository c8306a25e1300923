"""Simulated power cuts: whatever of the unsynced is on the disk and whatever is not, the promises hold."""

from __future__ import annotations

import os

import pytest
from powercut.simulate import simulate
from powercut.workload import small_distances

from durableq import DurableQueue, _os
from durableq._record import decode, encode_body, encode_head
from durableq._state import BASE


@pytest.mark.parametrize("seed", range(8))
def test_every_legal_state_of_the_disk_keeps_what_was_promised(seed):
    _, _, failures = simulate(60, seed=100 + seed)
    assert failures == []


def test_what_was_purged_does_not_come_back_when_the_beginning_of_the_next_turn_is_lost(path, monkeypatch):
    """All of the file reaches the disk but its first page, which is as the last sync found it."""
    synced = [b""]
    sync = _os.fdatasync

    def look_and_sync(fd):
        sync(fd)
        synced[0] = path.read_bytes()[:4096]

    monkeypatch.setattr(_os, "fdatasync", look_and_sync)
    with small_distances(), DurableQueue(path, sync=None, serializer="bytes") as q:
        for n in range(100):
            q.put(b"%d " % n * 30)
        assert q.purge() == 100
        while not q._store._words[BASE]:  # until the file is begun anew
            q.put(b"and on")
            q.get_nowait()
            q.task_done()
        q.put(os.urandom(7000))  # over what told that the others are dead
        disk = synced[0] + path.read_bytes()[4096:]
    other = path.with_name("other.dq")
    other.write_bytes(disk)
    with DurableQueue(other, serializer="bytes") as q:
        assert not [item for item in q.get_many(200, block=False) if b" " in item[:4]]


@pytest.mark.parametrize("split", range(8, 48, 8))
def test_a_header_of_which_the_disk_has_one_sector_of_two_is_no_record(split):
    """The rest of it is that of a record that lay at the same place before the file was begun anew."""
    old, new = (encode_head(body, at) + body for at, body in ((8000, _body(b"old" * 99)), (90_000, _body(b"new" * 99))))
    assert decode(new, 0, 90_000, 7).length == 297
    assert decode(new[:split] + old[split:], 0, 90_000, 7) is None
    assert decode(old[:split] + new[split:], 0, 90_000, 7) is None or split == 8  # then all that tells them apart is new


def _body(payload):
    return encode_body(payload, 3, len(payload) + payload[0], 7)
