"""The operations that are killed, and what may be found after each."""

from __future__ import annotations

from typing import Any

import durableq
from durableq import DurableQueue
from durableq import _head as head
from durableq import _leases as leases
from durableq import _reclaim as reclaim
from durableq import _returned as returned_end
from durableq import _settle as settle
from durableq import _tail as tail

from .scenes import (
    BIG,
    LONG,
    ack_many,
    another_died,
    damaged,
    dead_letter_taken,
    everything,
    expired,
    fell_due,
    fork_and_die,
    get,
    hole_in_front,
    holes,
    ignore,
    kept,
    open_handle,
    put,
    rejected,
    returned,
    take,
    undecodable,
)
from .shape import Case, Found, ready

SMALL_LEDGER = ((leases, "MIN_LOG2", 10),)
PUNCH_EARLY = tuple((module, "BATCH", 2048) for module in (reclaim, returned_end, head, settle, tail))
REWIND_EARLY = ((head, "REWIND", 4096), (reclaim, "KEEP", 4096))
SEVEN = tuple((f"{n}{BIG}", 2) for n in range(8))


def _subset(found: Found, waiting: set[Any], rest: Found) -> bool:
    """Whether only some of `waiting` are gone, and everything else is as in `rest`."""
    items = [item for item, _ in found.ready]
    kept_items = [item for item, _ in rest.ready]
    return [i for i in items if i not in waiting] == [i for i in kept_items if i not in waiting] and set(found.dead) == set(
        rest.dead
    )


IN_ORDER = Found((("r1", 2), ("l1", 2), ("w1", 1), ("w2", 1)), ("d1",), 1)
RECOVERED = Found((("r1", 2), ("l1", 1), ("w1", 1), ("w2", 1)), ("d1",), 1)
"""The spool does not say that an item is lent for the first time."""

