# SPDX-License-Identifier: Apache-2.0
"""The model in PyTorch: a module, `torch.optim.Adam`, and a generator for the dropout."""

# PyTorch says only in part what its functions take and give.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import torch

from milepost.demo.digits import Array
from milepost.demo.model import DROPOUT, LAYERS, LEARNING_RATE

functional: Any = torch.nn.functional


@final
class _Mlp(torch.nn.Module):
    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(before, after) for before, after in pairwise(LAYERS))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                scale = (2 / parameter.shape[-1]) ** 0.5 if name.endswith("weight") else 0.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=random))

    def forward(self, images: torch.Tensor, noise: torch.Generator | None) -> torch.Tensor:
        """Return logits; with `noise`, a share of the values between layers is dropped."""
        values = self.layers[0](images)
        for layer in list(self.layers)[1:]:
            values = torch.relu(values)
            if noise is not None:
                values = values * (torch.rand(values.shape, generator=noise) >= DROPOUT) / (1 - DROPOUT)
            values = layer(values)
        return values


@final
class TorchMlp:
    """`state` holds the objects themselves: they are asked for their state at each save."""

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        self._module = _Mlp(torch.Generator().manual_seed(seed))
        self._adam = torch.optim.Adam(self._module.parameters(), lr=LEARNING_RATE)
        self._noise = torch.Generator().manual_seed(seed + 1)
        self.state: dict[str, Any] = {"weights": self._module, "adam": self._adam, "dropout": self._noise}

    def step(self, images: Array, labels: Array) -> float:
        loss = functional.cross_entropy(self._module(torch.from_numpy(images), self._noise), torch.from_numpy(labels))
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        return float(loss.detach())

    def accuracy(self, images: Array, labels: Array) -> float:
        with torch.no_grad():
            found = self._module(torch.from_numpy(images), None).argmax(dim=1)
        return float((found.numpy() == labels).mean())

    def weights(self) -> dict[str, Array]:
        return {name: weight.numpy() for name, weight in self._module.state_dict().items()}
