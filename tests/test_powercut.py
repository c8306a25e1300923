"""Simulated power cuts: whatever of the unsynced is on the disk and whatever is not, the promises hold."""

from __future__ import annotations

import pytest
from powercut.simulate import simulate


@pytest.mark.parametrize("seed", range(8))
def test_every_legal_state_of_the_disk_keeps_what_was_promised(seed):
    _, _, failures = simulate(60, seed=100 + seed)
    assert failures == []
