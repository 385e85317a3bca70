# SPDX-License-Identifier: Apache-2.0
"""A training run that is killed at any moment, over and over, as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO

import milepost as mp
from killed_training import KEEP

PROGRAM = Path(__file__).parent / "killed_training.py"
STEPS = 900
KILLS = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take here, in seconds: from the start of the process to its first step, and from save to save."""

    begin_s: float
    save_s: float


def started(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, PROGRAM, root, str(STEPS)], stdout=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def uninterrupted(root: Path) -> tuple[str, Pace]:
    """Run to the end; return the digest of the result, and how long things took."""
    start = time.monotonic()
    with started(root) as process:
        assert output(process).readline() == "begun\n"
        begun = time.monotonic()
        lines = output(process).readlines()
    assert process.returncode == 0
    saves = sum(line.startswith("saved ") for line in lines)
    return lines[-1], Pace(begun - start, (time.monotonic() - begun) / saves)


def killed(root: Path, random: Random, pace: Pace) -> list[int]:
    """Run until a random moment, of starting up in a third of the cases, and return the steps it acknowledged."""
    lines: list[str] = []
    with started(root) as process:
        if random.random() < 1 / 3:
            delay_s = random.uniform(0, 1.2 * pace.begin_s)
        else:
            wanted = random.choice((1, 1, 1, 2, 5))  # a life with a single save is the hardest to come back from
            while sum(line.startswith("saved ") for line in lines) < wanted and (line := output(process).readline()):
                lines.append(line)
            delay_s = random.uniform(0, 1.5 * pace.save_s)
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.kill()
        lines += output(process).readlines()
    assert process.returncode == -9, "the run came to its end before it was killed"
    return [int(line.split()[1]) for line in lines if line.startswith("saved ")]


def kept(steps: set[int]) -> set[int]:
    """Return what the keep policy of the program must keep of these steps."""
    assert KEEP == "last 3, every 60 steps"
    first_of_each_60 = {min(step for step in steps if step // 60 == bucket) for bucket in {s // 60 for s in steps}}
    return set(sorted(steps)[-3:]) | first_of_each_60


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    expected, pace = uninterrupted(tmp_path / "uninterrupted")
    root, random = tmp_path / "root", Random(14)
    acknowledged: set[int] = set()
    half_written = 0

    for _ in range(KILLS):
        steps = killed(root, random, pace)
        assert not steps or min(steps) > max(acknowledged, default=0), "a step was saved twice"
        acknowledged.update(steps)
        if not acknowledged:
            continue
        catalog = mp.open(root)
        there = set(catalog)
        assert kept(acknowledged | there) & acknowledged <= there
        latest = catalog.latest()
        assert latest is not None
        assert latest.step == max(there) >= max(acknowledged)
        for checkpoint in catalog.values():
            checkpoint.verify()
        half_written += sum(slot.name.isdecimal() and int(slot.name) not in there for slot in root.iterdir())

    with started(root) as process:
        lines = output(process).readlines()

    assert lines[-1] == expected
    assert half_written, "no kill ever hit a save: the moments are not spread"
    newest = mp.open(root).latest()
    assert newest is not None
    assert any(linked for name, _, linked in newest.info.files if name.endswith(".safetensors"))
