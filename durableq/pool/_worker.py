"""One worker: reserve, run the function, put the result, ack; until told to stop, or old enough to be replaced.

What is left when it dies between any two steps:

    reserve .. the result's put     the item: it is delivered again
    .. the ack                      its result, and the item: it is delivered again, and a second result of the same id comes
    after the ack                   its result, and the item is done

So each item is done with its result in the results queue, or is delivered again. The results queue of a pool syncs at once
(unless the pool's `sync` is None), for after a power cut, too, no ack may be older than its result.

A batch fails as a whole. What failed, or lost its worker, comes again alone, so that a bad item ends up by itself and does not
take its neighbours to the dead letters.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from durableq import failures
from durableq._delivery import Delivery
from durableq.errors import DecodeError, Empty, ShutDown, StaleDeliveryError
from durableq.failures import NOT_DECODED, Failure
from durableq.pool._keeper import Keeper, die_with, take_signals
from durableq.pool._link import Cell, Forwarder
from durableq.pool._settings import Result, Settings

_log = logging.getLogger("durableq.pool")

_STOPPED = ("", "told to stop", "SIGTERM")
"""By `stop` of the cell."""

_LOOK = 0.25
"""Seconds after which a worker that waits for an item looks whether it is to stop."""


def main(settings: Settings, cell: Cell, end: socket.socket, lifeline: Connection | None, pool: int) -> None:
    """What a worker process runs. `pool` is the pool's pid; for `lifeline` see `die_with`."""
    die_with(pool, lifeline)
    cell.catch_last_words()
    keeper = Keeper(end, cell, settings.lease)
    take_signals(cell)
    root = logging.getLogger()
    if not root.handlers:  # under fork there are those of the parent
        root.addHandler(Forwarder(end))
        root.setLevel(settings.log_level)
    keeper.start()
    try:
        cell.leave(*Worker(settings, cell, keeper).work())
    except BaseException:
        # The queue itself failed, not an item: a fresh handle, in a fresh process, is what can help.
        _log.critical("a worker cannot go on", exc_info=True)
        sys.exit(1)


