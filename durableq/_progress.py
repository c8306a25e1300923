"""What a queue is doing, watched over time and shown to people: by a worker pool from inside, by `stat --watch` from outside.

    Watch(queue).look()      a View of this moment: counts, rates, time left, and who is on what
    open_display(stream)     a display that shows one View after the other, as good as the stream can carry it
    watch(queue)             both, once a second, until it is interrupted

On a terminal the display is a block that is drawn over again: with rich where that is installed, else in plain text. Where
there is no terminal it is silent, or (`lines`) says one line for each view. What others print meanwhile goes through the
display's `write`, so that the two do not land in each other's lines; for logging handlers on the same stream that is seen to.

Everything is derived from `DurableQueue.stats()`, so it holds for whatever program works on the queue.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, TypeGuard

from durableq._inspect import Stats
from durableq._picture import symbols_for
from durableq._queue import DurableQueue
from durableq.errors import DecodeError
from durableq.failures import short

__all__ = ["Display", "Holder", "View", "Watch", "block", "open_display", "summary", "watch"]

WINDOW = 10.0
"""Seconds over which a rate is taken: long enough to be calm, short enough to tell of a change."""


@dataclass(frozen=True)
class Holder:
    """A process that works on the queue."""

    pid: int
    name: str
    """Its command line, or what its pool calls it."""
    on: str | None
    """The item that it has, as a short text; None: none."""
    deliveries: int
    """How often that item was delivered."""
    seconds: float
    """For how long it has had it; from outside: since it was first seen with it."""


@dataclass(frozen=True)
class View:
    """A queue at one moment, and how it got there since the watch began."""

    stats: Stats
    done: int
    """Items done since the watch began."""
    rate: float
    """Items done in a second, over the last ten."""
    arriving: float
    """Items put in a second, over the last ten."""
    left: float | None
    """Seconds until everything that is there now is done, at this rate; None: not known, or never."""
    holders: tuple[Holder, ...]

    @property
    def failed(self) -> int:
        """Dead letters."""
        return self.stats.dead


class Watch:
    """Looks at a queue again and again. `holders` tells who works on what; by default the queue is asked."""

    def __init__(self, queue: DurableQueue, holders: Callable[[], Sequence[Holder]] | None = None) -> None:
        self._queue = queue
        self._holders = holders
        self._first_seen: dict[tuple[int, str], float] = {}
        first = queue.stats()
        self._start = first
        self._looks: deque[tuple[float, int, int]] = deque([(time.monotonic(), _done(first), first.puts)])

    def look(self) -> View:
        """The queue as it is now."""
        stats, now = self._queue.stats(), time.monotonic()
        looks = self._looks
        looks.append((now, _done(stats), stats.puts))
        while len(looks) > 2 and looks[1][0] < now - WINDOW:
            looks.popleft()
        then, done, puts = looks[0]
        passed = max(now - then, 1e-6)
        rate = max(0.0, (_done(stats) - done) / passed)
        arriving = max(0.0, (stats.puts - puts) / passed)
        left = 0.0 if not stats.unfinished else stats.unfinished / rate if rate else None
        holders = self._seen_from_outside(stats, now) if self._holders is None else self._holders()
        return View(stats, max(0, _done(stats) - _done(self._start)), rate, arriving, left, tuple(holders))

    def _seen_from_outside(self, stats: Stats, now: float) -> list[Holder]:
        lent = {peeked.pid: peeked for peeked in self._queue.peek_lent()}
        seen: dict[tuple[int, str], float] = {}
        holders = []
        for owner in stats.owners:
            if owner.pid == os.getpid():
                continue  # we only have it open to look
            peeked = lent.get(owner.pid)
            if peeked is None:
                holders.append(Holder(owner.pid, printable(owner.command), None, 0, 0.0))
                continue
            since = seen[owner.pid, peeked.id] = self._first_seen.get((owner.pid, peeked.id), now)
            on = f"item {peeked.id}" if isinstance(peeked.item, DecodeError) else short(peeked.item)
            holders.append(Holder(owner.pid, printable(owner.command), printable(on), peeked.deliveries, now - since))
        self._first_seen = seen
        return holders


def watch(queue: DurableQueue, stream: IO[str] | None = None, interval: float = 1.0) -> None:
    """Show what the queue is doing, every `interval` seconds, until KeyboardInterrupt. Without a terminal: in lines."""
    looker = Watch(queue)
    with open_display(stream or sys.stdout, lines=True) as display:
        while True:
            display.show(looker.look())
            time.sleep(interval)


def _done(stats: Stats) -> int:
    """Items done so far, but for a constant: only differences say something."""
    return stats.puts - stats.unfinished - stats.dead - stats.drops


# -- as text -----------------------------------------------------------------------------------------------------------


def summary(view: View) -> str:
    """One line."""
    stats = view.stats
    counts = f"{view.done} done, {view.failed} failed, {stats.lent} in flight, {stats.ready} waiting"
    if stats.delayed:
        counts += f", {stats.delayed} delayed"
    return f"{counts}, {_rate(view.rate)}, {_left(view)}"


def block(view: View, width: int, symbols: str, room: int = 40) -> list[str]:
    """Up to `room` lines of up to `width` characters: a bar, the summary, and a line for each holder."""
    lines = [f"{_bar(view, 20, symbols)} {_path(view, width - 23)}", f"  {summary(view)}"]
    # Those at work first, the longest at it on top: that is where one looks when something hangs.
    holders = sorted(view.holders, key=lambda holder: (holder.on is None, -holder.seconds, holder.pid))
    shown = holders if len(holders) <= room - 2 else holders[: max(0, room - 3)]
    lines += [f"  {holder.pid:>7}  {_on(holder)}" for holder in shown]
    if len(shown) < len(holders):
        lines.append(f"           and {len(holders) - len(shown)} more")
    return [line[:width] for line in lines]


def _path(view: View, width: int) -> str:
    """The file; of a long path the end, where its name is."""
    path = printable(view.stats.path)
    return path if len(path) <= width else "..." + path[-max(1, width - 3) :]


def _bar(view: View, width: int, symbols: str) -> str:
    total = view.done + view.stats.unfinished
    filled = width * view.done // total if total else width
    return f"|{symbols[0] * filled}{symbols[3] * (width - filled)}|"


def _on(holder: Holder) -> str:
    if holder.on is None:
        return f"idle: {holder.name}"
    again = f", delivery {holder.deliveries}" if holder.deliveries > 1 else ""
    return f"{holder.on} ({duration(holder.seconds)}{again}): {holder.name}"


def _rate(rate: float) -> str:
    if rate >= 10 or not rate:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 3600:.0f}/h"


def _left(view: View) -> str:
    if view.left is None:
        return "time left unknown"
    return f"{duration(view.left)} left" if view.stats.unfinished else "nothing left"


def duration(seconds: float) -> str:
    """12 s, 3:20 min, 5:03 h, 12 days."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02} h" if whole < 48 * 3600 else f"{whole // 86400} days"


