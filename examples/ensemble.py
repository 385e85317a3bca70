# SPDX-License-Identifier: Apache-2.0
"""Forecast an ensemble with NumPy alone, be killed at any moment, start the same command again: same numbers.

    python ensemble.py --root runs/ensemble                         # kill -9 it, start it again
    python ensemble.py --root runs/ensemble --worker 0 --workers 3  # three workers share the members
    milepost ls runs/ensemble                                       # how far each member is

Each member is an item of the session, and a file. SIGTERM saves; the exit code 75 then means: run me again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import milepost as mp

Array = np.ndarray[Any, Any]
LEADS, SIZE = 120, 40


@dataclass
class Model:
    """The atmosphere on a circle of Lorenz (1996), with noise. All that changes in a forecast is in its fields."""

    x: Array = field(default_factory=lambda: np.full(SIZE, 8.0))
    noise: np.random.Generator = field(default_factory=np.random.default_rng)

    def begin(self, member: int) -> None:
        self.noise = np.random.default_rng([1996, member])  # no member depends on who computes it, nor when
        self.x = 8 + self.noise.normal(size=SIZE)

    def step(self) -> None:
        for _ in range(10):
            change = (np.roll(self.x, -1) - np.roll(self.x, 2)) * np.roll(self.x, 1) - self.x + 8
            self.x = self.x + 0.005 * change + 0.01 * self.noise.normal(size=SIZE)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True, help="where checkpoints and output go")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    items = [{"member": member} for member in range(args.members)]
    with mp.Session(args.root, save="every 20 steps, on preemption") as session:
        model = session.bind("model", Model())  # before the first item, so that each item restores it
        for labels in session.pending(items[args.worker :: args.workers]):
            with session.item(**labels) as item:
                first = item.progress.get("lead", -1) + 1  # after the last saved mark
                if first == 0:
                    model.begin(labels["member"])
                path = args.root / f"member-{labels['member']:03}.npy"
                mode = "r+" if first else "w+"
                output = np.lib.format.open_memmap(path, mode=mode, dtype=np.float64, shape=(LEADS, SIZE))
                for lead in range(first, LEADS):
                    model.step()
                    output[lead] = model.x
                    output.flush()  # now it is durable, and the mark may say so
                    session.mark(lead=lead)
                    if session.stopping:
                        return 75
            print(f"{path.name} from lead {first:3}  {hashlib.sha256(output.tobytes()).hexdigest()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
