"""`durableq completion`: what makes a shell complete the command line with the Tab key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from durableq.cli._command import DONE, Command
from durableq.cli._grammar import Grammar, Option, grammar
from durableq.cli._registry import COMMANDS, command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that is to complete")


def _run(options: argparse.Namespace) -> int:
    grammars = [grammar(command(name)) for name in COMMANDS]
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](grammars), end="")
    return DONE


def _names(option: Option) -> Iterator[tuple[str, bool]]:
    """Each name of an option, and whether it is a long one."""
    for name in option.names:
        yield name, name.startswith("--")


def _bash(grammars: Sequence[Grammar]) -> str:
    values, options = [], []
    for this in grammars:
        name = this.command.name
        words = " ".join(option_name for option in this.options for option_name in option.names)
        options.append(f'        {name}) words="{words}" ;;')
        for option in this.options:
            if option.choices:
                for option_name in option.names:
                    values.append(f'        "{name} {option_name}") words="{" ".join(option.choices)}" ;;')
        for place in this.places:
            if "|" in place.metavar:
                values.append(f'        "{name} {name}") words="{place.metavar.replace("|", " ")}" ;;')
    commands = " ".join(this.command.name for this in grammars)
    return f"""\
# bash completion of durableq: eval "$(durableq completion bash)"
_durableq() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command=${{COMP_WORDS[1]}} words=""
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{commands} --help" -- "$current"))
        return
    fi
    case "$command $previous" in
{chr(10).join(values)}
        *) case $current in
        -*) case $command in
{chr(10).join(options)}
            esac ;;
        esac ;;
    esac
    # Nothing to say: `-o default` completes the name of a file.
    if [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}}
complete -o default -F _durableq durableq
"""


def _zsh(grammars: Sequence[Grammar]) -> str:
    cases = []
    for this in grammars:
        specs = []
        for option in this.options:
            value = ""
            if option.metavar is not None:
                value = f":{_zsh_text(option.metavar)}:" + (f"({' '.join(option.choices)})" if option.choices else "_files")
            names = option.names[0] if len(option.names) == 1 else "{" + ",".join(option.names) + "}"
            group = "'(" + " ".join(option.names) + ")'" if len(option.names) > 1 else ""
            specs.append(f"{group}{names}'[{_zsh_text(option.help)}]{value}'")
        for place in this.places:
            action = f"({place.metavar.replace('|', ' ')})" if "|" in place.metavar else "_files"
            specs.append(f"'{'*' if place.repeated else ''}:{_zsh_text(place.metavar)}:{action}'")
        lines = " \\\n            ".join(specs)
        cases.append(f"        {this.command.name})\n            _arguments -s {lines}\n            ;;")
    commands = "\n".join(f"        '{this.command.name}:{_zsh_text(this.command.summary)}'" for this in grammars)
    return f"""\
#compdef durableq
# zsh completion of durableq: durableq completion zsh > "${{fpath[1]}}/_durableq", or eval "$(durableq completion zsh)"
_durableq() {{
    local -a commands=(
{commands}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    ((CURRENT--))
    case $command in
{chr(10).join(cases)}
    esac
}}
if [[ $funcstack[1] == _durableq ]]; then
    _durableq "$@"
else
    compdef _durableq durableq
fi
"""


def _zsh_text(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, "\\" + special)
    return text.replace("'", "'\\''")


def _fish(grammars: Sequence[Grammar]) -> str:
    names = " ".join(this.command.name for this in grammars)
    lines = ["# fish completion of durableq: durableq completion fish > ~/.config/fish/completions/durableq.fish"]
    first = f"not __fish_seen_subcommand_from {names}"
    for this in grammars:
        lines.append(f"complete -c durableq -f -n '{first}' -a {this.command.name} -d {_fish_text(this.command.summary)}")
    for this in grammars:
        seen = f"complete -c durableq -n '__fish_seen_subcommand_from {this.command.name}'"
        for option in this.options:
            flags = " ".join(f"-l {name[2:]}" if is_long else f"-s {name[1:]}" for name, is_long in _names(option))
            value = "" if option.metavar is None else f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r"
            lines.append(f"{seen} {flags}{value} -d {_fish_text(option.help)}")
        for place in this.places:
            if "|" in place.metavar:
                lines.append(f"{seen} -f -a '{place.metavar.replace('|', ' ')}'")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


COMMAND = Command(
    "completion",
    "print what makes a shell complete durableq's command line",
    _arguments,
    _run,
    "Made from the same source as the help. Write it to where your shell looks for completions, or have it evaluated.",
    (
        ('eval "$(durableq completion bash)"', "in ~/.bashrc"),
        ('eval "$(durableq completion zsh)"', "in ~/.zshrc, behind compinit"),
        ("durableq completion fish > ~/.config/fish/completions/durableq.fish", "once"),
    ),
)
