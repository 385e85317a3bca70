# SPDX-License-Identifier: Apache-2.0
"""Train with JAX, be killed at any moment, start the same command again: the numbers are the same.

    python train_jax.py --root runs/jax     # kill -9 it, start it again: the last line is always the same

SIGTERM lets it save first; it then ends with exit code 75, which means: run me again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import milepost as mp


def init(key: Any) -> dict[str, Any]:
    """Return everything that `train_step` changes: weights, momentum, and the key of the noise."""
    first, second, noise = jax.random.split(key, 3)
    weights = {"w1": jax.random.normal(first, (16, 256)) / 4, "w2": jax.random.normal(second, (256, 1)) / 16}
    return {"weights": weights, "momentum": jax.tree.map(jnp.zeros_like, weights), "noise": noise}


@jax.jit
def train_step(state: dict[str, Any], inputs: Any) -> tuple[dict[str, Any], Any]:
    def loss_of(weights: dict[str, Any]) -> Any:
        outputs = jnp.tanh((inputs + 0.01 * jax.random.normal(own, inputs.shape)) @ weights["w1"]) @ weights["w2"]
        return jnp.mean((outputs - jnp.sin(3 * inputs.sum(axis=1, keepdims=True))) ** 2)

    noise, own = jax.random.split(state["noise"])
    loss, gradients = jax.value_and_grad(loss_of)(state["weights"])
    momentum = jax.tree.map(lambda old, new: 0.9 * old - 0.02 * new, state["momentum"], gradients)
    return {"weights": jax.tree.map(jnp.add, state["weights"], momentum), "momentum": momentum, "noise": noise}, loss


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="where the checkpoints go")
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()

    key, start = jax.random.key(1), 0
    random = np.random.default_rng(0)  # picks the batches: without its state a resumed run would see other ones
    with mp.Checkpointer(args.root, save="every 100 steps or 10 min, on preemption", keep="last 3") as saver:
        if last := saver.catalog.latest():  # None on the first run
            state = last.at("train").load(like=jax.eval_shape(init, key))  # shapes are enough, and no step is computed
            last.at("data").load_into(random)
            start = last.step + 1
        else:
            state = init(key)
        for step in range(start, args.steps):
            state, loss = train_step(state, random.uniform(-1, 1, (256, 16)).astype(np.float32))
            if step % 50 == 0:
                print(f"step {step:5}  loss {float(loss)!r}", flush=True)
            if saver.due(step, last=step == args.steps - 1):
                saver.save(step, {"train": state, "data": mp.PerProcess(random)}, metrics={"loss": float(loss)})
            if saver.stopping:  # told to stop, and saved
                return saver.exit_code
    print("weights", hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in state["weights"].values())).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
