"""The one seam to the system: every call that reads, writes, syncs, punches, locks or waits goes through this module.

Callers say `_os.pwrite(...)`, never `from _os import pwrite`, so that a test can put a recorder or a fault in the way of
one name and see every process-visible effect of the queue. What a file system or kernel cannot do is found out here once
and turned into a `False` or a plain fallback; no caller asks which kernel it runs on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress

pread = os.pread
pwrite = os.pwrite
pwritev = os.pwritev
fdatasync = os.fdatasync
fsync = os.fsync
ftruncate = os.ftruncate
BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


# -- durable names -----------------------------------------------------------------------------------------------------


def sync_directory(path: str) -> None:
    """Make the names in the directory of `path` durable: without it a power cut can take a new file's name away."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


# -- space -------------------------------------------------------------------------------------------------------------

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_FALLOC_FL_COLLAPSE_RANGE = 8
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ETXTBSY)

_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate_mode(fd: int, mode: int, offset: int, length: int) -> bool:
    if _fallocate is None:
        return False
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code in _CANNOT:
            return False
        raise OSError(code, os.strerror(code))
    return True


def punch(fd: int, offset: int, length: int) -> bool:
    """Give the blocks of a range back to the file system; it then reads as zeros. False where that cannot be done."""
    return _fallocate_mode(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def collapse(fd: int, offset: int, length: int) -> bool:
    """Cut a block-aligned range out of the file, what lies behind it moves down. False where that cannot be done."""
    return _fallocate_mode(fd, _FALLOC_FL_COLLAPSE_RANGE, offset, length)


def allocate(fd: int, offset: int, length: int) -> None:
    """Reserve real blocks for a range that will be mapped: a store into a mapped hole on a full disk is SIGBUS."""
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
        zeros = bytes(length)  # no fallocate here: writing zeros allocates as well
        pwrite_all(fd, zeros, offset)


def seek_data(fd: int, offset: int, end: int) -> int:
    """The first offset at or after `offset` that may hold data; `end` if there is none before it."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_DATA), end)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end
        return offset  # no SEEK_DATA here: everything may be data


def advise_stream(fd: int) -> None:
    """Tell the kernel that the file is read once, front to back (a hint: failure is no news)."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)


def advise_needed(fd: int, offset: int, length: int) -> None:
    """Tell the kernel that a range far behind the read position is wanted again: an item that came back."""
    with suppress(OSError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data`, for cold paths: the kernel may write less at a time than it was asked to."""
    view = memoryview(data)
    while view:
        n = pwrite(fd, view, offset)
        if n <= 0:
            raise OSError(errno.EIO, "the kernel wrote nothing")
        view = view[n:]
        offset += n


def create_beside(spool: os.stat_result, path: str) -> int:
    """Create a companion of a spool for who may use that: with its mode, and its owner's if root does it. Returns its fd.

    Raises FileExistsError; root gives away no file that was there, as it may be a link to one that is none of the owner's.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0 != spool.st_uid:
        with suppress(OSError):  # the root of a container may not
            os.fchown(fd, spool.st_uid, spool.st_gid)
    os.fchmod(fd, spool.st_mode & 0o666)  # whatever the umask says
    return fd


_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000


def disable_copy_on_write(fd: int) -> None:
    """On btrfs a change of a byte needs a new block: on a full disk a write fails, and a store to a mapped page is SIGBUS.

    With the NOCOW attribute, settable while the file is empty, it overwrites in place. Elsewhere this does nothing.
    """
    flags = bytearray(8)
    with suppress(OSError):
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        value = struct.unpack("@l", flags)[0] | _FS_NOCOW_FL
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("@l", value))


# -- where are we ------------------------------------------------------------------------------------------------------

_NETWORK = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x73757245: "Coda",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x01161970: "GFS2",
}


def network_filesystem(fd: int) -> str | None:
    """The name of the network file system that holds the file, or None: locks do not hold between machines there."""
    buffer = (ctypes.c_long * 64)()
    if not hasattr(_libc, "fstatfs") or _libc.fstatfs(fd, ctypes.byref(buffer)) != 0:
        return None
    return _NETWORK.get(buffer[0] & 0xFFFFFFFF)


def pid_namespace() -> int:
    """A number of the pid namespace that this process is in; 0 where that cannot be seen."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def boot_id() -> bytes:
    """16 bytes that change with every boot of this kernel: control words of another boot are not to be trusted."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as f:
            return bytes.fromhex(f.read().decode().strip().replace("-", ""))
    except (OSError, ValueError):
        return b"no boot id here!"


_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID, _STATX_MNT_ID_UNIQUE = 0x1000, 0x4000
_STATX_MNT_ID_OFFSET = 0x90

_statx = getattr(_libc, "statx", None)


def mount_id(fd: int) -> int:
    """A number of the mount that a file was opened through; since Linux 6.8 no later mount of the same boot has it again.

    0 where the kernel does not tell (before 5.8).
    """
    answer = ctypes.create_string_buffer(256)
    asked = _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE
    if _statx is None or _statx(fd, b"", _AT_EMPTY_PATH, asked, answer) != 0:
        return 0
    (told,) = struct.unpack_from("<I", answer)
    return int(struct.unpack_from("<Q", answer, _STATX_MNT_ID_OFFSET)[0]) if told & asked else 0


# -- locks that belong to an open file description and vanish with its last process ------------------------------------

_FLOCK = struct.Struct("@hhqqi4x")


def try_lock_byte(fd: int, offset: int, exclusive: bool = True) -> bool:
    """Take the lock of one byte for this open file description if nobody else has it."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock_byte(fd: int, offset: int) -> None:
    """Give back the lock of one byte."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))


def byte_is_locked(fd: int, offset: int) -> bool:
    """Whether another open file description holds the lock of one byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


# -- robust mutexes in shared memory: the kernel passes them on when their holder dies ---------------------------------

MUTEX_SIZE = 64
_held_libc = ctypes.PyDLL(None)  # keeps the GIL: for what returns at once, at a quarter of the price of a system call
_SHARED = _ROBUST = 1


def _mutex_function(library: ctypes.CDLL, name: str) -> Callable[[int], int]:
    function = library[name]  # a function object of its own, so that its argument types are nobody else's
    function.argtypes = (ctypes.c_void_p,)
    return function


mutex_try = _mutex_function(_held_libc, "pthread_mutex_trylock")
"""Take the mutex at an address: 0, EBUSY, EOWNERDEAD (taken, its holder died), or ENOTRECOVERABLE."""
mutex_unlock = _mutex_function(_held_libc, "pthread_mutex_unlock")
"""Give it back; EPERM, and nothing happens, if this thread does not hold it."""
mutex_mend = _mutex_function(_held_libc, "pthread_mutex_consistent")
"""After EOWNERDEAD, before the unlock: the state it protects was looked after."""


def mutex_create(address: int) -> None:
    """Make a free mutex at an address in shared memory, `MUTEX_SIZE` bytes."""
    attributes = ctypes.create_string_buffer(64)
    _libc.pthread_mutexattr_init(attributes)
    _libc.pthread_mutexattr_setpshared(attributes, _SHARED)
    _libc.pthread_mutexattr_setrobust(attributes, _ROBUST)
    code = _libc.pthread_mutex_init(ctypes.c_void_p(address), attributes)
    if code:
        raise OSError(code, os.strerror(code))


def mutex_wait(address: int, seconds: float) -> int:
    """As `mutex_try`, but sleep up to `seconds` for it, without the GIL; ETIMEDOUT if that was not enough."""
    end = time.time() + seconds
    limit = _Timespec(int(end), int(end % 1 * 1e9))
    return int(_libc.pthread_mutex_timedlock(ctypes.c_void_p(address), ctypes.byref(limit)))


def mutex_flavour() -> int:
    """A number that differs between processes whose C libraries lay a mutex out differently."""
    glibc = bool(getattr(_libc, "gnu_get_libc_version", None))
    return ctypes.sizeof(ctypes.c_void_p) << 8 | glibc


# -- futex -------------------------------------------------------------------------------------------------------------

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238, "loongarch64": 98}
_number = _FUTEX_NUMBER.get(os.uname().machine) if ctypes.sizeof(ctypes.c_void_p) == 8 else None
_FUTEX_WAIT = 0
_FUTEX_WAKE = 1
_POLL = 0.002


_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def futex_wait(address: int, expected: int, seconds: float) -> None:
    """Sleep until somebody wakes this address, at most `seconds`; returns at once if the 32-bit word is not `expected`.

    Wakes across processes and releases the GIL. Returning says nothing: the caller looks again.
    """
    if _number is None:
        time.sleep(min(seconds, _POLL))
        return
    limit = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    _syscall(
        ctypes.c_long(_number),
        ctypes.c_void_p(address),
        ctypes.c_int(_FUTEX_WAIT),
        ctypes.c_uint32(expected),
        ctypes.byref(limit),
        None,
        0,
    )


def futex_wake(address: int, count: int) -> None:
    """Wake up to `count` sleepers on this address, in any process."""
    if _number is not None:
        _syscall(ctypes.c_long(_number), ctypes.c_void_p(address), _FUTEX_WAKE, count, None, None, 0)
