# SPDX-License-Identifier: Apache-2.0
"""A user's training loop with Orbax v1: saves on an interval, keeps the last and the best, is interrupted, resumes.

Run with a folder as its argument.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

policies = ocp.training.save_decision_policies
preservation = ocp.training.preservation_policies
errors = ocp.training.errors


class State(NamedTuple):
    params: dict
    momentum: dict
    step: int


def init():
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    return State(params, jax.tree.map(jnp.zeros_like, params), 0)


@jax.jit
def gradients(params, x, y):
    def loss(p):
        return jnp.mean((x @ p["w"] + p["b"] - y) ** 2)

    return jax.value_and_grad(loss)(params)


def train_step(state):
    rng = np.random.default_rng(state.step)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] - x[:, 1]], 1)
    loss, grads = gradients(state.params, x, y)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.momentum, grads)
    params = jax.tree.map(lambda p, m: p - 0.05 * m, state.params, momentum)
    return State(params, momentum, state.step + 1), float(loss)


def checkpointer(directory):
    return ocp.training.Checkpointer(
        directory,
        save_decision_policy=policies.AnySavePolicy(
            [policies.FixedIntervalPolicy(3), policies.SpecificStepsPolicy([5])]
        ),
        preservation_policy=preservation.AnyPreservationPolicy(
            [preservation.LatestN(2), preservation.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1)]
        ),
        step_name_format=ocp.path.step.standard_name_format(step_prefix="ckpt", step_format_fixed_length=4),
        custom_metadata={"model": "linear", "width": 2},
    )


def run(directory, stop):
    with checkpointer(directory) as ckptr:
        if ckptr.latest is None:
            state = init()
            print("starting from nothing")
        else:
            state = ckptr.load(ckptr.latest, jax.eval_shape(init)._replace(step=0))
            print(
                "resumed from",
                ckptr.latest.step,
                "as",
                type(state).__name__,
                "with metrics",
                sorted(ckptr.latest.metrics),
            )
        while state.step < stop:
            state, loss = train_step(state)
            saved = ckptr.save_async(state.step, state, metrics={"loss": loss}, custom_metadata={"host": "a"})
            if saved is not None:
                print("step", state.step, f"loss {loss:.4f}", "saved", saved.result())
        print("steps", [c.step for c in ckptr.checkpoints], "latest", ckptr.latest.step, ckptr.latest.path.name)
    return state


root = Path(sys.argv[1]) / "run"
run(root, 8)
state = run(root, 14)
print("w", np.round(np.asarray(state.params["w"]).ravel(), 4).tolist())

with checkpointer(root) as ckptr:
    described = ckptr.metadata()
    print("described", described.step, described.custom_metadata, sorted(described.metrics))
    print("shapes", jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), described.metadata))
    print("root", ckptr.root_metadata().custom_metadata)
    plain = ckptr.load()
    print("without abstract", type(plain).__name__, sorted(plain), type(plain["params"]["w"]).__name__, plain["step"])
    print("due", [step for step in range(20) if ckptr.should_save(step)])
    try:
        ckptr.load(1)
    except errors.StepNotFoundError as error:
        print("not found:", error)
    try:
        ckptr.save(ckptr.latest.step, state)
    except errors.StepAlreadyExistsError as error:
        print("exists:", error)
    print("again", ckptr.save(ckptr.latest.step, state, overwrite=True, force=True, metrics={"loss": 0.0}))
    print("deleted", ckptr.delete(ckptr.checkpoints[0].step), [c.step for c in ckptr.checkpoints])
    print("forced", ckptr.save(16, state, force=True, metrics={"loss": 9.0}), [c.step for c in ckptr.checkpoints])
