"""The consumers' end, with items in hand: settling what was taken, dropping, redriving. See `_store` for the invariants."""

from __future__ import annotations

import time

from durableq import _os
from durableq._head import READY_BYTE, HeadEnd
from durableq._leases import DEAD_CODE, DEAD_LENT, DELAYED_CODE, MAX_COUNT, RETURNED_CODE, Taken, is_dead_letter
from durableq._locks import NOBODYS, TAKEN, UNKNOWN
from durableq._reclaim import BATCH
from durableq._record import DONE_BYTE, READY, STATE_OFFSET, due_after, encode_body, record_size
from durableq._runs import side_by_side
from durableq._scan import Reader
from durableq._spool import SUPERBLOCK
from durableq._state import BUSY, DROPS, GET_WAITERS, H_STATE, JOIN_WAITERS, NAMESPACE, UNPUNCHED
from durableq._stepping import at_head
from durableq._wakeup import EVERYBODY, GET, JOIN

_mutex_try, _mutex_mend, _mutex_unlock = _os.mutex_try, _os.mutex_mend, _os.mutex_unlock


_acked_unasked: dict[tuple[int, int], bool] = {}
"""(salt, position) of what was acked in the name of whichever thread had taken it: to that it is no loss of its lease."""
_MOST_UNASKED = 1 << 16


