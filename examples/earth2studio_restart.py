# SPDX-License-Identifier: Apache-2.0
"""A forecast that stops after its first step and is restarted, through the front door of Earth2Studio.

Run it twice: `python examples/earth2studio_restart.py out --steps 1`, then with `--steps 3`. In a program that uses
Earth2Studio, only the import of `Checkpoint` and `bind_checkpoint_state` changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milepost.compat.earth2studio import Checkpoint, CheckpointSession, bind_checkpoint_state

SIX_HOURS = np.timedelta64(6, "h")


@dataclass
class RolloutState:
    """What the model needs to go on inside a forecast."""

    x: Any = None
    lead_time: Any = None


class Advection:
    """A model that carries a wave eastwards."""

    def __init__(self) -> None:
        self.checkpoint = bind_checkpoint_state(RolloutState())  # restored here, if there is something to restore

    def create_iterator(self, x: Any) -> Iterator[tuple[Any, np.timedelta64]]:
        lead_time = np.timedelta64(0, "h")
        if self.checkpoint.checkpoint_state_loaded and self.checkpoint.x is not None:
            x, lead_time = self.checkpoint.x, self.checkpoint.lead_time
        else:
            yield self._staged(x, lead_time)
        while True:
            x, lead_time = 0.7 * np.roll(x, 1) + 0.3 * x, lead_time + SIX_HOURS
            yield self._staged(x, lead_time)

    def _staged(self, x: Any, lead_time: np.timedelta64) -> tuple[Any, np.timedelta64]:
        if self.checkpoint.checkpoint_level == 2:
            self.checkpoint.x, self.checkpoint.lead_time = x.copy(), lead_time
        return x, lead_time


def deterministic(steps: int, model: Advection, output: Path, ckpt: CheckpointSession) -> None:
    first = ckpt.write_count  # one write for each lead time, the first of them 0
    if first > steps:
        return
    initial = np.sin(np.linspace(0.0, 2 * np.pi, 64, endpoint=False))
    for step, (x, lead_time) in enumerate(model.create_iterator(initial), first):
        np.save(output / f"{lead_time // np.timedelta64(1, 'h'):03d}h.npy", x)  # durable output first
        ckpt.write(lead_time=lead_time)  # then the place to restart from
        if step == steps:
            break
    ckpt.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    output = options.folder / "fields"
    output.mkdir(parents=True, exist_ok=True)

    catalog = Checkpoint("restart", options.folder / "restart", mode="append", history_size=4)
    with catalog as ckpt:
        print(f"goes on after {ckpt.lead_time}" if ckpt else "begins")
        deterministic(options.steps, Advection(), output, ckpt)
    print(catalog)


if __name__ == "__main__":
    main()
