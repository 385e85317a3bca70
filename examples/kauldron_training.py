# SPDX-License-Identifier: Apache-2.0
"""Kauldron's training loop, through its front door: the same command goes on where it was interrupted.

    python kauldron_training.py --root runs/7     # kill -9 it, start it again: the last line is always the same

It needs JAX and Optax, not Kauldron. In a program that uses Kauldron, the Trainer does all of this: only the import of
`Checkpointer` in its configuration changes.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from milepost.compat import kauldron as ckpts

OPTIMIZER = optax.adam(1e-3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState(ckpts.items.StandardCheckpointItem):
    """Parameters and optimizer after `step` updates."""

    step: Any
    params: Any
    collections: Any
    opt_state: Any


class _CheckpointState(NamedTuple):
    train_state: TrainState
    ds_iter: Batches


class CheckpointState(_CheckpointState, ckpts.items.TopLevelCheckpointItem):
    DEFAULT_ITEM = "train_state"


class Batches:
    """Random batches; its position is saved with the state, as Grain's iterators do."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> jax.Array:
        batch = np.random.default_rng(self.position).standard_normal((32, 8), np.float32)
        self.position += 1
        return jnp.asarray(batch)

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def init_state() -> TrainState:
    params = {"encoder": jnp.eye(8, 4), "decoder": jnp.eye(4, 8)}
    return TrainState(jnp.int32(0), params, {}, OPTIMIZER.init(params))


@jax.jit
def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
    def reconstruction(params: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(batch @ params["encoder"]) @ params["decoder"] - batch) ** 2)

    loss, gradients = jax.value_and_grad(reconstruction)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, state.collections, opt_state), loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="the work directory")
    parser.add_argument("--steps", type=int, default=1_000)
    args = parser.parse_args()

    checkpointer = ckpts.Checkpointer(workdir=args.root, save_interval_steps=100, max_to_keep=2)
    first = checkpointer.latest_step or 0
    state, batches = checkpointer.restore(CheckpointState(init_state(), Batches()), noop_if_missing=True)
    for step in range(first, args.steps):
        if checkpointer.should_save(step):
            checkpointer.save(CheckpointState(state, batches), step=step)
        state, loss = train_step(state, next(batches))  # after the save: the next run begins with this batch
        if step % 50 == 0:
            print(f"step {step}  loss {float(loss)!r}", flush=True)
    checkpointer.wait_until_finished()
    weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params))
    print("weights", hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    main()
