# SPDX-License-Identifier: Apache-2.0
"""A user's training loop with Orbax v0: saves on an interval, keeps the last, is interrupted, resumes.

Run with a folder as its argument.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training import train_state


def apply(variables, x):
    return x @ variables["w"] + variables["b"]


def init():
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    return train_state.TrainState.create(apply_fn=apply, params=params, tx=optax.adam(0.05))


@jax.jit
def gradients(params, x, y):
    return jax.value_and_grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(params)


def train_step(state):
    rng = np.random.default_rng(int(state.step))
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] - x[:, 1]], 1)
    loss, grads = gradients(state.params, x, y)
    return state.apply_gradients(grads=grads), float(loss)


def run(directory, stop):
    options = ocp.CheckpointManagerOptions(save_interval_steps=3, max_to_keep=2, keep_period=6, save_on_steps=[5])
    with ocp.CheckpointManager(directory, options=options, metadata={"model": "linear"}) as manager:
        state, start = init(), 0
        if manager.latest_step() is None:
            print("starting from nothing", list(manager.all_steps()))
        else:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(abstract))
            start = int(state.step) + 1
            print("resumed", type(state).__name__, int(state.step), type(state.opt_state[0]).__name__)
        for step in range(start, stop):
            state, loss = train_step(state.replace(step=step))
            state = state.replace(step=step)
            saved = manager.save(step, args=ocp.args.StandardSave(state), custom_metadata={"loss": round(loss, 4)})
            print("step", step, f"loss {loss:.4f}", "saved", saved, manager.all_steps())
        print("forced", manager.save(stop, args=ocp.args.StandardSave(state), force=True), manager.all_steps())
        manager.wait_until_finished()
        print("errors", manager.check_for_errors(), "preempted", manager.reached_preemption(stop))
    return state


root = Path(sys.argv[1]) / "training"
run(root, 8)
state = run(root, 14)
print("w", np.round(np.asarray(state.params["w"]).ravel(), 4).tolist())

with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
    print("read only", manager.all_steps(), manager.should_save(99), manager.directory.name)
    print("root", manager.metadata().custom_metadata)
    step = manager.latest_step()
    print("step", manager.metadata(step).custom_metadata, manager.metrics(step), manager.best_step())
    raw = manager.restore(step)
    print("raw", sorted(raw), type(raw["opt_state"]).__name__, sorted(raw["opt_state"][0]), raw["opt_state"][1])
    print("leaf", type(raw["params"]["w"]).__name__, raw["params"]["w"].dtype, int(raw["step"]))
    for wrong in (77, None):
        try:
            print(sorted(manager.restore(wrong)))
        except FileNotFoundError as error:
            print("not found", type(error).__name__)

with ocp.CheckpointManager(root) as manager:
    try:
        manager.save(14, args=ocp.args.StandardSave({"x": 1}), force=True)
    except ValueError as error:
        print("exists:", type(error).__name__)
    manager.delete(14)
    print("deleted", manager.all_steps(), manager.latest_step())
    try:
        manager.restore(12, args=ocp.args.StandardRestore({"params": {"w": jnp.zeros((3, 2))}}))
    except ValueError:
        print("another structure")
