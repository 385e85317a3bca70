# SPDX-License-Identifier: Apache-2.0
"""The managers of Orbax, saving 1 KiB a step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as v0
from orbax.checkpoint.experimental import v1

from benchmarks.managers import KEPT, Manager


def _multiplied(folder: Path, steps: int) -> None:
    """Make many steps of step 0, with hard links: saving as many would take minutes."""
    for step in range(1, steps):
        shutil.copytree(folder / "0", folder / str(step), copy_function=os.link)


class OrbaxV0(Manager):
    """`CheckpointManager`, synchronous."""

    def open(self, folder: Path) -> None:
        options = v0.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False, create=True)
        self._manager: Any = v0.CheckpointManager(folder, options=options)

    def latest(self) -> int:
        return self._manager.latest_step()

    def save(self, step: int) -> None:
        self._manager.save(step, args=v0.args.StandardSave({"x": jax.numpy.full(256, step, "float32")}))

    def close(self) -> None:
        self._manager.close()

    def fill(self, folder: Path, steps: int) -> None:
        self.open(folder)
        self.save(0)
        self.close()
        _multiplied(folder, steps)


class OrbaxV1(Manager):
    """`training.Checkpointer`, synchronous."""

    def open(self, folder: Path) -> None:
        policy = v1.training.preservation_policies.LatestN(KEPT)
        self._saver: Any = v1.training.Checkpointer(folder, preservation_policy=policy)

    def latest(self) -> int:
        return self._saver.latest.step

    def save(self, step: int) -> None:
        self._saver.save(step, {"x": jax.numpy.full(256, step, "float32")})

    def close(self) -> None:
        self._saver.close()

    def fill(self, folder: Path, steps: int) -> None:
        with v1.training.Checkpointer(folder) as saver:
            saver.save(0, {"x": jax.numpy.ones(256)})
        _multiplied(folder, steps)
