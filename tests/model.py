"""The queue as a plain list: what `test_model` holds the real one against.

Positions are the order of the puts. An item that was given back keeps its position, so "it comes first" needs no rule
of its own: what is delivered next is always the ready item with the lowest position.

An item that was delivered too often is a dead letter as soon as it comes back; only after a reboot, which forgets some
deliveries, the next one who would get it may be the one to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

READY, DELAYED, LENT, DEAD, DONE = "ready", "delayed", "lent", "dead", "done"


@dataclass(eq=False)
class Entry:
    position: int
    value: object
    state: str
    most: int = 0
    """Deliveries so far, those included that a reboot may have forgotten; `least` without them."""
    least: int = 0
    holder: int | None = None
    reserved: bool = False


class Model:
    def __init__(self, maxsize: int = 0, max_deliveries: int | None = None) -> None:
        self.maxsize, self.max_deliveries = maxsize, max_deliveries
        self.entries: list[Entry] = []  # without what is done
        self.puts = 0

    # -- questions -----------------------------------------------------------------------------------------------------

    def all(self, state: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == state]

    def values(self, state: str) -> list[object]:
        return [entry.value for entry in self.all(state)]

    def count(self, state: str) -> int:
        return len(self.all(state))

    def waiting(self) -> int:
        return self.count(READY) + self.count(DELAYED)

    def unfinished(self) -> int:
        return self.waiting() + self.count(LENT)

    def room(self) -> int:
        return max(0, self.maxsize - self.waiting()) if self.maxsize else 1 << 30

    def held_by(self, holder: int, reserved: bool = False) -> list[Entry]:
        return [entry for entry in self.all(LENT) if entry.holder == holder and entry.reserved is reserved]

    # -- changes -------------------------------------------------------------------------------------------------------

    def put(self, value: object, delayed: bool = False) -> None:
        self.entries.append(Entry(self.puts, value, DELAYED if delayed else READY))
        self.puts += 1

    def spent(self, entry: Entry, is_dead: Callable[[object], bool]) -> bool:
        """Whether it was delivered too often. `is_dead` looks at the real queue where two outcomes are right."""
        if self.max_deliveries is None or entry.most < self.max_deliveries:
            return False
        return entry.least >= self.max_deliveries or is_dead(entry.value)

    def take(
        self,
        holder: int,
        count: int,
        is_dead: Callable[[object], bool],
        *,
        reserved: bool = False,
        done: bool = False,
    ) -> list[Entry]:
        """What a get of up to `count` items has delivered; `done`: and it was the end of them (ack="get")."""
        taken: list[Entry] = []
        for entry in self.all(READY):
            if len(taken) == count:
                break
            if self.spent(entry, is_dead):
                entry.state = DEAD
                continue
            taken.append(entry)
            entry.most += 1
            entry.least += 1
            entry.holder, entry.reserved = holder, reserved
            entry.state = LENT
            if done:
                self.done(entry)
        return taken

    def done(self, entry: Entry) -> None:
        entry.state = DONE
        self.entries.remove(entry)

    def nack(self, entry: Entry, is_dead: Callable[[object], bool], delayed: bool = False) -> None:
        entry.holder = None
        entry.state = DEAD if self.spent(entry, is_dead) else DELAYED if delayed else READY

    def give_back_all(self, holder: int, is_dead: Callable[[object], bool]) -> None:
        for entry in self.all(LENT):
            if entry.holder == holder:
                self.nack(entry, is_dead)

    def release(self, entry: Entry) -> None:
        entry.holder = None
        entry.state = READY
        entry.least, entry.most = max(0, entry.least - 1), entry.most - 1

    def reject(self, entry: Entry) -> None:
        entry.holder = None
        entry.state = DEAD

    def redrive(self) -> int:
        dead = self.all(DEAD)
        for entry in dead:
            entry.state, entry.least, entry.most = READY, 0, 0
        return len(dead)

    def purge(self) -> int:
        waiting = self.all(READY) + self.all(DELAYED)
        for entry in waiting:
            self.done(entry)
        return len(waiting)

    def reboot(self, is_dead: Callable[[object], bool]) -> None:
        """Everybody is gone, and the control words too."""
        for entry in self.entries:  # where nothing depends on the count it is not kept in the spool each time
            entry.least = max(0, entry.least - 1) if self.max_deliveries else 0
        for entry in self.all(LENT):
            self.nack(entry, is_dead)

    def learn(self, entry: Entry, deliveries: int) -> None:
        """A delivery said how often the item has been delivered."""
        assert entry.least <= deliveries <= entry.most, (entry, deliveries)
        entry.least = entry.most = deliveries