def printable(text: str) -> str:
    """Text that cannot steer a terminal: what comes out of a queue is anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


# -- displays ----------------------------------------------------------------------------------------------------------


class Display(ABC):
    """Shows views, and lets others write lines in between. A context manager; leaves the last view standing."""

    silent = False
    """Whether it shows nothing, so that nobody need look."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @abstractmethod
    def show(self, view: View) -> None:
        """Show this view in place of the last one."""

    def write(self, text: str) -> None:
        """What somebody else has to say."""
        self._stream.write(text)

    def flush(self) -> None:
        """As of a stream."""
        self._stream.flush()

    def __enter__(self) -> Display:
        self._handlers = [handler for handler in logging.getLogger().handlers if _writes_to(handler, self._stream)]
        for handler in self._handlers:
            handler.setStream(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            with suppress(OSError):  # the terminal is gone
                self._end()
        finally:
            for handler in self._handlers:
                handler.stream = self._stream  # `setStream` flushes first, and leaves it at that if the terminal is gone

    def _end(self) -> None:
        """Leave the last view standing."""
        self.flush()


def _writes_to(handler: logging.Handler, stream: IO[str]) -> TypeGuard[logging.StreamHandler[Any]]:
    return isinstance(handler, logging.StreamHandler) and handler.stream is stream


def open_display(stream: IO[str] | None, *, lines: bool = False) -> Display:
    """The best display for the stream. Without a terminal: silent, or one line for each view (`lines`)."""
    if stream is None:
        return _Silent(io.StringIO())
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return _Lines(stream) if lines else _Silent(stream)
    try:
        return _Rich(stream)
    except ImportError:
        return _Plain(stream)


class _Silent(Display):
    silent = True

    def show(self, view: View) -> None:
        pass


class _Lines(Display):
    def show(self, view: View) -> None:
        self._stream.write(f"{time.strftime('%H:%M:%S')} {summary(view)}\n")
        self._stream.flush()


class _Plain(Display):
    """Draws the block, and draws over it: cursor up, clear to the end of the screen."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._symbols = symbols_for(stream)
        self._drawn: list[str] = []

    def show(self, view: View) -> None:
        size = shutil.get_terminal_size()
        # A filled last column would wrap, a filled last line would scroll: both would leave remains.
        self._draw("", block(view, size.columns - 1, self._symbols, size.lines - 1))

    def write(self, text: str) -> None:
        self._draw(text, self._drawn)

    def _draw(self, above: str, lines: list[str]) -> None:
        wipe = f"\x1b[{len(self._drawn)}A\r\x1b[J" if self._drawn else ""
        self._stream.write(wipe + above + "".join(line + "\n" for line in lines))
        self._stream.flush()
        self._drawn = lines


class _Rich(Display):
    """The same with rich: https://rich.readthedocs.io/en/stable/live.html"""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream)
        self._console = Console(file=stream)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def show(self, view: View) -> None:
        self._live.update(self._rendered(view), refresh=True)

    def write(self, text: str) -> None:
        self._console.print(text, end="", markup=False, emoji=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Display:
        self._live.start()
        return super().__enter__()

    def _end(self) -> None:
        self._live.stop()
        super()._end()

    def _rendered(self, view: View) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        path = Text(_path(view, self._console.width), style="bold", no_wrap=True)
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        total = view.done + view.stats.unfinished
        bar = ProgressBar(total=total or 1, completed=view.done if total else 1)
        head.add_row(bar, Text(summary(view), style="red" if view.failed else ""))
        table = Table(box=None, expand=True, show_header=bool(view.holders), padding=(0, 1))
        table.add_column("pid", justify="right", style="cyan", no_wrap=True)
        table.add_column("item", ratio=2, no_wrap=True, overflow="ellipsis")
        table.add_column("for", justify="right", no_wrap=True)
        table.add_column("delivery", justify="right", no_wrap=True)
        table.add_column("process", ratio=1, no_wrap=True, overflow="ellipsis", style="dim")
        for holder in sorted(view.holders, key=lambda holder: (holder.on is None, -holder.seconds, holder.pid)):
            seconds = duration(holder.seconds) if holder.on is not None else ""
            delivery = str(holder.deliveries) if holder.on is not None else ""
            on = Text(holder.on) if holder.on is not None else Text("idle", style="dim")
            table.add_row(str(holder.pid), on, seconds, delivery, Text(holder.name))
        return Group(path, head, table)
