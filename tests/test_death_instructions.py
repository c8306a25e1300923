"""The compiled calls killed at a sample of their machine instructions; at all: `python -m tests.death.machine --all`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from death.machine import CALLS, Unavailable, die_at, points
from death.shape import Found, ready
from death.trial import Wrong


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_a_compiled_call_killed_at_any_instruction_has_happened_or_not_and_nothing_else_changes(case, tmp_path):
    try:
        n = points(case, tmp_path / "queue")
    except Unavailable as exc:
        pytest.skip(str(exc))
    for k in range(6):
        die_at(case, tmp_path / "queue", 1 + (n - 1) * k // 5)


def test_a_wrong_outcome_of_a_death_at_an_instruction_would_be_noticed(tmp_path):
    case = replace(CALLS[0], before=Found(), after=Found(ready("another")))
    try:
        n = points(case, tmp_path / "queue")
    except Unavailable as exc:
        pytest.skip(str(exc))
    with pytest.raises(Wrong, match="dies at"):
        die_at(case, tmp_path / "queue", n // 2)
