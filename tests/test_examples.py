# SPDX-License-Identifier: Apache-2.0
"""The programs in `examples/` are killed and started again, and end with the numbers of a run that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("train_*.py"))
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


def test_an_example_that_is_told_to_stop_saves_and_goes_on_from_there(example: Example, root: Path) -> None:
    with started(example.path, root) as process:
        before = [output(process).readline() for _ in range(3)]
        process.terminate()
        before += output(process).readlines()
    assert process.returncode == 75

    assert before + finished(example.path, root) == example.whole
