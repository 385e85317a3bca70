# SPDX-License-Identifier: Apache-2.0
"""The data: 1,797 handwritten digits, and a loader that knows where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, final

import numpy as np

Array = np.ndarray[Any, Any]

HELD_OUT = 297


@dataclass(frozen=True, slots=True)
class Digits:
    """Images, float32 `(count, 64)` from 0 to 1, with their labels, int64 `(count,)`."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


def load() -> tuple[Digits, Digits]:
    """Return the digits to train with, and those held back to measure how well that went."""
    with files("milepost.demo").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        images = data["images"].astype(np.float32) / 16
        labels = data["labels"].astype(np.int64)
    return Digits(images[:-HELD_OUT], labels[:-HELD_OUT]), Digits(images[-HELD_OUT:], labels[-HELD_OUT:])


@final
class Batches:
    """Shuffled batches without end, each epoch in another order.

    The order and the place in it are state: without them a resumed run sees other batches than one that went on.
    """

    def __init__(self, digits: Digits, *, size: int, seed: int) -> None:
        self._digits, self._size = digits, size
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(digits))
        self._next = 0

    def __next__(self) -> tuple[Array, Array]:
        if self._next + self._size > len(self._digits):
            self._order = self._random.permutation(len(self._digits))
            self._next = 0
        batch = self._order[self._next : self._next + self._size]
        self._next += self._size
        return self._digits.images[batch], self._digits.labels[batch]

    def state_dict(self) -> dict[str, Any]:
        return {"random": self._random.bit_generator.state, "order": self._order, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]
        self._order = state["order"]
        self._next = state["next"]
