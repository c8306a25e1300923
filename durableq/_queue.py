"""The standard library's queue on a spool file: its names, meanings and exceptions, and what a durable queue adds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from durableq._delivery import Peeked
from durableq._inspect import Stats
from durableq._leases import DEAD_CODE, Taken
from durableq._reader import ItemReader, _ThisThread
from durableq._record import MAX_LENGTH, TAG_BYTES, due_after, encode_body, encode_due, record_size
from durableq._serializers import ByName, Codec, Serializer
from durableq._spool import Options
from durableq._store import Store
from durableq._wakeup import Deadline
from durableq.errors import Full

_BATCH = 1 << 20


class DurableQueue(ItemReader):
    """A queue whose items live in a file: they survive `kill -9`, reboots and power cuts.

    Any number of processes may open the same path, at any time; there is no server. Items are delivered first in, first
    out. A handle may be used by many threads, is inherited over `fork`, and can be pickled to any process of this machine
    (the path and the options travel, not the descriptors).

    path            the spool file; created if it is not there (its directory must be)
    maxsize         most items that may wait; 0: no bound
    ack             "task_done": `get` lends an item until `task_done`, and it is delivered again if its holder dies first;
                    "get": it is done when it is taken
    sync            longest time in seconds that a returned `put` or `task_done` may be lost to a power cut; 0: none, they
                    return once the disk has it; None: left to the operating system. A killed process loses nothing
    max_bytes       bound on the bytes of items that are not done; on_full says what a put does then:
    on_full         "block": it waits (or raises Full); "drop_oldest": the oldest waiting items go (and are counted);
                    what is lent, delayed or dead stays, and where that leaves no room, a put waits all the same
    max_deliveries  after so many deliveries without success an item goes to `dead_letters`
    lease           seconds after which a lent item returns although its holder lives; None: only when the holder is gone
    serializer      "pickle", "json", "bytes", or an object with `dumps` and `loads`
    mode            permissions of the file when it is created

    maxsize, max_bytes, on_full, max_deliveries and lease are the queue's own: stored when the file is created, adopted by
    who leaves them out later, and who contradicts them gets OptionMismatchError. The others are this handle's.

    Raises what `durableq.errors` lists, and IsADirectoryError, FileNotFoundError, PermissionError and OSError (disk full).
    """

    _store: Store

    def __init__(
        self,
        path: str | os.PathLike[str],
        maxsize: int = 0,
        *,
        ack: str = "task_done",
        sync: float | None = 1.0,
        max_bytes: int | None = None,
        on_full: str = "block",
        max_deliveries: int | None = None,
        lease: float | None = None,
        serializer: str | Serializer = "pickle",
        mode: int = 0o600,
    ) -> None:
        _check_options(ack, sync, maxsize, max_bytes, on_full, max_deliveries, lease)
        options = Options(
            max(0, maxsize), max_bytes or 0, on_full, max_deliveries or 0, max(1, int(lease * 1000)) if lease else 0
        )
        self._open(os.path.realpath(path), options, ack, sync, serializer, mode, create=True)

    def _open(
        self,
        path: str,
        options: Options,
        ack: str,
        sync: float | None,
        serializer: str | Serializer,
        mode: int,
        *,
        create: bool,
        era: int | None = None,
    ) -> None:
        self._arguments = (path, ack, sync, serializer, mode)
        self._write_with(Codec(serializer))
        self._done = ack == "get"
        runs_code = self._codec.runs_code
        self._store = Store(path, options, sync=sync, mode=mode, create=create, runs_code=runs_code, era=era)
        self._this_thread = _ThisThread(self._store.is_lent)
        self._letters_of_this_thread = _ThisThread(self._store.is_lent)
        self._take = self._store.take
        self._fast_take = self._store._fast_take
        self._max_bytes = self._store.options.max_bytes
        bounded = bool(self._max_bytes)
        self._fast_append = None if bounded else self._store._fast_append
        self._fast_append_many = None if bounded else self._store._fast_append_many

    def __getstate__(self) -> tuple[Any, ...]:
        path, ack, sync, serializer, mode = self._arguments
        return path, ack, sync, ByName.of(serializer), mode, self._store.era

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        path, ack, sync, serializer, mode, era = state
        if isinstance(serializer, ByName):
            serializer = serializer.arrived()
        # The queue's own options are those in its file, whatever they have become since it was first opened.
        self._open(path, Options(), ack, sync, serializer, mode, create=False, era=era)

    # -- putting -------------------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None, *, delay: float = 0) -> None:
        """Append an item. When this returns the item survives the death of every process, and a power cut by `sync`.

        block, timeout: as in `queue.Queue`, in seconds. delay: seconds before which it is not delivered; later items may
        overtake it until then. Raises Full, ShutDown, ValueError (negative timeout; closed queue; larger than
        `max_bytes`), OSError (ENOSPC: the disk is full and the item was not put), and what the serializer raises.
        """
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        if not delay >= 0:
            raise ValueError("'delay' must be a non-negative number")
        payload, tag = self._serialize(item)
        if self._fast_append is not None and not delay and (did := self._fast_append(payload, tag)):
            if did > 1:
                self._store.wrote()
            return
        body = self._encode(payload, tag)
        due = encode_due(due_after(time.time_ns() // 1_000_000, delay)) if delay else 0
        if not self._store.append((body,), due):
            self._wait_and_append((body,), due, Deadline(timeout if block else 0))

    def put_nowait(self, item: Any) -> None:
        """As `put(item, False)`."""
        self.put(item, False)

    def put_many(self, items: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:
        """Append items in order, in few writes; much cheaper than as many puts.

        Raises as `put`. All items are encoded before the first is appended. If a bound is reached, those that fit are in
        the queue and the rest waits for room; Full then says how many were put.
        """
        if timeout is not None and timeout < 0 and block:
            raise ValueError("'timeout' must be a non-negative number")
        items = list(items)
        if self._takes_bytes and set(map(type, items)) == {bytes}:
            payloads, tag = items, TAG_BYTES
        else:
            try:
                payloads, tag = list(map(self._dumps, items)), self._tag
            except TypeError:
                if self._codec.dumps_live is None:
                    raise
                payloads, tag = list(map(self._codec.dumps_live, items)), self._tag
        sizes = [len(payload) for payload in payloads]
        self._check_size(max(sizes, default=0))
        deadline = Deadline(timeout if block else 0)
        first = size = 0
        for n, length in enumerate(sizes, 1):
            size += length
            if size >= _BATCH or n == len(sizes):
                self._put_part(payloads[first:n], tag, first, deadline)
                first, size = n, 0

    def _put_part(self, payloads: list[bytes], tag: int, before: int, deadline: Deadline) -> None:
        self._store.look_if_due()
        if self._fast_append_many is not None and (did := self._fast_append_many(payloads, tag)):
            if did > 1:
                self._store.wrote()
            return
        bodies = [self._encode(payload, tag) for payload in payloads]
        done = self._store.append(bodies)
        if done < len(bodies):
            self._wait_and_append(bodies[done:], 0, deadline, before + done)

    def _check_size(self, length: int) -> None:
        size = record_size(length)
        if size > MAX_LENGTH or (self._max_bytes and size > self._max_bytes):
            bound = self._max_bytes or MAX_LENGTH
            raise ValueError(f"{self.path}: an item of {size} bytes never fits into a queue of {bound} bytes")

    def _serialize(self, item: Any) -> tuple[bytes, int]:
        if type(item) is bytes and self._takes_bytes:
            return item, TAG_BYTES
        try:
            return self._dumps(item), self._tag
        except TypeError:
            if self._codec.dumps_live is None:
                raise
            return self._codec.dumps_live(item), self._tag

    def _encode(self, payload: bytes, tag: int) -> bytes:
        self._check_size(len(payload))
        if self._store._unfit:
            self._store._check()  # in a forked child the path may name another file by now, which has another salt
        return encode_body(payload, tag, time.time_ns() // 1000, self._store._salt)

    def _wait_and_append(self, bodies: Sequence[bytes], due: int, deadline: Deadline, before: int = 0) -> None:
        done = 0
        while done < len(bodies):
            appended = self._store.append(bodies[done:], due)
            done += appended
            if not appended:
                if deadline.left() <= 0:
                    raise Full(f"{before + done} items were put") if before + done else Full
                self._store.wait_for_room(bodies[done], deadline)

    # -- the rest of the standard library's methods --------------------------------------------------------------------

    def join(self) -> None:
        """Wait until every item that was put is done, by whatever process. Dead letters do not count."""
        self._store.wait_until_finished()

    def qsize(self) -> int:
        """How many items wait, ready or delayed, without those that are lent. Others may change that at any time."""
        return self._store.waiting()

    def full(self) -> bool:
        """Whether `maxsize` items wait. Others may change that at any time."""
        waiting = self.qsize()
        return 0 < self.maxsize <= waiting

    @property
    def unfinished_tasks(self) -> int:
        """How many items `join` waits for: waiting or lent, of all processes."""
        return self._store.unfinished()

    @property
    def is_shutdown(self) -> bool:
        """Whether `shutdown` was called, by whatever process."""
        return self._store.is_shutdown()

    @property
    def maxsize(self) -> int:
        """Most items that may wait, for all handles; 0: no bound. Can be assigned."""
        return self._store.maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._store.maxsize = value

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue for every process that has it open: put raises ShutDown, and so does get once it is empty.
        Items that wait for their time are waited for; those that are lent are not.

        immediate: what waits is removed now (lent items stay lent). It ends when the last handle has been closed; then
        the queue can be opened again and goes on with what it holds.
        """
        self._store.shutdown(immediate)

    def close(self) -> None:
        """Close this handle: what it holds un-acked returns to the queue, what it wrote is made durable (unless `sync` is
        None). Everything but `close` and `join_thread` then raises ValueError. Other handles are not concerned.
        """
        self._store.close()

    def join_thread(self) -> None:
        """Nothing to wait for: `put` returns when the item is in the queue."""

    def cancel_join_thread(self) -> None:
        """Nothing to cancel: `put` returns when the item is in the queue."""

    # -- beyond the standard library -----------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts, bytes and owners of the queue at this moment."""
        return self._store.stats()

    def peek_lent(self, n: int = 1) -> list[Peeked]:
        """What the processes that have the queue open hold un-acked: up to `n` items of each, oldest first."""
        self._store.reap()
        return [self._peeked(taken, pid) for pid, taken in self._store.peek_lent(n)]

    @property
    def max_deliveries(self) -> int | None:
        """After so many deliveries without success an item goes to the dead letters; None: never."""
        return self._store.options.max_deliveries or None

    @property
    def lease(self) -> float | None:
        """Seconds after which a lent item returns although its holder lives; None: only when the holder is gone."""
        return self._store.options.lease_ms / 1000 or None

    def sync(self) -> None:
        """Return once everything put or done before this call is on the disk, whatever the `sync` option."""
        self._store.sync()

    def purge(self) -> int:
        """Remove everything that waits, ready or delayed, but not what is lent or dead; how many items."""
        return self._store.purge()

    def compact(self) -> int:
        """Give back now all disk space that can be; how many bytes. The queue does this by itself as it goes along."""
        return self._store.compact()

    def redrive(self) -> int:
        """Put all dead letters back into the queue, as if they had never been delivered; how many."""
        return self._store.redrive()

    @property
    def dead_letters(self) -> DeadLetters:
        """The items that were rejected, delivered too often, or could not be decoded, as a queue to take from."""
        return DeadLetters(self)

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._store.closed

    @property
    def path(self) -> str:
        """The spool file, as an absolute path."""
        return self._store.path

    def __enter__(self) -> DurableQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}{' closed' if self.closed else ''}>"

    def _carry(self, headers: Callable[[], Mapping[str, str]]) -> None:
        """From now on, whatever is put through this handle goes with the headers that this returns at the time."""
        self._write_with(self._codec.carrying(headers))

    def _write_with(self, codec: Codec) -> None:
        self._codec = codec
        self._dumps, self._tag, self._takes_bytes = codec.dumps, codec.tag, codec.takes_bytes  # at hand for each put

    def _wait(self, deadline: Deadline) -> None:
        self._store.wait_for_item(deadline)

    def _peek(self, n: int) -> list[Taken]:
        return self._store.peek(n)


