"""What the tests of `durableq run` have in common: the queue is q.dq in the shell's directory."""

from __future__ import annotations

import json

from shells import heard

DEAD = {"ready": 0, "lent": 0, "delayed": 0, "dead": 1}
READY = {"ready": 1, "lent": 0, "delayed": 0, "dead": 0}
DONE = {"ready": 0, "lent": 0, "delayed": 0, "dead": 0}


def stat(shell):
    """How many items there are of each kind."""
    found = json.loads(shell.out("durableq stat --json q.dq"))
    return {name: found[name] for name in DONE}


def story(shell):
    """The one dead letter."""
    (line,) = shell.out("durableq peek --dead --json q.dq").splitlines()
    return json.loads(line)


def started(shell, command, options="", before=""):
    """A runner with a shell command at work on its first item, and the pid of that; `before`: what starts the runner."""
    runner = shell.start(f"exec {before} durableq run q.dq {options} -- sh -c 'echo $$; {command}'")
    line = b""
    while not line.endswith(b"\n"):
        line += heard(runner, 1)
    return runner, int(line)
