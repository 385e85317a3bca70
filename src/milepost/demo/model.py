# SPDX-License-Identifier: Apache-2.0
"""What the training loop asks of a model, whichever framework it is made with."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from milepost.demo.digits import Array

Framework = Literal["numpy", "torch", "jax"]
FRAMEWORKS: tuple[str, ...] = get_args(Framework)

LAYERS = (64, 256, 256, 10)
DROPOUT = 0.2
LEARNING_RATE = 1e-3


class Model(Protocol):
    """A classifier of digits with its optimizer and its random numbers."""

    state: dict[str, Any]
    """All that changes in training, as a tree that can be saved, and restored in place."""

    def step(self, images: Array, labels: Array) -> float:
        """Learn from one batch; return its loss."""
        ...

    def accuracy(self, images: Array, labels: Array) -> float:
        """Return the share of images that are told right."""
        ...

    def weights(self) -> dict[str, Array]:
        """Return the weights by name, to be compared with those of another run."""
        ...
