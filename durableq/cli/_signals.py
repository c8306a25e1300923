"""SIGINT, SIGTERM and SIGHUP, taken at moments at which nothing is lost by it.

Python raises KeyboardInterrupt between any two byte codes: also between a read from a pipe and the line that keeps what was
read. So the handler here only notes the signal, and the program ends where it looks (`check`) or waits (`waiting`). A second
signal is for who has lost patience: it ends the program wherever it is.

A note alone does not end a system call that is about to begin, or that another thread than the signalled one is in. So the
signal also leaves a byte in a pipe (`signal.set_wakeup_fd`), to which every wait without an end listens (`poll`): D. J.
Bernstein's self-pipe trick.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType, TracebackType


class Stopped(KeyboardInterrupt):
    """The program is to end; `number` is the signal that said so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """As a context manager it has the handlers installed. An ignored signal stays ignored, as `nohup` wants it."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, if one did."""
        self._waits = False
        self.waiting = _Waiting(self)
        """A context manager around a wait that keeps no results and has an end, be it to look around and go on: a signal that
        comes in it or came before it ends it with Stopped, at the latest at its next look."""

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    def poll(self, poll: select.poll, milliseconds: float | None = None, *, deaf: bool = False) -> list[tuple[int, int]]:
        """What is ready of `poll`. Raises Stopped when a signal comes, or came before; `deaf`: at a second one only."""
        poll.register(self._news, select.POLLIN)
        while True:
            with contextlib.nullcontext() if deaf else self.waiting:
                ready = poll.poll(milliseconds)
            if ready != [(self._news, select.POLLIN)]:
                return [one for one in ready if one[0] != self._news]
            os.read(self._news, 64)  # of a signal that has been noted, or was none of ours

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self.number = self.number is not None, number
        if self._waits or second:
            self._waits = False
            raise Stopped(number)

    def __enter__(self) -> Signals:
        self._news, self._teller = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._teller_before = signal.set_wakeup_fd(self._teller, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._teller_before)
        os.close(self._news)
        os.close(self._teller)


class _Waiting:
    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        # In this order: what comes after the first line is raised by the handler, what came before it by the second.
        self._signals._waits = True
        self._signals.check()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._signals._waits = False
