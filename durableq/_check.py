"""Checking a spool, beside its users if need be, and repairing one that has none.

`check` writes nothing. What it says of a spool that nobody has open is what recovery would say, and then some: it reads
every payload. It believes the control words where opening would. Beside live users it looks twice at what seems damaged: it
may have been finished and given back in between.

`repair` copies the spool aside before it changes anything. Then it puts a dead pad over every damaged place, so that
readers pass it without a word, and writes the superblock anew. The salt that makes records unforgeable is in two of its
sectors; should both be lost, each record's checksum still tells it, as a crc can be run backwards.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from durableq import _os
from durableq._locks import under_cold_lock
from durableq._record import DEAD, DONE, HEADER_SIZE, MAGIC_BYTES, TAG_PAD, decode_due, unpack_header
from durableq._recovery import Recovery
from durableq._scan import Reader
from durableq._spool import (
    CHECKPOINT_SECTORS,
    HEAD_SECTOR,
    SUPERBLOCK,
    TAIL_SECTOR,
    USERS_BYTE,
    Checkpoint,
    Options,
    Spool,
    read_static,
    static_copies,
)
from durableq._state import BASE, EPOCH, H_COMMIT, H_POS, LEDGER_OFFSET, T_COMMIT, T_POS, belongs, identity
from durableq._trust import keep_counts, still_fits
from durableq.errors import DamagedError, NotASpoolError


class Damage(NamedTuple):
    """A damaged place in a spool."""

    offset: int
    """Where it begins in the file, in bytes."""
    length: int
    reason: str


@dataclass(frozen=True)
class Report:
    """What `check` found in a spool, or `repair` in one before it mended it."""

    path: str
    ok: bool
    """Whether nothing is damaged (now: after `repair` it is True)."""
    waiting: int
    """Records that are not done: ready, or lent to somebody."""
    delayed: int
    dead: int
    """Dead letters."""
    done: int
    """Records that are done and whose space was not given back yet."""
    damaged: tuple[Damage, ...]
    """Every damaged place, named by its offset in the file."""
    torn: tuple[Damage, ...]
    """Writes that a power cut or a kill broke off: they were not promised, and the next opening clears them away."""
    holes: int
    """Bytes given back to the file system between the records."""
    size: int
    base: int
    """Logical position of offset 0 of the file."""
    head: int
    """Logical position of the first record that nobody has taken."""
    tail: int
    """Logical position of the end of the last record."""
    live: bool
    """Whether the control words of this boot were believed: the queue is in use, or was closed in this boot."""
    backup: str | None = None
    """Where `repair` put the copy of the spool as it was; None if it changed nothing."""


def check(path: str | os.PathLike[str]) -> Report:
    """Look for damage in the whole spool, whether or not it is in use; changes nothing.

    Raises FileNotFoundError, NotASpoolError, NewerFormatError, and OSError from the disk.
    """
    path = os.path.realpath(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO must not make us wait
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise NotASpoolError(f"{path}: is a FIFO; name a spool of durableq")
        return _Checker(path, fd).report()
    finally:
        os.close(fd)


def repair(path: str | os.PathLike[str]) -> Report:
    """Make a damaged spool usable: what is damaged is kept in `PATH-damaged` and passed over, all else is kept.

    The spool is copied to `PATH-backup` first (or `-backup2` and so on). Nobody may have the queue open. A spool that is
    not damaged is left alone. Raises as `check`, and OSError (EBUSY) if the queue is in use.
    """
    place = os.path.realpath(path)
    return under_cold_lock(place, lambda: _repair(place))


def _repair(path: str) -> Report:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not _os.try_lock_byte(fd, USERS_BYTE):
            raise OSError(errno.EBUSY, f"the queue is in use; stop its users first (`fuser {path}`)", path)
        checker = _Checker(path, fd)
        found = checker.report()
        if found.ok:
            return found
        backup = checker.back_up()
        _Checker(path, fd, offline=True).mend()  # by what the records say, as the next opening
        return replace(_Checker(path, fd, offline=True).report(), damaged=found.damaged, torn=found.torn, backup=backup)
    finally:
        os.close(fd)


class _Checker:
    def __init__(self, path: str, fd: int, offline: bool = False) -> None:
        self._path = path
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._offline = offline
        self._bad_sectors: list[Damage] = []
        try:
            salt, options = read_static(path, fd)
            self._bad_sectors += [Damage(at, 512, "superblock") for at, good in static_copies(fd) if not good]
        except (DamagedError, NotASpoolError) as exc:
            # Of a lost superblock not even the magic is left: that it was one takes zeros, and several records behind them.
            is_lost = isinstance(exc, NotASpoolError)
            found = _salt_of_records(fd, self._size, least=3 if is_lost else 1)
            if is_lost and (found is None or any(_os.pread(fd, SUPERBLOCK, 0))):
                raise
            salt, options = found or 0, Options()
            self._bad_sectors += [Damage(at, 512, "superblock") for at, _ in static_copies(fd)]
        self._spool = Spool(path, fd, salt, options)
        self._words = self._control_words()
        for sector in CHECKPOINT_SECTORS:
            if self._spool.is_bad_checkpoint(sector) and self._words is None:
                self._bad_sectors.append(Damage(sector * 512, 512, "checkpoint"))

    def report(self) -> Report:
        """Read everything; once more if the queue went to another place of the file meanwhile."""
        for _ in range(10):
            words, found = self._words, self._read()
            self._words = self._control_words()
            if self._words is None or (words is not None and self._words[0] == words[0]):
                break
        return found

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self) -> Report:
        recovery = None
        if self._words is None:
            recovery = Recovery(self._spool, self._size, looking=True)
            recovery.find_tail()
            recovery.find_head()
            base, head, tail = recovery.base, recovery.head, recovery.tail
        else:
            base, head, tail = self._words
        reader = Reader(self._fd, self._spool.salt, base)
        counts: Counter[str] = Counter()
        damaged = list(self._bad_sectors)
        torn: list[Damage] = []
        now = time.time_ns() // 1_000_000
        for low, high, header in reader.spans(base + SUPERBLOCK, tail):
            if header is None:
                verdict = self._of_gap(reader, recovery, low, high, head)
            elif header.state == DONE:
                counts["pads" if header.tag == TAG_PAD else "done"] += 1
                continue
            elif reader.payload(header) is None:
                verdict = self._of_record(reader, recovery, low)
            else:
                due = decode_due(header.due)
                counts["dead" if header.state == DEAD else "delayed" if due > now else "waiting"] += 1
                continue
            if verdict == "hole":
                counts["holes"] += high - low
            else:
                (torn if verdict == "torn" else damaged).append(Damage(low - base, high - low, verdict))
        if recovery is not None:
            damaged += [Damage(low - base, high - low, "broken") for low, high in recovery.behind_mark if low >= tail]
        if recovery is not None and recovery.cut_off > tail:
            damaged.append(Damage(tail - base, recovery.cut_off - tail, "cut off"))
        if self._size > tail - base and recovery is not None:
            torn.append(Damage(tail - base, self._size - (tail - base), "torn"))
        return Report(
            self._path,
            not damaged,
            counts["waiting"],
            counts["delayed"],
            counts["dead"],
            counts["done"],
            tuple(damaged),
            tuple(torn),
            counts["holes"],
            self._size,
            base,
            head,
            tail,
            self._words is not None,
        )

    def _of_gap(self, reader: Reader, recovery: Recovery | None, low: int, high: int, head: int) -> str:
        if high - low < HEADER_SIZE:
            return "hole"
        if recovery is not None and low >= recovery.tail_mark.position and recovery.is_torn(low, high, None):
            return "torn"
        if low < head and reader.is_remains(low, high):
            return "hole"
        return "no record" if recovery is not None or self._is_still_there(low) else "hole"

    def _of_record(self, reader: Reader, recovery: Recovery | None, low: int) -> str:
        if recovery is not None:
            header = reader.header(low)
            if header is not None and low >= recovery.tail_mark.position:
                return "torn" if recovery.is_torn(low, low + header.size, header) else "payload"
            if not recovery.orderly and header is not None and reader.is_given_back(header):
                return "hole"
            return "payload"
        return "payload" if self._is_still_there(low) else "hole"

    def _is_still_there(self, position: int) -> bool:
        """Whether what seemed damaged beside live users still does: they may have finished it and given it back."""
        for _ in range(3):
            time.sleep(0.005)
            words = self._control_words()
            if words is None:
                return True
            base, head, _ = words
            if position < base + SUPERBLOCK:
                return False
            reader = Reader(self._fd, self._spool.salt, base)
            header = reader.header(position)
            if header is None:
                if position < head and reader.is_remains(position, reader.following(position + 8, words[2])):
                    return False
            elif header.state == DONE or reader.payload(header) is not None:
                return False
        return True

    def _control_words(self) -> tuple[int, int, int] | None:
        """(base, head, tail) as the users of this boot know them; None if there are none whose words can be believed."""
        fd = -1 if self._offline else self._control_file()
        if fd < 0:
            return None
        try:
            if not still_fits(fd, self._spool):
                return None
            before = None
            for _ in range(1000):
                words = memoryview(os.pread(fd, LEDGER_OFFSET, 0)).cast("Q")
                head, tail = words[H_POS + (words[H_COMMIT] & 1)], words[T_POS + (words[T_COMMIT] & 1)]
                now = (words[BASE], head, tail)
                changing = words[EPOCH] & 1
                # The same twice: no position was read while it was being changed.
                if now == before and not changing:
                    break
                if changing:
                    if not _os.byte_is_locked(self._fd, USERS_BYTE):
                        break
                    time.sleep(0.001)
                before = now
            return None if changing else now  # whoever changed BASE was killed at it: the records know better
        finally:
            os.close(fd)

    def _control_file(self) -> int:
        """A descriptor of the control file; -1 if there is none of this spool in this boot."""
        try:
            fd = os.open(f"{self._path}-shm", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return -1
        if belongs(fd, identity(self._fd, self._spool.salt)):
            return fd
        os.close(fd)
        return -1

    # -- mending -------------------------------------------------------------------------------------------------------

    def back_up(self) -> str:
        """Copy the spool aside, holes as holes; durable when it returns. Never over a file that is there."""
        names = (f"{self._path}-backup{n if n > 1 else ''}" for n in range(1, 1000))
        name = next((name for name in names if not os.path.lexists(name)), None)
        if name is None:
            raise FileExistsError(errno.EEXIST, "a thousand backups are there already; move them away", self._path)
        unfinished = f"{self._path}-backup.new"  # under the cold lock nobody else makes one
        try:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(unfinished)  # of a repair that was killed
                copy = _os.create_beside(os.fstat(self._fd), unfinished)
                try:
                    _copy(self._fd, copy)
                    os.fsync(copy)
                finally:
                    os.close(copy)
                os.rename(unfinished, name)
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
            _os.sync_directory(self._path)
        except OSError as exc:
            raise self._spool.disk_error(exc, f"cannot copy it to {name} before it is repaired") from exc
        return name

    def mend(self) -> None:
        """Put pads over what is damaged and write the superblock anew. Under the cold lock, without users."""
        spool = self._spool
        control_fd = self._control_file()
        if control_fd >= 0:
            keep_counts(control_fd, spool)
            os.close(control_fd)
        spool.note_control(bytes(8))  # before the first change: the words know the spool as it was
        recovery = Recovery(spool, self._size)
        recovery.find_tail()
        recovery.find_head()
        base, tail = recovery.base, recovery.tail
        count, size = recovery.damaged, recovery.damaged_bytes
        for damage in self._read().damaged:  # what recovery has left for its turn to come
            if SUPERBLOCK <= damage.offset < tail - base and damage.reason != "cut off":
                count, size = count + 1, size + damage.length
                spool.set_aside(damage.offset + base, damage.offset, damage.length)
                spool.cover(damage.offset + base, damage.offset + base + damage.length, base)
        os.ftruncate(self._fd, tail - base)
        head = recovery.head
        waiting = sum(1 for _ in Reader(self._fd, spool.salt, base).walk(head, tail))
        sequence = max(recovery.tail_sequence, waiting)
        spool.store_options(spool.options)
        for n in range(2):  # both of each pair
            generation = recovery.tail_mark.generation + 1 + n
            spool.write_checkpoint(TAIL_SECTOR, Checkpoint(generation, base, tail, sequence, tail))
            generation = recovery.head_mark.generation + 1 + n
            drops = recovery.head_mark.drops
            mark = Checkpoint(generation, base, head, sequence - waiting, head, 0, drops, count, size)
            spool.write_checkpoint(HEAD_SECTOR, mark)
        _os.fdatasync(self._fd)


def _copy(fd: int, copy: int) -> None:
    size = os.fstat(fd).st_size
    os.ftruncate(copy, size)
    offset = 0
    while offset < size:
        data = os.pread(fd, 1 << 20, offset)
        if data.strip(b"\0"):
            _os.pwrite_all(copy, data, offset)
        offset += len(data) or size


def _salt_of_records(fd: int, size: int, least: int) -> int | None:
    """The salt with which the sums of most headers come out right; None if that are fewer than `least`."""
    votes: Counter[int] = Counter()
    for body, total in _possible_headers(fd, size):
        votes[_crc32_seed(body, total)] += 1
        if votes.total() >= 1000:
            break
    return next((salt for salt, count in votes.most_common(1) if count >= least), None)


def _possible_headers(fd: int, size: int) -> Iterator[tuple[bytes, int]]:
    for offset in range(SUPERBLOCK, size, 1 << 20):
        data = os.pread(fd, (1 << 20) + HEADER_SIZE, offset)
        at = data.find(MAGIC_BYTES)
        while 0 <= at <= len(data) - HEADER_SIZE:
            yield data[at + 24 : at + 44], unpack_header(data, at)[11]
            at = data.find(MAGIC_BYTES, at + 1)


def _crc32_seed(data: bytes, total: int) -> int:
    """The seed for which `zlib.crc32(data, seed) == total`: each step of a crc can be undone."""
    table = [zlib.crc32(bytes([n]), 0xFFFFFFFF) ^ 0xFFFFFFFF for n in range(256)]
    by_top = {value >> 24: (n, value) for n, value in enumerate(table)}
    register = total ^ 0xFFFFFFFF
    for byte in reversed(data):
        n, value = by_top[register >> 24]
        register = ((register ^ value) << 8 & 0xFFFFFFFF) | (n ^ byte)
    return register ^ 0xFFFFFFFF
