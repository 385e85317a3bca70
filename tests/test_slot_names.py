# SPDX-License-Identifier: Apache-2.0
"""What a writer says of the slots that were there before it never hits a slot that comes after it."""

from __future__ import annotations

from pathlib import Path

import milepost as mp


def test_a_step_that_was_half_written_is_the_latest_once_it_is_saved(root: Path) -> None:
    with mp.Checkpointer(root, save="every step") as saver:
        saver.save(3, {"a": 3})
    (root / "5").mkdir()  # what a killed save of step 5 leaves

    with mp.Checkpointer(root, save="every step") as saver:
        saver.save(5, {"a": 5})

    assert mp.load(root) == {"a": 5}
    assert not mp.open(root)[5].info.superseded
    with mp.Checkpointer(root, save="every step") as saver:
        saver.save(6, {"a": 6})
    assert mp.load(root) == {"a": 6}


def test_a_branch_never_takes_the_name_of_a_superseded_step_that_was_pruned(root: Path) -> None:
    with mp.Checkpointer(root, save="every step") as saver:
        for step in range(8):
            saver.save(step, {"a": step})

    with mp.Checkpointer(root, save="every step", keep="last 3", resume_from=mp.open(root)[2]) as saver:
        for step in (3, 4, 5):
            saver.save(step, {"b": step}).result()
            latest = saver.catalog.latest()
            assert latest is not None
            assert latest.step == step

    assert mp.load(root) == {"b": 5}
