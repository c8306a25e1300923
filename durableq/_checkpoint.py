"""Writing checkpoints: the control words that recovery wants to find in the superblock."""

from __future__ import annotations

from durableq._spool import HEAD_SECTOR, TAIL_SECTOR, Checkpoint, Spool
from durableq._state import (
    BASE,
    DAMAGED,
    DAMAGED_BYTES,
    DROPS,
    H_GEN,
    H_LIMIT,
    PENDING,
    T_GEN,
    T_MARK,
    Control,
)

DISTANCE = 4 << 20
"""Bytes that the head or the tail moves between two checkpoints: what recovery reads at each end, at most."""


def mark_tail(spool: Spool, control: Control) -> None:
    """Write a tail checkpoint; under the tail lock."""
    words = control.words
    position, sequence = control.tail()
    words[T_GEN] += 1
    spool.write_checkpoint(TAIL_SECTOR, Checkpoint(words[T_GEN], words[BASE], position, sequence, position, words[PENDING]))
    words[T_MARK] = position + DISTANCE  # after the write: a kill before this line costs one more checkpoint


def mark_head(spool: Spool, control: Control, reach: int = DISTANCE) -> None:
    """Write a head checkpoint that lets the head move `reach` bytes before the next one is due; under the head lock."""
    words = control.words
    position, sequence = control.head()
    words[H_GEN] += 1
    checkpoint = Checkpoint(
        words[H_GEN],
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
    # Only after it is written may the head go past the old limit: nothing at or behind the limit on disk is ever done.
    words[H_LIMIT] = position + reach