class DeadLetters(ItemReader):
    """The dead letters of a queue, as a queue to take from. They lie in the same file, and only `redrive` or an ack moves
    them. What its taker does not ack goes back to the dead letters.
    """

    _dead = True
    _store: Store

    def __init__(self, queue: DurableQueue) -> None:
        self._store = queue._store
        self._take = self._store.take_dead
        self._codec = queue._codec
        self._done = queue._done
        self._this_thread = queue._letters_of_this_thread  # which outlives this object

    def ids(self) -> set[str]:
        """The ids of all dead letters, as `Delivery.id` has them; also of those that somebody has taken and not acked."""
        return {self._store.name(position) for position in self._store.letters()}

    def qsize(self) -> int:
        """How many dead letters there are that nobody has."""
        return self._store.dead_letters()

    def _wait(self, deadline: Deadline) -> None:
        self._store.wait_for_dead_letter(deadline)

    def _peek(self, n: int) -> list[Taken]:
        return self._store.peek(n, DEAD_CODE)


def _check_options(
    ack: str,
    sync: float | None,
    maxsize: int,
    max_bytes: int | None,
    on_full: str,
    max_deliveries: int | None,
    lease: float | None,
) -> None:
    if ack not in ("task_done", "get"):
        raise ValueError(f'ack={ack!r} is unknown; take "task_done" or "get"')
    if on_full not in ("block", "drop_oldest"):
        raise ValueError(f'on_full={on_full!r} is unknown; take "block" or "drop_oldest"')
    if on_full == "drop_oldest" and not max_bytes:
        raise ValueError('on_full="drop_oldest" drops when max_bytes is reached: give max_bytes as well')
    if sync is not None and not 0 <= sync <= 1e9:
        raise ValueError(f"sync={sync!r} must be a number of seconds from 0 to 1,000,000,000; None leaves it to the system")
    for name, whole in (("maxsize", maxsize), ("max_bytes", max_bytes), ("max_deliveries", max_deliveries)):
        if whole is not None and not hasattr(whole, "__index__"):
            raise TypeError(f"{name}={whole!r} must be a whole number")
    most = {"max_bytes": (1 << 63) - 1, "max_deliveries": (1 << 32) - 1, "lease": 1e9}
    for name, value in (("max_bytes", max_bytes), ("max_deliveries", max_deliveries), ("lease", lease)):
        if value is not None and not 0 < value <= most[name]:
            raise ValueError(f"{name}={value!r} must be None, or positive and at most {most[name]:,}")
    if maxsize >= 1 << 63:
        raise ValueError(f"maxsize={maxsize!r} must be less than 2 ** 63; 0 means no bound")
