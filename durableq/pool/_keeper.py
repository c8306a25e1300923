"""The thread that keeps a worker's promises while its main thread is busy with the user's function.

It extends the leases of what is in hand, gives it back when the pool says NOW, and ends the process when the pool is dead. It
runs as long as the interpreter does: a function that never gives up the GIL, or a stopped process, lets its lease run out,
and its item goes to somebody else. That is what a lease is for.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType

from durableq._delivery import Delivery
from durableq.errors import DurableQError, StaleDeliveryError
from durableq.pool._link import NOW, Cell

_log = logging.getLogger("durableq.pool")

_PR_SET_PDEATHSIG = 1


class Keeper(threading.Thread):
    """See the module. `held` is what the main thread has in hand, and set by it."""

    def __init__(self, end: socket.socket, cell: Cell, lease: float | None) -> None:
        super().__init__(name="durableq-keeper", daemon=True)
        self.held: Sequence[Delivery] = ()
        self._end = end
        self._cell = cell
        self._lease = lease

    def run(self) -> None:
        """Until the process ends."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        # Three tries before a lease ends. Also while nothing is held: being told of each item would cost more.
        tick = None if self._lease is None else 1000 * self._lease / 3
        while True:
            if poll.poll(tick):
                self._hear(self._end.recv(64))
            if self._lease is not None:
                self.extend()

    def _hear(self, message: bytes) -> None:
        if message == NOW:
            # The main thread may be acking one of them at this moment. Whoever is first settles it, the other gets the
            # StaleDeliveryError, and in each case it is settled once.
            for delivery in self.held:
                with suppress(DurableQError, OSError):
                    delivery.release()
            self._cell.leave("told to stop at once")
            os._exit(0)
        else:
            os._exit(1)  # the pool is dead: what is in hand goes back as from any dead process

    def extend(self) -> None:
        """Everything in hand is ours for another lease."""
        assert self._lease is not None
        for delivery in self.held:
            try:
                delivery.extend(self._lease)
            except StaleDeliveryError:
                pass  # settled just now, or lost while we were stopped: its ack will tell
            except (DurableQError, OSError) as error:
                _log.warning("the lease of item %s could not be extended: %s", delivery.id, error)


def die_with(pool: int, lifeline: Connection | None) -> None:
    """Have the kernel kill this process when the pool's dies, whatever this one is busy with.

    The pool is our parent, unless there is a lifeline. The kernel means the thread that started us; that one waits for all
    its workers before it ends.

    `lifeline`: the end for reading of a pipe whose other end the pool alone has, for the parent is a fork server, which
    outlives the pool. The kernel tells of its end by a signal of our choice (F_SETSIG, see fcntl(2)).
    """
    if lifeline is None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != pool:  # it was dead before that call
            os._exit(1)
        return
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if lifeline.poll():  # as above: nothing is ever written, so this is the end
        os._exit(1)


def take_signals(cell: Cell) -> None:
    """A terminal and systemd send their signals to workers as well; but when to stop, and how fast, is the pool's to say.

    SIGTERM to a worker alone ends it after its item. The handlers do nothing rather than that the signals are ignored: an
    ignored signal stays ignored in every program that the user's function starts.
    """

    def retire(number: int, frame: FrameType | None) -> None:
        cell.fields.stop = cell.fields.stop or 2

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    for number, handler in ((signal.SIGTERM, retire), (signal.SIGINT, nothing), (signal.SIGHUP, nothing)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as the pool was started, so are they
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What the pool blocks while it starts a worker, until that has its own handlers."""
