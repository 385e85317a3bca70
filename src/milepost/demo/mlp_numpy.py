# SPDX-License-Identifier: Apache-2.0
"""The model in NumPy: three layers, dropout, Adam, and the gradient by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import numpy as np

from milepost.demo.digits import Array
from milepost.demo.model import DROPOUT, LAYERS, LEARNING_RATE

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@final
class NumpyMlp:
    """All that changes in training is in `state`, changed in place."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        weights: dict[str, Array] = {}
        for i, (before, after) in enumerate(pairwise(LAYERS), 1):
            weights[f"w{i}"] = random.normal(0, np.sqrt(2 / before), (before, after)).astype(np.float32)
            weights[f"b{i}"] = np.zeros(after, np.float32)
        self._weights = weights
        self._mean = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self._square = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self._noise = np.random.default_rng(seed + 1)
        self.state: dict[str, Any] = {
            "weights": self._weights,
            "adam": {"mean": self._mean, "square": self._square, "steps": 0},
            "dropout": self._noise,
        }

    def step(self, images: Array, labels: Array) -> float:
        loss, gradients = self._gradients(images, labels)
        adam = self.state["adam"]
        adam["steps"] += 1
        rate = LEARNING_RATE * np.sqrt(1 - _BETA2 ** adam["steps"]) / (1 - _BETA1 ** adam["steps"])
        for name, gradient in gradients.items():
            mean, square = self._mean[name], self._square[name]
            mean += (1 - _BETA1) * (gradient - mean)
            square += (1 - _BETA2) * (gradient * gradient - square)
            self._weights[name] -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(_EPSILON))
        return loss

    def _gradients(self, images: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        weights = self._weights
        first, kept1 = self._layer(images, 1)
        second, kept2 = self._layer(first, 2)
        logits = second @ weights["w3"] + weights["b3"]
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = -float(np.log(chances[rows, labels]).mean())
        chances[rows, labels] -= 1
        back3 = chances / np.float32(len(labels))
        back2 = back3 @ weights["w3"].T * kept2
        back1 = back2 @ weights["w2"].T * kept1
        return loss, {
            "w1": images.T @ back1, "b1": back1.sum(axis=0),
            "w2": first.T @ back2, "b2": back2.sum(axis=0),
            "w3": second.T @ back3, "b3": back3.sum(axis=0),
        }  # fmt: skip

    def _layer(self, inputs: Array, number: int) -> tuple[Array, Array]:
        """Return a layer's output after ReLU and dropout, and the factor by which each gradient comes back."""
        outputs = inputs @ self._weights[f"w{number}"] + self._weights[f"b{number}"]
        stays = self._noise.random(outputs.shape, dtype=np.float32) >= DROPOUT
        factor = ((outputs > 0) & stays).astype(np.float32) / np.float32(1 - DROPOUT)
        return outputs * factor, factor

    def accuracy(self, images: Array, labels: Array) -> float:
        weights = self._weights
        first = np.maximum(images @ weights["w1"] + weights["b1"], 0)
        second = np.maximum(first @ weights["w2"] + weights["b2"], 0)
        found = (second @ weights["w3"] + weights["b3"]).argmax(axis=1)
        return float((found == labels).mean())

    def weights(self) -> dict[str, Array]:
        return self._weights
