"""The spool file: its superblock, its checkpoints, and how it is opened, created and refused.

The first 4 KiB are the superblock, in sectors of 512 bytes so that a torn write spoils one of them at most:

    sector 0      static: magic, format version, salt, time of creation, the queue-wide options, crc32
    sectors 1, 2  tail checkpoints, written in turn under the tail lock: the one with the higher generation counts
    sectors 3, 4  head checkpoints, written in turn under the head lock
    sector 5      8 random bytes that name the control file in force (see `_trust`); zeros: none
    sector 7      a copy of sector 0, so that no single sector is needed to open the file

A tail checkpoint says how many records lie before a position, and that all of them are on the disk; a head checkpoint says
that nothing from `limit` on was done when it was written, and if `limit` is its position, that nothing was changed since.
Both are hints that shorten recovery; the records are the truth. Records follow from byte 4096.

Checkpoints are written, not synced: when they reach the disk is up to the sync policy, as for every other byte.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass

from durableq import _os
from durableq._record import HEADER_SIZE, MAX_LENGTH, encode_pad
from durableq.errors import (
    DamagedError,
    DurableQError,
    InsecureSpoolError,
    NetworkFilesystemError,
    NewerFormatError,
    NotASpoolError,
    OptionMismatchError,
    PoisonedError,
    SpoolReplacedError,
)

MAGIC = b"DURABLEQ"
VERSION = 1
SUPERBLOCK = 4096
SECTOR = 512
_STATIC = struct.Struct("<8sIIQQQIIQI")
_CHECKPOINT = struct.Struct("<9QI")
TAIL_SECTOR, HEAD_SECTOR, CONTROL_SECTOR, COPY_SECTOR = 1, 3, 5, 7
CHECKPOINT_SECTORS = range(TAIL_SECTOR, HEAD_SECTOR + 2)
USERS_BYTE = 1 << 62
"""Every handle holds a shared lock on this byte of the spool: who finds the control file missing learns whether others
still work with the deleted one."""
_ON_FULL = ("block", "drop_oldest")

ALLOW_NETWORK = "DURABLEQ_ALLOW_NETWORK_FS"
ALLOW_INSECURE = "DURABLEQ_ALLOW_INSECURE"


@dataclass(frozen=True)
class Options:
    """The queue-wide options, stored in the spool when it is created. Zero means: none."""

    maxsize: int = 0
    max_bytes: int = 0
    on_full: str = "block"
    max_deliveries: int = 0
    lease_ms: int = 0

    def adopt(self, stored: Options, path: str) -> Options:
        """The stored options, if those given agree with them; a default agrees with everything."""
        for name in self.__dataclass_fields__:
            given, kept = getattr(self, name), getattr(stored, name)
            if given != kept and given != getattr(_DEFAULTS, name):
                raise OptionMismatchError(
                    f"{path}: opened with {name}={given!r}, but the queue was created with {name}={kept!r}; "
                    f"leave the option out, or drain the queue and delete the file to create it anew"
                )
        return stored


_DEFAULTS = Options()


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of the head or the tail, as kept in a sector."""

    generation: int = 0
    base: int = 0
    position: int = SUPERBLOCK
    sequence: int = 0
    limit: int = SUPERBLOCK
    pending: int = 0
    drops: int = 0
    damaged: int = 0
    damaged_bytes: int = 0


