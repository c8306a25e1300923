"""What became of every item, from what the workers wrote down.

Evidence -> verdict:

    put returned, last delivery settled (DONE, REJECTED)         in order
    put returned, last holder killed while settling              in order: the kill may have come before or after
    put returned, last holder killed while merely holding        LOST: it had to be delivered again
    put returned, never delivered                                LOST
    put killed half way (INTENT only)                            may be there or not, but once
    put refused, or never tried, and delivered                   PHANTOM
    delivered again after DONE or REJECTED                       TWICE
    delivered again while the earlier holder lived and held it   TWICE
    delivered twice to one holder without a nack between         TWICE

With ack="get" a delivery is the end: a second one is TWICE, and what was never delivered must be covered by gets that
were under way in a killed consumer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from . import log
from .log import Event

HELD, SETTLING, DONE, BACK, REJECTING, REJECTED = "held", "settling", "done", "given back", "rejecting", "rejected"

_MOVES = {
    log.SETTLING: ((HELD,), SETTLING),
    log.DONE: ((SETTLING,), DONE),
    log.GIVING_BACK: ((HELD,), BACK),
    log.REJECTING: ((HELD,), REJECTING),
    log.REJECTED: ((REJECTING,), REJECTED),
}

Key = tuple[int, int]


@dataclass
class Lending:
    """One item in one pair of hands."""

    worker: int
    thread: int
    since: int
    deliveries: int
    state: str = HELD


@dataclass
class Tally:
    puts: int = 0
    gets: int = 0
    redelivered: int = 0
    undecided: int = 0
    """Killed inside put, get (at most once) or task_done, where both outcomes are right."""
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Everything else: phantoms, broken order, wrong counts, workers that failed or hung."""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.wrong)

    def add(self, other: Tally) -> None:
        for name in ("puts", "gets", "redelivered", "undecided"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lost += other.lost
        self.twice += other.twice
        self.wrong += other.wrong


class Account:
    """Fed with the logs; `close()` gives the verdict."""

    def __init__(self, *, at_most_once: bool = False, ordered: bool = False, count_survives: bool = True) -> None:
        self.at_most_once, self.ordered, self.count_survives = at_most_once, ordered, count_survives
        self.tally = Tally()
        self.intended: set[Key] = set()
        self.returned: set[Key] = set()
        self.refused: set[Key] = set()
        self.lendings: dict[Key, list[Lending]] = {}
        self.open_asks: dict[int, int] = {}

    def worker(self, events: Iterable[Event]) -> None:
        """The log of one worker, in its own order."""
        holding: dict[Key, Lending] = {}
        asked: dict[int, int] = {}
        last: dict[int, int] = {}
        worker = 0
        for event in events:
            worker = event.worker
            key = (event.origin, event.seq)
            if event.kind in (log.INTENT, log.RETURNED, log.REFUSED):
                puts = {log.INTENT: self.intended, log.RETURNED: self.returned, log.REFUSED: self.refused}
                puts[event.kind].update((event.origin, event.seq + n) for n in range(event.count))
            elif event.kind == log.ASK:
                asked[event.thread] = event.count
            elif event.kind == log.NOTHING:
                asked[event.thread] = 0
            elif event.kind == log.GOT:
                asked[event.thread] = asked.get(event.thread, 0) - 1
                self._got(event, key, holding)
                if self.ordered:
                    # What a dead consumer held is older than everything waiting: also with it, no step goes back.
                    if event.seq <= last.get(event.origin, -1):
                        self._wrong(f"{key} came to consumer {worker} after {last[event.origin]} of the same producer")
                    last[event.origin] = event.seq
            else:
                before, after = _MOVES[event.kind]
                lending = holding.get(key)
                if lending is None or lending.state not in before:
                    self._wrong(f"{key}: {after} by {worker}, who had it as {lending and lending.state}")
                else:
                    lending.state = after
        self.open_asks[worker] = sum(max(0, count) for count in asked.values())

    def _got(self, event: Event, key: Key, holding: dict[Key, Lending]) -> None:
        self.tally.gets += 1
        earlier = holding.get(key)
        if earlier is not None and earlier.state in (HELD, SETTLING, REJECTING):
            self.tally.twice.append(f"{key} came to {event.worker} again, who had it already ({earlier.state})")
        lending = Lending(event.worker, event.thread, event.time, event.count)
        holding[key] = lending
        self.lendings.setdefault(key, []).append(lending)

    def close(self, killed: dict[int, int], dead: list[Key] | None) -> Tally:
        """`killed`: worker -> the time just before its SIGKILL; `dead`: what is in the dead letters at the end.

        None: the round did not get so far as to look; then only what cannot be right in any case is found.
        """
        tally = self.tally
        finished = dead is not None
        dead = dead or []
        tally.puts = len(self.returned)
        if len(set(dead)) != len(dead):
            tally.twice.append(f"{len(dead) - len(set(dead))} items are in the dead letters more than once")
        missing = 0
        letters = set(dead)
        for key, lendings in self.lendings.items():
            lendings.sort(key=lambda lending: lending.since)
            self._delivered(key, lendings, killed, letters if finished else None)
        for key in letters - self.lendings.keys():
            self._wrong(f"{key} is in the dead letters and was never delivered")
        for key in self.returned - self.lendings.keys() if finished else ():
            if self.at_most_once:
                missing += 1
            else:
                tally.lost.append(f"{key} was put and never came out")
        covered = sum(self.open_asks.get(worker, 0) for worker in killed)
        if missing > covered:
            tally.lost.append(f"{missing} items never came out, kills explain {covered} at most")
        tally.undecided += missing + len(self.intended - self.returned - self.refused)
        if self.ordered:
            self._check_order()
        return tally

    def _delivered(self, key: Key, lendings: list[Lending], killed: dict[int, int], letters: set[Key] | None) -> None:
        tally = self.tally
        if key not in self.intended:
            self._wrong(f"{key} was delivered and nobody put it")
        if key in self.refused:
            self._wrong(f"{key} was delivered although its put was refused")
        tally.redelivered += len(lendings) - 1
        for number, (one, following) in enumerate(pairwise(lendings), 1):
            died = killed.get(one.worker)
            if self.at_most_once:
                tally.twice.append(f"{key} was delivered {len(lendings)} times, with ack='get'")
            elif one.state in (DONE, REJECTED):
                tally.twice.append(f"{key} was {one.state} by {one.worker} and came again to {following.worker}")
            elif one.state != BACK and (died is None or died > following.since):
                tally.twice.append(f"{key} came to {following.worker} while {one.worker} lived and was {one.state}")
            if self.count_survives and following.deliveries and following.deliveries <= number:
                self._wrong(f"{key}: its delivery {number + 1} said deliveries={following.deliveries}")
        last = lendings[-1]
        if self.at_most_once or letters is None:
            return
        if (last.state == REJECTED) is not (key in letters) and last.state != REJECTING:
            self._wrong(f"{key} was {last.state} at last, and is {'' if key in letters else 'not '}in the dead letters")
        if last.state in (HELD, BACK) or (last.state == REJECTING and key not in letters):
            tally.lost.append(f"{key} was {last.state} by {last.worker} (killed: {last.worker in killed}), then gone")
        elif last.state == SETTLING:
            tally.undecided += 1
            if last.worker not in killed:
                self._wrong(f"{key}: {last.worker} never came back from settling it, and was not killed")

    def _check_order(self) -> None:
        firsts = sorted((lendings[0].since, key) for key, lendings in self.lendings.items())
        last: dict[int, int] = {}
        for _, (origin, seq) in firsts:
            if seq < last.get(origin, -1):
                self._wrong(f"{(origin, seq)} was first delivered after {last[origin]} of the same producer")
            last[origin] = seq

    def _wrong(self, text: str) -> None:
        self.tally.wrong.append(text)
