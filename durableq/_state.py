"""The control words: what the processes that share a queue know in common, drawn once.

`q.dq-shm` is mapped by every handle. It never holds the only copy of anything: one of another boot or mount, a foreign or a
damaged file is thrown away and rebuilt from the spool (see `_trust`). A killed process leaves exactly the stores it made, in
program order, so each word says below what a death between two stores means. Words are 64-bit and stored through
`memoryview.cast("Q")`, which stores a whole word at once (`struct.pack_into` goes byte by byte).

    bytes          content
    0     - 47     identity: magic, version, boot id, device and inode of the spool, its salt, kind of C library
    48    - 55     the name by which the spool knows the control file in force (see `_trust`)
    256   - 3711   control words, one cache line (8 words) for each party that writes them often
    3712, ..       the mutexes of the sync, of the tail and of the head (`_locks`)
    4096  - 69631  1,024 owner slots of 64 bytes
    69632 -        ledger regions (see `_leases`), preallocated, page-aligned

    word            written by      under lock    what a death leaves
    EPOCH           both ends       head (+tail)  odd: a change of the geometry was under way; `Reclaimer.settle` ends it
    BASE            reclaim         head + tail   logical position = physical offset + BASE
    PENDING, ..     reclaim         head + tail   a collapse of PENDING bytes from a file of _SIZE to BASE = _BASE was announced
    MAXSIZE         anybody         tail          the bound in force (0: none)
    NAMESPACE       who opens       cold          the pid namespace of all owners; 0: of different ones (see `_locks`)
    SHUTDOWN        anybody         head          1: no more puts, 2: nor gets, whatever there is; 0 again with the next ERA
    T_COMMIT        producers       tail          (appended records << 1 | flip): this one store publishes a put
    T_POS[2]        producers       tail          end of the published records is T_POS[flip]; the other one is scratch
    T_MARK          producers       tail          position at which the next tail checkpoint is due
    T_GEN           producers       tail          generation of the last tail checkpoint
    T_STATE         producers       tail          as H_STATE, for the tail; SPECIAL: SHUTDOWN
    T_ROOM          producers       tail          the file has pages up to this position, written ahead (a hint: may lag behind)
    T_PLACE, .._SEQ producers       tail          a place for the next tail checkpoint, once SYNCED has passed it; 0: none
    PUT_DELAYED     producers       tail          records ever put with a delay (statistics: one off at worst)
    H_COMMIT        consumers       head          (passed records << 1 | flip), as T_COMMIT
    H_POS[2]        consumers       head          from H_POS[flip] on all records wait; before it they are done or in the ledger
    H_STATE         consumers       head          EPOCH << 2 | SPECIAL | BUSY: one look tells that all is usual. BUSY: a holder
                                                  died or was interrupted, so recount (`_see_head`). SPECIAL: something was
                                                  given back, or has its time, or SHUTDOWN
    H_LIMIT         consumers       head          the head checkpoint on disk vouches for nothing done from here on
    H_NEXT          consumers       head          where the head has to look after checkpoint and space again
    H_GEN           consumers       head          generation of the last head checkpoint
    SEEN_DELAYED    consumers       head          of PUT_DELAYED, how many the head has passed
    LIVE .. DEAD    consumers       head          counts of ledger entries: recounted after a death
    NEXT_DUE        consumers       head          no delay or lease ends before (may be early, never late)
    REGION          consumers       head          offset of the ledger region | log2 of its capacity: one store flips it
    PUNCHED         reclaim         head          all below is given back; may lag behind, never ahead
    UNPUNCHED       consumers       head          bytes that died since the last reclaim (a trigger: may be lost)
    DROPS DAMAGED.. consumers       head          counters, kept in the head checkpoint
    SLOTS           owners          head          no owner slot at or above it was ever taken
    COVERED         reclaim         head          1: not all that is dead is so by itself, so the next rewind must be synced
    ERA             who opens       cold + head   how often the queue was opened anew while nobody had it open
    MOUNT           recovery        cold          the mount through which the queue was opened when these words were made
    *_WAITERS       anybody         head          sleepers: recounted from the owner slots when one of them dies
    *_WORD          anybody         none          the futex; changes with every wake
    SYNC_BEGUN      leader          sync          number of the last group sync that began
    SYNC_DONE       leader          sync          number of the last one that ended well; the futex of those who wait for it
    SYNCED          anybody         none          all published below was on disk once (may lag behind)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from contextlib import suppress

from durableq import _os

SHM_MAGIC = b"DQSHM\x00\x02\n"
OWNER_OFFSET = 4096
OWNER_SLOTS = 1024
OWNER_SIZE = 64
LEDGER_OFFSET = OWNER_OFFSET + OWNER_SLOTS * OWNER_SIZE
NEVER = (1 << 63) - 1

EPOCH, BASE, PENDING, PENDING_SIZE, PENDING_BASE, SHUTDOWN, MAXSIZE, NAMESPACE = range(32, 40)
T_COMMIT, T_POS, _, T_MARK, T_GEN, PUT_DELAYED, T_STATE, T_ROOM = range(40, 48)
H_COMMIT, H_POS, _, H_STATE, H_LIMIT, H_GEN, SEEN_DELAYED, H_NEXT = range(48, 56)
LIVE, LIVE_BYTES, RETURNED, DELAYED, DEAD, NEXT_DUE, REGION, UNPUNCHED = range(56, 64)
PUNCHED, DROPS, DAMAGED, DAMAGED_BYTES, SLOTS, MOUNT, COVERED, ERA = range(64, 72)
GET_WAITERS, GET_WORD = 72, 73
PUT_WAITERS, PUT_WORD = 80, 81
JOIN_WAITERS, JOIN_WORD, LETTER_WAITERS, LETTER_WORD = range(88, 92)
SYNCED, T_PLACE, T_PLACE_SEQUENCE = 96, 97, 98
SYNC_BEGUN, SYNC_DONE, SYNC_STATE = 104, 105, 106
BUSY, SPECIAL = 1, 2
SYNC_MUTEX, TAIL_MUTEX, HEAD_MUTEX = 3712, 3840, 3968  # bytes, a cache line each

# The words of an owner slot, counted from its first word. All are written under the head lock but LENT, which only its
# owner writes: non-zero means that this owner may hold lent items, and so that its death matters.
# OWNER_DIRTY: DIRTY while it has written what its own thread is to sync, DIRTY_IN_SYNC during that sync, DIRTY_FOR_ANOTHER
# while it is to sync what somebody dead has written; who buries it has to sync.
# OWNER_TOKEN tells processes apart where pids do not (containers).
OWNER_PID, OWNER_LENT, OWNER_GET, OWNER_PUT, OWNER_JOIN, OWNER_TOKEN, OWNER_DIRTY, OWNER_LETTER = range(8)
DIRTY, DIRTY_IN_SYNC, DIRTY_FOR_ANOTHER = 1, 2, 3

_IDENTITY = struct.Struct("<8s16sQQII")
NAME_OFFSET = _IDENTITY.size


def owner_word(slot: int) -> int:
    """Index of the first control word of an owner slot."""
    return (OWNER_OFFSET + slot * OWNER_SIZE) // 8


class Control:
    """The mapped control words of one handle."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, LEDGER_OFFSET)
        self.words = memoryview(self.map).cast("Q")
        self._anchor = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self._anchor)

    def tail(self) -> tuple[int, int]:
        """(position, sequence) of the end of the published records; exact without any lock."""
        words = self.words
        while True:
            commit = words[T_COMMIT]
            position = words[T_POS + (commit & 1)]
            if words[T_COMMIT] == commit:  # else two puts came between, and the position may be the third's scratch
                return position, commit >> 1

    def head(self) -> tuple[int, int]:
        """(position, sequence) of the first record that nobody has taken yet; exact without any lock."""
        words = self.words
        while True:
            commit = words[H_COMMIT]
            position = words[H_POS + (commit & 1)]
            if words[H_COMMIT] == commit:
                return position, commit >> 1

    def set_head(self, position: int, sequence: int) -> None:
        """Move the head, in one store as seen by everybody."""
        flip = ~self.words[H_COMMIT] & 1
        self.words[H_POS + flip] = position
        self.words[H_COMMIT] = sequence << 1 | flip

    def set_tail(self, position: int, sequence: int) -> None:
        """Publish a new end of the records, in one store as seen by everybody."""
        flip = ~self.words[T_COMMIT] & 1
        self.words[T_POS + flip] = position
        self.words[T_COMMIT] = sequence << 1 | flip

    def settle_tail_state(self) -> int:
        """Under the tail lock: all is in order there. Returns what T_STATE is as long as nothing is unusual."""
        words = self.words
        calm: int = words[EPOCH] << 2
        words[T_STATE] = calm | (SPECIAL if words[SHUTDOWN] else 0)
        return calm

    def settle_head_state(self) -> int:
        """Under the head lock: all is in order there. Returns what H_STATE is as long as nothing is unusual."""
        words = self.words
        calm: int = words[EPOCH] << 2
        unusual = words[RETURNED] or words[NEXT_DUE] != NEVER or words[SHUTDOWN]
        words[H_STATE] = calm | (SPECIAL if unusual else 0)
        return calm

    def waiting(self) -> int:
        """Items that wait to be taken: ready ones and delayed ones."""
        words = self.words
        return (words[T_COMMIT] >> 1) - (words[H_COMMIT] >> 1) + words[RETURNED] + words[DELAYED]

    def unfinished(self) -> int:
        """Items that `join` waits for: waiting and lent, without the dead letters; exact without any lock.

        After `shutdown(immediate=True)` those that are lent: what comes back, or was about to be put, nobody can take.
        """
        words = self.words
        while True:
            taken, put = words[H_COMMIT], words[T_COMMIT]
            lent_or_back = words[LIVE] - words[DEAD]
            if words[SHUTDOWN] > 1:
                return lent_or_back - words[RETURNED] - words[DELAYED]
            if (words[H_COMMIT], words[T_COMMIT]) == (taken, put):  # else an item may be missing that moved on meanwhile
                return (put >> 1) - (taken >> 1) + lent_or_back

    def close(self) -> None:
        """Unmap. The handle must not be used any more."""
        del self._anchor
        self.words.release()
        self.map.close()


