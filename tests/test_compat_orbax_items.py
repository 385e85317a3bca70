# SPDX-License-Identifier: Apache-2.0
"""The v0 door's arguments, handlers, checkpointers and functions: what goes in, and what comes back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import milepost as mp
import milepost.compat.orbax as ocp

args = ocp.args


class Pair(NamedTuple):
    first: Any
    second: Any


@flax.struct.dataclass
class Train:
    step: int
    params: Any
    name: str = flax.struct.field(pytree_node=False, default="model")


def saved(root: Path, tree: Any, **more: Any) -> ocp.PyTreeCheckpointer:
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(root, tree, **more)
    return checkpointer


def kinds(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (type(leaf).__name__, str(getattr(leaf, "dtype", ""))), tree)


# --- trees


def test_without_a_target_a_tree_comes_back_in_dicts_and_lists_with_its_own_arrays(root: Path) -> None:
    params = {"w": jnp.ones(2)}
    tree = {
        "train": Train(3, params), "pair": Pair(1, jnp.zeros(2)), "tuple": (1, 2.5), "none": None,
        "numbers": {2: "b", 0: "a"},
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(0.1)).init(params), "np": np.float32(1.5), "empty": {},
    }  # fmt: skip
    found = saved(root, tree).restore(root)

    assert list(found) == sorted(tree)
    assert kinds(found["train"]) == {"params": {"w": ("ArrayImpl", "float32")}, "step": ("int", "")}
    assert kinds(found["pair"]) == {"first": ("int", ""), "second": ("ArrayImpl", "float32")}
    assert (found["tuple"], found["none"], found["numbers"], found["empty"]) == (
        [1, 2.5],
        None,
        {"0": "a", "2": "b"},
        {},
    )
    assert kinds(found["np"]) == ("ndarray", "float32")
    assert found["optimizer"][0] is None
    assert sorted(found["optimizer"][1][0]) == ["count", "mu", "nu"]


def test_with_a_target_its_containers_come_back(root: Path) -> None:
    tree = {"train": Train(3, {"w": jnp.ones(2)}), "pair": Pair(1, np.zeros(2)), "numbers": {2: "b", 0: "a"}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root, tree)
        found = checkpointer.restore(root, jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))

    assert isinstance(found["train"], Train)
    assert (found["train"].step, found["train"].name, found["pair"].first, found["numbers"]) == (
        3,
        "model",
        1,
        {0: "a", 2: "b"},
    )
    assert kinds(found["pair"].second) == ("ndarray", "float64")


def test_a_target_casts_and_places_but_keeps_shapes(root: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root, {"a": jnp.arange(4.0), "b": np.arange(4), "i": 2.5, "k": jax.random.key(1)})
        target = {"a": np.zeros(4, np.float16), "b": jnp.zeros(4, jnp.bfloat16), "i": 0, "k": jax.random.key(0)}
        found = checkpointer.restore(root, target)
        assert kinds(found) == {
            "a": ("ndarray", "float16"), "b": ("ArrayImpl", "bfloat16"), "i": ("int", ""),
            "k": ("PRNGKeyArray", "key<fry>"),
        }  # fmt: skip
        target["a"] = np.zeros((2, 2), np.float16)
        with pytest.raises(ValueError, match="another shape"):
            checkpointer.restore(root, target)
        with pytest.raises(ValueError, match="not their number"):
            checkpointer.restore(root, target, strict=False)


def test_arrays_come_back_sharded_as_they_were_or_as_the_target_says(root: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    spread = NamedSharding(mesh, PartitionSpec("x", ("y",)))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = {"a": jax.device_put(jnp.arange(16.0).reshape(4, 4), spread), "b": jnp.ones(3), "c": np.ones(3)}
    checkpointer = saved(root, tree)

    found = checkpointer.restore(root)
    assert found["a"].sharding == spread
    assert not found["b"].committed
    metadata = checkpointer.metadata(root).item_metadata
    assert metadata["a"].sharding.to_jax_sharding() == spread
    assert metadata["a"].sharding == ocp.metadata.NamedShardingMetadata.from_jax_sharding(spread)
    assert metadata["b"].sharding.to_jax_sharding() == jnp.ones(3).sharding
    target = {**tree, "a": jax.ShapeDtypeStruct((4, 4), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    standard = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    fallback = standard.restore(root, args=args.StandardRestore(target, fallback_sharding=whole))
    assert [fallback[name].sharding for name in "ab"] == [whole, whole]
    assert standard.restore(root, args=args.StandardRestore(target))["a"].sharding == spread
    by_mesh = {
        "a": ocp.ArrayRestoreArgs(mesh=mesh, mesh_axes=PartitionSpec("y")),
        "b": ocp.RestoreArgs(),
        "c": ocp.RestoreArgs(),
    }
    assert checkpointer.restore(root, restore_args=by_mesh)["a"].sharding.spec == PartitionSpec("y")


def test_restore_args_say_what_each_leaf_becomes(root: Path) -> None:
    tree = {"j": jnp.arange(4.0), "n": np.arange(3), "i": 3, "f": 2.5, "s": "text"}
    restore_args = {
        "j": ocp.RestoreArgs(restore_type=np.ndarray),
        "n": ocp.ArrayRestoreArgs(global_shape=(5,), strict=False, dtype=np.int32),
        "i": ocp.RestoreArgs(restore_type=np.ndarray),
        "f": ocp.RestoreArgs(restore_type=int),
        "s": ocp.RestoreArgs(),
    }
    found = saved(root, tree).restore(root, item=tree, restore_args=restore_args)

    assert kinds(found) == {
        "j": ("ndarray", "float32"), "n": ("ndarray", "int32"), "i": ("ndarray", "int64"), "f": ("int", ""),
        "s": ("str", ""),
    }  # fmt: skip
    assert found["n"].tolist() == [0, 1, 2, 0, 0]
    everything = ocp.PyTreeCheckpointer().restore(root, restore_args=ocp.RestoreArgs(dtype=np.float16))
    assert kinds(everything) == {
        "j": ("ArrayImpl", "float16"), "n": ("ndarray", "float16"), "i": ("float", ""), "f": ("float", ""),
        "s": ("str", ""),
    }  # fmt: skip
    with pytest.raises(ValueError, match="restore_args has nothing for f"):
        ocp.PyTreeCheckpointer().restore(root, restore_args={"j": ocp.RestoreArgs()})


def test_arguments_made_from_metadata_bring_everything_back(root: Path) -> None:
    checkpointer = saved(root, {"j": jnp.arange(4.0), "n": np.arange(3), "i": 3, "s": "text"})
    metadata = checkpointer.metadata(root).item_metadata
    made = ocp.checkpoint_utils.construct_restore_args(metadata)

    assert kinds(checkpointer.restore(root, restore_args=made))["j"] == ("ArrayImpl", "float32")
    assert jax.tree.map(lambda leaf: leaf.name, metadata).tree == {"i": "i", "j": "j", "n": "n", "s": "s"}
    assert kinds(checkpointer.restore(root, item=metadata))["n"] == ("ndarray", "int64")
    with ocp.StandardCheckpointer() as standard:
        assert kinds(standard.restore(root, metadata))["i"] == ("int", "")
    with pytest.raises(ValueError, match="Unsupported type of leaf"):
        ocp.checkpoint_utils.construct_restore_args({"x": object()})


def test_parts_of_a_tree_stay_unread(root: Path) -> None:
    checkpointer = saved(root, {"a": {"x": 1, "y": jnp.ones(2)}, "b": jnp.ones(3)})
    part = args.PyTreeRestore(item={"a": {"x": 0, "y": ocp.PLACEHOLDER}}, partial_restore=True)

    assert checkpointer.restore(root, args=part) == {"a": {"x": 1, "y": ...}}
    with pytest.raises(ValueError, match="partial_restore=True"):
        try:
            checkpointer.restore(root, item={"a": {"x": 0, "y": ...}})
        except ValueError as error:
            raise ValueError("".join(error.__notes__)) from error


def test_transforms_rename_compute_and_fall_back(root: Path) -> None:
    saved(root, {"old": {"w": np.arange(3), "b": 1.0}, "rest": 5})
    item = {"new": {"w": 0, "b": 0.0}, "sum": 0, "fresh": 7, "rest": 0}
    transforms = {
        r"new/(\w)": ocp.Transform(original_key=r"old/\1"),
        "sum": ocp.RestoreTransform(multi_value_fn=lambda key, tree, args: int(tree["old"]["w"].sum())),
        "fresh": ocp.Transform(use_fallback=True),
    }
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(), item)
    restore_args["new"]["w"] = ocp.ArrayRestoreArgs(dtype=np.float32)
    found = ocp.PyTreeCheckpointer().restore(root, item=item, restore_args=restore_args, transforms=transforms)

    assert kinds(found["new"]["w"]) == ("ArrayImpl", "float32")
    assert {**found, "new": found["new"]["b"]} == {"new": 1.0, "sum": 3, "fresh": 7, "rest": 5}
    renamed = {"b": ocp.Transform(original_key="a", value_fn=str)}
    assert ocp.apply_transformations({"a": 1}, renamed, {"b": 0, "c": 2}) == {"b": "1", "c": 2}
    with pytest.raises(ValueError, match='"z" is not in the original tree'):
        ocp.apply_transformations({"a": 1}, {"b": ocp.Transform(original_key="z")}, {"b": 0})
    with pytest.raises(ValueError, match="takes one of"):
        ocp.Transform(original_key="a", use_fallback=True)
    with pytest.raises(ValueError, match="restore_args"):
        ocp.PyTreeCheckpointer().restore(root, item=item, transforms={})
    legacy = args.PyTreeRestore(legacy_transform_fn=len)
    with pytest.raises(NotImplementedError, match="legacy_transform_fn"):
        ocp.PyTreeCheckpointer().restore(root, args=legacy)


def test_save_args_convert(root: Path) -> None:
    tree = {"a": jnp.ones(2), "b": np.ones(2), "c": 1}
    save_args = {"a": ocp.SaveArgs(dtype=jnp.bfloat16), "b": ocp.SaveArgs(), "c": ocp.SaveArgs()}
    assert kinds(saved(root, tree, save_args=save_args).restore(root))["a"] == ("ArrayImpl", "bfloat16")


def test_what_cannot_be_stored_is_told_with_its_path_and_nothing_is_left(root: Path) -> None:
    with pytest.raises(ValueError, match="default/a/b: a builtins.object cannot be stored"):
        saved(root / "x", {"a": {"b": object()}})
    with pytest.raises(ValueError, match="Must provide item"):
        saved(root / "x", None)
    assert list(root.iterdir()) == []


def test_tensors_of_torch_come_back_as_numpy(root: Path) -> None:
    found = saved(root, {"t": torch.arange(3, dtype=torch.bfloat16)}).restore(root)["t"]
    assert (type(found), str(found.dtype), found.tolist()) == (np.ndarray, "bfloat16", [0, 1, 2])


# --- other items


def test_items_of_each_kind(root: Path) -> None:
    generator = np.random.get_state()  # noqa: NPY002 what NumpyRandomKeySave takes
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    items = args.Composite(
        state=args.StandardSave({"a": 1}, custom_metadata={"x": 1}), json=args.JsonSave({"x": [1, (2,)], "y": None}),
        array=args.ArraySave(jnp.ones(3)), number=args.ArraySave(3), key=args.JaxRandomKeySave(jax.random.key(1)),
        legacy=args.JaxRandomKeySave(jax.random.PRNGKey(1)), numpy=args.NumpyRandomKeySave(generator),
    )  # fmt: skip
    checkpointer.save(root, args=items)
    found = checkpointer.restore(root)

    assert (found.state, found.json, found.number) == ({"a": 1}, {"x": [1, [2]], "y": None}, 3)
    assert isinstance(found.array, jax.Array)
    assert jax.random.bits(found.key) == jax.random.bits(jax.random.key(1))
    assert found.legacy.tolist() == [0, 1]
    np.random.set_state(found["numpy"])  # noqa: NPY002
    assert checkpointer.metadata(root).item_metadata.state.custom_metadata == {"x": 1}
    assert checkpointer.restore(root, args=args.Composite(key=args.JaxRandomKeyRestore())).keys() == {"key"}
    with pytest.raises(ValueError, match="not as JSON"):
        checkpointer.restore(root, args=args.Composite(state=args.JsonRestore()))
    with pytest.raises(ValueError, match="a single array or number"):
        checkpointer.save(root / "b", args=args.Composite(a=args.ArraySave({"x": 1})))
    with pytest.raises(TypeError, match="not JSON serializable"):
        ocp.Checkpointer(ocp.JsonCheckpointHandler()).save(root / "c", {"x": np.float32(1)})


def test_messages_of_protobuf(root: Path) -> None:
    class Message:
        def __init__(self, text: str) -> None:
            self.text = text

        def SerializeToString(self) -> bytes:  # noqa: N802
            return self.text.encode()

        @classmethod
        def FromString(cls, data: bytes) -> Message:  # noqa: N802
            return cls(data.decode())

    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    checkpointer.save(root, args=args.Composite(m=args.ProtoSave(Message("hello"))))

    assert checkpointer.restore(root, args=args.Composite(m=args.ProtoRestore(Message))).m.text == "hello"
    with pytest.raises(ValueError, match="say its class"):
        checkpointer.restore(root)


class Words(ocp.CheckpointHandler):
    """Writes files of its own, one of them in a folder."""

    def save(self, directory: Any, words: list[str] | None = None, args: Any = None) -> None:
        (directory / "deep").mkdir()
        (directory / "deep" / "words.txt").write_text(" ".join(words or args.words))

    def restore(self, directory: Any, default: Any = None, args: Any = None) -> list[str]:
        return (directory / "deep" / "words.txt").read_text().split()

    def metadata(self, directory: Any) -> int:
        return len(self.restore(directory))


class Later(ocp.AsyncCheckpointHandler):
    """Writes in the background."""

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("async_save is asked instead")

    async def async_save(self, directory: Any, args: Any) -> Any:
        async def write() -> None:
            (directory / "number").write_text(str(args.number))

        chained = ocp.future.CommitFutureAwaitingContractedSignals(write(), name="write")
        return [ocp.future.ChainedFuture([chained], lambda: None), ocp.future.NoopFuture()]

    def restore(self, directory: Any, args: Any = None) -> int:
        assert (directory / "done").exists()
        return int((directory / "number").read_text())

    def finalize(self, directory: Any) -> None:
        (directory / "done").touch()


@args.register_with_handler(Later, for_save=True, for_restore=True)
@dataclasses.dataclass
class LaterArgs(args.CheckpointArgs):
    number: int = 0


def test_handlers_of_the_user_write_and_read_their_files(root: Path) -> None:
    registry = ocp.handlers.create_default_handler_registry(n=Later())
    with ocp.CheckpointManager(root, handler_registry=registry) as manager:
        manager.save(0, args=args.Composite(n=LaterArgs(5), m=LaterArgs(6)))
        assert dict(manager.restore(0)) == {"m": 6, "n": 5}
    with ocp.CheckpointManager(root) as manager:
        assert manager.restore(0, args=args.Composite(n=LaterArgs())).n == 5
        with pytest.raises(ValueError, match="Restore it with that handler"):
            manager.restore(0, args=args.Composite(n=args.StandardRestore()))
        assert manager.item_metadata(0).n is None


def test_a_handler_without_registered_arguments_gets_them_as_they_are_given(root: Path) -> None:
    checkpointer = ocp.Checkpointer(Words())
    checkpointer.save(root / "a", ["a", "b"])
    assert checkpointer.restore(root / "a") == ["a", "b"]
    with ocp.CheckpointManager(root / "b", {"w": checkpointer}) as manager:
        manager.save(0, {"w": ["c"]})
        assert manager.restore(0).w == ["c"]
        assert manager.item_metadata(0).w == 1


def test_an_item_of_an_unknown_handler_is_told(root: Path) -> None:
    ocp.Checkpointer(Words()).save(root, ["a"])
    with pytest.raises(ValueError, match=r"saved by .*Words\n  Give a CheckpointHandlerRegistry"):
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()).restore(root)


def test_a_stored_file_name_leads_nowhere_else(root: Path) -> None:
    ocp.Checkpointer(Words()).save(root, ["a"])
    stored = mp.open(root)[0]
    tree = {"default": {"../../escaped": np.zeros(1, np.uint8)}}
    mp.Checkpointer(root, save="first").save(0, tree, metadata=stored.metadata, overwrite=True).result()

    with pytest.raises(ValueError, match="outside of its folder"):
        ocp.Checkpointer(Words()).restore(root)


def test_handlers_save_and_restore_by_themselves(root: Path) -> None:
    class Doubled(ocp.StandardCheckpointHandler):
        def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
            super().save(directory / "inner", *args, **kwargs)

        def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
            return super().restore(directory / "inner", *args, **kwargs)

    handler = ocp.PyTreeCheckpointHandler()
    handler.save(root / "a", {"x": 1})
    assert handler.restore(root / "a") == {"x": 1}
    assert handler.metadata(root / "a")["x"].shape == ()
    checkpointer = ocp.Checkpointer(Doubled())
    checkpointer.save(root / "b", {"x": 2})
    assert checkpointer.restore(root / "b") == {"x": 2}


def test_a_composite_handler_works_by_itself(root: Path) -> None:
    registry = ocp.DefaultCheckpointHandlerRegistry()
    registry.add("a", args.StandardSave)
    registry.add("a", args.StandardRestore)
    handler = ocp.CompositeCheckpointHandler(handler_registry=registry, composite_options=ocp.CompositeOptions())
    handler.save(root / "a", args=args.Composite(a=args.StandardSave({"x": 1})))
    assert handler.restore(root / "a").a == {"x": 1}
    assert handler.metadata(root / "a").item_handlers.keys() == {"a"}
    handler.close()
    with pytest.raises(ValueError, match="leave out item names"):
        ocp.CompositeCheckpointHandler("a", handler_registry=registry)
    closed = ocp.Checkpointer(ocp.CompositeCheckpointHandler("a", b=ocp.JsonCheckpointHandler()))
    closed.save(root / "b", args.Composite(a=args.StandardSave({"x": 1}), b=args.JsonSave({"y": 2})))
    assert closed.restore(root / "b").b == {"y": 2}
    with pytest.raises(ValueError, match="does not match"):
        closed.save(root / "c", args.Composite(z=args.StandardSave({"x": 1})))


def test_objects_with_state_are_items_of_libraries_that_know_orbax_alone(root: Path) -> None:
    program = f"""
        import grain.python as grain
        import milepost.compat.orbax as ocp

        def numbers():
            return iter(grain.MapDataset.range(9).to_iter_dataset())

        iterator = numbers()
        next(iterator)
        with ocp.CheckpointManager({str(root)!r}) as manager:
            manager.save(0, args=ocp.args.Composite(data=grain.PyGrainCheckpointSave(iterator)))
            again = manager.restore(0, args=ocp.args.Composite(data=grain.PyGrainCheckpointRestore(numbers()))).data
        assert next(again) == next(iterator) == 1
    """
    pytest.importorskip("orbax.checkpoint")
    lines = "\n".join(line.removeprefix("        ") for line in program.splitlines())
    subprocess.run([sys.executable, "-W", "ignore", "-c", lines], check=True)
    assert mp.open(root)[0].tree["data"]


# --- paths


def test_a_cancelled_save_of_a_checkpointer_leaves_nothing(tmp_path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.cancel()
        checkpointer.save(tmp_path / "a", {"w": np.ones(1 << 22)})  # 32 MiB, not written before the next line
        checkpointer.cancel()
        assert [path.name for path in tmp_path.iterdir()] == []
        checkpointer.save(tmp_path / "a", {"w": np.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_checkpoint_appears_at_its_path_when_it_is_whole(root: Path) -> None:
    event = threading.Event()
    seen: list[bool] = []
    callback = ocp.AsyncOptions(post_finalization_callback=lambda: seen.append((root / "a").exists()))
    with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=callback) as checkpointer:
        checkpointer.save(root / "a", {"w": np.zeros(1000)})
        checkpointer.wait_until_finished()
        checkpointer.check_for_errors()
    event.set()
    assert seen == [True]
    assert [path.name for path in root.iterdir()] == ["a"]
    (root / "b.orbax-checkpoint-tmp").mkdir()
    assert ocp.utils.tmp_checkpoints(root) == ["b.orbax-checkpoint-tmp"]
    assert ocp.utils.is_tmp_checkpoint(root / "b.orbax-checkpoint-tmp")
    assert ocp.utils.is_checkpoint_finalized(root / "a")
    saved(root / "b", {"x": 1})
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


def test_what_is_there_is_replaced_only_with_force(root: Path) -> None:
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_text("of somebody else")
    with pytest.raises(ValueError, match="already exists"):
        saved(root / "a", {"x": 1})
    saved(root / "a", {"x": 1}, force=True)
    saved(root / "a", {"x": 2}, force=True)
    assert ocp.PyTreeCheckpointer().restore(root / "a") == {"x": 2}
    assert [path.name for path in root.iterdir()] == ["a"]


def test_a_step_of_a_manager_and_its_items_have_paths(root: Path) -> None:
    with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(step_prefix="s")) as manager:
        manager.save(3, args=args.Composite(a=args.StandardSave({"x": 1}), b=args.JsonSave({"y": 2})))
        manager.wait_until_finished()
        with ocp.StandardCheckpointer() as checkpointer:
            assert checkpointer.restore(root / "s_3" / "a") == {"x": 1}
            with pytest.raises(ValueError, match="holds the items a, b"):
                checkpointer.restore(root / "s_3")
            with pytest.raises(ValueError, match="holds the steps"):
                checkpointer.restore(root)
            with pytest.raises(ValueError, match="holds the steps of a CheckpointManager"):
                checkpointer.save(root / "s_4", {"x": 1})
            with pytest.raises(ValueError, match="a path of its own"):
                checkpointer.save(root, {"x": 1}, force=True)
        assert ocp.step.build_step_path(root, ocp.step.standard_name_format(step_prefix="s"), 3) == root / "s_3"
        assert ocp.utils.get_save_directory(3, root, "a", step_prefix="s") == root / "s_3" / "a"


def test_steps_of_a_folder(root: Path) -> None:
    for step in (3, 20):
        saved(root / f"run_{step}", {"x": step})
    (root / "run_99").mkdir()

    assert sorted(ocp.utils.checkpoint_steps(root)) == [3, 20]
    assert [path.name for path in ocp.utils.checkpoint_steps_paths(root)] == ["run_20", "run_3"]
    assert ocp.utils.any_checkpoint_step(root) in (3, 20)
    assert ocp.utils.any_checkpoint_step(root / "nowhere") is None
    assert (ocp.utils.step_from_checkpoint_name("run_7"), ocp.utils.step_from_checkpoint_name("7")) == (7, 7)
    with pytest.raises(ValueError, match="Unrecognized"):
        ocp.utils.step_from_checkpoint_name("seven")
    found = ocp.step.latest_step_metadata(root, ocp.step.standard_name_format(step_prefix="run"))
    assert found == ocp.step.Metadata(20, root / "run_20")
    assert ocp.step.maybe_find_step_metadata(root, ocp.step.standard_name_format(), step=3) is None


def test_checkpoints_of_the_native_api_and_of_the_v1_door_can_be_read(root: Path) -> None:
    mp.save(root / "a", {"x": np.arange(2)}, step=0)
    assert ocp.Checkpointer(ocp.CompositeCheckpointHandler()).restore(root / "a").x.tolist() == [0, 1]
    with mp.Checkpointer(root / "b", save="every step") as saver:
        saver.save(4, {"model": {"w": np.ones(2)}, "step": 4})
    with ocp.CheckpointManager(root / "b") as manager:
        assert manager.latest_step() == 4
        assert manager.restore(4).model["w"].tolist() == [1, 1]
    v1 = ocp.v1
    v1.save(root / "c", {"w": np.ones(2)})
    assert ocp.PyTreeCheckpointer().restore(root / "c")["w"].tolist() == [1, 1]
    saved(root / "d", {"w": np.ones(3)})
    assert v1.load(root / "d")["w"].tolist() == [1, 1, 1]


# --- evaluation


def test_the_iterator_yields_the_latest_step_until_nothing_new_comes(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        found: list[int] = []
        asked: list[int] = []

        def nothing_more() -> bool:
            asked.append(len(found))
            if len(asked) == 1:
                manager.save(9, args=args.StandardSave({"x": 9}))
                manager.wait_until_finished()
            return len(asked) > 1

        for step in (1, 2):
            manager.save(step, args=args.StandardSave({"x": step}))
        manager.wait_until_finished()
        steps = ocp.checkpoint_utils.checkpoints_iterator(
            root, timeout=0, timeout_fn=nothing_more, seconds_to_sleep=0.001
        )
        for step in steps:
            found += [step]
        assert (found, asked) == ([2, 9], [1, 2])
        named = {"step_prefix": "other", "timeout": 0, "seconds_to_sleep": 0.001}
        assert list(ocp.checkpoint_utils.checkpoints_iterator(root, **named)) == []
        plain = ocp.step.standard_name_format()
        with ocp.checkpoint_utils.wait_for_new_checkpoint(root, until_step=9, step_name_format=plain) as step:
            assert step == 9
    with ocp.checkpoint_utils.wait_for_new_checkpoint(root / "nowhere", timeout=0, seconds_to_sleep=0.001) as step:
        assert step == -1


# --- functions on trees


def test_functions_on_trees() -> None:
    tree = {"b": (1, Pair(2, None)), "a": {"c": {}}}
    assert ocp.tree.to_flat_dict(tree) == {("b", "0"): 1, ("b", "1", "first"): 2}
    assert ocp.utils.to_flat_dict(tree, sep="/", keep_empty_nodes=True).keys() == {
        "a/c",
        "b/0",
        "b/1/first",
        "b/1/second",
    }
    assert ocp.utils.from_flat_dict({"x/y": 1}, sep="/") == {"x": {"y": 1}}
    assert ocp.utils.from_flat_dict({("b", "0"): 5}, target={"b": [0]}) == {"b": [5]}
    assert ocp.utils.serialize_tree(tree, keep_empty_nodes=True) == {
        "a": {"c": {}}, "b": [1, {"first": 2, "second": None}],
    }  # fmt: skip
    assert ocp.utils.deserialize_tree({"b": [7, {"first": 8, "second": 9}]}, {"b": tree["b"]}) == {"b": (7, Pair(8, 9))}
    assert ocp.tree.get_param_names({"a": [1, 2]}) == {"a": ["a.0", "a.1"]}
    assert ocp.merge_trees({"a": 1, "b": 2}, {"b": 3}) == {"a": 1, "b": 3}
    assert ocp.transform_utils.intersect_trees({"a": 1, "b": 2}, {"b": 3}) == {"b": 3}
    assert (ocp.tree.is_flat_dict({"a": 1}), ocp.tree.is_flat_dict(tree)) == (True, False)
    struct = ocp.utils.to_shape_dtype_struct(jnp.ones(2), dtype=jnp.bfloat16)
    assert (struct.shape, struct.dtype) == ((2,), jnp.bfloat16)
    assert ocp.arrays.to_shape_dtype_struct(3, scalar_dtype=float) == 3.0
    assert [ocp.utils.is_scalar(x) for x in (1, np.float32(2), np.ones(2))] == [True, True, False]
    assert [ocp.utils.is_empty_node(x) for x in ({}, None, 1)] == [True, True, False]
    assert ocp.utils.is_empty_or_leaf(1)
    assert ocp.utils.leaf_is_placeholder(ocp.PLACEHOLDER)
    assert ocp.utils.is_gcs_path("gs://bucket")
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path({"a": [Pair(1, 2)]})[0]]
    assert [ocp.utils.tuple_path_from_keypath(path) for path in paths] == [("a", "0", "first"), ("a", "0", "second")]
    assert [ocp.utils.is_dict_key(key) for key in paths[0]] == [True, False, True]
    assert [ocp.utils.is_sequence_key(key) for key in paths[0]] == [False, True, False]
    assert ocp.utils.is_primary_host(0)
    assert (ocp.multihost.process_index(), ocp.multihost.process_count()) == (0, 1)
    assert ocp.utils.broadcast_one_to_all({"a": 1}) == {"a": 1}
    ocp.utils.sync_global_devices("name")
    assert not ocp.utils.is_pathways_backend()


def test_a_composite_is_a_mapping_that_does_not_change() -> None:
    composite = args.Composite(a=1, b=2)
    assert (composite.a, composite["b"], list(composite), len(composite), composite.get("z", 3)) == (
        1,
        2,
        ["a", "b"],
        2,
        3,
    )
    assert dict(composite.items()) == {"a": 1, "b": 2}
    assert repr(composite) == "Composite({'a': 1, 'b': 2})"
    with pytest.raises(KeyError):
        composite.z  # noqa: B018
    with pytest.raises(ValueError, match="does not change"):
        composite.a = 3
    with pytest.raises(ValueError, match="two underscores"):
        args.Composite(__a=1)


def test_arguments_are_registered_with_handlers() -> None:
    assert args.get_registered_handler_cls(args.StandardSave) is ocp.StandardCheckpointHandler
    assert args.get_registered_args_cls(ocp.JsonCheckpointHandler()) == (args.JsonSave, args.JsonRestore)
    assert not args.has_registered_args(Words())
    with pytest.raises(ValueError, match="for_save, for_restore"):
        args.register_with_handler(Words)
    with pytest.raises(TypeError, match="no subclass of CheckpointArgs"):
        args.register_with_handler(Words, for_save=True)(int)
    with pytest.raises(TypeError, match="no subclass"):
        args.get_registered_handler_cls(3)
    unregistered = type("Unregistered", (args.CheckpointArgs,), {})
    with pytest.raises(ValueError, match="no handler is registered"):
        args.get_registered_handler_cls(unregistered)
    registry = ocp.DefaultCheckpointHandlerRegistry()
    with pytest.raises(KeyError, match="no handler for"):
        registry.get("a", args.StandardSave)


def test_the_door_opens_without_jax_and_without_orbax(root: Path) -> None:
    program = f"""
import sys
import numpy as np
import milepost.compat.orbax as ocp

with ocp.CheckpointManager({str(root)!r}) as manager:
    manager.save(0, args=ocp.args.StandardSave({{"w": np.ones(2), "t": (1, None)}}))
    assert manager.restore(0, args=ocp.args.StandardRestore({{"w": np.zeros(2), "t": (0, None)}}))["t"] == (1, None)
    assert manager.restore(0)["t"] == [1, None]
assert not {{"jax", "orbax", "torch", "etils"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
