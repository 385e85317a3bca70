# SPDX-License-Identifier: Apache-2.0
"""A value that differs in each process is given back with and without the wrapper, whole or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp


class Loader:
    def __init__(self, position: int) -> None:
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "order": np.arange(3)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@pytest.fixture
def saved(root: Path) -> mp.Checkpoint:
    return mp.save(root, {"w": np.ones(2), "data": mp.PerProcess(Loader(7))})


def test_a_loader_takes_its_state_back_in_place(saved: mp.Checkpoint) -> None:
    loader = Loader(0)

    saved.load_into({"w": np.zeros(2), "data": mp.PerProcess(loader)})

    assert loader.position == 7


def test_a_loader_takes_its_state_back_without_the_wrapper(saved: mp.Checkpoint) -> None:
    loader = Loader(0)

    saved.load_into({"w": np.zeros(2), "data": loader})

    assert loader.position == 7


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_loader_takes_its_state_back_alone(saved: mp.Checkpoint, wrapped: bool) -> None:
    loader = Loader(0)

    saved.at("data").load_into(mp.PerProcess(loader) if wrapped else loader)

    assert loader.position == 7


def test_a_generator_per_process_goes_on_where_it_was(root: Path) -> None:
    random = np.random.default_rng(1)
    random.random(5)
    checkpoint = mp.save(root, {"noise": mp.PerProcess(random)})

    restored = checkpoint.load(like={"noise": mp.PerProcess(np.random.default_rng(2))})

    assert restored["noise"].value.random() == random.random()


def test_without_like_the_value_of_the_only_process_comes_back(saved: mp.Checkpoint) -> None:
    assert saved.load()["data"]["position"] == 7
    assert saved.leaf("data/position").read() == 7
