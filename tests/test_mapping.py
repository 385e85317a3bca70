# SPDX-License-Identifier: Apache-2.0
"""Renames, missing and unexpected leaves, casts: the same in `load`, `load_into`, `restore` and `compare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import milepost as mp
from milepost.stores import MemoryStore

Use = Callable[[MemoryStore, Any, dict[str, Any]], Any]


def by_load(memory: MemoryStore, tree: Any, options: dict[str, Any]) -> Any:
    return mp.open(memory)[1].load(tree, **options)


def by_load_into(memory: MemoryStore, tree: Any, options: dict[str, Any]) -> Any:
    mp.open(memory)[1].load_into(tree, **options)
    return tree


def by_restore(memory: MemoryStore, tree: Any, options: dict[str, Any]) -> Any:
    restored = mp.open(memory).restore(tree, **options)
    assert restored is not None
    return restored.tree


def by_restore_into(memory: MemoryStore, tree: Any, options: dict[str, Any]) -> Any:
    assert mp.open(memory).restore(into=tree, **options) is not None
    return tree


EVERY_WAY = pytest.mark.parametrize("use", [by_load, by_load_into, by_restore, by_restore_into])
IN_PLACE = pytest.mark.parametrize("use", [by_load_into, by_restore_into])


def compared(use: Use, memory: MemoryStore, tree: Any, options: dict[str, Any]) -> Any:
    """Compare as this way of loading would."""
    name = "into" if use in (by_load_into, by_restore_into) else "like"
    return mp.open(memory)[1].compare(**{name: tree}, **options)


@pytest.fixture
def memory() -> MemoryStore:
    memory = MemoryStore()
    layers = [{"wi": np.full((2, 3), float(i)), "b": np.arange(3.0) + i} for i in range(2)]
    mp.save(memory, {"model": {"layers": layers, "head": np.ones(4)}, "old": np.zeros(2)}, step=1)
    return memory


def jax_tree() -> dict[str, Any]:
    layers = [{"gate": jnp.full((2, 3), 9, jnp.bfloat16), "b": jnp.full(3, 9, jnp.float32)} for _ in range(2)]
    return {"model": {"layers": layers, "head": jnp.full(4, 9, jnp.float32)}, "new": jnp.full(2, 7, jnp.int32)}


MAPPED: dict[str, Any] = {
    "rename": {"**/wi": "**/gate"}, "missing": "keep", "unexpected": "ignore", "dtype": "cast",
}  # fmt: skip


@EVERY_WAY
def test_a_jax_tree_takes_leaves_under_other_names_and_dtypes(use: Use, memory: MemoryStore) -> None:
    found = use(memory, jax_tree(), MAPPED)

    for i, layer in enumerate(found["model"]["layers"]):
        assert layer["gate"].dtype == jnp.bfloat16 and isinstance(layer["gate"], jax.Array)
        np.testing.assert_array_equal(layer["gate"].astype(np.float32), np.full((2, 3), float(i)))
        np.testing.assert_array_equal(layer["b"], np.arange(3.0) + i)
    np.testing.assert_array_equal(found["model"]["head"], np.ones(4))
    np.testing.assert_array_equal(found["new"], np.full(2, 7))


@EVERY_WAY
@pytest.mark.parametrize("left_out", MAPPED)
def test_without_one_of_the_options_nothing_is_read_and_the_way_out_is_told(
    use: Use, memory: MemoryStore, left_out: str
) -> None:
    options = {name: value for name, value in MAPPED.items() if name != left_out}
    # What is not renamed would be missing here and unexpected there, and both were allowed.
    options |= {"missing": "error"} if left_out == "rename" else {}
    tree = jax_tree()
    with pytest.raises(mp.StructureError) as caught:
        use(memory, tree, options)
    with pytest.raises(mp.StructureError) as told:
        compared(use, memory, tree, options)

    assert ("3 not saved" if left_out == "rename" else f"{left_out}=") in str(caught.value)
    assert str(told.value) == str(caught.value)
    np.testing.assert_array_equal(tree["model"]["head"], np.full(4, 9))


class Net(nn.Module):
    def __init__(self, name: str = "wi", *, extra: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({name: nn.Linear(3, 3)}) for _ in range(2))
        if extra:
            self.extra = nn.Linear(2, 2)


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum().backward()
        optimizer.step()
    return optimizer


@IN_PLACE
@pytest.mark.parametrize("compare_first", [False, True])
def test_a_module_and_its_optimizer_take_their_states_under_other_names_and_dtypes(
    use: Use, compare_first: bool
) -> None:
    memory = MemoryStore()
    saved = Net("wi")
    adam = trained(saved)
    mp.save(memory, {"net": saved, "adam": adam, "old": 1}, step=1)
    model = Net("gate", extra=True).to(torch.bfloat16)
    kept = model.extra.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if "extra" not in name], lr=0.5)
    tree = {"model": model, "optimizer": optimizer, "epoch": 7}
    options: dict[str, Any] = {
        "rename": {"net/layers.*.wi.*": "model/layers.*.gate.*", "adam/**": "optimizer/**"},
        "missing": "keep", "unexpected": "ignore", "dtype": "cast",
    }  # fmt: skip

    if compare_first:
        told = compared(use, memory, tree, options)
        assert told.read["model/layers.0.gate.weight"] == "net/layers.0.wi.weight"
        assert set(told.kept) == {"model/extra.weight", "model/extra.bias", "epoch"}
        assert told.unread == ("old",)
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5
    use(memory, tree, options)

    before = saved.state_dict()["layers.1.wi.weight"]
    assert torch.equal(model.state_dict()["layers.1.gate.weight"], before.to(torch.bfloat16))
    assert torch.equal(model.extra.weight, kept)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    now, then = optimizer.state_dict()["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(now, then.to(now.dtype))
    assert tree["epoch"] == 7


def test_compare_says_what_a_load_would_read_keep_and_leave(memory: MemoryStore) -> None:
    checkpoint = mp.open(memory)[1]
    like = {"model": {"head": np.zeros(4), "layers": mp.SKIP}, "new": np.zeros(1)}

    told = checkpoint.compare(like, missing="keep", unexpected="ignore")

    assert told.read == {"model/head": "model/head"}
    assert told.kept == ("new",)
    assert told.unread == (
        "model/layers/0/wi", "model/layers/0/b", "model/layers/1/wi", "model/layers/1/b", "old",
    )  # fmt: skip
    part = checkpoint.at("model").compare({"head": np.zeros(4)}, only="head")
    assert part.read == {"head": "head"}
    assert checkpoint.at("model").compare({"head": np.zeros(4)}, exclude="layers").unread[0] == "layers/0/wi"


def test_compare_reads_no_array_and_changes_nothing(memory: MemoryStore) -> None:
    from samples import CountingStore

    store: Any = CountingStore(memory)
    target = {"model": {"layers": mp.SKIP, "head": np.full(4, 5.0)}, "old": np.full(2, 5.0)}

    told = mp.open(store)[1].compare(into=target)

    assert store.nbytes == 0
    assert list(told.read) == ["model/head", "old"]
    np.testing.assert_array_equal(target["old"], np.full(2, 5.0))


def test_compare_holds_nothing_of_the_tree_that_was_compared(memory: MemoryStore) -> None:
    import weakref

    tree = {"model": mp.SKIP, "old": np.full(2, 5.0)}
    seen = weakref.ref(tree["old"])  # pyright: ignore[reportArgumentType]
    told = mp.open(memory)[1].compare(into=tree)
    del tree

    assert seen() is None
    assert told.read == {"old": "old"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"into": {"model": mp.SKIP, "old": (1, 2)}}, "does not fit"),
        ({"like": {"model": mp.SKIP, "old": nn.Linear(2, 2)}}, "does not fit"),
        ({"into": nn.Linear(2, 2, device="meta")}, "does not fit"),
    ],
)
def test_compare_refuses_what_the_load_would_refuse(memory: MemoryStore, options: dict[str, Any], text: str) -> None:
    with pytest.raises(mp.StructureError, match=text):
        mp.open(memory)[1].compare(**options)


def test_compare_tells_of_what_only_load_into_refuses() -> None:
    memory = MemoryStore()
    model = nn.Linear(2, 2)
    mp.save(memory, {"model": model, "pair": (np.zeros(2), jnp.zeros(2))}, step=1)
    checkpoint = mp.open(memory)[1]
    meta = {"model": nn.Linear(2, 2, device="meta"), "pair": mp.SKIP}
    fixed = {"model": mp.SKIP, "pair": (np.zeros(2), jnp.zeros(2))}

    assert checkpoint.compare(fixed).read
    for tree, into, text in ((meta, True, "no memory"), (fixed, True, "cannot be changed"), (meta, False, "load_into")):
        with pytest.raises(mp.StructureError, match=text) as told:
            checkpoint.compare(**{"into" if into else "like": tree})
        with pytest.raises(mp.StructureError) as caught:
            checkpoint.load_into(tree) if into else checkpoint.load(tree)
        assert str(told.value) == str(caught.value)


@pytest.mark.parametrize("options", [{}, {"like": {}, "into": {}}])
def test_compare_takes_like_or_into(memory: MemoryStore, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give `like` or `into`"):
        mp.open(memory)[1].compare(**options)


# --- metadata that is required


FROZEN = ["vision", "audio"]
IDENTITY: dict[str, Any] = {
    "model": {"name": "net", "layers": 3},
    "frozen": FROZEN,
    "time": np.datetime64("2026-01-01"),
}


@pytest.fixture
def saved() -> MemoryStore:
    memory = MemoryStore()
    with mp.Checkpointer(memory) as saver:
        saver.save(1, {"w": np.ones(3)}, metadata=IDENTITY | {"note": "x"})
    return memory


@EVERY_WAY
def test_a_checkpoint_that_has_the_required_metadata_is_loaded(use: Use, saved: MemoryStore) -> None:
    for required in ({}, {"frozen": FROZEN}, IDENTITY):
        np.testing.assert_array_equal(use(saved, {"w": np.zeros(3)}, {"require": required})["w"], np.ones(3))


@EVERY_WAY
@pytest.mark.parametrize(
    ("required", "text"),
    [
        ({"frozen": ["vision", "text"]}, "frozen: there alone 'audio'; here alone 'text'"),
        ({"frozen": ["audio", "vision"]}, r"frozen: there \['vision', 'audio'\], here \['audio', 'vision'\]"),
        ({"model": {"name": "net", "layers": 4}}, "model.layers: there 3, here 4"),
        ({"model": {"name": "net"}}, "model.layers: there 3, here nothing"),
        ({"weights": "a1"}, "weights: there nothing, here 'a1'"),
        ({"time": np.datetime64("2026-01-02")}, "time: there .*2026-01-01.*, here .*2026-01-02"),
    ],
)
def test_another_metadata_than_required_is_refused_before_anything_is_read_or_changed(
    use: Use, saved: MemoryStore, required: dict[str, Any], text: str
) -> None:
    target = {"w": np.zeros(3)}
    for look in (use, lambda *args: compared(use, *args)):
        with pytest.raises(mp.StructureError, match=f"step 1 of .* metadata that is required\n  {text}") as caught:
            look(saved, target, {"require": required})
        assert caught.value.code == "metadata"

    np.testing.assert_array_equal(target["w"], np.zeros(3))


def test_what_was_said_later_counts_as_metadata(saved: MemoryStore) -> None:
    mp.open(saved).annotate(1, metadata={"frozen": []})
    mp.open(saved)[1].at("w").compare(np.zeros(3), require={"frozen": []})


def test_a_root_of_another_identity_is_refused_with_the_same_code_and_difference() -> None:
    memory = MemoryStore()
    mp.Checkpointer(memory, metadata=IDENTITY).close()
    other = IDENTITY | {"frozen": ["vision"]}

    with pytest.raises(mp.StructureError, match="belongs to another run.*\n  frozen: there alone 'audio'\n") as caught:
        mp.Checkpointer(memory, metadata=other)
    assert caught.value.code == "metadata"
