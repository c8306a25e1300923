"""The consumers' end, at the head: taking the oldest items, which are what came back and then what nobody has had yet.

`take` does both under one lock; the first part is in `_returned`, the second here. What is met at the head and cannot be
delivered as it is (damage, padding, a delay, a dead letter) is passed one record at a time. See `_store` for the invariants.
"""

from __future__ import annotations

import time
from contextlib import suppress
from time import monotonic

from durableq import _os
from durableq._checkpoint import DISTANCE, mark_head
from durableq._compiled import crc32
from durableq._leases import DEAD_CODE, DELAYED_CODE, Taken
from durableq._locks import NOBODYS, TAKEN, UNKNOWN
from durableq._reclaim import BATCH, REWIND
from durableq._record import DEAD as STATE_DEAD
from durableq._record import (
    DONE,
    DONE_BYTE,
    HEADER_SIZE,
    MAGIC,
    READY,
    STATE_OFFSET,
    TAG_PAD,
    decode,
    decode_due,
    unpack_header,
)
from durableq._returned import WINDOW, Returned
from durableq._scan import Reader
from durableq._state import (
    BUSY,
    DELAYED,
    H_COMMIT,
    H_LIMIT,
    H_NEXT,
    H_POS,
    H_STATE,
    LIVE,
    NAMESPACE,
    NEVER,
    NEXT_DUE,
    PUT_WAITERS,
    RETURNED,
    SEEN_DELAYED,
    SHUTDOWN,
    SPECIAL,
    T_COMMIT,
)
from durableq._stepping import at_head
from durableq._wakeup import PUT
from durableq.errors import ShutDown

_mutex_try, _mutex_mend, _mutex_unlock = _os.mutex_try, _os.mutex_mend, _os.mutex_unlock
_ROUND = HEADER_SIZE + 7  # what `record_size` adds to a length before it rounds down
READY_BYTE = bytes([READY])


