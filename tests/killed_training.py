# SPDX-License-Identifier: Apache-2.0
"""A training run to be killed, `python killed_training.py ROOT STEPS`: saves often, links, prunes.

It prints `begun` when it enters its loop, `saved N` when the save of a step is acknowledged, and at the end a digest of
all it computed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import numpy as np

import milepost as mp

SAVE, KEEP = "every 3 steps", "last 3, every 60 steps"


class Batches:
    """Shuffled batches of 32 out of 256 rows; the order and the place in it are state."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)
        self._order = self._random.permutation(256)

    def __next__(self) -> np.ndarray[Any, Any]:
        if not len(self._order):
            self._order = self._random.permutation(256)
        batch, self._order = self._order[:32], self._order[32:]
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"random": self._random.bit_generator.state, "order": self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]
        self._order = state["order"]


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one system call, so that a kill leaves no half line


def acknowledge(pending: mp.PendingSave) -> None:
    if not pending.failed:
        say(f"saved {pending.step}")


def train(root: str, steps: int) -> None:
    random = np.random.default_rng(1)
    rows, wanted = random.normal(size=(256, 24)), random.normal(size=256)
    frozen = random.normal(size=(24, 1_000))  # never changes, so its pack is linked from step to step
    weights, velocity, losses = np.zeros(1_000), np.zeros(1_000), np.zeros(steps)
    noise, batches = np.random.default_rng(3), Batches()
    state = {
        "frozen": frozen, "weights": weights, "velocity": velocity, "losses": losses, "noise": noise,
        "batches": mp.PerProcess(batches),
    }  # fmt: skip
    with mp.Checkpointer(root, save=SAVE, keep=KEEP) as saver:
        start = 0
        if last := saver.catalog.latest():
            last.load_into(state)
            start = last.step
        say("begun")
        for step in range(start + 1, steps + 1):
            batch = next(batches)
            features = np.tanh(rows[batch] @ frozen)
            features *= noise.random(features.shape) > 0.1
            error = features @ weights - wanted[batch]
            losses[step - 1] = error @ error
            velocity *= 0.9
            velocity -= 1e-5 * (features.T @ error)
            weights += velocity
            if saver.due(step, last=step == steps):
                saver.save(step, state, metrics={"loss": losses[step - 1]}).add_done_callback(acknowledge)
    digest = hashlib.sha256()
    for array in (frozen, weights, velocity, losses, noise.random(8), next(batches)):
        digest.update(array.tobytes())
    say(f"digest {digest.hexdigest()}")


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
