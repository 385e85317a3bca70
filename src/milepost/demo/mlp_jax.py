# SPDX-License-Identifier: Apache-2.0
"""The model in JAX: one compiled step from state to state, Adam written out, and a typed key for the dropout."""

# JAX says only in part what its functions take and give.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from milepost.demo.digits import Array
from milepost.demo.model import DROPOUT, LAYERS, LEARNING_RATE

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@final
class JaxMlp:
    """`state` is a tree of arrays, replaced as a whole by each step."""

    def __init__(self, seed: int) -> None:
        key, noise = jax.random.split(jax.random.key(seed))
        weights: dict[str, Any] = {}
        for i, (before, after) in enumerate(pairwise(LAYERS), 1):
            key, own = jax.random.split(key)
            weights[f"w{i}"] = jax.random.normal(own, (before, after)) * (2 / before) ** 0.5
            weights[f"b{i}"] = jnp.zeros(after)
        adam = {
            "mean": jax.tree.map(jnp.zeros_like, weights),
            "square": jax.tree.map(jnp.zeros_like, weights),
            "steps": jnp.zeros((), jnp.int32),
        }
        self.state: dict[str, Any] = {"weights": weights, "adam": adam, "dropout": noise}

    def step(self, images: Array, labels: Array) -> float:
        state, loss = _step(self.state, images, labels)
        self.state.update(state)
        return float(loss)

    def accuracy(self, images: Array, labels: Array) -> float:
        return float((np.asarray(_logits(self.state["weights"], images, None)).argmax(axis=1) == labels).mean())

    def weights(self) -> dict[str, Array]:
        return {name: np.asarray(weight) for name, weight in self.state["weights"].items()}


@jax.jit
def _step(state: dict[str, Any], images: Any, labels: Any) -> tuple[dict[str, Any], Any]:
    noise, own = jax.random.split(state["dropout"])
    loss, gradients = jax.value_and_grad(_loss)(state["weights"], images, labels, own)
    adam = state["adam"]
    steps = adam["steps"] + 1
    mean = jax.tree.map(lambda old, new: _BETA1 * old + (1 - _BETA1) * new, adam["mean"], gradients)
    square = jax.tree.map(lambda old, new: _BETA2 * old + (1 - _BETA2) * new**2, adam["square"], gradients)
    rate = LEARNING_RATE * jnp.sqrt(1 - _BETA2**steps) / (1 - _BETA1**steps)
    weights = jax.tree.map(lambda w, m, s: w - rate * m / (jnp.sqrt(s) + _EPSILON), state["weights"], mean, square)
    return {"weights": weights, "adam": {"mean": mean, "square": square, "steps": steps}, "dropout": noise}, loss


def _loss(weights: dict[str, Any], images: Any, labels: Any, noise: Any) -> Any:
    chances = jax.nn.log_softmax(_logits(weights, images, noise))
    return -jnp.mean(jnp.take_along_axis(chances, labels[:, None], axis=1))


def _logits(weights: dict[str, Any], images: Any, noise: Any) -> Any:
    """Return logits; with a key, a share of the values between layers is dropped."""
    values = images
    for i in range(1, len(LAYERS)):
        if i > 1:
            values = jax.nn.relu(values)
            if noise is not None:
                noise, own = jax.random.split(noise)
                stays = jax.random.bernoulli(own, 1 - DROPOUT, values.shape)
                values = jnp.where(stays, values / (1 - DROPOUT), 0.0)
        values = values @ weights[f"w{i}"] + weights[f"b{i}"]
    return values
