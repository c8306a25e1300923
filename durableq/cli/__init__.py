"""The `durableq` command: one program, a durable pipe and what one wants to know of it.

A subcommand is a module of this package and its name in `_registry.COMMANDS`; see `_command`. Only the module of the
subcommand that was asked for is imported, so that a short `durableq put` does not pay for the others.

Whatever goes wrong becomes one line on stderr, with the remedy, and an exit code of `EXIT_CODES`; never a traceback.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from durableq import __version__
from durableq.cli._command import (
    DAMAGED,
    EMPTY,
    ENDED_BY,
    EXIT_CODES,
    FAILED,
    FULL,
    INTERNAL,
    PIPE_CLOSED,
    USAGE,
    Command,
    Failure,
    tell,
)
from durableq.cli._registry import COMMANDS, command
from durableq.errors import (
    BadURLError,
    DamagedError,
    DurableQError,
    Empty,
    Full,
    OptionMismatchError,
    ReservedNameError,
    ShutDown,
)

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["COMMANDS", "EXIT_CODES", "Command", "Failure", "command", "main", "parse", "parser", "subparser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit code.

    Without `argv` it is the program itself, with the arguments of the process: an interrupt and a closed pipe then end the
    process by their signals, which is how a shell learns that it must stop its loop as well.
    """
    occupy_standard_streams()
    if argv is None:
        _let_everything_be_printed()
    code = _run(sys.argv[1:] if argv is None else argv)
    if argv is None and code > ENDED_BY:
        number = signal.Signals(code - ENDED_BY)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return code


def occupy_standard_streams() -> None:
    """Have something at descriptors 0, 1 and 2, where the caller has closed them.

    Else the spool would be the next file to be opened, and all that is printed would go there. What is put there cannot be
    read or written, so that whoever tries is told.
    """
    for fd, wrong_way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, wrong_way)  # takes the lowest that is free, which is this one
            if fd == 1:
                sys.stdout = open(fd, "w", closefd=False)  # noqa: SIM115, as long as the program


def _let_everything_be_printed() -> None:
    """What the encoding of stdout has no word for, a path in bytes or an item in another script, is no reason to fail."""

    def shown(error: UnicodeError) -> tuple[str | bytes, int]:
        try:
            return codecs.lookup_error("surrogateescape")(error)  # the very bytes of a path
        except UnicodeError:
            return codecs.lookup_error("backslashreplace")(error)

    codecs.register_error("durableq", shown)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="durableq")


def parser() -> argparse.ArgumentParser:
    """The parser of the program's own options and of the names of the subcommands; what it is for is its help."""
    top = _Parser(
        prog="durableq",
        description="Durable queues in single files: they outlive kill -9 and reboots.",
        epilog="`durableq COMMAND --help` shows examples.\n\nexit codes:\n" + _exit_codes(),
        formatter_class=_Formatter,
    )
    top.add_argument("--version", action="version", version=f"durableq {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for this in map(command, COMMANDS):
        commands.add_parser(this.name, help=this.summary)
    return top


def subparser(this: Command) -> argparse.ArgumentParser:
    """The parser of what follows a subcommand."""
    sub = _Parser(
        prog=f"durableq {this.name}",
        description=f"{this.summary[:1].upper()}{this.summary[1:]}.\n\n{this.description}".rstrip(),
        epilog=_examples(this),
        formatter_class=_Formatter,
    )
    this.arguments(sub)
    return sub


_PLAIN = "\0"
"""In front of an argument that is no option, whatever it looks like; no argument can have it there by itself."""


def parse(this: Command, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse what follows a subcommand. Options may stand anywhere before a `--`; nothing behind it is an option."""
    arguments = list(arguments)
    if "--" in arguments:
        end = arguments.index("--")
        arguments = arguments[:end] + [_PLAIN + argument for argument in arguments[end + 1 :]]
    options = subparser(this).parse_intermixed_args(arguments)
    for name, value in vars(options).items():
        if isinstance(value, str):
            setattr(options, name, value.removeprefix(_PLAIN))
        elif isinstance(value, list):
            setattr(options, name, [each.removeprefix(_PLAIN) if isinstance(each, str) else each for each in value])
    return options


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal, and leaves indented lines, which are examples and tables, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        filled = [super(_Formatter, self)._fill_text(p, width, indent) if "\n " not in p else p for p in paragraphs]
        return "\n\n".join(filled)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(f"{message}; see `{self.prog} --help`", USAGE)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own passes over a full disk and a closed pipe


def _examples(this: Command) -> str:
    return "\n".join(["examples:", *(f"  {line}\n      {what}" for line, what in this.examples)]) if this.examples else ""


def _exit_codes() -> str:
    return "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())


def _run(argv: Sequence[str]) -> int:
    try:
        code = _obey(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        number: int = getattr(interrupt, "number", signal.SIGINT)
        if number == signal.SIGINT:
            tell("interrupted")
        return ENDED_BY + number
    except BrokenPipeError:
        _finish_stdout()
        return PIPE_CLOSED
    except Exception as error:
        if os.environ.get("DURABLEQ_TRACEBACK"):
            raise
        _finish_stdout()
        tell(" ".join(_message(error).split()))
        return _code(error)


def _obey(argv: Sequence[str]) -> int:
    try:
        # Parsing is inside as well: printing the help can meet a closed pipe or a full disk too.
        if not argv or argv[0] not in COMMANDS:
            parser().parse_args(argv)  # ends with the help, the version, or an error
        this = command(argv[0])
        return this.run(parse(this, argv[1:]))
    except SystemExit as end:  # of argparse, after the help
        return int(end.code or 0)


def _finish_stdout() -> None:
    """The interpreter flushes stdout once more on its way out; that must not meet a broken pipe or a full disk again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _code(error: Exception) -> int:
    if isinstance(error, Failure):
        return error.code
    usage = (BadURLError, OptionMismatchError, ReservedNameError)
    for kind, code in ((DamagedError, DAMAGED), (usage, USAGE), (Empty, EMPTY), (Full, FULL)):
        if isinstance(error, kind):
            return code
    return FAILED if isinstance(error, (DurableQError, OSError, ImportError, ShutDown)) else INTERNAL


def _message(error: Exception) -> str:
    if isinstance(error, ShutDown):
        return "the queue was shut down; it can be used again once the last of its programs has closed it"
    if _code(error) == INTERNAL:
        return f"internal error: {type(error).__name__}: {error}; DURABLEQ_TRACEBACK=1 shows where, please report it"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "stdin or stdout is closed; redirect it to a file, a pipe, or /dev/null"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
