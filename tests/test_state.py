# SPDX-License-Identifier: Apache-2.0
"""The fields of a component come back as what they were; what would not is refused when it is saved."""

from __future__ import annotations

import dataclasses
import enum
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import milepost as mp
from milepost import Session
from milepost.group import launched, rank_and_size


class Season(enum.Enum):
    DRY = 1
    WET = 2


@dataclasses.dataclass(frozen=True)
class Inner:
    x: Any = 0
    noise: Any = None


@dataclasses.dataclass
class Component:
    season: Season | None = None
    seen: Any = None
    dtype: Any = None
    inner: Any = None
    parts: Any = None


def saved(root: Path, component: Any) -> None:
    with Session(root) as session:
        session.bind("c", component)
        session.mark()


def restored(root: Path, component: Any) -> Any:
    with Session(root, on_exit="drop") as session:
        return session.bind("c", component)


def test_values_of_fields_come_back_as_what_they_are(root: Path) -> None:
    values = Component(Season.WET, {"a", "b"}, torch.bfloat16, frozenset({1}), [(1, {2}), torch.device("cpu")])
    saved(root, values)

    assert restored(root, Component()) == values


def test_nested_dataclasses_and_objects_are_restored_in_place(root: Path) -> None:
    generators = [np.random.default_rng(1), random.Random(2)]
    saved(root, Component(inner=Inner(3, generators[0]), parts=generators[1]))
    inner, own = Inner(noise=np.random.default_rng(7)), random.Random(8)
    noise = inner.noise

    component = restored(root, Component(inner=inner, parts=own))

    assert (component.inner, component.parts) == (inner, own)
    assert (inner.x, inner.noise) == (3, noise)
    assert noise.random() == generators[0].random()
    assert own.random() == generators[1].random()


def test_a_generator_is_made_where_none_stands_and_other_objects_must_be_there(root: Path) -> None:
    generator = torch.Generator()
    saved(root / "generator", Component(parts=[generator]))
    drawn = torch.rand(2, generator=restored(root / "generator", Component()).parts[0])
    assert torch.equal(drawn, torch.rand(2, generator=generator))

    saved(root / "module", Component(parts=torch.nn.Linear(1, 1)))
    with pytest.raises(mp.StructureError, match="Make it before the state is bound"):
        restored(root / "module", Component())


def test_a_dict_holds_the_same_values(root: Path) -> None:
    noise, own = np.random.default_rng(1), np.random.default_rng(2)
    saved(root, {"seen": {1, 2}, "noise": noise})

    state = restored(root, {"noise": own, "other": 1})

    assert state == {"seen": {1, 2}, "noise": own}
    assert own.random() == noise.random()


@pytest.mark.parametrize(
    ("value", "said"),
    [([Season.DRY], "parts/0 is a Season, which no annotation"), ({"$kind": 1}, "the key '.kind' is reserved")],
)
def test_what_would_not_come_back_is_refused_when_it_is_saved(root: Path, value: Any, said: str) -> None:
    other = dataclasses.make_dataclass("Other", [("parts", Any, None)])(value)
    with pytest.raises(mp.UnsupportedLeafError, match=said):
        saved(root, other)


def test_an_enum_without_the_saved_member_is_a_mismatch(root: Path) -> None:
    saved(root, Component(Season.WET))
    (fewer,) = [enum.Enum("Season", {"DRY": 1}, module=Season.__module__, qualname="Season")]
    component = dataclasses.make_dataclass("C", [(f.name, Any, None) for f in dataclasses.fields(Component)])()
    component.season = fewer.DRY
    with pytest.raises(mp.StructureError, match="WET of .*Season, which is not there now"):
        restored(root, component)


def test_nodes_registered_with_jax_in_a_field_stay_trees(root: Path) -> None:
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Node:
        w: Any

    saved(root, Component(parts=Node(np.ones(2))))

    assert list(restored(root, Component()).parts) == ["w"]


# --- ranks


@pytest.mark.parametrize(("rank", "size"), [(1, None), (None, 4), (4, 4), (-1, 2)])
def test_rank_without_size_is_an_error(rank: int | None, size: int | None) -> None:
    with pytest.raises(ValueError, match="rank"):
        rank_and_size(rank, size)


def test_a_launcher_says_rank_and_size() -> None:
    assert launched({}) == (None, None)
    assert launched({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}) == (3, 4)
    assert rank_and_size(*launched({"RANK": "2", "WORLD_SIZE": "4"})) == (2, 4)
    assert rank_and_size(None, None) == rank_and_size(None, 1) == (0, 1)
    with pytest.raises(ValueError, match="several"):
        launched({"LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
