"""Power cuts on real file systems.

Each file system lives in an image on a host file system that can clone files (xfs), mounted through a loop device. A clone
of the image at some moment is what a disk would hold had the power failed then: no dirty page of the file system under
test is in it. Workers put, take and finish meanwhile, and random pages of the spool are pushed to the disk out of order.
Each clone is mounted afterwards, and its spool is opened where it lies and held against the log of what was promised.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from durableq import DurableQueue, NotASpoolError

from .judge import Promises, hold_against
from .recorder import Recorder, read_log
from .workload import Worker, small_distances

FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
_MOUNT = {"ext4": [], "xfs": ["-o", "nouuid"], "btrfs": []}
_FICLONE = 0x40049409
_PUSH = 1 | 2 | 4  # SYNC_FILE_RANGE: wait before, write, wait after

Say = Callable[[str], None]


class Unavailable(Exception):
    """This machine cannot do it: no root, no loop devices, or no tools for the file system."""


@contextmanager
def mounted(image: Path, where: Path, name: str) -> Iterator[Path]:
    """An image on a loop device, mounted as long as the context lasts."""
    where.mkdir(exist_ok=True)
    _run("mount", "-t", name, "-o", ",".join(["loop", *_MOUNT[name][1:]]), str(image), str(where))
    try:
        yield where
    finally:
        gc.collect()  # a handle that failed to open keeps its mapping for as long as its traceback
        for _ in range(50):
            if subprocess.run(["umount", str(where)], capture_output=True).returncode == 0:
                break
            time.sleep(0.05)
        if name == "btrfs":  # or the next image with the same identity would pass for another device of this one
            subprocess.run(["btrfs", "device", "scan", "--forget"], capture_output=True)


def make(image: Path, name: str, size: int) -> None:
    """A fresh file system in a sparse file."""
    if os.geteuid() or not shutil.which(_MAKE[name][0]) or not Path("/dev/loop-control").exists():
        raise Unavailable(f"needs root, loop devices and {_MAKE[name][0]}")
    with open(image, "wb") as file:
        file.truncate(size)
    _run(*_MAKE[name], str(image))


def cut_many(name: str, count: int, seed: int = 0, say: Say = print) -> int:
    """Cut the power `count` times; how often a promise was broken. Raises Unavailable."""
    start, done, failures = time.monotonic(), 0, 0
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        where = Path(tempfile.mkdtemp(prefix="durableq-real-", dir=memory if memory.is_dir() else None))
        stack.callback(shutil.rmtree, where, ignore_errors=True)
        make(where / "host.img", "xfs", 6 << 30)
        host = stack.enter_context(mounted(where / "host.img", where / "host", "xfs"))
        while done < count:
            here = min(20, count - done)
            failures += _round(name, host, where, here, seed + done, say)
            done += here
    say(f"real cuts: {name}, {done} cuts, {failures} that break a promise, {time.monotonic() - start:.0f} s, seed {seed}")
    return failures


def _round(name: str, host: Path, where: Path, count: int, seed: int, say: Say) -> int:
    image = host / "fs.img"
    make(image, name, 512 << 20)
    log = where / "log"
    log.unlink(missing_ok=True)
    log.with_suffix(".stop").unlink(missing_ok=True)
    moments = []
    with mounted(image, where / "mnt", name) as mount:
        with DurableQueue(mount / "q.dq", serializer="bytes"):
            pass
        _run("sync", "-f", str(mount))
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(mount / "q.dq"), str(log), str(seed), str(n)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            for n in range(3)
        ]
        try:
            rng = random.Random(seed)
            _wait_for(lambda: log.exists() and log.stat().st_size > 20_000)
            for n in range(count):
                _push_pages(mount / "q.dq-shm", rng, rng.uniform(0, 0.02))
                _push_pages(mount / "q.dq", rng, rng.uniform(0.02, 0.2))
                before = log.stat().st_size
                _clone(image, host / f"cut{n}.img")
                moments.append((before, log.stat().st_size))
            dead = [worker.returncode for worker in workers if worker.poll() is not None]
            assert not dead, f"workers ended: {dead}"
            log.with_suffix(".stop").touch()  # in order, so that the log says of every call what it was about
            for worker in workers:
                worker.wait(30)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    failures = 0
    for n, (before, after) in enumerate(moments):
        try:
            _judge(name, host / f"cut{n}.img", where / "mnt", log, before, after)
        except Exception as exc:
            failures += 1
            say(f"{name}, round {seed}, cut {n}: {type(exc).__name__}: {str(exc)[:400]}")
        (host / f"cut{n}.img").unlink()
    return failures


def _judge(name: str, image: Path, where: Path, log: Path, before: int, after: int) -> None:
    with open(log, "rb") as file:
        entries = read_log(file.fileno())
        sure, possible = (len(read_log(file.fileno(), size)) for size in (before, after))
    promises = Promises(entries, sure, possible)
    with mounted(image, where, name) as mount:
        if after % 2:
            (mount / "q.dq-shm").unlink(missing_ok=True)  # the boot is another one; else only the mount is
        _open_and_judge(mount / "q.dq", promises)


def _open_and_judge(path: Path, promises: Promises) -> None:
    try:
        with small_distances(), DurableQueue(path, sync=None, serializer="bytes") as queue:
            hold_against(queue, promises, path, producers=True)
    except NotASpoolError:
        assert not promises.created


def _push_pages(path: Path, rng: random.Random, seconds: float) -> None:
    """Write random pages of a file to the disk, as the kernel may at any time."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            page = rng.randrange(os.fstat(fd).st_size // 4096 + 1)
            libc.sync_file_range(
                fd, ctypes.c_int64(page * 4096), ctypes.c_int64(4096 * rng.choice((1, 1, 2, 8))), ctypes.c_uint(_PUSH)
            )
            time.sleep(rng.uniform(0, 0.01))
    finally:
        os.close(fd)


def _clone(source: Path, target: Path) -> None:
    a = os.open(source, os.O_RDONLY)
    b = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.ioctl(b, _FICLONE, a)
    finally:
        os.close(a)
        os.close(b)


def _wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "the workers do not work"
        time.sleep(0.01)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")


def _work(path: str, log: str, seed: str, number: str) -> None:
    recorder = Recorder(Path(path), Path(log), only_calls=True)
    with small_distances(), recorder.installed():
        worker = Worker(recorder, Path(path), int(seed) * 10 + int(number), first=int(number) * 1_000_000, alone=False)
        while not Path(log).with_suffix(".stop").exists():
            worker.step()


if __name__ == "__main__":
    _work(*sys.argv[1:])
