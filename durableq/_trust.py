"""Whether control words that nobody uses at present may be believed.

While the kernel runs and the file system stays mounted, the control file is what the last process left, to the last store.
Elsewhere it may be any mixture of old and new pages, and there is no telling: a file system that was shut down, unplugged or
restored and mounted again under the same kernel must not be taken for one that was there all the time.

    evidence                                            verdict
    another name than the spool gives the one in force  it was used through another path meanwhile: thrown away
    another mount than that of who built the words      thrown away; the spool is recovered
    checkpoints of the spool that they do not know      an older copy of the spool was put in place: thrown away
    a ledger region that reaches over the file's end    cut off: thrown away, as mapping it would be SIGBUS

A spool that has two paths, by a link or by being moved away and back, has two control files, and what was done with the one
the other does not know. So each gets a random name when it is made, and the spool says which was made last.

What is thrown away still serves as a hint: how often an item was delivered, as far as the spool has not heard of it.
"""

from __future__ import annotations

import os

from durableq import _os
from durableq._leases import read_counts, region_fits
from durableq._record import DELIVERIES_OFFSET, DONE, HEADER_SIZE, decode
from durableq._spool import HEAD_SECTOR, SUPERBLOCK, TAIL_SECTOR, USERS_BYTE, Spool
from durableq._state import (
    BASE,
    EPOCH,
    H_COMMIT,
    H_GEN,
    H_POS,
    LEDGER_OFFSET,
    MOUNT,
    NAME_OFFSET,
    REGION,
    T_COMMIT,
    T_GEN,
    T_POS,
    identity,
)


def put_in_force(fd: int, spool: Spool) -> None:
    """Make a fresh control file the one of this spool. It holds no words yet, so a kill in here leaves it useless.

    Only then may the spool be changed: a kill before the spool knows the name leaves the one that was in force, and right.
    """
    name = os.urandom(8)
    _os.pwrite_all(fd, identity(spool.fd, spool.salt) + name, 0)
    spool.note_control(name)


def still_fits(fd: int, spool: Spool) -> bool:
    """Whether a control file of this boot is in force, and its words fit it, the spool and the mount. Changes nothing.

    Those in use fit.
    """
    name = _os.pread(fd, 8, NAME_OFFSET)
    if name != spool.control_name() or not any(name):
        return False
    # First look, then ask for users, as these may come meanwhile and store words while they are looked at.
    return _words_fit(fd, spool) or _os.byte_is_locked(spool.fd, USERS_BYTE)


def _words_fit(fd: int, spool: Spool) -> bool:
    words = _words(fd)
    head, tail = words[H_POS + (words[H_COMMIT] & 1)], words[T_POS + (words[T_COMMIT] & 1)]
    if words[MOUNT] != _os.mount_id(spool.fd) or not region_fits(words[REGION], os.fstat(fd).st_size):
        return False
    for generation, sector in ((words[T_GEN], TAIL_SECTOR), (words[H_GEN], HEAD_SECTOR)):
        mark = spool.read_checkpoint(sector)
        if mark is None or mark.generation not in (generation, generation + 1):  # a kill came before the word was stored
            return False
    if words[EPOCH] & 1:  # a change of geometry was cut short, and will be settled
        return True
    return words[BASE] + SUPERBLOCK <= head <= tail <= words[BASE] + os.fstat(spool.fd).st_size


def keep_counts(fd: int, spool: Spool) -> None:
    """Before control words of this boot are thrown away: note in the spool how often they say that items were delivered.

    Containers mount anew at each start. Without this an item that takes its whole container down each time would never reach
    its `max_deliveries`.
    """
    words = _words(fd)
    if not region_fits(words[REGION], os.fstat(fd).st_size):
        return
    base, end = words[BASE], words[BASE] + os.fstat(spool.fd).st_size
    for position, count in read_counts(fd, words[REGION]):
        if not base <= position < end:
            continue
        header = decode(_os.pread(spool.fd, HEADER_SIZE, position - base), 0, position, spool.salt)
        if header is not None and header.state != DONE and header.deliveries < min(count, 255):
            _os.pwrite_all(spool.fd, bytes([min(count, 255)]), position - base + DELIVERIES_OFFSET)


def _words(fd: int) -> memoryview:
    return memoryview(_os.pread(fd, LEDGER_OFFSET, 0)).cast("Q")
