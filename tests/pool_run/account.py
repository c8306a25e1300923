"""What must hold when a run is over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from durableq import DurableQueue, check, failures

from .governor import items
from .job import HANG, SEGFAULT, hash_of


@dataclass
class Account:
    """What became of the items."""

    queued: int = 0
    done: int = 0
    dead: int = 0
    twice: int = 0
    """Items with more than one result, all of the same id: their worker died between the result and the ack."""
    in_hand: int = 0
    """Workers that were killed with an item in hand, and whose pool lived to tell."""
    wrong: list[str] = field(default_factory=list)


def take(jobs_path: Path, results_path: Path, count: int, log: str) -> Account:
    """Look through the queue, its dead letters and their stories, the results, and the log of the pools."""
    account = Account(queued=count, in_hand=log.count("killed by SIGKILL, with item"))
    wrong = account.wrong
    with DurableQueue(jobs_path) as jobs, DurableQueue(results_path) as results:
        stats = jobs.stats()
        if stats.unfinished:
            wrong.append(f"{stats.unfinished} items are neither done nor dead")
        letters = {letter.item[0]: letter.id for letter in jobs.dead_letters.peek_deliveries(count)}
        stories = failures.read(jobs)
        outcomes = [(result.id, *result.value) for result in results.peek(10 * count)]
    account.dead = len(letters)
    ids: dict[int, set[str]] = {}
    hashes: dict[str, str] = {}
    paths = dict(items(count))
    for id, number, found in outcomes:
        ids.setdefault(number, set()).add(id)
        path = paths.get(number, "")
        if path not in hashes:
            hashes[path] = hash_of(path) if path else ""
        if found != hashes[path]:
            wrong.append(f"item {number} has a wrong result: {found}")
    account.done = len(ids)
    account.twice = sum(times > 1 for times in Counter(number for _, number, _ in outcomes).values())
    wrong += [f"item {number} has results of several ids" for number, found in ids.items() if len(found) > 1]
    wrong += [f"item {number} ({path}) is lost" for number, path in paths.items() if number not in ids.keys() | letters.keys()]
    for number, reason in ((count // 10, "killed by SIGSEGV"), (count // 5, "killed after 1 s (timeout)")):
        story = stories.get(letters.get(number, ""))
        if story is None:
            wrong.append(f"item {number}, which {reason} each time, is no dead letter with a story")
        elif paths[number] not in (SEGFAULT, HANG):
            wrong.append(f"item {number} is none of the bad ones")
        elif story.reason != reason and "SIGKILL" not in story.reason and "nobody lived" not in story.reason:
            wrong.append(f"item {number} has the story {story.reason!r} and not {reason!r}")
    for path in (jobs_path, results_path):
        report = check(path)
        if not report.ok:
            wrong.append(str(report))
    return account
