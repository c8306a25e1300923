"""`durableq put`: arguments or a stream become items.

What was read from a stream and could not be put is gone for its producer, so it is told how much that is. What a signal ends
is the reading: every item that is complete by then is put.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
from typing import Any

from durableq._queue import DurableQueue
from durableq.cli._command import DONE, FULL, USAGE, Command, Failure, duration, size, spool_argument, sync_argument, tell
from durableq.cli._framing import FRAMINGS, splitter
from durableq.cli._input import batches
from durableq.cli._signals import Signals, Stopped
from durableq.errors import DurableQError, Full

BLOCK = 64 << 10
_LARGE = 8 << 10
"""Items that are so long are put one by one: there is less to gain by putting them together than a copy of them costs."""

_MUCH = 16 << 20
"""Bytes after which a stream is sent to the disk while more of it is read."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser, created=True)
    parser.add_argument("items", metavar="ITEM", nargs="*", default=[], help="an item; without any, items are read from stdin")
    parser.add_argument(
        "--framing", choices=FRAMINGS, default="line", help="where an item on stdin ends (line); see the description"
    )
    parser.add_argument("--size", type=size, default=BLOCK, metavar="N", help="bytes in a block, for --framing block (64K)")
    parser.add_argument("--json", action="store_true", help="the items are JSON: Python programs get the objects")
    parser.add_argument("--delay", type=duration, default=0.0, metavar="TIME", help="nobody gets the items before this time")
    sync_argument(parser)
    parser.add_argument("--max-bytes", type=size, metavar="N", help="of a new queue: bytes that it holds at most")
    parser.add_argument(
        "--on-full",
        choices=("block", "drop_oldest", "fail"),
        help="at --max-bytes: wait for room (the default), drop the oldest items, or end with exit code 6",
    )


def _run(options: argparse.Namespace) -> int:
    if options.on_full == "drop_oldest" and options.max_bytes is None:
        raise Failure("--on-full drop_oldest drops when --max-bytes is reached: give --max-bytes as well", USAGE)
    queue = DurableQueue(
        options.path,
        sync=options.sync,
        max_bytes=options.max_bytes,
        on_full="drop_oldest" if options.on_full == "drop_oldest" else "block",
        serializer="json" if options.json else "bytes",
    )
    with queue, Signals() as signals:
        if options.on_full in ("block", "fail") and queue._store.options.on_full != "block":
            raise Failure(
                f"{queue.path}: this queue drops its oldest items when it is full, as it was told when it was created; "
                f"leave --on-full {options.on_full} away, or take another file",
                USAGE,
            )
        putter = _Putter(queue, options, signals)
        if options.items:
            putter.put([os.fsencode(item) for item in options.items])
        else:
            putter.put_stream()
    return DONE


