"""`durableq man`: the manual page, made from the same source as the help."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from durableq.cli._command import DONE, EXIT_CODES, Command
from durableq.cli._grammar import Grammar, Option, Place, grammar
from durableq.cli._registry import COMMANDS, command

_FILES = (
    ("PATH", "the spool: it alone is the truth, and opens wherever it is copied"),
    ("PATH-shm, PATH-lock", "what the programs that have it open share; made anew where it is missing"),
    ("PATH-damaged", "bytes of damaged records"),
    ("PATH-failures", "what happened to the dead letters, one JSON object on each line"),
)
_ENVIRONMENT = (
    ("NO_COLOR", "if set, `map` draws without colours"),
    ("DURABLEQ_TRACEBACK", "if set, an error shows where it was raised"),
    ("DURABLEQ_ALLOW_NETWORK_FS", "if 1, a spool on a network file system is opened all the same"),
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # there are none


def _run(options: argparse.Namespace) -> int:
    from durableq import __version__

    print("\n".join(_page(__version__, [grammar(command(name)) for name in COMMANDS])))
    return DONE


def _page(version: str, grammars: list[Grammar]) -> Iterator[str]:
    yield f'.TH DURABLEQ 1 "" "durableq {_text(version)}" "User Commands"'
    yield ".SH NAME"
    yield r"durableq \- a durable pipe: queues in single files that outlive kill \-9 and reboots"
    yield ".SH SYNOPSIS"
    yield r".B durableq"
    yield r"\fICOMMAND\fR [\fIOPTION\fR ...] \fIPATH\fR ..."
    yield ".SH DESCRIPTION"
    yield "A queue is a file, the spool. Any program that names it shares it, and there is no server. What was put is there"
    yield "after the death of every program and after a reboot; what a program took and did not finish goes to the next one."
    yield "Sizes are written as in 4096, 64K, 10M, 2G; times as in 5, 0.25, 100ms, 10m, 2h, 1d."
    yield ".SH COMMANDS"
    for this in grammars:
        yield from _command(this)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES.items():
        yield from _entry(rf"\fB{code}\fR", meaning)
    for title, entries in (("FILES", _FILES), ("ENVIRONMENT", _ENVIRONMENT)):
        yield f".SH {title}"
        for name, meaning in entries:
            yield from _entry(rf"\fB{_text(name)}\fR", meaning)


def _command(this: Grammar) -> Iterator[str]:
    yield f'.SS "{this.command.name}"'
    yield _text(f"{this.command.summary[:1].upper()}{this.command.summary[1:]}.")
    yield ".PP"
    usage = " ".join([rf"\fBdurableq {this.command.name}\fR", r"[\fIOPTION\fR ...]", *map(_usage, this.places)])
    yield usage
    for paragraph in filter(None, this.command.description.split("\n\n")):
        yield ".PP"
        yield _text(paragraph)
    for place in this.places:
        yield from _entry(rf"\fI{_text(place.metavar)}\fR", place.help)
    for option in this.options:
        yield from _entry(_names(option), option.help)
    if this.command.examples:
        yield ".PP"
        yield "Examples:"
    for line, what in this.command.examples:
        yield ".PP"
        yield ".nf"
        yield rf"    \fB{_text(line)}\fR"
        yield ".fi"
        yield rf"        {_text(what)}"


def _usage(place: Place) -> str:
    name = rf"\fI{_text(place.metavar)}\fR" + (" ..." if place.repeated else "")
    return f"[{name}]" if place.optional else name


def _names(option: Option) -> str:
    value = "" if option.metavar is None else rf" \fI{_text(option.metavar)}\fR"
    return ", ".join(rf"\fB{_text(name)}\fR{value}" for name in option.names)


def _entry(name: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield name
    yield _text(meaning)


def _text(text: str) -> str:
    """Text that roff shows as it is: no line of it is a request, and a hyphen is one that can be copied."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga").replace('"', r"\(dq")
    return "\n".join(r"\&" + line if line.startswith(".") else line for line in text.splitlines())


COMMAND = Command(
    "man",
    "print the manual page",
    _arguments,
    _run,
    "In roff, made from the same source as the help.",
    (
        ("durableq man | man -l -", "read it"),
        ("durableq man > ~/.local/share/man/man1/durableq.1", "have it found by man durableq"),
    ),
)
