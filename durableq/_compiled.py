"""The compiled hot path (`_c/fast.c`), if it was built here and fits this package; else nothing, and Python does all of it.

`Ends` is the base of `Handle`. The attributes by which a handle tells at a glance that all is usual live in it, so that the
compiled calls and their twins in Python look at the same ones. `DURABLEQ_PURE=1` keeps it out, to compare the two.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

from durableq import _leases as leases
from durableq import _os
from durableq import _record as record
from durableq import _state as state
from durableq._reclaim import BATCH, REWIND


def _layout() -> tuple[int, ...]:
    """What the compiled code takes for granted, in the order of its LAYOUT: one built from another version must not run."""
    return (
        *(state.SHUTDOWN, state.MAXSIZE, state.T_COMMIT, state.T_POS, state.T_MARK, state.T_STATE, state.T_ROOM),
        *(state.H_COMMIT, state.H_POS, state.H_STATE, state.H_LIMIT, state.H_NEXT, state.LIVE, state.LIVE_BYTES),
        *(state.RETURNED, state.DELAYED, state.NEXT_DUE, state.REGION, state.UNPUNCHED, state.GET_WAITERS),
        *(state.GET_WORD, state.PUT_WAITERS, state.JOIN_WAITERS, state.TAIL_MUTEX, state.HEAD_MUTEX, state.BUSY, state.SPECIAL),
        *(record.HEADER_SIZE, record.HEAD_SIZE, record.STATE_OFFSET, record.READY, record.DONE),
        *(leases.MIN_LOG2, leases.CHUNK_LOG2, leases.END, leases.HINT, leases.FIRST),
        *(leases.RETURNED_CODE, leases.MAX_COUNT, BATCH, REWIND, _os.BLOCK),
        record.MAGIC,
    )


class _Pure:
    """What `Ends` is without the compiled code."""

    _unfit: bool
    _look_at: float
    _tail_calm: int
    _calm: int
    _base: int
    _head_base: int
    _handed_out: int
    _ledger_region: int
    _ledger_address: int
    _fast_append = _fast_append_many = _fast_take = _fast_ack = _fast_unbind = None


COMPILED = False
"""Whether the compiled hot path is in use."""
crc32 = zlib.crc32
"""The fastest there is; all give the same sum."""

if TYPE_CHECKING:
    Ends = _Pure
else:
    Ends = _Pure
    if not os.environ.get("DURABLEQ_PURE"):
        try:
            from durableq import _fast
        except ImportError:  # not built: no compiler when the package was installed, or another Python
            pass
        else:
            if _layout() == _fast.LAYOUT:
                Ends = _fast.Ends
                COMPILED = True
                crc32 = _fast.crc32
