# SPDX-License-Identifier: Apache-2.0
"""`milepost demo` keeps what it promises, and says so when it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from milepost.demo import acts, digits, elnino, run


def test_the_demo_is_killed_and_damaged_and_ends_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"

    assert run(keep=str(kept)) == 0

    said = capsys.readouterr().out
    assert said.count("BIT-EXACT") == 3
    assert [f"\n{act}. " in said for act in range(1, 8)] == [True] * 6 + [False]
    assert re.search(r"\| member +\d+   goes on with month (7|13|19)\n", said)
    assert re.search(r"^ +\d+ +(6|12|18)  #+\.+  begun  lead (6|12|18)$", said, re.MULTILINE)
    assert " 16 items · 16 done" in said
    assert "350    –" in said
    assert "incomplete – ignored by resume" in said
    assert "resumed from step 300\n" in said
    assert "600  DAMAGED  model/weights/w2" in said
    assert "resumed from step 550\n" in said
    assert "no difference" in said
    assert {path.name for path in kept.iterdir()} == {
        "interrupted", "uninterrupted",
        "ensemble", "ensemble-output", "ensemble-uninterrupted", "ensemble-uninterrupted-output",
    }  # fmt: skip
    latest = mp.open(kept / "interrupted").latest()
    assert latest is not None
    assert latest.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_demo_plays_with_every_framework(
    framework: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "STEPS", 200)  # the same acts, shorter
    monkeypatch.setattr(acts, "KILL_AT", 100)

    assert run(framework) == 0

    assert capsys.readouterr().out.count("BIT-EXACT") == 3


def test_a_broken_promise_is_said_and_is_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "STEPS", 50)  # over before it can be killed

    assert run() == 1

    assert "NOT AS PROMISED: no save could be killed" in capsys.readouterr().out


def test_the_demo_leaves_a_folder_that_is_in_use_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")

    assert run(keep=str(tmp_path)) == 1

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "Name a new folder" in capsys.readouterr().out


def test_the_demo_says_as_json_whether_all_was_as_promised(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("here already")
    program = "from milepost.cli import main; main(prog_name='milepost')"
    command = [sys.executable, "-c", program, "demo", "--json", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)

    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert (said["schema"], said["as_promised"], said["kept"]) == ("milepost.demo/1", False, str(tmp_path))
    assert "is there already. Name a new folder." in done.stderr


def test_a_framework_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fortran") == 1
    assert "choose one of numpy, torch, jax" in capsys.readouterr().out


def test_the_ensemble_killed_at_every_mark_is_that_of_one_left_alone() -> None:
    command = [sys.executable, "-m", "milepost.demo.sweep", "--members", "3", "--months", "3"]

    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said.splitlines() == [
        f"level {level}, {workers}, killed at every mark: BIT-EXACT"
        for level in (1, 2)
        for workers in ("1 worker", "3 workers")
    ]


def test_the_temperatures_are_those_of_the_table() -> None:
    table = elnino.load()

    assert table.shape == (61, 12)
    assert table[0, :3].tolist() == [23.11, 24.2, 25.37]
    assert table[-1, -1] == 22.07
    assert table.mean() == pytest.approx(23.0926, abs=1e-4)


def test_the_inverse_model_is_stable_and_as_lively_as_what_it_was_fitted_to() -> None:
    table = elnino.load()
    model = elnino.InverseModel.fitted(table)
    random, strengths = np.random.default_rng(0), model.start
    found = []
    for lead in range(1, 12_001):
        strengths = model.advanced(strengths, random)
        found.append(model.temperature(strengths, lead) - model.climate[(lead - 1) % 12])

    assert np.abs(np.linalg.eigvals(model.step)).max() < 1
    assert np.std(found) == pytest.approx((table - model.climate).std(), rel=0.15)


def test_the_digits_are_those_of_the_data_set() -> None:
    training, held_out = digits.load()

    labels = np.concatenate([training.labels, held_out.labels])
    assert len(training) + len(held_out) == 1_797
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert training.images[0, :8].tolist() == [0, 0, 5 / 16, 13 / 16, 9 / 16, 1 / 16, 0, 0]
    assert (training.images.min(), training.images.max()) == (0, 1)


def test_a_resumed_loader_gives_the_batches_that_an_uninterrupted_one_gives() -> None:
    training, _ = digits.load()
    one, other = digits.Batches(training, size=50, seed=1), digits.Batches(training, size=50, seed=2)
    for _ in range(47):  # into the second epoch
        next(one)

    other.load_state_dict(one.state_dict())

    for _ in range(60):
        for left, right in zip(next(one), next(other), strict=True):
            np.testing.assert_array_equal(left, right)
