"""The README's section on the shell, run as a new user would: its lines, in a shell, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from durableq.cli._command import EXIT_CODES

README = (Path(__file__).parent.parent / "README.md").read_text()
SECTION = README[README.index("\n## In the shell\n") :].split("\n## ", 2)[1]


def test_every_line_does_what_it_says(shell):
    lines = [line for block in re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 10
    script = "set -e -o pipefail\n" + "".join(f"{line}\necho '--'\n" for line in lines)
    said = shell.out(script, env={"LC_ALL": "C.UTF-8"}).decode().split("--\n")
    about = dict(zip(lines, said, strict=False))
    assert len(said) == len(lines) + 1

    def of(start: str) -> str:
        return next(text for line, text in about.items() if line.startswith(start))

    assert of("durableq get -n 2") == "1\n2\n"
    assert of("durableq get -f") == "3\n"
    assert sorted(of("durableq run").split("\n")) == ["", "job 4", "job 5"]
    assert "2 ready" in of("durableq stat")
    assert "hello" in of("durableq peek")
    assert "2 waiting" in of("durableq map")
    assert "sound" in of("durableq check")
    assert len(of("durableq get --keep").splitlines()) == 3
    assert "\n.TH " in "\n" + (shell.folder / "durableq.1").read_text()


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_in_the_table(code):
    table = SECTION[SECTION.index("| exit code |") :]
    assert re.search(rf"^\| (\d+, )*{code}(, \d+)* \|", table, re.MULTILINE)