class _Putter:
    def __init__(self, queue: DurableQueue, options: argparse.Namespace, signals: Signals) -> None:
        self._queue = queue
        self._options = options
        self._signals = signals
        self._flusher = threading.Thread()
        self._unflushed = 0

    def put_stream(self) -> None:
        """All of stdin."""
        try:
            self._put_stream()
        finally:
            if self._flusher.ident is not None:
                self._flusher.join()

    def _put_stream(self) -> None:
        frames = splitter(self._options.framing, self._options.size)
        try:
            for items in batches(0, frames, self._signals):
                self.put(items)
                self._flush(sum(map(len, items)))
        except ValueError as error:
            raise Failure(f"{error}; the items before it were put") from error
        except Stopped:
            # A block is a piece of the stream, the beginning of a line is not the line.
            if not frames.patient:
                self.put(frames.rest())
            elif frames.held:
                tell(f"{frames.held} bytes of an item that was not complete were not put")
            raise

    def _flush(self, more: int) -> None:
        """Let the disk work while we read, so that there is little to wait for when the stream ends."""
        self._unflushed += more
        if self._unflushed >= _MUCH and self._options.sync and not self._flusher.is_alive():
            self._unflushed = 0
            self._flusher = threading.Thread(target=self._sync)
            self._flusher.start()

    def _sync(self) -> None:
        with contextlib.suppress(OSError, DurableQError):  # the next put, or closing, meets it as well
            self._queue.sync()

    def put(self, items: list[bytes]) -> None:
        """Put all of them, waiting for room where there is none. Raises Failure, Stopped and what the queue raises."""
        done = 0
        try:
            decoded, wrong = _decoded(items) if self._options.json else (items, None)
            together = not self._options.delay and sum(map(len, items)) < _LARGE * len(items)
            while done < len(decoded):
                try:
                    put = self._put_together(decoded[done:] if done else decoded) if together else self._put_one(decoded[done])
                except DurableQError:  # some are ValueErrors, and say nothing about an item
                    raise
                except ValueError as error:  # one never fits, or is no text
                    if not together:
                        raise Failure(f"{error}; the items before it were put") from error
                    together = False  # of them none was put: come to the one
                    continue
                done += put
                if done < len(decoded) and (together or not put):
                    self._wait_for_room(decoded[done], done, len(decoded))
                    done += 1
            if wrong is not None:
                raise wrong
        except BaseException:
            if done < len(items) and not self._options.items:
                tell(f"up to {len(items) - done} items that had been read were not put")
            raise

    def _put_together(self, items: list[Any]) -> int:
        """How many were put before the queue was full. Raises ValueError, and has put none then."""
        try:
            self._queue.put_many(items, block=False)
        except Full as full:
            return int(str(full).split()[0]) if full.args else 0
        return len(items)

    def _put_one(self, item: Any) -> bool:
        """Whether the queue was not full. Raises ValueError."""
        try:
            self._queue.put(item, block=False, delay=self._options.delay)
        except Full:
            return False
        return True

    def _wait_for_room(self, item: Any, done: int, total: int) -> None:
        """The queue is full: put one more item, however long that takes."""
        if self._options.on_full == "fail":
            counts = f"{done} of {total} items were put"
            raise Failure(f"{self._queue.path}: the queue is full, {counts}; take some out, or use --on-full block", FULL)
        with self._signals.waiting:
            self._queue.put(item, delay=self._options.delay)


def _decoded(items: list[bytes]) -> tuple[list[Any], Failure | None]:
    """The objects up to the first that is none, and what is wrong with that."""
    decoded: list[Any] = []
    for item in items:
        try:
            decoded.append(json.loads(item))
        except ValueError as error:
            shown = item[:60].decode(errors="replace")
            what = f"{shown!r} is no JSON ({error}); the items before it were put; leave --json away to put it as it is"
            return decoded, Failure(what)
    return decoded, None


COMMAND = Command(
    "put",
    "put items into a queue: the arguments, or what comes on stdin",
    _arguments,
    _run,
    """\
An item is bytes: Python programs get it as `bytes`, or with --json as the object that it describes. When `put` has ended
with 0, everything that it read is in the queue and on the disk; while it runs, what it has read is in the queue at once, and
on the disk within --sync.

On stdin, --framing says where an item ends: `line` at a newline, `nul` at a zero byte (as of find -print0); `length`: each
item comes behind its length in 4 bytes, big-endian; `block`: the stream is cut into pieces of --size bytes, or less when it
pauses, to come out of `get --raw` byte for byte; `whole`: the whole of it is one item.

--max-bytes belongs to the queue and is kept in it: it is set by whoever creates it. With --on-full drop_oldest the queue is a
bounded log of the last items, for ever, and after a crash too.""",
    (
        ("durableq put jobs.dq resize cat.png", "two items"),
        ("find . -name '*.png' -print0 | durableq put jobs.dq --framing nul", "one item for each file"),
        ("tar c . | durableq put backup.dq --framing block", "a stream of bytes, to be read with `durableq get --raw`"),
        ("durableq put jobs.dq --delay 10m 'look again'", "nobody gets it before ten minutes have passed"),
        (
            "producer | durableq put events.dq --max-bytes 64M --on-full drop_oldest",
            "the last 64 MiB of what happened, whatever happens",
        ),
    ),
)
