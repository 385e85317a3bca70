# SPDX-License-Identifier: Apache-2.0
"""Random states of NumPy and Python go on with the numbers that would have come, spawned generators too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import milepost as mp
from milepost import StructureError
from milepost.stores import MemoryStore

KINDS: dict[str, Callable[[], Any]] = {
    "PCG64": lambda: np.random.default_rng(7),
    "PCG64DXSM": lambda: np.random.Generator(np.random.PCG64DXSM(7)),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(7)),
    "Philox": lambda: np.random.Generator(np.random.Philox(7)),
    "SFC64": lambda: np.random.Generator(np.random.SFC64(7)),
    "seeds": lambda: np.random.default_rng(np.random.SeedSequence([2**70, 5], spawn_key=(3, 4))),
    "array seeds": lambda: np.random.default_rng(np.random.SeedSequence(np.arange(4))),
    "spawned": lambda: np.random.default_rng(7).spawn(3)[2],
    "RandomState": lambda: np.random.RandomState(7),
    "Random": lambda: random.Random(7),
}


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def draws(generator: Any) -> Any:
    """Numbers of several kinds, an odd count of each, so that what is kept between two calls counts."""
    if isinstance(generator, random.Random):
        return [generator.gauss(0, 1), generator.random(), generator.getrandbits(70), generator.sample(range(99), 5)]
    if isinstance(generator, np.random.RandomState):
        return [generator.normal(size=3).tolist(), generator.randint(0, 2**31, 5).tolist()]
    whole = generator.integers(0, 2**32, 3, dtype=np.uint32).tolist()
    return [whole, generator.normal(size=3).tolist(), generator.permutation(9).tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_goes_on_with_the_numbers_that_would_have_come(memory: MemoryStore, kind: str) -> None:
    generator = KINDS[kind]()
    draws(generator)
    saved = mp.save(memory, {"rng": generator})
    wanted = [draws(generator) for _ in range(3)]
    target = KINDS[kind]()
    saved.load_into({"rng": target})
    copied = saved.load(like={"rng": target})["rng"]

    assert copied is not target
    assert [draws(target) for _ in range(3)] == wanted
    assert [draws(copied) for _ in range(3)] == wanted


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("Random")])
def test_what_a_generator_spawns_goes_on_too(memory: MemoryStore, kind: str) -> None:
    generator = KINDS[kind]()
    generator.spawn(2)
    saved = mp.save(memory, generator)
    wanted = [draws(child) for child in generator.spawn(2)]
    target = KINDS[kind]()
    saved.load_into(target)

    assert [draws(child) for child in target.spawn(2)] == wanted


def test_a_bit_generator_alone_has_a_state_too(memory: MemoryStore) -> None:
    bits = np.random.Philox(3)
    bits.random_raw(5)
    saved = mp.save(memory, bits)
    wanted = bits.random_raw(3).tolist()
    target = np.random.Philox(0)
    saved.load_into(target)

    assert target.random_raw(3).tolist() == wanted


def test_generators_that_are_one_object_stay_one(memory: MemoryStore) -> None:
    rng = np.random.default_rng(1)
    found = mp.save(memory, {"a": rng, "b": [rng]}).load(like={"a": rng, "b": [rng]})

    assert found["a"] is found["b"][0]
    assert found["a"] is not rng


def test_without_like_a_generator_is_its_state(memory: MemoryStore) -> None:
    rng = np.random.default_rng(1)
    found = mp.save(memory, {"rng": rng, "py": random.Random(1)}).load()

    assert found["rng"]["state"] == rng.bit_generator.state["state"]
    assert found["py"]["words"].shape == (625,)


def test_the_state_of_one_kind_does_not_go_into_another(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"rng": KINDS["PCG64"](), "w": np.ones(2)})
    target = {"rng": KINDS["Philox"](), "w": np.zeros(2)}

    with pytest.raises(StructureError, match=r"^rng: .* generator over PCG64, which a NumPy generator over Philox"):
        saved.load_into(target)
    assert target["w"].tolist() == [0, 0]
    with pytest.raises(StructureError, match="rng: the Random did not take its saved state"):
        saved.load_into({"rng": random.Random(), "w": np.zeros(2)})


def test_a_generator_may_be_kept_left_out_and_renamed(memory: MemoryStore) -> None:
    rng, other = np.random.default_rng(1), np.random.default_rng(2)
    saved = mp.save(memory, {"noise": {"rng": rng}})
    wanted = draws(KINDS["PCG64"]().__class__(np.random.PCG64(1)))
    before = draws(np.random.default_rng(2))

    assert saved.load(like={"rng": other}, missing="keep", unexpected="ignore")["rng"] is other
    assert saved.load(like={"noise": {"rng": other}}, exclude="noise")["noise"]["rng"] is other
    assert draws(other) == before
    assert draws(saved.load(like={"rng": other}, rename={"noise/rng": "rng"})["rng"]) == wanted