class Spool:
    """An open spool file: descriptor, salt, options. Knows nothing of the other processes."""

    def __init__(self, path: str, fd: int, salt: int, options: Options) -> None:
        self.path = path
        self.fd = fd
        self.salt = salt
        self.options = options
        info = os.fstat(fd)
        self._inode = (info.st_dev, info.st_ino)

    # -- opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str, options: Options, mode: int, *, create: bool, runs_code: bool) -> Spool:
        """Open the spool at `path`, or create it. The caller holds the cold lock.

        Raises IsADirectoryError, FileNotFoundError (no such directory, or no file and not `create`), and the errors of
        the file and of the environment in `durableq.errors`; what it refuses it leaves as it was.
        """
        fd = _open_file(path, mode, create)
        try:
            kind = _os.network_filesystem(fd)
            if kind and not os.environ.get(ALLOW_NETWORK):
                raise NetworkFilesystemError(
                    f"{path}: is on {kind}, where locks and mappings do not hold between machines; put the queue on a "
                    f"local disk, or set {ALLOW_NETWORK}=1 if only this machine ever opens it"
                )
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise NotASpoolError(f"{path}: is no regular file; name a file to be created, or a spool of durableq")
            if runs_code and not os.environ.get(ALLOW_INSECURE):
                _refuse_strangers(path, info)
            if info.st_size == 0:
                return cls._create(path, fd, options)
            salt, stored = read_static(path, fd)
            return cls(path, fd, salt, options.adopt(stored, path))
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _create(cls, path: str, fd: int, options: Options) -> Spool:
        salt = int.from_bytes(os.urandom(4), "little")
        spool = cls(path, fd, salt, options)
        block = bytearray(SUPERBLOCK)
        for sector in (0, COPY_SECTOR):
            block[sector * SECTOR : sector * SECTOR + _STATIC.size] = _pack_static(salt, options)
        for sector in (TAIL_SECTOR, HEAD_SECTOR):
            block[sector * SECTOR : sector * SECTOR + _CHECKPOINT.size] = _pack_checkpoint(Checkpoint(1), salt)
        _os.disable_copy_on_write(fd)  # on a full disk a done mark must not need a new block
        try:
            # In one write, and only then does the file have a size: a kill before it leaves an empty file, which the
            # next opening takes for a new one.
            _os.pwrite_all(fd, block, 0)
            _os.fdatasync(fd)
            _os.sync_directory(path)
        except OSError as exc:
            _os.ftruncate(fd, 0)
            raise OSError(exc.errno, f"cannot create the queue: {os.strerror(exc.errno or 0)}", path) from exc
        return spool

    def close(self) -> None:
        """Close the descriptor, once."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def check_replaced(self) -> None:
        """Raise SpoolReplacedError if the path no longer names this file: what we write would be found by nobody."""
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            info = None
        except PermissionError:  # this process has given up rights that it had; the open file is as good as before
            info = None if self.is_deleted() else os.fstat(self.fd)
        if info is None or (info.st_dev, info.st_ino) != self._inode:
            what = "was deleted" if info is None else "was replaced by another file"
            raise SpoolReplacedError(
                f"{self.path}: {what} while this handle had it open; close the handle and open the queue again"
            )

    def is_deleted(self) -> bool:
        """Whether this file has no name any more."""
        return os.fstat(self.fd).st_nlink == 0

    # -- superblock ----------------------------------------------------------------------------------------------------

    def store_options(self, options: Options) -> None:
        """Change the queue-wide options. One sector each, so a power cut leaves the old ones or the new ones."""
        for sector in (COPY_SECTOR, 0):
            _os.pwrite_all(self.fd, _pack_static(self.salt, options), sector * SECTOR)
        self.options = options

    def write_checkpoint(self, sector: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint with this generation over the older one of its pair."""
        data = _pack_checkpoint(checkpoint, self.salt)
        _os.pwrite_all(self.fd, data, (sector + (checkpoint.generation & 1)) * SECTOR)

    def read_checkpoint(self, sector: int) -> Checkpoint | None:
        """The newest readable checkpoint of a pair, or None if neither can be read."""
        found = []
        for at in (sector, sector + 1):
            data = _os.pread(self.fd, _CHECKPOINT.size, at * SECTOR)
            if len(data) == _CHECKPOINT.size:
                *fields, check = _CHECKPOINT.unpack(data)
                if check == zlib.crc32(data[:-4], self.salt):
                    found.append(Checkpoint(*fields))
        return max(found, key=lambda c: c.generation, default=None)

    def is_bad_checkpoint(self, sector: int) -> bool:
        """Whether a sector holds something that is no checkpoint (a new spool has zeros in some)."""
        data = _os.pread(self.fd, _CHECKPOINT.size, sector * SECTOR)
        return any(data) and data[-4:] != struct.pack("<I", zlib.crc32(data[:-4], self.salt))

    def note_control(self, name: bytes) -> None:
        """Name the control file in force. Never synced for this: after a power cut none fits, as all are of another boot."""
        _os.pwrite_all(self.fd, name, CONTROL_SECTOR * SECTOR)

    def control_name(self) -> bytes:
        """The name of the control file in force; zeros if there is none."""
        return _os.pread(self.fd, 8, CONTROL_SECTOR * SECTOR)

    # -- what is broken ------------------------------------------------------------------------------------------------

    def cover(self, low: int, high: int, base: int) -> None:
        """Make all in the positions [low, high) dead at once: a pad over it, or zeros where a pad is too large."""
        while low < high:
            size = min(high - low, MAX_LENGTH)
            if 0 < high - low - size < HEADER_SIZE:
                size -= HEADER_SIZE
            pad = encode_pad(low, size, self.salt) if size >= HEADER_SIZE else bytes(size)
            _os.pwrite_all(self.fd, pad, low - base)
            low += size

    def set_aside(self, position: int, offset: int, length: int) -> None:
        """Append damaged bytes to `q.dq-damaged`, with a line that names them. A hint: it can fail on a full disk."""
        note = f"durableq: {length} damaged bytes from offset {offset} (position {position}) of {self.path}\n"
        name, flags = f"{self.path}-damaged", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with suppress(FileExistsError):
                os.close(_os.create_beside(os.fstat(self.fd), name))
            with open(os.open(name, flags), "wb") as file:
                file.write(note.encode())
                for at in range(offset, offset + length, 1 << 20):
                    piece = _os.pread(self.fd, min(offset + length - at, 1 << 20), at)
                    if not piece:
                        break
                    file.write(piece if piece.strip(b"\0") else b"")
                file.write(b"\n")
        except OSError:
            return  # the queue goes on: a place for the broken pieces is not worth the whole ones behind them

    # -- the disk ------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return once all that was written is on the disk. Raises PoisonedError: after that no sync can be believed."""
        try:
            _os.fdatasync(self.fd)
        except OSError as exc:
            raise PoisonedError(
                exc.errno,
                f"a sync failed ({os.strerror(exc.errno or 0)}), so what this handle wrote may not be on the disk; "
                f"close it and open the queue again",
                self.path,
            ) from exc

    def disk_error(self, exc: OSError, what: str, changed: str = "nothing was changed") -> OSError:
        """The same error with the file, what failed, what that left and the remedy in it."""
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room on the file system, or let consumers drain the queue"
        else:
            remedy = "see the kernel's log for the state of the disk"
        return OSError(exc.errno, f"{what}: {os.strerror(exc.errno or 0)}; {changed}; {remedy}", self.path)

    def named(self, exc: BaseException, what: str, changed: str) -> BaseException:
        """What to raise for an exception: itself, or `disk_error` of it if it is the system's and names no file.

        One without a number is not the system's: a TimeoutError, say, that a signal handler raised.
        """
        if isinstance(exc, OSError) and exc.errno and exc.filename is None and not isinstance(exc, DurableQError):
            return self.disk_error(exc, what, changed)
        return exc


