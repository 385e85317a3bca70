# SPDX-License-Identifier: Apache-2.0
"""`milepost prune`, `pin`, `unpin` and `watch`: what goes, what stays, what comes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from cli_runs import COMMAND, as_json, child, flip_a_byte, make_run, milepost, on_terminal
from milepost.cli.change import Agreed
from milepost.policy import Latest, Saved


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "gpt")
    return tmp_path / "gpt"


def steps(root: Path) -> list[int]:
    return sorted(mp.open(root))


# --- prune


def test_prune_shows_what_goes_and_why_the_rest_stays(root: Path) -> None:
    mp.open(root).pin(100, "first")

    result = milepost("prune", root, "--keep", "last 1", "--dry-run")

    assert result.exit_code == 0
    text = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert text[0] == "300 keep latest · last 1"
    assert text[1].startswith("200 drop 20.")
    assert text[2] == '100 keep pinned "first"'
    assert text[3].startswith("1 of 3 steps go by 'last 1': 20.")
    assert steps(root) == [100, 200, 300]


def test_prune_deletes_nothing_when_nobody_can_be_asked(root: Path) -> None:
    for words in ([], ["--json"]):
        done = child("prune", root, "--keep", "last 1", *words)

        assert done.returncode == 2
        assert "Pass --yes" in done.stderr
    assert steps(root) == [100, 200, 300]


@pytest.mark.parametrize(("typed", "code", "left"), [("y\n", 0, [300]), ("\n", 1, [100, 200, 300])])
def test_prune_asks_on_a_terminal(root: Path, typed: str, code: int, left: list[int]) -> None:
    found, shown = on_terminal("prune", root, "--keep", "last 1", prompt="[y/N]", typed=typed)

    assert found == code
    assert "Delete 2 steps? [y/N]" in shown
    assert ("nothing was deleted" in shown) is (code == 1)
    assert steps(root) == left


def test_ctrl_c_at_the_question_deletes_nothing(root: Path) -> None:
    code, _ = on_terminal("prune", root, "--keep", "last 1", prompt="[y/N]", typed="\x03")

    assert code == 130
    assert steps(root) == [100, 200, 300]


def test_prune_with_yes_deletes_and_says_what_was_freed(root: Path) -> None:
    document = as_json("prune", root, "--keep", "best 1 loss", "--yes")

    assert steps(root) == [100, 300]
    assert (document["schema"], document["keep"], document["dry_run"]) == ("milepost.prune/1", "best 1 loss", False)
    assert [each["step"] for each in document["kept"]] == [100, 300]
    assert [each["step"] for each in document["dropped"]] == [200]
    assert document["freed_bytes"] == document["dropped"][0]["bytes"] > 12 * 1024


def test_prune_without_a_policy_takes_the_one_that_was_recorded(root: Path) -> None:
    result = milepost("prune", root)

    assert result.exit_code == 0
    assert "0 of 3 steps go by 'last 2, best 1 loss': nothing to delete" in result.stdout


def test_a_policy_that_cannot_be_read_is_pointed_at(root: Path) -> None:
    result = milepost("prune", root, "--keep", "last few", "--yes")

    assert result.exit_code == 2
    assert "  last few\n       ^^^\n" in result.stderr
    assert steps(root) == [100, 200, 300]


def test_a_recorded_policy_that_no_phrase_can_say_has_to_be_given(tmp_path: Path) -> None:
    with mp.Checkpointer(tmp_path / "run", keep=Odd()) as saver:
        saver.save(1, {"w": np.ones(2)})

    result = milepost("prune", tmp_path / "run", "--yes")

    assert result.exit_code == 2
    assert "Pass --keep" in result.stderr


class Odd:
    """A policy of the user's own."""

    def keep(self, history: list[Saved]) -> dict[int, str]:
        return {saved.step: "odd" for saved in history if saved.step % 2}

    def __str__(self) -> str:
        return "odd steps"


def test_a_step_that_is_being_read_stays_and_the_exit_code_says_busy(root: Path) -> None:
    with mp.open(root)[100].lease():
        result = milepost("prune", root, "--keep", "last 1", "--yes")

    assert result.exit_code == 11
    assert "being read, so not deleted: 100" in result.stderr
    assert steps(root) == [100, 300]


def test_a_step_that_was_not_in_the_plan_is_not_deleted() -> None:
    history = [Saved(step, float(step), {}, "") for step in (1, 2, 3, 4, 5)]

    agreed = Agreed(Latest(1), frozenset({1, 2}))

    assert sorted(agreed.keep(history)) == [3, 4, 5]
    assert sorted(agreed.keep(history[:1])) == [1]  # the policy has come to keep it


# --- pin


def test_a_pinned_step_stays_until_the_pin_is_taken_away(root: Path) -> None:
    assert milepost("pin", f"{root}@best", "before-lr-drop").exit_code == 0
    milepost("prune", root, "--keep", "last 1", "--yes")
    assert steps(root) == [100, 300]

    assert milepost("unpin", root, "before-lr-drop").exit_code == 0
    milepost("prune", root, "--keep", "last 1", "--yes")
    assert steps(root) == [300]


def test_pin_json_lists_all_pins_of_the_step(root: Path) -> None:
    as_json("pin", f"{root}@200", "one")

    assert as_json("pin", f"{root}@200", "two") == {
        "schema": "milepost.pin/1", "store": str(root), "step": 200, "pins": ["one", "two"],
    }  # fmt: skip
    assert as_json("unpin", root, "one") == {"schema": "milepost.unpin/1", "store": str(root), "pin": "one"}


def test_pin_wants_to_be_told_which_step(root: Path) -> None:
    result = milepost("pin", root, "name")

    assert result.exit_code == 2
    assert f"{root}@latest" in result.stderr


def test_a_pin_that_is_not_there_is_told_with_those_that_are(root: Path) -> None:
    mp.open(root).pin(200, "mine")

    result = milepost("unpin", root, "yours")

    assert result.exit_code == 12
    assert "There are: mine." in result.stderr


def test_a_pin_can_be_taken_away_when_another_step_is_damaged(root: Path) -> None:
    mp.open(root).pin(200, "mine")
    flip_a_byte(root / "100" / "manifest.json", 30)

    assert milepost("unpin", root, "mine").exit_code == 0
    assert mp.open(root)[200].info.pins == ()


# --- watch


def test_watch_prints_a_line_for_each_checkpoint(root: Path) -> None:
    everything = milepost("watch", root, "--timeout", 0)
    later = milepost("watch", root, "--timeout", 0, "--after", 200)
    only_new = milepost("watch", root, "--timeout", 0, "--after", "latest")

    assert [line.split()[0] for line in everything.stdout.splitlines()] == ["100", "200", "300"]
    assert "loss 0.3  acc.top1 0.6  (asked for)" in later.stdout
    assert len(later.stdout.splitlines()) == 1
    assert (only_new.exit_code, only_new.stdout) == (0, "")


def test_watch_prints_a_json_object_per_line_as_checkpoints_appear(root: Path) -> None:
    command = [*COMMAND, "watch", str(root), "--json", "--after", "200", "--poll", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        mp.save(root, {"w": np.ones(2)}, step=400, metrics={"loss": 0.5})
        second = json.loads(process.stdout.readline())
        process.terminate()

    assert (first["schema"], first["step"]) == ("milepost.watch/1", 300)
    assert (second["step"], second["metrics"]) == (400, {"loss": 0.5})


def test_watch_wants_a_step_to_begin_after(root: Path) -> None:
    assert milepost("watch", root, "--after", "noon").exit_code == 2