class Worker:
    """The loop."""

    def __init__(self, settings: Settings, cell: Cell, keeper: Keeper) -> None:
        self._settings = settings
        self._cell = cell
        self._keeper = keeper
        self._queue = settings.queue
        self._memory = _memory_of_this_process() if settings.max_memory else None

    def work(self) -> tuple[str, bool]:
        """Until there is a reason to end: it, and whether it is one for the whole pool."""
        self._cell.fields.ready = 1
        taken = 0
        while True:
            reason = _STOPPED[self._cell.fields.stop] or self._too_old(taken)
            if reason:
                return reason, False
            try:
                (first,) = self._queue.reserve_sealed(1, timeout=_LOOK)
            except Empty:
                continue
            except ShutDown:
                return "the queue was shut down", True
            if self._cell.fields.stop:
                _settle(first, Delivery.release)
            elif not self._delivered_too_often(first):
                together = self._join(first)
                taken += len(together)
                try:
                    self._take_on(together)
                except (ShutDown, OSError) as error:  # of a queue, and no fault of the items
                    for delivery in together:
                        with suppress(OSError):
                            _settle(delivery, Delivery.release)
                    if isinstance(error, ShutDown):
                        return "the results queue was shut down", True
                    raise

    def _too_old(self, taken: int) -> str:
        settings = self._settings
        if not taken:  # whoever is too big from the start does one item all the same: else nobody ever would
            return ""
        if settings.max_items and taken >= settings.max_items:
            return f"max_items: it has had {taken}"
        if self._memory is not None and settings.max_memory is not None and self._memory() > settings.max_memory:
            return f"max_memory: it has {self._memory() >> 20} MiB"
        return ""

    # -- one item, or one batch ----------------------------------------------------------------------------------------

    def _join(self, first: Delivery) -> list[Delivery]:
        """A batch that begins with this one; what was delivered before comes alone."""
        together = [first]
        if self._settings.batch is None or self._settings.batch == 1 or first.deliveries > 1:
            return together
        try:
            others = self._queue.reserve_sealed(self._settings.batch - 1, block=False)
        except (Empty, ShutDown):
            return together
        for delivery in others:
            if delivery.deliveries == 1:
                together.append(delivery)
            else:
                _settle(delivery, Delivery.release)
        return together

    def _take_on(self, together: list[Delivery]) -> None:
        """Decode these, run the function on them and settle them."""
        first = together[0]
        self._cell.begin(first.id, first.deliveries, len(together))
        self._keeper.held = together
        try:
            if self._settings.lease is not None:
                self._keeper.extend()
            decoded = [delivery for delivery in together if self._is_decoded(delivery)]
            if decoded:
                self._cell.name(failures.short(decoded[0].item))
                self._run(decoded)
        finally:
            self._cell.end()
            self._keeper.held = ()

    def _is_decoded(self, delivery: Delivery) -> bool:
        """Decode it; what cannot be decoded is a dead letter."""
        try:
            self._queue.unseal(delivery)
        except DecodeError as error:
            failures.note(self._queue, Failure.undecoded(delivery, str(error)))
            if _settle(delivery, Delivery.reject):
                self._cell.fields.dead += 1
                _log.error("item %s is a dead letter: %s", delivery.id, error)
            return False
        return True

    def _delivered_too_often(self, delivery: Delivery) -> bool:
        """Whether it has had all its chances: each of its workers died, or it would not come once more."""
        most = self._settings.max_deliveries
        if most is None or delivery.deliveries <= most:
            return False
        before = delivery.deliveries - 1
        story = None
        with suppress(OSError):  # stories that cannot be read cost no worker, and the item still has had its chances
            story = failures.latest(self._queue, delivery.id)
        if story is None or story.deliveries < before:  # the pool that saw its worker die did not live to tell
            reason = f"delivered {before} times, and nobody lived to tell what happened"
            failures.note(self._queue, Failure.now(delivery.id, before, NOT_DECODED, reason))
        if _settle(delivery, Delivery.reject):
            self._cell.fields.dead += 1
            _log.error("item %s is a dead letter: %d deliveries, and each worker died", delivery.id, before)
        return True

    def _run(self, together: list[Delivery]) -> None:
        items = [delivery.item for delivery in together]
        try:
            if self._settings.batch is None:
                values = [self._settings.function(items[0])]
            else:
                values = self._spread(self._settings.function(items), len(items))
        except BaseException as error:  # SystemExit as well: to end the worker is not the function's to decide
            self._failed(together, error)
            return
        self._cell.end()  # the time limit is the function's; what follows waits for disks and consumers
        try:
            self._put_results(together, values)
        except (ShutDown, OSError):  # of the queue, not of the item
            raise
        except Exception as error:
            self._failed(together, error)
            return
        for delivery in together:
            if _settle(delivery, Delivery.ack):
                self._cell.fields.done += 1
                _log.debug("item %s is done", delivery.id)

    def _spread(self, values: Any, count: int) -> list[Any]:
        if self._settings.results is None:
            return []
        found = list(values)
        if len(found) != count:
            raise ValueError(f"the function returned {len(found)} results for a batch of {count} items")
        return found

    def _put_results(self, together: Sequence[Delivery], values: Sequence[Any]) -> None:
        results = self._settings.results
        if results is None:
            return
        told = False
        found = [Result(delivery.id, value) for delivery, value in zip(together, values, strict=True)]
        while True:
            try:
                results.put_many(found)  # waits while the results queue is full: its consumers set the pace
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not told:  # a full disk is no fault of the item's, and no reason to do the work again
                    _log.error("the result of item %s waits until it can be put: %s", found[0].id, error)
                told = True
                time.sleep(1.0)

    # -- failures ------------------------------------------------------------------------------------------------------

    def _failed(self, together: Sequence[Delivery], error: BaseException) -> None:
        self._cell.fields.failed += len(together)
        reason, details = _story(error)
        for delivery in together:
            give_up = self._ask(delivery, error) or self._is_last(delivery)
            try:
                if give_up:
                    failures.reject(self._queue, delivery, reason, details)
                    self._cell.fields.dead += 1
                    _log.error("item %s is a dead letter after delivery %d: %s", delivery.id, delivery.deliveries, reason)
                else:
                    delay = max(0.0, self._settings.backoff(delivery.deliveries))
                    delivery.nack(delay)
                    _log.warning("item %s failed, again in %.1f s: %s", delivery.id, delay, reason)
            except StaleDeliveryError as late:
                _log.warning("item %s failed too late (%s): %s", delivery.id, reason, late)

    def _is_last(self, delivery: Delivery) -> bool:
        most = self._settings.max_deliveries
        return most is not None and delivery.deliveries >= most

    def _ask(self, delivery: Delivery, error: BaseException) -> bool:
        """What the user's `on_error` says: whether to give the item up."""
        if self._settings.on_error is None:
            return False
        try:
            return bool(self._settings.on_error(delivery, error))
        except Exception:
            _log.exception("on_error itself failed, for item %s", delivery.id)
            return False


def _story(error: BaseException) -> tuple[str, str]:
    """One line, and the traceback from the user's function on."""
    try:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        inside = error.__traceback__.tb_next if error.__traceback__ else None
        return reason, "".join(traceback.format_exception(type(error), error, inside or error.__traceback__))
    except Exception as worse:  # it cannot be shown
        return f"{type(error).__name__} (and a {type(worse).__name__} while that was described)", ""


def _settle(delivery: Delivery, how: Callable[[Delivery], None]) -> bool:
    """Whether it was still ours; if not, nothing was changed."""
    try:
        how(delivery)
    except StaleDeliveryError as error:
        _log.warning("item %s: %s", delivery.id, error)
        return False
    return True


def _memory_of_this_process() -> Callable[[], int]:
    import psutil

    process = psutil.Process(os.getpid())
    return lambda: int(process.memory_info().rss)