CASES = [
    Case("put", lambda q, _: q.put("b1"), Found(ready("a1")), Found(ready("a1", "b1")), put("a1")),
    Case("put large", lambda q, _: q.put(BIG * 40), Found(ready("a1")), Found(ready("a1", BIG * 40)), put("a1")),
    Case("put delayed", lambda q, _: q.put("b1", delay=LONG), Found(ready("a1")), Found(ready("a1"), delayed=1), put("a1")),
    Case("put many", lambda q, _: q.put_many(["b1", "c1", "d1"]), Found(), Found(ready("b1", "c1", "d1"))),
    Case(
        "put that finds no room",
        lambda q, _: ignore(durableq.Full, lambda: q.put("b1", timeout=0.003)),
        Found(ready("a1")),
        Found(ready("a1")),
        put("a1"),
        options={"maxsize": 1},
    ),
    Case(
        "put that drops",
        lambda q, _: q.put("c" + BIG),
        Found(ready("a" + BIG, "b" + BIG)),
        Found(ready("b" + BIG, "c" + BIG), drops=1),
        put("a" + BIG, "b" + BIG),
        between=lambda f: f == Found(ready("b" + BIG), drops=1) or f == Found(ready("b" + BIG)),
        options={"max_bytes": 8000, "on_full": "drop_oldest"},
    ),
    Case("put durably", lambda q, _: q.put("b1"), Found(), Found(ready("b1")), handle={"sync": 0}),
    Case("get, lent", lambda q, _: q.get(), Found(ready("a1", "b1")), Found(ready("b1", again=("a1",))), put("a1", "b1")),
    Case(
        "get, done", lambda q, _: q.get(), Found(ready("a1", "b1")), Found(ready("b1")), put("a1", "b1"), handle={"ack": "get"}
    ),
    Case(
        "get large",
        lambda q, _: q.get(),
        Found(ready(BIG * 40, "b1")),
        Found(ready("b1", again=(BIG * 40,))),
        put(BIG * 40, "b1"),
    ),
    Case(
        "get many, lent",
        lambda q, _: q.get_many(3),
        Found(ready("a1", "b1", "c1", "d1")),
        Found(ready("d1", again=("a1", "b1", "c1"))),
        put("a1", "b1", "c1", "d1"),
    ),
    Case(
        "get many, done",
        lambda q, _: q.get_many(3),
        Found(ready("a1", "b1", "c1", "d1")),
        Found(ready("d1")),
        put("a1", "b1", "c1", "d1"),
        between=lambda f: f.ready in (ready("b1", "c1", "d1"), ready("c1", "d1")),
        handle={"ack": "get"},
    ),
    Case(
        "get many large, done",
        lambda q, _: q.get_many(2),
        Found(ready("a" + BIG, "b" + BIG, "c1")),
        Found(ready("c1")),
        put("a" + BIG, "b" + BIG, "c1"),
        between=lambda f: f.ready == ready("b" + BIG, "c1"),
        handle={"ack": "get"},
    ),
    Case(
        "get of what was given back",
        lambda q, _: q.get(),
        Found(ready("b1", again=("a1",))),
        Found((("a1", 3), ("b1", 1))),
        returned("a1", "b1"),
    ),
    Case(
        "get of what was given back, done",
        lambda q, _: q.get(),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1")),
        returned("a1", "b1"),
        handle={"ack": "get"},
        between=lambda f: f == Found((("a1", 3), ("b1", 1))),
    ),
    Case(
        "get of what fell due",
        lambda q, _: q.get(),
        Found(ready("d1", "w1")),
        Found(ready("w1", again=("d1",))),
        fell_due,
        shifts=True,
    ),
    Case(
        "get of what is not due",
        lambda q, _: q.get(),
        Found(ready("w1"), delayed=1),
        Found(ready(again=("w1",)), delayed=1),
        lambda q: (q.put("d1", delay=LONG), q.put("w1")),
    ),
    Case(
        "get of an expired lease",
        lambda q, _: q.get(),
        Found(ready("w1", again=("l1",))),
        Found((("l1", 3), ("w1", 1))),
        expired,
        options={"lease": 60},
        shifts=True,
    ),
    Case(
        "get that finds nothing",
        lambda q, _: ignore(durableq.Empty, lambda: q.get(timeout=0.003)),
        Found(),
        Found(),
    ),
    Case("get behind damage", lambda q, _: q.get(), Found(ready("b1")), Found(ready(again=("b1",))), damaged, shifts=True),
    Case(
        "get of what cannot be decoded",
        lambda q, _: ignore(ValueError, q.get),
        Found(ready("a1", "b1")),
        Found(ready("b1"), ("a1",)),
        undecodable,
        between=lambda f: f.ready == ready("b1", again=("a1",)),
        handle={"serializer": "json"},
    ),
    Case(
        "get once too often",
        lambda q, _: q.get(),
        Found(ready("b1"), ("a1",)),
        Found((), ("a1", "b1")),
        lambda q: (q.put("a1"), fork_and_die(q), q.put("b1")),
        options={"max_deliveries": 1},
        boot_forgets=True,
        shifts=True,
    ),
    Case("reserve", lambda q, _: q.reserve(), Found(ready("a1", "b1")), Found(ready("b1", again=("a1",))), put("a1", "b1")),
    Case("task_done", lambda q, _: q.task_done(), Found(ready("b1", again=("a1",))), Found(ready("b1")), get("a1", "b1")),
    Case(
        "task_done for another thread",
        lambda q, _: DurableQueue.task_done(kept[-1]),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1")),
        lambda q: (get("a1", "b1")(q), kept.append(DurableQueue(q.path)), kept[-1].qsize()),
    ),
    Case("ack", lambda q, d: d[0].ack(), Found(ready("b1", again=("a1",))), Found(ready("b1")), take("a1", "b1")),
    Case(
        "ack of the last",
        lambda q, d: d[0].ack(),
        Found(ready(again=("a1",))),
        Found(),
        take("a1"),
    ),
    Case(
        "ack many",
        lambda q, d: ack_many(q, d),
        Found(ready("c1", again=("a1", "b1"))),
        Found(ready("c1")),
        take("a1", "b1", "c1", take=2),
    ),
    Case(
        "ack many, to the last",
        lambda q, d: ack_many(q, d),
        Found(ready(again=("a1", "b1"))),
        Found(),
        take("a1", "b1", take=2),
    ),
    Case(
        "ack many large",
        lambda q, d: ack_many(q, d),
        Found(ready("c1", again=("a" + BIG, "b" + BIG))),
        Found(ready("c1")),
        take("a" + BIG, "b" + BIG, "c1", take=2),
        between=lambda f: f.ready in (ready("c1", again=("b" + BIG,)), ready("b" + BIG, "c1")),
        patches=PUNCH_EARLY,
    ),
    Case(
        "nack",
        lambda q, d: d[0].nack(),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1", again=("a1",))),
        take("a1", "b1"),
    ),
    Case(
        "nack delayed",
        lambda q, d: d[0].nack(LONG),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1"), delayed=1),
        take("a1", "b1"),
    ),
    Case(
        "release",
        lambda q, d: d[0].release(),
        Found(ready("b1", again=("a1",))),
        Found(ready("a1", "b1")),
        take("a1", "b1"),
    ),
    Case(
        "nack for the last time",
        lambda q, d: d[0].nack(),
        Found(ready("b1"), ("a1",)),
        Found(ready("b1"), ("a1",)),
        take("a1", "b1"),
        options={"max_deliveries": 1},
        boot_forgets=True,
        shifts=True,
    ),
    Case(
        "reject", lambda q, d: d[0].reject(), Found(ready("b1", again=("a1",))), Found(ready("b1"), ("a1",)), take("a1", "b1")
    ),
    Case(
        "extend",
        lambda q, d: d[0].extend(LONG),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1", again=("a1",))),
        take("a1", "b1"),
        options={"lease": 60},
    ),
    Case(
        "ack of a dead letter",
        lambda q, d: d.ack(),
        Found(ready("b1"), ("a1",)),
        Found(ready("b1")),
        dead_letter_taken,
    ),
    Case(
        "get of a dead letter, done",
        lambda q, _: q.dead_letters.get(),
        Found(ready("b1"), ("a1",)),
        Found(ready("b1")),
        rejected("a1", "b1"),
        handle={"ack": "get"},
    ),
    Case(
        "nack of a dead letter",
        lambda q, d: d.nack(),
        Found(ready("b1"), ("a1",)),
        Found(ready("b1"), ("a1",)),
        dead_letter_taken,
    ),
    Case(
        "redrive",
        lambda q, _: q.redrive(),
        Found(ready("c1"), ("a1", "b1")),
        Found(ready("a1", "b1", "c1")),
        rejected("a1", "b1", "c1", take=2),
        between=lambda f: f == Found(ready("a1", "c1"), ("b1",)),
    ),
    Case(
        "purge",
        lambda q, _: q.purge(),
        IN_ORDER,
        Found(ready(again=("l1",)), ("d1",)),
        everything,
        between=lambda f: _subset(f, {"r1", "y1", "w1", "w2"}, IN_ORDER),
    ),
    Case("peek and stats", lambda q, _: (q.peek(9), q.stats(), q.qsize(), q.sync()), IN_ORDER, IN_ORDER, everything),
    Case("close", lambda q, _: q.close(), IN_ORDER, IN_ORDER, everything),
    Case(
        "compact",
        lambda q, _: q.compact(),
        Found(SEVEN[6:]),
        Found(SEVEN[6:]),
        lambda q: (hole_in_front(q), q.reserve_many(2)),
    ),
    Case(
        "collapse",
        lambda q, _: q.compact(),
        Found(ready(f"6{BIG}", f"7{BIG}")),
        Found(ready(f"6{BIG}", f"7{BIG}")),
        hole_in_front,
    ),
    Case(
        "rewind",
        lambda q, _: ignore(durableq.Empty, q.get_nowait),
        Found(),
        Found(),
        lambda q: (q.put("a" + BIG * 5), q.get(), q.task_done()),
        patches=REWIND_EARLY,
    ),
    Case(
        "rewind, and on",
        lambda q, _: (ignore(durableq.Empty, q.get_nowait), q.put("b1"), q.get(), q.task_done()),
        Found(),
        Found(),
        lambda q: (q.put("a" + BIG * 5), q.get(), q.task_done()),
        between=lambda f: f in (Found(ready("b1")), Found(ready(again=("b1",)))),
        patches=REWIND_EARLY,
    ),
    Case(
        "punch",
        lambda q, d: d[0].ack(),
        Found((SEVEN[0], SEVEN[3], *SEVEN[6:])),
        Found((SEVEN[3], *SEVEN[6:])),
        holes,
        patches=PUNCH_EARLY,
    ),
    Case(
        "sweep",
        lambda q, d: d[6].ack(),
        Found((SEVEN[0], SEVEN[3], *SEVEN[6:])),
        Found((SEVEN[0], SEVEN[3], SEVEN[7])),
        holes,
        patches=PUNCH_EARLY,
    ),
    Case(
        "growing the ledger",
        lambda q, _: q.get_many(2),
        Found((*ready(again=tuple(range(1024))), *ready("a1", "b1"))),
        Found(ready(again=(*range(1024), "a1", "b1"))),
        lambda q: (q.put_many(range(1024)), q.get_many(1024), q.put_many(["a1", "b1"])),
        patches=SMALL_LEDGER,
        coarse=True,
    ),
    Case(
        "sweeping out the ledger",
        lambda q, _: q.get_many(2),
        Found(ready("a1", "b1", again=tuple(range(1020, 1024)))),
        Found(ready(again=(*range(1020, 1024), "a1", "b1"))),
        lambda q: (
            q.put_many(range(1024)),
            [d.ack() for d in q.reserve_many(1024)[:1020]],
            q.put_many(["a1", "b1"]),
        ),
        patches=SMALL_LEDGER,
        coarse=True,
    ),
    Case(
        "reap",
        lambda q, _: q._store.reap(),
        Found(ready("w1", again=("l1",))),
        Found(ready("w1", again=("l1",))),
        another_died,
    ),
    Case(
        "shutdown",
        lambda q, _: q.shutdown(),
        Found(ready("w1", again=("l1",))),
        Found(ready("w1", again=("l1",))),
        take("l1", "w1"),
        ends_queue=True,
    ),
    Case(
        "shutdown at once",
        lambda q, _: q.shutdown(immediate=True),
        Found(ready("w1", again=("l1",))),
        Found(ready(again=("l1",))),
        take("l1", "w1"),
        ends_queue=True,
    ),
    Case(
        "join",
        lambda q, _: q.join(),
        Found(ready("b1", again=("a1",))),
        Found(ready("b1", again=("a1",))),
        take("a1", "b1"),
        limit=1200,
    ),
    Case("change of maxsize", lambda q, _: setattr(q, "maxsize", 7), Found(ready("a1")), Found(ready("a1")), put("a1")),
    Case("create", open_handle, Found(), Found(), alone=True),
    Case("open", open_handle, IN_ORDER, IN_ORDER, everything, alone=True),
    Case("recover", open_handle, RECOVERED, RECOVERED, everything, alone=True, lost_control=True),
]
