"""Writing checkpoints: the control words that recovery wants to find in the superblock.

A tail checkpoint must never reach the disk before what it vouches for: after a power cut a gap before it would pass for
damage, and a gap behind it for an append that was under way. A checkpoint is not synced by itself, so the tail's is written
in two steps: a place is remembered, and written down when a sync has passed it.
"""

from __future__ import annotations

from contextlib import suppress

from durableq._spool import HEAD_SECTOR, TAIL_SECTOR, Checkpoint, Spool
from durableq._state import (
    BASE,
    DAMAGED,
    DAMAGED_BYTES,
    DROPS,
    H_GEN,
    H_LIMIT,
    PENDING,
    SYNCED,
    T_GEN,
    T_MARK,
    T_PLACE,
    T_PLACE_SEQUENCE,
    Control,
)

DISTANCE = 4 << 20
"""Bytes that the head or the tail moves between two checkpoints: what recovery reads at each end, at most."""


def mark_tail(spool: Spool, control: Control) -> None:
    """Write down the remembered place if it is on the disk by now, and remember another; under the tail lock."""
    words = control.words
    position, sequence = control.tail()
    place = words[T_PLACE]
    if not place or place <= words[SYNCED]:
        if place > words[BASE]:
            _write_tail(spool, control, place, words[T_PLACE_SEQUENCE])
        words[T_PLACE] = 0  # a kill between the next lines must not join one place with the number of another
        words[T_PLACE_SEQUENCE] = sequence
        words[T_PLACE] = position
    words[T_MARK] = position + DISTANCE  # after the write: a kill before this line costs one more checkpoint


def mark_tail_synced(spool: Spool, control: Control) -> None:
    """Write a checkpoint of the tail as it is. All before it is on the disk or dead; under the tail lock."""
    position, sequence = control.tail()
    _write_tail(spool, control, position, sequence)
    control.words[T_PLACE] = 0
    control.words[T_MARK] = position + DISTANCE


def _write_tail(spool: Spool, control: Control, position: int, sequence: int) -> None:
    words = control.words
    generation = words[T_GEN] + 1
    spool.write_checkpoint(TAIL_SECTOR, Checkpoint(generation, words[BASE], position, sequence, position, words[PENDING]))
    words[T_GEN] = generation  # in this order, so that the spool of these words is never older than they are: see `still_fits`


def mark_head(spool: Spool, control: Control, reach: int = DISTANCE) -> None:
    """Write a head checkpoint that lets the head move `reach` bytes before the next one is due; under the head lock."""
    words = control.words
    position, sequence = control.head()
    generation = words[H_GEN] + 1
    checkpoint = Checkpoint(
        generation,
        words[BASE],
        position,
        sequence,
        position + reach,
        words[PENDING],
        words[DROPS],
        words[DAMAGED],
        words[DAMAGED_BYTES],
    )
    spool.write_checkpoint(HEAD_SECTOR, checkpoint)
    words[H_GEN] = generation  # as the tail's
    # Only after it is written may the head go past the old limit: nothing at or behind the limit on disk is ever done.
    words[H_LIMIT] = position + reach


def mark_open(spool: Spool, control: Control) -> None:
    """Take back the word of an orderly close, before anything is changed again; under the head lock.

    Without one a checkpoint is written all the same, for its number: control words do not fit an older copy of the spool then.
    """
    if control.words[H_LIMIT] <= control.head()[0]:
        mark_head(spool, control)
        spool.sync()
    else:
        with suppress(OSError):
            mark_head(spool, control)
