# SPDX-License-Identifier: Apache-2.0
"""Trees, handlers, options and free functions of the v1 door."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

import milepost as mp
import milepost.compat.orbax_v1 as ocp

InvalidLayoutError = ocp.errors.InvalidLayoutError


class Moments(NamedTuple):
    mu: Any
    nu: Any


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any


@struct.dataclass
class Train:
    params: Any
    step: int
    name: str = struct.field(pytree_node=False, default="")


def mesh(*shape: int) -> Mesh:
    names = ("data", "model")[: len(shape)]
    return Mesh(np.array(jax.devices()).reshape(shape), names)


def over(on: Mesh, *spec: Any) -> NamedSharding:
    return NamedSharding(on, PartitionSpec(*spec))


def of(shape: tuple[int, ...], dtype: Any = jnp.float32, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one"


# --- what comes back without an abstract tree


def test_containers_come_back_as_dicts_and_lists_in_order(path: Path) -> None:
    tree = {
        "z": (1, jnp.zeros(2)), "nt": Moments(1, np.ones(1)), "dc": Plain(2, None), "keys": {7: 1, 10: 2},
        "od": collections.OrderedDict(b=1, a=2), "empty": {}, "list": [], "train": Train(np.ones(2), 3, "n"),
    }  # fmt: skip
    ocp.save(path, tree)
    loaded = ocp.load(path)
    assert list(loaded) == sorted(tree)
    assert isinstance(loaded["z"], list) and loaded["nt"]["mu"] == 1 and loaded["dc"] == {"a": 2, "b": None}
    assert loaded["keys"] == {"7": 1, "10": 2} and loaded["empty"] == {} and loaded["list"] == []
    assert list(loaded["od"]) == ["a", "b"] and list(loaded["train"]) == ["params", "step"]


def test_arrays_come_back_to_the_framework_and_the_sharding_that_they_had(path: Path) -> None:
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), over(mesh(2, 2), "model", None))
    y = jax.device_put(jnp.ones((4, 4)), over(mesh(2, 2), ("data", "model")))
    key = jax.random.key(3)
    ocp.save(path, {"x": x, "y": y, "n": np.arange(3), "bf": jnp.ones(2, jnp.bfloat16), "key": key, "s": np.float32(2)})
    loaded = ocp.load(path)
    assert loaded["x"].sharding == x.sharding and loaded["y"].sharding == y.sharding
    assert loaded["x"].addressable_shards[0].data.shape == (2, 2)
    assert isinstance(loaded["n"], np.ndarray) and loaded["bf"].dtype == jnp.bfloat16
    assert jnp.array_equal(jax.random.key_data(loaded["key"]), jax.random.key_data(key))
    assert loaded["s"] == 2 and loaded["s"].dtype == np.float32


def test_rich_types_keep_tuples_and_keys(path: Path) -> None:
    context = ocp.Context()
    context.pytree.saving.pytree_metadata_options.support_rich_types = True
    tree = {"t": (1, np.ones(2)), "k": {3: 4}}
    with context:
        ocp.save(path, tree)
    loaded = ocp.load(path)
    assert isinstance(loaded["t"], tuple) and loaded["k"] == {3: 4}
    assert isinstance(ocp.load(path, {"t": (0, np.zeros(2)), "k": {3: ...}})["t"], tuple)


@pytest.mark.parametrize("value", [True, 2**70, 1.5, 2j, "text", b"\x00", None, np.zeros((0, 3)), np.array("ab")])
def test_values_come_back_as_they_were(path: Path, value: Any) -> None:
    ocp.save(path, {"x": value})
    loaded = ocp.load(path)["x"]
    assert type(loaded) is type(value) and np.array_equal(loaded, value)  # pyright: ignore[reportArgumentType]


def test_tensors_of_torch_and_unregistered_dataclasses_are_stored(path: Path) -> None:
    ocp.save(path, {"t": torch.ones(2, dtype=torch.bfloat16), "d": Plain(1, 2)})
    assert ocp.load(path)["t"].dtype == jnp.bfloat16
    loaded = ocp.load(path, {"t": torch.zeros(2, dtype=torch.bfloat16), "d": Plain(0, 0)})
    assert loaded["t"].sum() == 2 and loaded["d"] == Plain(1, 2)


# --- what an abstract tree asks for


def test_the_abstract_tree_gives_containers_dtypes_and_shardings(path: Path) -> None:
    tree = {"opt": Moments(jnp.ones((4, 4)), (np.arange(3), 5)), "d": Train(np.ones(2), 3, "a"), 3: jnp.zeros(2)}
    ocp.save(path, {"all": tree})
    sharding = over(mesh(2, 2), "data", "model")
    abstract = {"opt": Moments(of((4, 4), jnp.bfloat16, sharding), (np.zeros(3, np.int8), 0)),
                "d": Train(of((2,)), 0, "b"), 3: np.zeros(2)}  # fmt: skip
    loaded = ocp.load(path, {"all": abstract})["all"]
    assert isinstance(loaded["opt"], Moments) and loaded["opt"].mu.sharding == sharding
    assert loaded["opt"].mu.dtype == jnp.bfloat16 and loaded["opt"].nu[0].dtype == np.int8
    assert loaded["d"].name == "b" and loaded["d"].step == 3 and isinstance(loaded[3], np.ndarray)


def test_a_state_of_flax_and_optax_comes_back(path: Path) -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model)
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)
    ocp.save(path, {"params": params, "opt": state})
    abstract = jax.eval_shape(lambda: {"params": params, "opt": state})
    loaded = ocp.load(path, abstract)
    assert jax.tree.structure(loaded) == jax.tree.structure({"params": params, "opt": state})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, {"params": params, "opt": state}))


def test_types_stand_for_leaves_and_numbers_convert(path: Path) -> None:
    ocp.save(path, {"i": 3, "f": 2.5, "n": np.arange(2), "j": jnp.ones(2), "zero": np.array(7)})
    loaded = ocp.load(path, {"i": float, "f": float, "n": np.ndarray, "j": jax.Array, "zero": int})
    assert loaded["i"] == 3.0 and type(loaded["i"]) is float and isinstance(loaded["j"], jax.Array)
    assert type(loaded["zero"]) is int
    loaded = ocp.load(path, {"i": np.zeros((), np.int32), "f": 0.0, "n": of((2,)), "j": np.zeros(2), "zero": 0})
    assert loaded["i"].dtype == np.int32 and isinstance(loaded["n"], jax.Array) and isinstance(loaded["j"], np.ndarray)


def test_what_metadata_returned_is_an_abstract_tree(path: Path) -> None:
    x = jax.device_put(jnp.arange(4.0), over(mesh(4), "data"))
    ocp.save(path, {"x": x, "n": np.ones(2, np.float32), "s": "text", "k": jax.random.key(1), "none": None})
    described = ocp.metadata(path)
    assert described.metadata["x"].sharding == x.sharding and not hasattr(described.metadata["n"], "sharding")
    loaded = ocp.load(path, described)
    assert loaded["x"].sharding == x.sharding and loaded["s"] == "text" and loaded["none"] is None
    as_structs = jax.tree.map(ocp.arrays.to_shape_dtype_struct, described.metadata)
    assert isinstance(ocp.load(path, as_structs)["n"], jax.Array)


def test_placeholders_and_none_leave_leaves_unread(path: Path) -> None:
    ocp.save(path, {"a": np.ones(2), "b": {"c": np.ones(3), "d": 1}})
    loaded = ocp.load(path, {"a": ocp.PLACEHOLDER, "b": {"c": None, "d": 0}})
    assert loaded == {"a": ..., "b": {"c": None, "d": 1}}
    with pytest.raises(ValueError, match="b: Ellipsis stands where a whole container was saved"):
        ocp.load(path, {"a": ..., "b": ...})


def test_a_part_is_loaded_by_omission_when_the_context_says_so(path: Path) -> None:
    ocp.save(path, {"a": np.ones(2), "b": {"c": np.ones(3), "d": 1}})
    with pytest.raises(ValueError, match="saved, not in `like`:\n.*state/a"):
        ocp.load(path, {"b": {"c": np.zeros(3), "d": 0}})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        assert ocp.load(path, {"b": {"d": 0}}) == {"b": {"d": 1}}


def test_arrays_are_filled_up_or_cut_when_the_context_says_so(path: Path) -> None:
    ocp.save(path, {"j": jnp.arange(4.0), "n": np.arange(6).reshape(2, 3)})
    wanted = {"j": of((8,), jnp.float32, over(mesh(4), "data")), "n": np.zeros((3, 2), np.int64)}
    with pytest.raises(ValueError, match="another shape"):
        ocp.load(path, wanted)
    context = ocp.Context()
    context.array.loading.enable_padding_and_truncation = True
    with context:
        loaded = ocp.load(path, wanted)
    assert loaded["j"].tolist() == [0, 1, 2, 3, 0, 0, 0, 0] and loaded["j"].sharding.spec == PartitionSpec("data")
    assert loaded["n"].tolist() == [[0, 1], [3, 4], [0, 0]]


def test_storage_options_convert_arrays_at_the_save(path: Path) -> None:
    context = ocp.Context()
    context.array.saving.storage_options.dtype = jnp.bfloat16
    with context:
        ocp.save(path, {"a": np.ones(2), "j": jnp.ones(2), "i": 3})
    assert ocp.load(path)["a"].dtype == jnp.bfloat16 and ocp.load(path)["i"] == 3
    storage = ocp.options.ArrayOptions.Saving.StorageOptions
    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = lambda key, value: (
        storage(dtype=np.float16) if key[-1].key == "a" else None
    )
    with context:
        ocp.save(path, {"a": np.ones(2), "b": np.ones(2)}, overwrite=True)
    assert ocp.load(path)["a"].dtype == np.float16 and ocp.load(path)["b"].dtype == np.float64


# --- names, paths


def test_auto_takes_state_or_the_first_tree(path: Path) -> None:
    ocp.save_checkpointables(path, {"z": {"a": 1}, "b": {"c": 2}})
    assert ocp.load(path) == {"c": 2} and ocp.metadata(path).metadata == {"c": 0}
    assert ocp.load(path, checkpointable_name="z") == {"a": 1}
    ocp.save_checkpointables(path, {"state": {"s": 3}, "b": {"c": 2}}, overwrite=True)
    assert ocp.load(path, checkpointable_name=None) == {"s": 3}
    with pytest.raises(InvalidLayoutError, match="has no 'zz'; there are 'state', 'b'"):
        ocp.load(path, checkpointable_name="zz")
    with pytest.raises(ValueError, match="cannot be the name"):
        ocp.load(path, checkpointable_name="metrics")


def test_an_existing_destination_is_a_value_error_and_overwrite_replaces_it(path: Path) -> None:
    ocp.save(path, {"a": 1})
    with pytest.raises(ValueError, match="already exists"):
        ocp.save(path, {"a": 2})
    ocp.save(path, {"a": 2}, overwrite=True)
    assert ocp.load(path) == {"a": 2}
    (path.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        ocp.save(path.parent / "empty", {"a": 1})


def test_what_is_no_checkpoint_is_an_invalid_layout(path: Path) -> None:
    ocp.training.Checkpointer(path.parent / "run").save(3, {"a": 1})
    (path.parent / "text").write_text("hello")
    for wrong in ("nothing", "run", "text", "run/4"):
        for ask in (ocp.load, ocp.metadata, ocp.checkpointables_metadata, ocp.load_checkpointables):
            with pytest.raises(InvalidLayoutError) as caught:
                ask(path.parent / wrong)
            assert isinstance(caught.value, ValueError)
        assert not ocp.is_orbax_checkpoint(path.parent / wrong)
    assert ocp.is_orbax_checkpoint(path.parent / "run" / "3")
    with pytest.raises(ValueError, match="belongs to a Checkpointer"):
        ocp.save(path.parent / "run" / "4", {"a": 1})


def test_relative_paths_and_texts_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ocp.save("deep/one", {"a": 1})
    assert ocp.load("deep/one") == {"a": 1}
    with ocp.training.Checkpointer("run") as ckptr:
        monkeypatch.chdir("/")
        ckptr.save(0, {"a": 1})
        assert ckptr.directory == tmp_path / "run"


def test_delete_takes_a_checkpoint_away_as_a_whole(path: Path) -> None:
    ocp.save_checkpointables(path, {"model": {"w": np.ones(2)}, "cfg": {"a": 1}})
    assert ocp.delete(path, checkpointable_name="cfg") and set(ocp.load_checkpointables(path)) == {"model"}
    with pytest.raises(ValueError, match="Delete the whole"):
        ocp.delete(path, checkpointable_name="model")
    with pytest.raises(FileNotFoundError):
        ocp.delete(path, checkpointable_name="cfg")
    assert ocp.delete_async(path).result() is True and not path.exists()
    assert ocp.delete(path, missing_ok=True) is False
    with pytest.raises(FileNotFoundError):
        ocp.delete(path)
    (path / "mine").mkdir(parents=True)
    with pytest.raises(InvalidLayoutError):
        ocp.delete(path)
    assert (path / "mine").exists()


def test_delete_takes_a_step_of_a_checkpointer_by_its_path(path: Path) -> None:
    with ocp.training.Checkpointer(path) as ckptr:
        for step in (1, 2):
            ckptr.save_checkpointables(step, {"state": {"a": step}, "b": {"c": 1}})
        assert ocp.delete(path / "1") and ocp.delete(path / "2", checkpointable_name="b")
        ckptr.reload()
        assert [each.step for each in ckptr.checkpoints] == [2] and ckptr.load_checkpointables(2) == {"state": {"a": 2}}


def test_a_damaged_checkpoint_is_one_all_the_same(path: Path) -> None:
    ocp.save(path, {"a": 1})
    (path / "0" / "manifest.json").write_bytes(b"torn")
    assert ocp.is_orbax_checkpoint(path)
    with pytest.raises(mp.CorruptionError):
        ocp.load(path)


def test_saves_in_the_background_end_with_their_result(path: Path) -> None:
    told: list[Any] = []
    response = ocp.save_async(path, {"a": np.ones(4)}, custom_metadata={"x": 1})
    response.on_complete(told.append)
    assert response.result() is None and told == [None]
    assert ocp.load_async(path).result()["a"].sum() == 4 and ocp.metadata(path).custom_metadata == {"x": 1}
    assert set(ocp.load_checkpointables_async(path).result()) == {"state"}
    refused = ocp.load_async(path.parent / "nothing")
    refused.on_complete(told.append)
    with pytest.raises(InvalidLayoutError):
        refused.result()
    assert told == [None]


# --- partial saves, merging


def test_a_checkpoint_is_put_together_from_parts(path: Path) -> None:
    ocp.partial.save(path, {"a": np.ones(2), "deep": {"x": 1}}, custom_metadata={"one": 1})
    ocp.partial.save_async(path, {"deep": {"y": jnp.zeros(2)}}, custom_metadata={"two": 2}).result()
    with pytest.raises(ValueError, match="earlier call already: state/a"):
        ocp.partial.save(path, {"a": np.ones(2)})
    assert not ocp.is_orbax_checkpoint(path)
    ocp.partial.finalize(path)
    loaded = ocp.load(path)
    assert loaded["deep"]["x"] == 1 and isinstance(loaded["deep"]["y"], jax.Array)
    assert ocp.metadata(path).custom_metadata == {"one": 1, "two": 2}
    with pytest.raises(FileExistsError):
        ocp.partial.finalize(path)
    with pytest.raises(FileExistsError):
        ocp.partial.save(path, {"b": 1})
    with pytest.raises(FileNotFoundError):
        ocp.partial.finalize(path.parent / "other")


def test_merge_unites_trees() -> None:
    merge = ocp.tree.merge
    assert merge({"a": 1}, {"b": {"c": 2}}, {"b": {"d": 3}}) == {"a": 1, "b": {"c": 2, "d": 3}}
    assert merge({"a": [1, ...], "b": None}, {"a": [..., 2], "b": 3}) == {"a": [1, 2], "b": 3}
    assert merge({"a": 1}, {"a": 2}, overwrite=True) == {"a": 2} and merge() == {}
    assert merge(Moments(..., 1), Moments(2, ...)) == Moments(2, 1)
    assert merge({"a": {"b": 1}}, {"a": {"b": 2}}, is_leaf=lambda x: "b" in x, overwrite=True) == {"a": {"b": 2}}
    for wrong in (({"a": 1}, {"a": 2}), ({"a": [1]}, {"a": [1, 2]}), ({"a": {}}, {"a": 1})):
        with pytest.raises(ValueError, match="a: |a/"):
            merge(*wrong)


# --- contexts


def test_a_context_is_copied_from_its_parent_and_frozen_while_it_is_active() -> None:
    parent = ocp.Context()
    parent.pytree.loading.partial_load = True
    child = ocp.Context(parent)
    child.array.saving.use_zarr3 = False
    assert child.pytree.loading.partial_load and parent.array.saving.use_zarr3
    with parent as active:
        assert active is parent and ocp.Context().pytree.loading.partial_load is False
        for change in (
            lambda: setattr(parent.pytree.loading, "partial_load", False),
            lambda: setattr(parent.asynchronous, "timeout_secs", 1),
            lambda: setattr(parent, "checkpoint_layout", "auto"),
        ):
            with pytest.raises(RuntimeError, match="active"):
                change()
        child.memory.write_concurrent_bytes = 1
    parent.checkpoint_layout = "safetensors"
    assert parent.checkpoint_layout is ocp.options.CheckpointLayout.SAFETENSORS
    given = ocp.Context(async_options=ocp.options.AsyncOptions(timeout_secs=5), checkpoint_layout="auto")
    assert given.async_options.timeout_secs == given.asynchronous.timeout_secs == 5


def test_threads_do_not_inherit_the_context_and_an_active_one_comes_first(path: Path) -> None:
    ocp.save(path, {"a": 1, "b": 2})
    part, strict = ocp.Context(), ocp.Context()
    part.pytree.loading.partial_load = True
    found: list[Any] = []

    def load() -> None:
        try:
            found.append(ocp.load(path, {"a": 0}))
        except ValueError:
            found.append("refused")

    with part:
        raw = threading.Thread(target=contextvars.Context().run, args=(load,))
        raw.start()
        raw.join()
        load()
        assert ocp.load_async(path, {"a": 0}).result() == {"a": 1}  # our own threads do
    assert found == ["refused", {"a": 1}]
    with ocp.training.Checkpointer(path.parent / "run", context=part) as ckptr:
        ckptr.save(0, {"a": 1, "b": 2})
        assert ckptr.load(0, {"a": 0}) == {"a": 1}
        with strict, pytest.raises(ValueError, match="state/b"):
            ckptr.load(0, {"a": 0})


def test_several_threads_may_load_from_one_checkpointer(path: Path) -> None:
    found: list[int] = []
    with ocp.training.Checkpointer(path) as ckptr:
        ckptr.save(0, {"a": np.arange(100)})

        def load() -> None:
            found.extend(ckptr.load(0, {"a": np.zeros(100, int)})["a"][5] for _ in range(10))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [5] * 30


def test_options_do_what_the_page_says(path: Path) -> None:
    context = ocp.Context()
    context.file.path_permission_mode = 0o750
    context.memory.transfer_concurrent_bytes = 64  # larger states are written before the call returns
    context.multiprocessing.primary_host = None
    with context:
        response = ocp.save_async(path, {"a": np.ones(100)})
        assert response.done()
    assert path.stat().st_mode & 0o777 == 0o750
    moved = ocp.Context()
    moved.deletion.gcs_deletion_options.todelete_full_path = "trash"
    with pytest.raises(NotImplementedError, match="todelete_full_path"):
        ocp.training.Checkpointer(path.parent / "run", context=moved)
    with pytest.raises(NotImplementedError), ocp.Context(checkpoint_layout="safetensors"):
        ocp.save(path.parent / "other", {"a": 1})


def test_files_of_safetensors_are_read(tmp_path: Path) -> None:
    arrays = {"a.w": np.arange(8, dtype=np.float32).reshape(4, 2), "b": np.array([1, 2], np.int16)}
    save_file(arrays, tmp_path / "model.safetensors")
    sharding = over(mesh(4), "data")
    for context, where in ((ocp.Context(checkpoint_layout="safetensors"), tmp_path),
                           (ocp.Context(checkpoint_layout="auto"), tmp_path / "model.safetensors")):  # fmt: skip
        with context:
            loaded = ocp.load(where)
            assert loaded.keys() == arrays.keys() and (loaded["a.w"] == arrays["a.w"]).all()
            part = ocp.load(where, {"a": {"w": of((4, 2), jnp.bfloat16, sharding)}})["a"]["w"]
            assert part.sharding == sharding and part.dtype == jnp.bfloat16 and float(part.sum()) == 28
            assert ocp.metadata(where).metadata["b"].shape == (2,)
            with pytest.raises(KeyError, match="has no 'c'"):
                ocp.load(where, {"c": of((1,))})
            with pytest.raises(ValueError, match="b: saved with shape"):
                ocp.load(where, {"b": np.zeros(3)})
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-3])
    with ocp.Context(checkpoint_layout="safetensors"), pytest.raises(InvalidLayoutError, match="cut short"):
        ocp.load(tmp_path)


# --- handlers


class Words:
    def __init__(self, text: str) -> None:
        self.text = text


class WordsHandler(ocp.CheckpointableHandler[Words, Words]):
    async def save(self, directory: Any, checkpointable: Words) -> Any:
        async def write() -> None:
            (await directory.await_creation() / "words.txt").write_text(checkpointable.text)

        return write()

    async def load(self, directory: Path, abstract_checkpointable: Words | None = None) -> Any:
        async def read() -> Words:
            return Words((directory / "words.txt").read_text())

        return read()

    async def metadata(self, directory: Path) -> Words:
        return Words("")

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, Words)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, Words)


def with_registry(*handlers: Any, **named: Any) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for handler in handlers:
        registry.add(handler)
    for name, handler in named.items():
        registry.add(handler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def test_a_registered_handler_takes_its_objects_at_save_and_load(path: Path) -> None:
    with with_registry(WordsHandler):
        ocp.save_checkpointables(path, {"words": Words("hello"), "state": {"a": 1}})
        assert ocp.load_checkpointables(path)["words"].text == "hello"
        assert ocp.load_checkpointables(path, {"words": Words("")})["words"].text == "hello"
    with pytest.raises(KeyError, match="WordsHandler, which is not registered"):
        ocp.load_checkpointables(path)
    assert ocp.load_checkpointables(path, {"state": None}) == {"state": {"a": 1}}
    with pytest.raises(KeyError, match="no handler takes 'words', a Words; there are"):
        ocp.save_checkpointables(path.parent / "two", {"words": Words("")})


def test_a_handler_is_found_by_name_and_a_renamed_one_by_its_older_name(path: Path) -> None:
    with with_registry(cfg=ocp.handlers.JsonHandler):
        ocp.save_checkpointables(path, {"cfg": {"a": [1, {"b": None}]}, "state": {"x": 1}})
        assert ocp.load_checkpointables(path)["cfg"] == {"a": [1, {"b": None}]}
    assert mp.open(path)[0].leaves["cfg/data.json"].spec.dtype == "uint8"

    class Renamed(WordsHandler):
        pass

    with with_registry(WordsHandler):
        ocp.save_checkpointables(path, {"words": Words("old")}, overwrite=True)
    registry = ocp.handlers.local_registry()
    older = f"{WordsHandler.__module__}.{WordsHandler.__qualname__}"
    registry.add(Renamed, secondary_typestrs=[older])
    context = ocp.Context()
    context.checkpointables.registry = registry
    with context:
        assert ocp.load_checkpointables(path)["words"].text == "old"


def test_registries_refuse_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ocp.handlers.local_registry(include_global_registry=False)
    assert registry.add(WordsHandler).get_all_entries() == [(WordsHandler, None)]
    registry.add(WordsHandler, checkpointable_name="w")
    assert registry.has("w") and registry.get("w") is WordsHandler
    with pytest.raises(ValueError, match="registered already"):
        registry.add(WordsHandler)
    with pytest.raises(ValueError, match="'w' is registered already"):
        registry.add(WordsHandler, checkpointable_name="w")
    with pytest.raises(KeyError):
        registry.get("other")
    with pytest.raises(NotImplementedError, match="default registry"):
        ocp.Context().checkpointables.registry.add(WordsHandler)
    assert len(ocp.handlers.local_registry(registry).get_all_entries()) == 2 + len(
        ocp.handlers.global_registry().get_all_entries()
    )


def test_a_handler_may_keep_a_tree_in_its_folder(path: Path) -> None:
    class Pair(ocp.CheckpointableHandler[Any, Any]):
        async def save(self, directory: Any, checkpointable: Any) -> Any:
            return await ocp.handlers.PyTreeHandler().save(directory / "inner", {"value": checkpointable.value})

        async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Any:
            return await ocp.handlers.PyTreeHandler().load(directory / "inner")

        async def metadata(self, directory: Path) -> Any:
            return await ocp.handlers.PyTreeHandler().metadata(directory / "inner")

        def is_handleable(self, checkpointable: Any) -> bool:
            return hasattr(checkpointable, "value")

        def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
            return True

    class Thing:
        value = np.arange(4)

    with with_registry(Pair):
        ocp.save_checkpointables(path, {"thing": Thing()})
        assert ocp.load_checkpointables(path)["thing"]["value"].tolist() == [0, 1, 2, 3]


def test_an_iterator_of_grain_goes_on_where_it_was(path: Path) -> None:
    def iterator() -> Any:
        return iter(grain.MapDataset.source(range(20)).to_iter_dataset())

    data = iterator()
    assert [next(data) for _ in range(3)] == [0, 1, 2]
    with ocp.training.Checkpointer(path) as ckptr:
        ckptr.save_checkpointables(0, {"state": {"a": 1}, "data": data})
        fresh = iterator()
        assert ckptr.load_checkpointables(0, {"data": fresh})["data"] is fresh
    assert next(fresh) == 3


def test_messages_of_protobuf_are_kept_as_text(path: Path) -> None:
    struct_pb2 = pytest.importorskip("google.protobuf.struct_pb2")
    message = struct_pb2.Struct()
    message.update({"a": 1.5})
    ocp.save_checkpointables(path, {"message": message, "state": {"x": 1}})
    assert ocp.load_checkpointables(path, {"message": struct_pb2.Struct})["message"]["a"] == 1.5
    with pytest.raises(ValueError, match="pass its class"):
        ocp.load_checkpointables(path)


def test_a_file_of_a_handler_cannot_lie_outside_of_its_folder(path: Path) -> None:
    files = {"../escaped.txt": np.frombuffer(b"x", np.uint8)}
    record = {"handlers": {"words": f"{WordsHandler.__module__}.{WordsHandler.__qualname__}"}, "plain": True}
    mp.save(path, {"words": files}, metadata={"orbax": record})
    with with_registry(WordsHandler), pytest.raises(InvalidLayoutError, match="outside of its folder"):
        ocp.load_checkpointables(path / "0")


# --- without JAX


def test_the_door_needs_neither_orbax_nor_jax(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = f"""
import sys
import numpy as np
import milepost.compat.orbax_v1 as ocp
with ocp.training.Checkpointer({os.fspath(tmp_path / "run")!r}) as ckptr:
    ckptr.save(0, {{"a": (np.ones(2), 3)}}, metrics={{"loss": np.float32(1)}})
    assert ckptr.load(0, {{"a": (np.zeros(2), 0)}})["a"][0].sum() == 2
    assert ckptr.metadata().metadata["a"][0].shape == (2,)
    assert ckptr.should_save(1) and ocp.multihost.process_count() == 1
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"jax", "orbax", "torch", "flax", "etils", "tensorstore"}}, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_step_record_holds_no_more_than_is_needed(path: Path) -> None:
    ocp.save(path, {"a": np.ones(2)})
    record = mp.open(path)[0].metadata["orbax"]
    assert set(record) == {"init_timestamp_nsecs", "plain"}