def identity(spool_fd: int, salt: int) -> bytes:
    """What the first bytes of a control file must be to belong to this spool in this boot."""
    info = os.fstat(spool_fd)
    return _IDENTITY.pack(SHM_MAGIC, _os.boot_id(), info.st_dev, info.st_ino, salt, _os.mutex_flavour())


def belongs(fd: int, expected: bytes) -> bool:
    """Whether the control file can be used as it is: ours, of this boot, and completely written once."""
    if os.fstat(fd).st_size < LEDGER_OFFSET:
        return False
    first = _os.pread(fd, EPOCH * 8 + 8, 0)
    return first[: len(expected)] == expected and first[EPOCH * 8 :] != bytes(8)


def reuse(fd: int) -> int:
    """Make a control file that nobody uses any more as good as a fresh one; returns its fd."""
    zeros = bytes(OWNER_OFFSET)
    # A ledger that has moved has left a hole where a new one begins: on a full disk its blocks make up for that.
    size = os.fstat(fd).st_size
    if _os.seek_data(fd, LEDGER_OFFSET, size) > LEDGER_OFFSET:
        _os.punch(fd, LEDGER_OFFSET, size - LEDGER_OFFSET)
    _os.allocate(fd, 0, LEDGER_OFFSET)
    _os.pwrite_all(fd, zeros, 0)
    for offset in range(OWNER_OFFSET, LEDGER_OFFSET, OWNER_OFFSET):
        _os.pwrite_all(fd, zeros, offset)
    return fd


def create(path: str, spool: os.stat_result) -> int:
    """A fresh control file in place of whatever lay there, with real blocks under its fixed part; returns its fd.

    A new inode rather than a truncated file: a process that still maps the old one must never see it shrink (SIGBUS).
    """
    temporary = f"{path}.{os.getpid()}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # left by a process of the same pid that was killed right here
    fd = _os.create_beside(spool, temporary)
    try:
        _os.disable_copy_on_write(fd)
        _os.allocate(fd, 0, LEDGER_OFFSET)
        os.rename(temporary, path)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    return fd
