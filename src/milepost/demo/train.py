# SPDX-License-Identifier: Apache-2.0
"""The training run of the demo. It knows nothing of kills and damage: it is started, and goes on where it was.

`python -m milepost.demo.train ROOT` trains; the same command after any interruption ends with the same numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import sys

import numpy as np

import milepost as mp
from milepost.demo import digits
from milepost.demo.model import FRAMEWORKS, Model


def model_of(framework: str, seed: int) -> Model:
    """Return a new model; only its own framework is imported."""
    if framework == "torch":
        from milepost.demo.mlp_torch import TorchMlp

        return TorchMlp(seed)
    if framework == "jax":
        from milepost.demo.mlp_jax import JaxMlp

        return JaxMlp(seed)
    from milepost.demo.mlp_numpy import NumpyMlp

    return NumpyMlp(seed)


def train(root: str, framework: str, steps: int, bandwidth: float | None) -> int:
    """Train up to a step, saving on the way; return the exit code."""
    training, held_out = digits.load()
    model = model_of(framework, seed=1)
    batches = digits.Batches(training, size=50, seed=2)
    losses = np.zeros(steps)
    state = {"model": model.state, "batches": mp.PerProcess(batches), "losses": losses}

    limits = mp.Limits(bandwidth_bytes_per_s=bandwidth)
    with mp.Checkpointer(
        root, save="every 50 steps, on preemption", keep="last 4, every 200 steps, best 1 accuracy", limits=limits
    ) as saver:
        start = 0
        if restored := saver.catalog.restore(on_corrupt="previous"):
            for _, error in restored.skipped:
                say(f"{str(error).partition(':')[0]}: left out")
            restored.checkpoint.load_into(state)
            start = restored.checkpoint.step
            say(f"resumed from step {start}")
        for step in range(start + 1, steps + 1):
            losses[step - 1] = loss = model.step(*next(batches))
            if saver.due(step, last=step == steps):
                accuracy = model.accuracy(held_out.images, held_out.labels)
                say(f"step {step:4}   loss {loss:.4f}   accuracy {accuracy:.3f}")
                saver.save(step, state, metrics={"loss": loss, "accuracy": accuracy})
            if saver.stopping:
                break
    weights = model.weights()
    say(f"weights {sha256(*(weights[name] for name in sorted(weights)))}")
    say(f"losses  {sha256(losses)}")
    return saver.exit_code


def sha256(*arrays: digits.Array) -> str:
    """Return the digest of the arrays' bytes, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def say(line: str) -> None:
    """Print a line at once, so that whoever looks on sees it before the next step."""
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m milepost.demo.train")
    parser.add_argument("root")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="numpy")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--bandwidth", type=float, help="bytes per second that a save may write; default no limit")
    args = parser.parse_args()
    return train(args.root, args.framework, args.steps, args.bandwidth)


if __name__ == "__main__":
    sys.exit(main())