def check_place(path: str) -> None:
    """Raise IsADirectoryError or FileNotFoundError if no file can be at `path`."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it, for example with .dq at the end", path)
    if not os.path.isdir(os.path.dirname(path)):
        raise FileNotFoundError(errno.ENOENT, "its directory is missing; check the path or create the directory", path)


def _open_file(path: str, mode: int, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not make us wait for its other end
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            os.fchmod(fd, mode)  # whatever the umask says: the mode is part of the promise
        os.set_blocking(fd, True)
        return fd
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such queue; check the path, or create it first", path) from None
    except PermissionError as exc:
        raise PermissionError(
            exc.errno, "no permission to read and write the queue; run as its owner or change its mode", path
        ) from None
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise NotASpoolError(f"{path}: became a symbolic link while it was opened; name the file itself") from None
        raise


def _refuse_strangers(path: str, info: os.stat_result) -> None:
    override = f"or set {ALLOW_INSECURE}=1 if you trust everybody who can write to it"
    if info.st_uid != os.geteuid():
        raise InsecureSpoolError(
            f"{path}: belongs to user {info.st_uid}, and decoding its items could run their code; "
            f'open it with serializer="json" or "bytes", {override}'
        )
    if info.st_mode & 0o022:
        raise InsecureSpoolError(
            f"{path}: others can write to it (mode {stat.S_IMODE(info.st_mode):o}), and decoding its items could run "
            f"their code; chmod go-w the file, {override}"
        )


def _pack_static(salt: int, options: Options) -> bytes:
    data = _STATIC.pack(
        MAGIC,
        VERSION,
        salt,
        time.time_ns(),
        options.maxsize,
        options.max_bytes,
        _ON_FULL.index(options.on_full),
        options.max_deliveries,
        options.lease_ms,
        0,
    )[:-4]
    return data + struct.pack("<I", zlib.crc32(data))


def read_static(path: str, fd: int) -> tuple[int, Options]:
    """Salt and options, from the first sector or, should that be damaged, from its copy."""
    copies = [_os.pread(fd, _STATIC.size, at) for at in (0, COPY_SECTOR * SECTOR)]
    known = [data for data in copies if data[:8] == MAGIC]
    good = [data for data in known if _is_whole(data)]
    # Of a newer format nothing is known but its version; a damaged one claims a wild version, and its copy another.
    versions = {int.from_bytes(data[8:12], "little") for data in good or known}
    if len(versions) == 1 and VERSION < (version := versions.pop()) < 1000:
        raise NewerFormatError(f"{path}: has format version {version}, this durableq reads up to {VERSION}; upgrade durableq")
    for data in good:
        _, _, salt, _, maxsize, max_bytes, on_full, max_deliveries, lease_ms, _ = _STATIC.unpack(data)
        if on_full < len(_ON_FULL):
            return salt, Options(maxsize, max_bytes, _ON_FULL[on_full], max_deliveries, lease_ms)
    if not known:
        lost = os.fstat(fd).st_size > SUPERBLOCK and not any(_os.pread(fd, SUPERBLOCK, 0))
        hint = "; if it was one, run durableq.repair on it" if lost else ""
        raise NotASpoolError(f"{path}: is not a durableq spool; it was not touched, name another file{hint}")
    if os.fstat(fd).st_size < SUPERBLOCK:
        raise DamagedError(f"{path}: is cut off inside its superblock; run durableq.repair on it")
    raise DamagedError(f"{path}: the superblock is damaged; run durableq.repair on it")


def _is_whole(data: bytes) -> bool:
    return len(data) == _STATIC.size and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")


def static_copies(fd: int) -> list[tuple[int, bool]]:
    """The offset of each copy of the static sector, and whether it can be read."""
    found = []
    for offset in (0, COPY_SECTOR * SECTOR):
        data = _os.pread(fd, _STATIC.size, offset)
        found.append((offset, data[:8] == MAGIC and _is_whole(data)))
    return found


def _pack_checkpoint(checkpoint: Checkpoint, salt: int) -> bytes:
    data = _CHECKPOINT.pack(*checkpoint.__dict__.values(), 0)[:-4]
    return data + struct.pack("<I", zlib.crc32(data, salt))
