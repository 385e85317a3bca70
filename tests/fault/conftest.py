# SPDX-License-Identifier: Apache-2.0
"""How the harnesses of `milepost.testing.faults` are run here.

They need Linux, and most of them root. Whoever is not root sees these tests skipped. As root none of them is: where
tracing or loop devices are missing all the same, they fail and say so. XFS alone is skipped where it is not installed.
By default a share of the faults is tried, in under a minute; `pytest tests/fault --full` tries all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.testing.faults import ptrace

PROGRAMS = Path(__file__).parent

Harness = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="try every fault, not a share of them (about an hour)")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether every fault is to be tried."""
    # Not registered when this folder is not named on the command line.
    return bool(request.config.getoption("--full", default=False))


@pytest.fixture
def as_root() -> None:
    """Skips the test for whoever is not root."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("needs Linux and root")


@pytest.fixture
def harness(as_root: None, full: bool, tmp_path: Path) -> Harness:
    """Runs `python -m milepost.testing.faults`, in a process of its own since it forks; returns what it printed."""

    def run(*arguments: str, share: str = "", fails: bool = False) -> str:
        assert not ptrace.why_not()
        command = [sys.executable, "-m", "milepost.testing.faults", *arguments]
        if share and not full:
            command.append(f"--share={share}")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PROGRAMS), *sys.path]))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        said = done.stdout + done.stderr
        assert done.returncode == fails, said
        return said

    return run
