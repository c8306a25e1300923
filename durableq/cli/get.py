"""`durableq get`: items become a stream.

An item is lent until its bytes are through: on the disk, in a file, or read from the pipe. Then it is acked, and not before.
What ends this program in between, be it a reader who goes away, a signal, or a full disk, leaves the other items where they
were, and uncounted. SIGKILL leaves them too, and counts a delivery; a power cut leaves them; then some of them may come twice,
and none is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from durableq._leases import DEAD_CODE, RESERVED, RETURNED_CODE, Taken
from durableq._queue import DurableQueue
from durableq._reader import ItemReader
from durableq.cli._command import (
    DONE,
    EMPTY,
    TIMED_OUT,
    USAGE,
    Command,
    Failure,
    duration,
    existing_spool,
    positive,
    spool_argument,
    sync_argument,
)
from durableq.cli._framing import FRAMINGS, Joiner
from durableq.cli._items import Shower
from durableq.cli._output import Outlet
from durableq.cli._signals import Signals, Stopped
from durableq.errors import Empty, ShutDown

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_MOST, _MUCH, _MUCH_FOR_A_FILE = 256, 1 << 18, 4 << 20
"""Items and bytes that are taken together, at most and about. A file takes all of them at once, so nobody waits for them;
what it took is acked together too."""
_LARGE = 1 << 20
"""Bytes that the disk needs so long to take, and their space to come back, that the next ones are written meanwhile."""
_BOXES = 64
"""So many takes may be unacked at most, however small their items are: a kill counts a delivery of each."""
_PAGE = 64
"""Items that are looked at together, at most."""
_GRACE = 1.0
"""Seconds that a reader has to read what was written when a signal ends us."""
_LOOK, _LONGEST_LOOK = 0.001, 0.25
"""Seconds between two looks whether a reader has come to the end of a pipe: short at first."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    spool_argument(parser)
    parser.add_argument("-n", type=positive, metavar="N", dest="most", help="end after N items (all that are there)")
    parser.add_argument("-f", "--follow", action="store_true", help="at the end, wait for more items, for ever")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="at the end, wait so long for one more item")
    parser.add_argument("--framing", choices=FRAMINGS, default="line", help="what is written between items (line)")
    parser.add_argument("--raw", action="store_true", help="nothing between items, as --framing block and whole")
    parser.add_argument("--json", action="store_true", help="each item as a JSON object, with its id and its history")
    parser.add_argument("--keep", action="store_true", help="read the items and leave them in the queue")
    parser.add_argument("--dead", action="store_true", help="take dead letters")
    parser.add_argument("--unpickle", action="store_true", help="unpickle items of Python programs: this runs their code")
    sync_argument(parser)


def _run(options: argparse.Namespace) -> int:
    waits = options.follow or options.timeout is not None
    if options.keep and waits:
        raise Failure("--keep shows what is there now: leave --follow and --timeout away", USAGE)
    path = options.path if waits else existing_spool(options.path)
    with Signals() as signals:
        outlet = Outlet(1, signals, durable=options.sync is not None)
        with DurableQueue(path, sync=options.sync, serializer="bytes") as queue:
            getter = _Getter(queue, options, outlet, signals)
            if options.keep:
                return getter.show_all()
            return getter.get_all()


class _Sent(NamedTuple):
    """Items that were written, and how many bytes had been when the last of them was."""

    box: list[Taken]
    lengths: list[int]
    end: int


