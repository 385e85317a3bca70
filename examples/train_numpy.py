# SPDX-License-Identifier: Apache-2.0
"""Train with NumPy alone, be killed at any moment, start the same command again: the numbers are the same.

    python train_numpy.py --root runs/numpy     # kill -9 it, start it again: the last line is always the same

SIGTERM lets it save first; it then ends with exit code 75, which means: run me again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: with other threads, sums have other last bits
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import milepost as mp


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    inputs = random.uniform(-1, 1, (2_000, 16))
    return inputs, np.sin(3 * inputs @ random.normal(size=16))


def new_state() -> dict[str, Any]:
    """Return everything that changes in training: weights, momentum, and the random state that picks batches."""
    random = np.random.default_rng(1)
    weights = {"w1": random.normal(size=(16, 256)) / 4, "w2": random.normal(size=256) / 16}
    momentum = {name: np.zeros_like(weight) for name, weight in weights.items()}
    return {"weights": weights, "momentum": momentum, "random": random}


def train_step(state: dict[str, Any], inputs: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    weights, momentum = state["weights"], state["momentum"]
    batch = state["random"].integers(len(inputs), size=256)
    hidden = np.tanh(inputs[batch] @ weights["w1"])
    error = hidden @ weights["w2"] - wanted[batch]
    back = np.outer(error, weights["w2"]) * (1 - hidden**2)
    gradients = {"w1": inputs[batch].T @ back / len(batch), "w2": hidden.T @ error / len(batch)}
    for name, gradient in gradients.items():
        momentum[name] = 0.9 * momentum[name] - 0.02 * gradient
        weights[name] += momentum[name]
    return float(np.mean(error**2))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="where the checkpoints go")
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()

    inputs, wanted = data()
    state, start = new_state(), 0
    with mp.Checkpointer(args.root, save="every 100 steps or 10 min, on preemption", keep="last 3") as saver:
        # None on the first run. A damaged step is left for the one before, with a warning.
        if restored := saver.catalog.restore(like=state, on_corrupt="previous"):
            state, start = restored.tree, restored.checkpoint.step + 1
        for step in range(start, args.steps):
            loss = train_step(state, inputs, wanted)
            if step % 50 == 0:
                print(f"step {step:5}  loss {loss!r}", flush=True)
            if saver.due(step, last=step == args.steps - 1):
                saver.save(step, state, metrics={"loss": loss})
            if saver.stopping:  # told to stop, and saved
                return saver.exit_code
    print("weights", hashlib.sha256(b"".join(w.tobytes() for w in state["weights"].values())).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
