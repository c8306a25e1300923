"""SIGINT, SIGTERM and SIGHUP, taken at moments at which nothing is lost by it.

Python raises KeyboardInterrupt between any two byte codes: also between a read from a pipe and the line that keeps what was
read. So the handler here only notes the signal, and the program ends where it looks (`check`) or waits (`waiting`). A second
signal is for who has lost patience: it ends the program wherever it is.
"""

from __future__ import annotations

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
        """A context manager around a wait that keeps no results: a signal ends it, and one that came before does so too."""

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self.number = self.number is not None, number
        if self._waits or second:
            self._waits = False
            raise Stopped(number)

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Waiting:
    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        # In this order: what comes after the first line is raised by the handler, what came before it by the second.
        self._signals._waits = True
        self._signals.check()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._signals._waits = False
