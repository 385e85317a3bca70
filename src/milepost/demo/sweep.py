# SPDX-License-Identifier: Apache-2.0
"""The ensemble of the demo, killed at every mark, at both levels, with one worker and with three.

`python -m milepost.demo.sweep` takes some minutes; `--members` and `--months` make the ensemble smaller. Every kill is
a SIGKILL of a process of its own. Then the ensemble is finished, and the temperatures are compared.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import milepost as mp
from milepost.demo.ensemble import forecast, temperatures


@dataclass(frozen=True, slots=True)
class Case:
    """An ensemble: how large, what is saved of it, and how many workers share it out."""

    members: int
    months: int
    level: mp.Level
    workers: int

    def forecast(self, root: Path, output: Path, worker: int, workers: int) -> Any:
        return forecast(
            root, output, members=self.members, months=self.months, worker=worker, workers=workers, level=self.level,
            save="every 2 steps",
        )  # fmt: skip

    def killed(self, root: Path, output: Path, worker: int, marks: int) -> None:
        """Run a worker in a process that kills itself after so many marks, or ends before.

        Raises:
            RuntimeError: it failed.
        """
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError(f"worker {worker} failed before its mark {marks}: see above")
            return
        try:
            for count, _ in enumerate(self.forecast(root, output, worker, self.workers), 1):
                if count == marks:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        except BaseException:  # noqa: BLE001 nothing of the parent may run here
            traceback.print_exc()
            os._exit(1)

    def finished(self, root: Path, output: Path) -> bytes:
        """Let one worker finish the ensemble; return its temperatures."""
        for _ in self.forecast(root, output, 0, 1):
            pass
        return temperatures(output).tobytes()


def swept(folder: Path, case: Case) -> int | None:
    """Kill an ensemble at every mark of every worker; return the first at which it then came out otherwise, or None."""
    expected = case.finished(folder / "whole", folder / "whole-output")
    for marks in range(1, case.members * case.months // case.workers + 1):
        root, output = folder / f"killed-{marks}", folder / f"killed-{marks}-output"
        for worker in range(case.workers):
            case.killed(root, output, worker, marks)
        if case.finished(root, output) != expected:
            return marks
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m milepost.demo.sweep")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--months", type=int, default=12)
    args = parser.parse_args()
    wrong = 0
    for level in (mp.Level.ITEM, mp.Level.ROLLOUT):
        for workers in (1, 3):
            with tempfile.TemporaryDirectory(prefix="milepost-sweep-") as name:
                marks = swept(Path(name), Case(args.members, args.months, level, workers))
            told = "BIT-EXACT" if marks is None else f"NOT AS PROMISED after {marks} marks"
            wrong += marks is not None
            who = f"{workers} worker{'s' * (workers > 1)}"
            print(f"level {int(level)}, {who}, killed at every mark: {told}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
