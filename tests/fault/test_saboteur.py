# SPDX-License-Identifier: Apache-2.0
"""Nothing that keeps checkpoints safe can be taken away without a red test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault.saboteur import SABOTAGES, SOURCE, Sabotage, caught_by


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.what)
def test_every_check_and_order_is_missed_when_it_is_taken_away(sabotage: Sabotage, full: bool, tmp_path: Path) -> None:
    text = (SOURCE / sabotage.file).read_text()

    assert text.count(sabotage.old) == 1, "the saboteur looks for a line that is no longer there"
    if full:
        assert caught_by(sabotage, tmp_path / "changed")