class Settler(HeadEnd):
    """What consumers do with what they have."""

    # -- settling ------------------------------------------------------------------------------------------------------

    def ack(self, position: int, index: int, count: int) -> bool:
        """Make a lent item done; False if it is no longer ours, and then nothing was changed."""
        if self._fast_ack is not None and (did := self._fast_ack(position, index, count)):
            if did > 1:
                self._is_done()
            return True
        if self._unfit:
            self._check()
        words = self._words
        lock = self._head
        at, code = lock.address, UNKNOWN
        try:
            code = _mutex_try(at)
            if code:
                code = lock.wait(code)
            if words[H_STATE] != self._calm:
                self._see_head()
            i = self._ours(position, index, count)
            if i < 0:
                return False
            self._finish(i, position)
        except BaseException as exc:
            words[H_STATE] |= BUSY
            _mutex_mend(at)
            if code not in TAKEN and words[NAMESPACE] != lock.namespace:
                at = NOBODYS
            raise self._refused(exc, "the item is not done and stays lent", "nothing was changed") from exc.__cause__
        finally:
            _mutex_unlock(at)
        self._is_done()
        if words[UNPUNCHED] >= BATCH:
            self._tidy_up()
        return True

    def ack_many(self, box: list[Taken]) -> int:
        """Make lent items done, all under one lock; how many: those that are not ours any more are left alone.

        Cheap for items that were taken together and lie side by side.
        """
        self._check()
        done = self._ack_many_locked(box) if box else 0
        if done:
            self._is_done(done)
            if self._words[UNPUNCHED] >= BATCH:
                self._tidy_up()
        return done

    @at_head
    def _ack_many_locked(self, box: list[Taken]) -> int:
        positions = [taken[0] for taken in box]
        first, index, count = box[0][:3]
        ledger = self._ledger
        i = ledger.find_run(positions, index, count, self._own_code)
        if i < 0:
            done = 0
            for position, index, count, *_ in box:
                i = self._ours(position, index, count)
                if i >= 0:
                    self._finish(i, position)
                    done += 1
            return done
        sizes = ledger.run_sizes(i, len(box))
        # The marks first, as in `_finish`.
        length = sum(sizes)
        if length <= len(box) << 10 and side_by_side(positions, sizes):
            records = _os.pread(self._fd, length, first - self._head_base)
            self._mark_done(records, first, 0, length, [position - first for position in positions])
        else:
            for position in positions:
                self._write_state(position, DONE_BYTE)
        self._words[UNPUNCHED] += ledger.free_run(i, sizes)
        return len(box)

    def ack_oldest(self, dead: bool = False) -> bool:
        """Make the oldest item done that was lent by `get` to this process, else to anybody; False if there is none.

        `dead`: of the dead letters, which are no items of the queue's, nor these letters.
        """
        self._check()
        try:
            if not self._ack_oldest_locked(dead):
                return False
        except OSError as exc:
            raise self._refused(exc, "the item is not done and stays lent", "nothing was changed") from exc
        self._is_done()
        if self._words[UNPUNCHED] >= BATCH:
            self._tidy_up()
        return True

    @at_head
    def _ack_oldest_locked(self, dead: bool) -> bool:
        i = -1
        for slot in self._owners.of_this_process():
            found = self._ledger.next_owned(slot, dead)
            i = found if i < 0 or 0 <= found < i else i
        if i < 0:
            i = self._ledger.next_lent(dead)
        if i < 0:
            return False
        position = self._ledger.position[i]
        self._finish(i, position)
        if self._lease_ms:
            _acked_unasked[self._salt, position] = True
            if len(_acked_unasked) > _MOST_UNASKED:
                del _acked_unasked[next(iter(_acked_unasked))]
        return True

    @at_head
    def went_away(self, position: int, index: int, again: bool) -> bool:
        """Whether an item that an ack found not to be ours has gone to somebody else, who may have done it by now.

        `again`: it was not the first ack of it, so if it is done, we have done it.
        """
        if self._ledger.find(position, index) >= 0:
            return True
        return self._lease_ms > 0 and not again and _acked_unasked.pop((self._salt, position), False) is False

    @at_head
    def is_lent(self, position: int, index: int, count: int) -> bool:
        """Whether an ack of an item would make it done, or find that its lease has ended, which is to be told."""
        return self._lease_ms > 0 or self._ours(position, index, count) >= 0

    def count_off(self) -> bool:
        """Count off an item that was done when this handle took it; False if there is none left. The file does not change.

        From the first time on `wait_until_finished` waits for this too: the program tells when its work has ended.
        """
        self._check()
        if not self._count_off_locked():
            return False
        if self._words[JOIN_WAITERS] and not self._handed_out:
            self._wakeup.wake(JOIN, EVERYBODY)
        return True

    @at_head
    def _count_off_locked(self) -> bool:
        self._counts_off = True
        if not self._handed_out:
            return False
        self._handed_out -= 1
        return True

    def nack(self, position: int, index: int, count: int, delay: float = 0.0) -> bool:
        """Give a lent item back, after `delay` seconds; False if it is no longer ours, and then nothing was changed."""
        self._check()
        if not self._nack_locked(position, index, count, delay):
            return False
        self._news()
        return True

    @at_head
    def _nack_locked(self, position: int, index: int, count: int, delay: float) -> bool:
        i = self._ours(position, index, count)
        if i < 0:
            return False
        ledger = self._ledger
        deliveries = count & MAX_COUNT
        _os.pwrite(self._fd, bytes([min(deliveries, 255)]), position - self._head_base + STATE_OFFSET + 1)
        if is_dead_letter(ledger.owner[i]):
            ledger.change(i, DEAD_CODE)
        elif self._max_deliveries and deliveries >= self._max_deliveries:
            self._bury_letter(i)
        elif delay > 0:
            due = due_after(time.time_ns() // 1_000_000, delay)
            self._write_due(position, due)
            ledger.set_until(i, due)  # first: a kill before it would leave an item that never falls due
            ledger.change(i, DELAYED_CODE)
        else:
            ledger.change(i, RETURNED_CODE)
            _os.advise_needed(self._fd, position - self._head_base, ledger.size(i))
        return True

    def release(self, position: int, index: int, count: int) -> bool:
        """Give a lent item back uncounted; False if it is no longer ours, and then nothing was changed."""
        self._check()
        if not self._release_locked(position, index, count):
            return False
        self._news()
        return True

    @at_head
    def _release_locked(self, position: int, index: int, count: int) -> bool:
        i = self._ours(position, index, count)
        if i < 0:
            return False
        self._return_uncounted(i, count)
        return True

    def reject(self, position: int, index: int, count: int) -> bool:
        """Put a lent item with the dead letters; False if it is no longer ours, and then nothing was changed."""
        self._check()
        if not self._reject_locked(position, index, count):
            return False
        self._news()
        return True

    @at_head
    def _reject_locked(self, position: int, index: int, count: int) -> bool:
        i = self._ours(position, index, count)
        if i < 0:
            return False
        self._bury_letter(i)
        return True

    def extend(self, position: int, index: int, count: int, seconds: float) -> bool:
        """Let a lease end `seconds` from now; False if the item is no longer ours, and then nothing was changed."""
        self._check()
        if not self._extend_locked(position, index, count, seconds):
            return False
        if self._words[GET_WAITERS]:  # they sleep until the next thing falls due, which this may have brought nearer
            self._wakeup.wake(GET, EVERYBODY)
        return True

    @at_head
    def _extend_locked(self, position: int, index: int, count: int, seconds: float) -> bool:
        i = self._ours(position, index, count)
        if i < 0 or self._ledger.owner[i] & ~DEAD_LENT != self._own_code:
            return False
        self._ledger.set_until(i, due_after(time.time_ns() // 1_000_000, seconds))
        return True

    def untake(self, box: list[Taken], dead_letter: bool = False, was_dead: bool = False) -> None:
        """Give back what was put into the box as if it had not been delivered; what is back already is passed over.

        `dead_letter`: put it with the dead letters instead (it cannot be decoded). `was_dead`: that is where it was.
        """
        if not box:  # the disk may be so sick that even a look fails, and its error hides the one that we come from
            return
        self._check()
        dead_letter = dead_letter or was_dead
        for _, _, _, tag, enqueued, payload in self._untake_locked(box, dead_letter, was_dead):
            self._append_again(encode_body(payload, tag, enqueued, self._salt), dead_letter)
        self._news()

    def _append_again(self, body: bytes, dead_letter: bool) -> None:
        """Put an item back whose record is gone."""
        raise NotImplementedError

    @at_head
    def _untake_locked(self, box: list[Taken], dead_letter: bool, was_dead: bool) -> list[Taken]:
        ledger = self._ledger
        reader = Reader(self._fd, self._salt, self._head_base)
        head = self._control.head()[0]
        gone = []
        for taken in box:
            position, index, count, _, _, payload = taken
            if position >= head:  # it was not taken after all
                continue
            i = ledger.find(position, max(index, 0))
            if index < 0:
                if i >= 0:
                    continue
                if not was_dead:
                    self._handed_out = max(0, self._handed_out - 1)
                header = reader.header(position) if position - self._head_base >= SUPERBLOCK else None
                if header is None or reader.payload(header) != payload:
                    gone.append(taken)  # its space was given back
                    continue
                self._uncover(reader, position)
                self._write_state(position, READY_BYTE)
                ledger.rebuild((position, record_size(len(payload)), RETURNED_CODE))
                ledger.recount(head)
                i = ledger.find(position, 0)
            elif i < 0 or ledger.owner[i] & ~DEAD_LENT != self._own_code:
                continue
            if dead_letter:
                ledger.count[i] = max(0, (count & MAX_COUNT) - 1)
                self._bury_letter(i)
            else:
                self._return_uncounted(i, count)
        return gone

    def _uncover(self, reader: Reader, position: int) -> None:
        """Let the pad of a punch that lies over a record end before it: recovery would pass it by."""
        block = (position - self._head_base & -_os.BLOCK) + self._head_base
        for pad in (block, block - _os.BLOCK):
            if reader.pad_end(pad) > position:
                self._spool.cover(pad, position, self._head_base)

    def _return_uncounted(self, i: int, count: int) -> None:
        ledger = self._ledger
        deliveries = max(0, (count & MAX_COUNT) - 1)
        # In the file as well, where taking it may have counted it.
        _os.pwrite(self._fd, bytes([min(deliveries, 255)]), ledger.position[i] - self._head_base + STATE_OFFSET + 1)
        ledger.count[i] = deliveries
        ledger.change(i, DEAD_CODE if is_dead_letter(ledger.owner[i]) else RETURNED_CODE)

    def _ours(self, position: int, index: int, count: int) -> int:
        """The entry of a delivery, or -1 if the item is done or went to somebody else.

        A lease that ran out is still ours as long as nobody has taken the item: the work is done, why do it twice.
        """
        ledger = self._ledger
        i = ledger.find(position, index)
        if i < 0 or ledger.count[i] != count:
            return -1
        owner = ledger.owner[i]
        return i if owner & ~DEAD_LENT == self._own_code or owner in (RETURNED_CODE, DEAD_CODE) else -1

    def _finish(self, i: int, position: int) -> None:
        # The mark first: an entry whose record is done is noticed, a record without an entry would be lost.
        _os.pwrite(self._fd, DONE_BYTE, position - self._head_base + STATE_OFFSET)
        self._words[UNPUNCHED] += self._ledger.free(i)

    # -- dropping and redriving ----------------------------------------------------------------------------------------

    def drop_one(self) -> bool:
        """Drop the oldest item that nobody has. Under the head lock, stepped in.

        False if there is none, or the head came to what is none, and has passed it or read it anew.
        """
        box: list[Taken] = []
        self._take_returned(box, 1, True, 0)
        if not box:
            self._take_fresh(box, 1, True, 0)
        self._words[DROPS] += len(box)
        return bool(box)

    def redrive(self) -> int:
        """Put all dead letters that nobody has back into the queue, as if never delivered; how many."""
        self._check()
        n = self._redrive_locked()
        self._news()
        return n

    @at_head
    def _redrive_locked(self) -> int:
        ledger = self._ledger
        n = 0
        i = ledger.next_dead()
        while i >= 0:
            position = ledger.position[i]
            # The count first: who dies behind the mark leaves an item that is ready, and must be as if never delivered.
            ledger.count[i] = 0
            _os.pwrite(self._fd, bytes([READY, 0]), position - self._head_base + STATE_OFFSET)
            ledger.change(i, RETURNED_CODE)
            n += 1
            i = ledger.next_dead(i + 1)
        return n