class _Getter:
    def __init__(self, queue: DurableQueue, options: argparse.Namespace, outlet: Outlet, signals: Signals) -> None:
        self._source: ItemReader = queue.dead_letters if options.dead else queue
        self._store = queue._store
        self._options = options
        self._outlet = outlet
        self._signals = signals
        self._shower = Shower(self._store, unpickle=options.unpickle, as_json=options.json)
        self._joiner = Joiner("line" if options.json else "block" if options.raw else options.framing)
        self._sent: deque[_Sent] = deque()
        self._limit = 1
        self._much = _MUCH_FOR_A_FILE if outlet.is_file else _MUCH
        self._batch = _MUCH_FOR_A_FILE if outlet.is_file else 0  # to sync a file takes time: so not for every few items
        self._settled = 0
        """Bytes up to which acking was begun."""
        self._beside: ThreadPoolExecutor | None = None
        self._acks: deque[Future[None]] = deque()

    # -- taking --------------------------------------------------------------------------------------------------------

    def get_all(self) -> int:
        """Take and write what was asked for; the exit code."""
        count = 0
        most = self._options.most
        try:
            while most is None or count < most:
                self._signals.check()
                box = self._take(self._limit if most is None else min(self._limit, most - count))
                if not box:
                    break
                count += self._write(box)
                self._settle(self._batch)
            self._wait_until_read()
        except Failure:
            with contextlib.suppress(BrokenPipeError):
                self._wait_until_read()  # what was written before it is with the reader, who has yet to read it
            raise
        except Stopped:
            with contextlib.suppress(BrokenPipeError):
                self._wait_until_read(_GRACE)
            raise
        finally:
            self._give_back()
        if count:
            return DONE
        return TIMED_OUT if self._options.timeout is not None else EMPTY

    def _take(self, limit: int) -> list[Taken]:
        """The next items; none if there are none and it is time to end."""
        box: list[Taken] = []
        try:
            if not self._source._take(box, limit, False, RESERVED):
                self._wait_and_take(box, limit)
        except (Empty, ShutDown):
            return []
        except BaseException:
            self._store.untake(box)
            raise
        return box

    def _wait_and_take(self, box: list[Taken], limit: int) -> None:
        self._settle()
        timeout = None if self._options.follow and self._options.timeout is None else self._options.timeout or 0.0
        look = _LOOK
        while self._sent and timeout != 0:
            # Somebody has yet to read what was written: look after that as well.
            try:
                with self._signals.waiting:
                    seconds = look if timeout is None else min(look, timeout)
                    return self._source._wait_and_take(box, limit, True, seconds, False, RESERVED)
            except Empty:
                self._settle()
                self._outlet.wait_for_reader(0)
                timeout = None if timeout is None else max(0.0, timeout - look)
                look = min(2 * look, _LONGEST_LOOK)
        with self._signals.waiting:
            self._source._wait_and_take(box, limit, True, timeout, False, RESERVED)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(self, box: list[Taken]) -> int:
        """Write the items; how many: if one of them cannot be shown, the first one only, so that those before it come."""
        try:
            shown = self._shower.show(box)
        except BaseException:
            self._store.untake(box[1:] or box)
            if len(box) == 1:
                raise
            return self._write(box[:1])
        lengths = [len(item) + self._joiner.overhead for item in shown]
        length = sum(lengths)
        self._sent.append(_Sent(box, lengths, self._outlet.accepted + length))
        self._outlet.write(self._joiner.pieces(shown))
        self._limit = max(1, min(_MOST, 2 * self._limit, self._much * len(box) // max(1, length)))
        return len(box)

    def _settle(self, at_least: int = 0) -> None:
        """Ack all whose bytes are through, if there are `at_least` so many: large batches in threads beside, in order."""
        end = self._outlet.through()
        length = end - self._settled
        if length < at_least and len(self._sent) < _BOXES:
            return
        if length < _LARGE:
            self._wait_for_acks()
            if not self._sent:
                return
            self._settled = end
            self._outlet.flush()
            return self._ack(end)
        self._wait_for_acks(but=1)
        self._settled = end
        if self._beside is None:
            from concurrent.futures import ThreadPoolExecutor

            self._beside = ThreadPoolExecutor(2)  # while one gives back the space of a batch, the other syncs the next
        flushed = self._beside.submit(self._outlet.flush)
        self._acks.append(self._beside.submit(self._ack, end, flushed, *self._acks))

    def _ack(self, end: int, *first: Future[None]) -> None:
        """Ack all whose bytes end up to here, after `first`: an ack on the disk before its item, and a power cut loses it."""
        for one in first:
            one.result()
        while self._sent and self._sent[0].end <= end:
            self._store.ack_many(self._sent[0].box)
            self._sent.popleft()  # only now: what is still there at the end goes back

    def _wait_for_acks(self, but: int = 0) -> None:
        """Until no more than `but` batches are being acked beside. Raises what acking them raised."""
        while len(self._acks) > but:
            self._acks.popleft().result()

    def _wait_until_read(self, seconds: float = float("inf")) -> None:
        """Until all that the kernel has taken is through, and acked; or so long, which a first signal does not cut short."""
        look = _LOOK
        end = time.monotonic() + seconds
        self._settle()
        while self._outlet.through() < self._outlet.accepted and time.monotonic() < end:
            try:
                self._outlet.wait_for_reader(look, deaf=seconds != float("inf"))
            except BrokenPipeError:
                if self._outlet.through() < self._outlet.accepted:  # else it read all and left, as it should
                    raise
            self._settle()
            look = min(2 * look, _LONGEST_LOOK)

    def _give_back(self) -> None:
        """At the end: ack what is through to the last item, and leave the others in the queue."""
        through = 0
        try:
            self._settle()
            self._wait_for_acks()
            if self._sent:
                self._outlet.flush()
                through = self._outlet.through()
        finally:
            for box, lengths, end in list(self._sent):  # interrupted, we may not have waited for the thread beside
                first = end - sum(lengths)
                done = sum(first + length <= through for length in accumulate(lengths))
                self._store.ack_many(box[:done])
                self._store.untake(box[done:])
            self._sent.clear()

    # -- only looking --------------------------------------------------------------------------------------------------

    def show_all(self) -> int:
        """Write what is there and leave it there; the exit code."""
        count, last, page = 0, -1, 1
        most = self._options.most
        code = DEAD_CODE if self._options.dead else RETURNED_CODE
        while most is None or count < most:
            self._signals.check()
            box = self._store.peek(page if most is None else min(page, most - count), code, last)
            if not box:
                break
            shown = self._shower.show(box)
            self._outlet.write(self._joiner.pieces(shown))
            count, last = count + len(box), box[-1][0]
            page = max(1, min(_PAGE, 2 * page, _MUCH * len(box) // max(1, sum(map(len, shown)))))
        return DONE if count else EMPTY


COMMAND = Command(
    "get",
    "take items out of a queue and write them to stdout",
    _arguments,
    _run,
    """\
Takes what is there, oldest first, and ends; with --follow it waits for more, asleep, with --timeout for so long each time.

An item is done when its bytes are through: on the disk, in a file, or read by the reader of the pipe. If the reader goes away,
at Ctrl-C, or on a full disk, what is not through stays in the queue as if it had not been touched. If `get` itself is killed,
or the power fails, some items may come once more; none is lost.

--framing says what stands between the items: `line` a newline, `nul` a zero byte; `length`: each item comes behind its
length in 4 bytes, big-endian; `block` and `whole`: nothing at all, as --raw, so that what `put --framing block` cut comes out
as it was. Items of Python programs: JSON comes as its text, bytes as they are; pickled objects only with --unpickle, as
their text.""",
    (
        ("durableq get jobs.dq", "all that is there, one item on a line"),
        ('durableq get -f jobs.dq | while read -r job; do echo "$job"; done', "each item as it comes, for ever"),
        ('job=$(durableq get -n 1 jobs.dq) && echo "$job"', "one item; exit code 3 if there is none"),
        ("durableq get -n 1 --timeout 10 jobs.dq", "one item, waiting for it up to ten seconds; exit code 4 if none came"),
        ("durableq get --raw backup.dq | tar x", "the stream that `put --framing block` put there"),
        ("durableq get --keep --json jobs.dq | jq .item", "look at all items and leave them"),
    ),
)
