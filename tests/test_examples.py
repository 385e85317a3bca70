# SPDX-License-Identifier: Apache-2.0
"""The programs in `examples/` are killed and started again, and end with the numbers of a run that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import IO

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("train_*.py"))
KILLS = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A program, and what it prints when nothing happens to it: a loss every 50 steps, then a digest."""

    path: Path
    whole: list[str]


def started(path: Path, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, path, "--root", root, "--steps", "2000"], stdout=subprocess.PIPE, text=True
    )


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def finished(path: Path, root: Path) -> list[str]:
    with started(path, root) as process:
        lines = output(process).readlines()
    assert process.returncode == 0
    return lines


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(request.param, finished(request.param, tmp_path_factory.mktemp("uninterrupted") / "root"))


def goes_on(lines: list[str], whole: list[str]) -> bool:
    """Return whether a run printed a stretch of what the uninterrupted one did, losses to the last digit."""
    start = whole.index(lines[0]) if lines else 0
    return lines == whole[start : start + len(lines)]


def test_a_killed_example_ends_with_the_same_numbers(example: Example, root: Path) -> None:
    random = Random(example.path.stem)

    for _ in range(KILLS):
        with started(example.path, root) as process:
            lines = [output(process).readline() for _ in range(random.randint(1, 6))]
            try:
                process.wait(random.uniform(0, 0.05))
            except subprocess.TimeoutExpired:
                process.kill()
            lines += output(process).readlines()
        assert process.returncode == -signal.SIGKILL
        assert goes_on(lines, example.whole)

    lines = finished(example.path, root)
    assert lines[0] != example.whole[0], "it began anew"
    assert goes_on(lines, example.whole)
    assert lines[-1] == example.whole[-1]


@pytest.mark.parametrize("name", ["kauldron_training", "kempnerforge_training"])
def test_a_killed_example_of_a_front_door_ends_with_the_same_numbers(name: str, root: Path, tmp_path: Path) -> None:
    random, path = Random(name), FOLDER / f"{name}.py"
    whole = finished(path, tmp_path / "uninterrupted")

    for _ in range(KILLS):
        with started(path, root) as process:
            lines = [output(process).readline() for _ in range(random.randint(4, 8))]
            process.kill()
            lines += output(process).readlines()
        assert goes_on(lines, whole)

    lines = finished(path, root)
    assert lines[0] != whole[0], "it began anew"
    assert goes_on(lines, whole)
    assert lines[-1] == whole[-1]


def test_an_example_that_is_told_to_stop_saves_and_goes_on_from_there(example: Example, root: Path) -> None:
    with started(example.path, root) as process:
        before = [output(process).readline() for _ in range(3)]
        process.terminate()
        before += output(process).readlines()
    assert process.returncode == 75

    assert before + finished(example.path, root) == example.whole


# --- ensembles


def forecast(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, FOLDER / "ensemble.py", "--root", root, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def members(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(root.glob("member-*.npy"))]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return what the ensemble writes when nothing happens to it."""
    root = tmp_path_factory.mktemp("calm") / "root"
    with forecast(root) as process:
        assert len(output(process).readlines()) == 8
    assert process.returncode == 0
    return members(root)


def test_a_killed_ensemble_writes_the_same_files(calm: list[bytes], root: Path) -> None:
    random = Random("ensemble")
    for count in (1, 2, 2):
        with forecast(root) as process:
            for _ in range(count):
                output(process).readline()
            try:
                process.wait(random.uniform(0.01, 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.returncode == -signal.SIGKILL

    with forecast(root) as process:
        rest = output(process).readlines()

    assert process.returncode == 0
    assert len(rest) <= 8 - (1 + 2 + 2)
    assert members(root) == calm


def test_workers_that_share_an_ensemble_write_the_same_files(calm: list[bytes], root: Path) -> None:
    with (
        forecast(root, "--workers", "2", "--worker", "0") as first,
        forecast(root, "--workers", "2", "--worker", "1") as second,
    ):
        assert [len(output(process).readlines()) for process in (first, second)] == [4, 4]

    assert members(root) == calm


def test_an_ensemble_that_is_told_to_stop_goes_on_from_there(calm: list[bytes], root: Path) -> None:
    with forecast(root) as process:
        before = [output(process).readline()]
        process.terminate()
        before += output(process).readlines()
    assert process.returncode == 75
    with forecast(root) as process:
        after = output(process).readlines()

    assert process.returncode == 0
    assert len(before) + len(after) == 8
    assert members(root) == calm


@pytest.mark.skipif(find_spec("xarray") is None or find_spec("zarr") is None, reason="xarray or zarr is not installed")
def test_a_killed_ensemble_in_one_zarr_store_ends_with_the_same_numbers(root: Path) -> None:
    def started(name: str) -> subprocess.Popen[str]:
        where = ["--root", root / name, "--output", root / f"{name}.zarr"]
        return subprocess.Popen(
            [sys.executable, FOLDER / "ensemble_zarr.py", *where], stdout=subprocess.PIPE, text=True
        )

    with started("calm") as process:
        calm = output(process).readlines()
    with started("killed") as process:
        while output(process).readline() not in ("member 2 from lead 0\n", ""):
            pass
        process.kill()
    with started("killed") as process:
        again = output(process).readlines()

    assert again[0].startswith("member 2 from lead")
    assert again[-1] == calm[-1]
