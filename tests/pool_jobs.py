"""What the workers of the tests do. In a module of its own, for they import it by its name."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from enum import IntEnum
from pathlib import Path
from types import ModuleType

from durableq.pool import Backoff

AT_ONCE = Backoff(first=0.0)
LATER = Backoff(first=3600.0)


def told(where):
    """The pids that have told of themselves there."""
    return [int(line) for line in Path(where).read_text().split()] if Path(where).exists() else []


def work(item):
    """Do what the item says, if it says something, and return it."""
    if isinstance(item, tuple):
        what, about = item
        globals()[f"do_{what}"](about)
    return item


def do_raise(text):
    raise ValueError(text)


def do_leave(code):
    sys.exit(code)


def do_segfault(_):
    ctypes.string_at(0)


def do_exit(code):
    os._exit(code)


def do_kill(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def do_sleep(seconds):
    time.sleep(seconds)


def do_hog(seconds):
    """Keep the GIL all the time: no other thread runs."""
    ctypes.PyDLL(None).sleep(seconds)


def do_backtrack(_):
    """The same, and no signal ends it."""
    re.match("(a+)+$", "a" * 60 + "b")


def do_grow(size):
    globals()["kept"] = bytearray(os.urandom(1)) * size


def do_log(text):
    logging.getLogger("jobs").warning(text)


def do_log_extra(what):
    logging.getLogger("jobs").warning("from the worker", extra={"about": EXTRAS[what](), "request": 7})


def do_log_at(level):
    logging.getLogger("jobs").log(level, "from the worker")


def do_log_garbage(_):
    """Send the pool what is no log record."""
    logging.getLogger().handlers[0].queue.send(b"no record")


def do_tell(where):
    """Append this process's pid to a file, and the delivery to count."""
    with open(where, "a") as file:
        file.write(f"{os.getpid()}\n")


def do_fail_once(where):
    first = not Path(where).exists()
    do_tell(where)
    if first:
        raise OSError("not yet")


def do_die_once(where):
    first = not Path(where).exists()
    do_tell(where)
    if first:
        os._exit(9)


def do_meet(where):
    """Say that it has begun, then wait for `where`-go."""
    do_tell(where)
    while not Path(f"{where}-go").exists():
        time.sleep(0.005)


def do_start_child(where):
    """Start a program that outlives this process if nobody kills it, and hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(where).write_text(str(child.pid))
    time.sleep(600)


def double(item):
    return 2 * work(item)


def work_all(items):
    """For batches."""
    return [work(item) for item in items]


def one_too_few(items):
    return items[1:]


def not_picklable(item):
    return lambda: item


async def coroutine(item):
    return item


class ApiError(Exception):
    """Pickles and does not unpickle, as every exception that has other arguments than its class takes."""

    def __init__(self, code, body):
        super().__init__(f"{code}: {body}")


class Shy:
    """Does not let itself be shown."""

    def __repr__(self):
        raise RuntimeError("no")


class Level(IntEnum):
    NOTICE = 25


def one_of_a_class_of_this_process():
    here = sys.modules["only_in_this_process"] = ModuleType("only_in_this_process")
    exec("class Local:\n    __repr__ = lambda self: 'a local one'", vars(here))
    return here.Local()


def a_list_in_itself():
    found = ["first"]
    found.append(found)
    return found


EXTRAS = {
    "unpickle": lambda: ApiError(503, "busy"),
    "import": one_of_a_class_of_this_process,
    "pickle": threading.Lock,
    "show": Shy,
    "nest": a_list_in_itself,
    "inside": lambda: {"errors": (ApiError(503, "busy"), 1.5, None, True), Level.NOTICE: ["as", "it", "is"]},
    "long": lambda: "x" * 1_000_000,
    "many": lambda: [f"{n:030000}" for n in range(100)],
}
"""What a function may give its log record as `extra`."""


class Bomb:
    """An item that ends the process which decodes it."""

    def __reduce__(self):
        return os._exit, (9,)


class Tar:
    """An item whose decoding does not come to an end."""

    def __reduce__(self):
        return time.sleep, (600,)


def give_up(delivery, error):
    """An `on_error` that allows no second try of what says so."""
    return "hopeless" in str(error)


def note_and_fail(delivery, error):
    raise RuntimeError("on_error is broken, too")


class Fussy:
    """A serializer whose disk is full at first."""

    def __init__(self, where):
        self.where = where

    def dumps(self, item):
        if not Path(self.where).exists():
            Path(self.where).touch()
            raise OSError(28, "No space left on device")
        return pickle.dumps(item)

    loads = staticmethod(pickle.loads)


class Sick:
    """A serializer whose disk fails."""

    def dumps(self, item):
        raise OSError(5, "Input/output error")

    loads = staticmethod(pickle.loads)