class HeadEnd(Returned):
    """How consumers take."""

    def take(self, box: list[Taken], limit: int, done: bool, reserved: int = 0) -> bool:
        """Take up to `limit` of the oldest items into the empty `box`; False if none is ready. The compiled twin begins.

        `done`: they are done at once, else they are lent. Whatever exception comes (KeyboardInterrupt can come anywhere), the
        box then holds what was taken all the same, for `untake`.
        Raises ShutDown if there never will be one, and OSError from the disk.
        """
        if limit > 1:
            self.look_if_due()
        if self._fast_take is not None and (did := self._fast_take(box, limit, done, reserved, False)):
            if did > 1:
                self.told(done, len(box))
            if len(box) == limit or not self.may_take():
                return True
            # Something unusual is next.
        if self._unfit:
            if box:
                return True
            self._check()
        if monotonic() > self._look_at:
            self._look_around()
        words = self._words
        begun = len(box)
        lock = self._head
        at, code = lock.address, UNKNOWN
        try:
            code = _mutex_try(at)
            if code:
                code = lock.wait(code)
            usual = words[H_STATE] == self._calm
            if not usual:
                if box:  # what has come about meanwhile is for the next call
                    return True
                self._see_head()
                if words[SHUTDOWN] > 1:
                    raise ShutDown
                if words[RETURNED] or words[NEXT_DUE] != NEVER:
                    self._take_returned(box, limit, done, reserved)
            self._fill(box, limit, done, reserved)
            if not usual:
                self._leave_head()
            if not box:
                if self._has_ended():
                    raise ShutDown
                return False
            if done:
                self._handed_out += len(box) - begun
        except BaseException as exc:
            words[H_STATE] |= BUSY
            _mutex_mend(at)
            if code not in TAKEN and words[NAMESPACE] != lock.namespace:
                at = NOBODYS
            try:
                self._sort_out(box, READY_BYTE, begun)
            except BaseException:  # interrupted once more, in the very act
                self._sort_out(box, READY_BYTE, begun)
                raise
            if done:
                self._handed_out += len(box) - begun
            if not box or not isinstance(exc, OSError) or not exc.errno:
                raise self._refused(exc, "no item was taken", "nothing was changed") from exc.__cause__
            # What was taken cannot be given back now: the next call says so, to a handle that is barred if it was a sync.
            self._refused(exc)
        finally:
            _mutex_unlock(at)
        self.told(done, len(box))
        return True

    def may_take(self) -> bool:
        """Whether a get that found nothing is worth another try: something is ready, or nothing will be any more."""
        words = self._words
        return bool(words[T_COMMIT] >> 1 != words[H_COMMIT] >> 1 or words[RETURNED]) or self._has_ended()

    def _has_ended(self) -> bool:
        """Whether a get that finds nothing raises ShutDown: what waits for its time is yet to come, unless all was removed."""
        shutdown = self._words[SHUTDOWN]
        return shutdown > 1 or (shutdown == 1 and not self._words[DELAYED])

    def told(self, done: bool, count: int) -> None:
        """After a take: tell whom it concerns, and look after what is due now and then."""
        if self._control.head()[0] > self._words[H_NEXT]:
            with suppress(OSError):  # what was taken is in our hands: the next one says so, who may not pass without it
                self._look_at_milestone(done)
        if done:
            self._is_done(count)
        elif self._words[PUT_WAITERS]:
            self._wakeup.wake(PUT, count)

    def _fill(self, box: list[Taken], limit: int, done: bool, reserved: int) -> None:
        while len(box) < limit and self._take_fresh(box, limit, done, reserved):
            pass

    def _take_fresh(self, box: list[Taken], limit: int, done: bool, reserved: int) -> bool:
        """Take what follows at the head; False if there is nothing, True if it is worth another look."""
        words = self._words
        commit = words[H_COMMIT]
        flip = commit & 1
        position = words[H_POS + flip]
        if position >= self._tail_seen:
            self._tail_seen, sequence = self._control.tail()
            self._odd_reader = None  # what it read ahead may lie beyond the tail that it was read under
            if position >= self._tail_seen:
                if commit >> 1 != sequence:  # records were lost to damage; here the count is right again
                    self._control.set_head(position, sequence)
                if position - self._head_base > REWIND and not words[LIVE]:
                    self._reclaimer.rewind()
                    self._leave_head()
                return False
        at = position - self._buffer_at
        buffer = self._buffer
        if at < 0 or at + HEADER_SIZE > len(buffer):
            buffer = self._read_ahead(position)
            at = 0
        first = at
        offsets: list[int] = []
        wanted = limit - len(box)
        while True:
            magic, state, count, tie, found, due, length, total, enqueued, tag, _, check = unpack_header(buffer, at)
            payload = buffer[at + HEADER_SIZE : at + HEADER_SIZE + length]
            if (
                state != READY
                or due
                or magic != MAGIC
                or found != position
                or crc32(buffer[at + 24 : at + 44], self._salt) != check
                or tie != check & 0xFFFF
                or crc32(payload) != total
            ):
                if not offsets:
                    if at:
                        self._buffer_at = NEVER  # it may only be cut off by the window: read again from here on
                    else:
                        self._pass_odd(position, commit >> 1)
                    return True
                break  # its turn comes when what was found before it is taken
            size = length + _ROUND & -8
            if done:
                box.append((position, -1, count + 1, tag, enqueued, payload))
            else:
                index = self._lend(position, size, count + 1 | reserved)
                box.append((position, index, count + 1 | reserved, tag, enqueued, payload))
            offsets.append(at)
            at += size
            position += size
            if len(offsets) == wanted or position >= self._tail_seen or at + HEADER_SIZE > len(buffer):
                break
        milestone = position > words[H_NEXT]
        if milestone:
            self._let_pass(words[H_POS + flip], position)
        if done and len(offsets) == 1:
            _os.pwrite(self._fd, DONE_BYTE, words[H_POS + flip] - self._head_base + STATE_OFFSET)
        elif done:
            self._mark_done(buffer, self._buffer_at, first, at, offsets)
        words[H_POS + (flip ^ 1)] = position
        words[H_COMMIT] = commit + 2 * len(offsets) ^ 1  # this store takes them
        if milestone:
            self._pass_milestone(position, done)
        return True

    def _pass_milestone(self, position: int, done: bool) -> None:
        words = self._words
        words[H_NEXT] = min(position + 2 * BATCH, words[H_LIMIT])
        if done:
            self._tidy()

    @at_head
    def _look_at_milestone(self, done: bool) -> None:
        position = self._control.head()[0]
        if position > self._words[H_NEXT]:
            self._pass_milestone(position, done)

    def _lend(self, position: int, size: int, count: int) -> int:
        ledger = self._ledger
        if ledger.is_full():
            # What the ledger forgets cannot be swept any more, so sweep first.
            mark_head(self._spool, self._control)
            self._reclaimer.sweep(1)
            try:
                ledger.rebuild()
            except OSError as exc:
                raise self._spool.disk_error(exc, "cannot note one more lent item, so none was taken") from exc
            self._leave_head()
        until = NEVER
        if self._lease_ms:
            until = time.time_ns() // 1_000_000 + self._lease_ms
            self._words[H_STATE] |= SPECIAL
        self._words[self._lent_word] = 1
        return ledger.append(position, size, count, until, self._own_code)

    def _mark_done(self, buffer: bytes, position: int, first: int, end: int, offsets: list[int]) -> None:
        """Write the done marks of records that lie side by side in a buffer that begins at `position`."""
        place = position - self._head_base
        if end - first <= len(offsets) << 10:
            # One write of all their bytes is cheaper than many of one byte; nothing but the marks changes.
            piece = bytearray(buffer[first:end])
            for offset in offsets:
                piece[offset - first + STATE_OFFSET] = DONE
            _os.pwrite_all(self._fd, piece, place + first)
        else:
            for offset in offsets:
                _os.pwrite(self._fd, DONE_BYTE, place + offset + STATE_OFFSET)

    def _read_ahead(self, position: int) -> bytes:
        """The bytes from a position on: a window full, or all of the first record if that is longer."""
        fd, offset = self._fd, position - self._head_base
        available = self._tail_seen - position
        buffer = _os.pread(fd, min(WINDOW, available), offset)
        header = decode(buffer, 0, position, self._salt)
        if header and len(buffer) < header.size <= available:
            buffer = _os.pread(fd, header.size, offset)
        if len(buffer) < HEADER_SIZE:
            buffer = buffer.ljust(HEADER_SIZE, b"\0")
        self._buffer, self._buffer_at = buffer, position
        return buffer

    def _pass_odd(self, position: int, sequence: int) -> None:
        """Deal with what is at the head and cannot be delivered as it is: one step, either the head moves or it is mended."""
        self._buffer_at = NEVER
        reader = self._odd_reader
        if reader is None or reader.base != self._head_base:
            reader = self._odd_reader = Reader(self._fd, self._salt, self._head_base)
        header = reader.header(position)
        if header is None or position + header.size > self._tail_seen:
            following = reader.following(position + 8, self._tail_seen)
            lost = self._set_aside(position, following)
            if lost:
                self._spool.cover(position, following, self._head_base)
            self._let_pass(position, following)
            self._control.set_head(following, sequence + lost)
            return
        end = position + header.size
        self._let_pass(position, end)
        if header.tag == TAG_PAD:
            self._control.set_head(end, sequence)
            return
        if header.state == READY and reader.payload(header) is None:
            self._set_aside(position, end)
            self._write_state(position, DONE_BYTE)
        elif header.state == STATE_DEAD:
            self._ledger.append(position, header.size, header.deliveries, NEVER, DEAD_CODE)
        elif header.state == READY:
            due = decode_due(header.due)
            if header.due:
                self._words[SEEN_DELAYED] += 1
            if due <= time.time_ns() // 1_000_000:
                self._write_due(position, 0)
                self._write_state(position, bytes([READY]))  # one of its bits may have flipped
                self._odd_reader = None
                return
            self._words[H_STATE] |= SPECIAL  # who comes next has to look at what is due
            self._ledger.append(position, header.size, header.deliveries, due, DELAYED_CODE)
        self._control.set_head(end, sequence + 1)

    def _let_pass(self, position: int, end: int) -> None:
        """Before the head goes from a position to another: the checkpoint that lets it, if one is due."""
        if end > self._words[H_LIMIT]:
            mark_head(self._spool, self._control, DISTANCE + end - position)

    @at_head
    def _pass_letters(self) -> None:
        """Let the head pass dead letters that it has come to, as the next take would; they count as waiting until then."""
        while True:
            position, sequence = self._control.head()
            self._tail_seen, self._odd_reader = self._control.tail()[0], None  # as in `_take_fresh`
            buffer = self._read_ahead(position)
            if decode(buffer, 0, position, self._salt) is None or buffer[STATE_OFFSET] != STATE_DEAD:
                return
            self._pass_odd(position, sequence)

    # -- pieces --------------------------------------------------------------------------------------------------------
