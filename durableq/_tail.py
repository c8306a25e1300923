"""The producers' end: appending records. See `_store` for the invariants."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from durableq import _os
from durableq._checkpoint import mark_head, mark_tail
from durableq._locks import NOBODYS, TAKEN, UNKNOWN
from durableq._reclaim import BATCH
from durableq._record import DEAD as STATE_DEAD
from durableq._record import HEAD_SIZE, READY, STATE_OFFSET, encode_head
from durableq._settle import Settler
from durableq._state import (
    BUSY,
    GET_WAITERS,
    H_COMMIT,
    LIVE_BYTES,
    MAXSIZE,
    NAMESPACE,
    PUT_DELAYED,
    RETURNED,
    SHUTDOWN,
    T_COMMIT,
    T_MARK,
    T_POS,
    T_ROOM,
    T_STATE,
    UNPUNCHED,
)
from durableq._stepping import at_head, at_tail
from durableq._wakeup import GET
from durableq.errors import ShutDown

_mutex_try, _mutex_mend, _mutex_unlock = _os.mutex_try, _os.mutex_mend, _os.mutex_unlock
_LARGE = 64 << 10  # from here on copying a body costs more than a second element in a vector
AHEAD = 64 << 10
"""Bytes that are written ahead of the tail, as zeros: a new page costs a small write several times what the write costs, and
many of them at once cost far less. It also leaves the size of the file alone, which makes its next sync cheaper."""
_ZEROS = bytes(AHEAD)


class TailEnd(Settler):
    """What producers do."""

    _max_bytes = 0
    _drop_policy = False

    def append(self, bodies: Sequence[bytes], due: int = 0, *, may_retry: bool = True, again: int = 0) -> int:
        """Append records, all in one write; how many found room: the first ones, so 0 means full.

        Each body is what `encode_body` made, `due` the header's due field. When this returns, those items are in the queue
        and survive the death of every process; when it raises, none of them is. Raises ShutDown, and OSError from the disk;
        on a full disk only after (`may_retry`) the space of what is done already was given back and used.
        `again`: one that was in the queue before, in this state: no bound and no shutdown keeps it out.
        """
        if self._unfit:
            self._check()
        if monotonic() > self._look_at:
            self._look_around()
        words = self._words
        lock = self._tail
        commit = -1
        refused: OSError | None = None
        at, code = lock.address, UNKNOWN
        try:
            code = _mutex_try(at)
            if code:
                code = lock.wait(code)
            if words[T_STATE] != self._tail_calm:
                self._see_tail()
                if words[SHUTDOWN] and not again:
                    raise ShutDown
            if (words[MAXSIZE] or self._max_bytes) and not again:
                bodies = self._fitting(bodies)
                if not bodies:
                    return 0
            commit = words[T_COMMIT]
            flip = commit & 1
            end = words[T_POS + flip]
            size = self._write(bodies[0], end, due) if len(bodies) == 1 else self._write_many(bodies, end)
            if again == STATE_DEAD:
                _os.pwrite(self._fd, bytes([again]), end - self._base + STATE_OFFSET)
            end += size
            if end > words[T_ROOM]:
                words[T_ROOM] = end + self._write_ahead(end) if size < AHEAD else end
            words[T_POS + (flip ^ 1)] = end
            words[T_COMMIT] = commit + 2 * len(bodies) ^ 1  # this store publishes them
            if due:
                words[PUT_DELAYED] += 1
        except BaseException as exc:
            words[T_STATE] |= BUSY
            _mutex_mend(at)
            if code not in TAKEN and words[NAMESPACE] != lock.namespace:
                at = NOBODYS
            if commit >= 0 and words[T_COMMIT] == commit:
                self._undo_append()
            if not isinstance(exc, OSError) or not exc.errno or exc.filename is not None:
                raise
            refused = exc
        finally:
            _mutex_unlock(at)
        if refused is not None:
            try:
                if may_retry and refused.errno in (errno.ENOSPC, errno.EDQUOT) and self._found_room():
                    return self.append(bodies, due, may_retry=False, again=again)
                raise self._spool.disk_error(refused, "the item was not put") from refused
            finally:
                refused = None  # else the exception and this frame keep each other alive, and with them our files
        # Published first, looked for sleepers second: see `_wakeup`.
        sleepers = words[GET_WAITERS]
        if sleepers and (commit >> 1) - (words[H_COMMIT] >> 1) < sleepers:
            self._wakeup.wake(GET, len(bodies))
        self.wrote()
        return len(bodies)

    def wrote(self) -> None:
        """Something was appended: make it durable by the policy, and write a checkpoint where one is due."""
        if not self._committer.armed:
            self._committer.wrote()
        if self._control.tail()[0] > self._words[T_MARK]:
            with suppress(OSError):  # a hint for recovery: the put stands without it
                self._mark_tail()

    @at_tail
    def _mark_tail(self) -> None:
        if self._control.tail()[0] > self._words[T_MARK]:
            mark_tail(self._spool, self._control)

    def _found_room(self) -> bool:
        try:
            return self._give_room() > 0
        except OSError:  # a disk so full or so sick that not even this works: the first error is the one to tell
            return False

    @at_head
    def _give_room(self) -> int:
        """The disk is full: give back what is dead now, without waiting for a batch of it; how many bytes."""
        mark_head(self._spool, self._control)
        return self._reclaimer.punch_floor() + self._reclaimer.sweep(1)

    def _write(self, body: bytes, position: int, due: int) -> int:
        head = encode_head(body, position, due)
        if len(body) < _LARGE:
            written = _os.pwrite(self._fd, head + body, position - self._base)
        else:
            written = _os.pwritev(self._fd, (head, body), position - self._base)
        if written != HEAD_SIZE + len(body):
            _full()
        return written

    def _write_ahead(self, end: int) -> int:
        """Have pages for the next records, behind those up to `end`; how many bytes. A full disk is for those to meet."""
        with suppress(OSError):
            return _os.pwrite(self._fd, _ZEROS, end - self._base)
        return 0

    def _write_many(self, bodies: Sequence[bytes], position: int) -> int:
        parts = []
        end = position
        for body in bodies:
            parts.append(encode_head(body, end))
            parts.append(body)
            end += HEAD_SIZE + len(body)
        if _os.pwrite(self._fd, b"".join(parts), position - self._base) != end - position:
            _full()
        return end - position

    def _append_again(self, body: bytes, dead_letter: bool) -> None:
        self.append((body,), again=STATE_DEAD if dead_letter else READY)
        if dead_letter:
            self._pass_letters()

    def _undo_append(self) -> None:
        """Nothing exists past the tail, not even for the next boot: cut off what an interrupted append left there."""
        self._reclaimer.cut_tail()

    def _fitting(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """As many of the first bodies as the bounds admit now, after dropping the oldest items if that is the policy."""
        words = self._words
        if words[MAXSIZE]:
            bodies = bodies[: max(0, words[MAXSIZE] - self._control.waiting())]
        if self._max_bytes:
            fit, _ = _first_within(self._max_bytes - self.live_bytes(), bodies)
            if fit < len(bodies) and self._drop_policy:
                fit = self._drop_oldest(bodies)
            bodies = bodies[:fit]
        return bodies

    @at_head
    def _drop_oldest(self, bodies: Sequence[bytes]) -> int:
        """Drop the oldest items for as many of the first bodies as get room by that, and none for the others; how many."""
        self._let_fall_due()  # from now on it can be dropped
        fit, size = self._within_droppable(bodies)
        while fit and self.live_bytes() + size > self._max_bytes:
            if not self.drop_one():
                fit, size = self._within_droppable(bodies)  # the head passed what has to stay: for fewer bodies, maybe
        if self._words[UNPUNCHED] >= BATCH:
            self._reclaimer.run()
        return fit

    def may_drop_for(self, body: bytes) -> bool:
        """Whether dropping makes room for a record with this body: by the rule of `_drop_oldest`, or who waits would spin."""
        words = self._words
        room = self._max_bytes - words[LIVE_BYTES] - HEAD_SIZE - len(body)
        return room >= 0 or (words[RETURNED] > 0 and room + self._returned_bytes() >= 0)

    @at_head
    def _returned_bytes(self) -> int:
        return self._ledger.returned_bytes()

    def _within_droppable(self, bodies: Sequence[bytes]) -> tuple[int, int]:
        """How many of the first bodies fit beside what cannot be dropped, and the bytes of their records. Under the head lock.

        That is what the ledger has (lent, delayed, dead letters) and was not given back. What has to stay of that which the
        head has not come to yet is in the ledger once the head comes to it.
        """
        room = self._max_bytes - self._words[LIVE_BYTES]
        fit, size = _first_within(room, bodies)
        if fit < len(bodies) and self._words[RETURNED]:  # nobody keeps a sum of these
            fit, size = _first_within(room + self._ledger.returned_bytes(), bodies)
        return fit, size

    def live_bytes(self) -> int:
        """Bytes of all records that are not done."""
        return self._control.tail()[0] - self._control.head()[0] + self._words[LIVE_BYTES]


def _first_within(room: int, bodies: Sequence[bytes]) -> tuple[int, int]:
    """How many of the first bodies make records that fit into `room` bytes, and the bytes of these records."""
    size = 0
    for n, body in enumerate(bodies):
        longer = size + HEAD_SIZE + len(body)
        if longer > room:
            return n, size
        size = longer
    return len(bodies), size


def _full() -> None:
    # A regular file takes less than it is given only when the disk is full.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
