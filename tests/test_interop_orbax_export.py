# SPDX-License-Identifier: Apache-2.0
"""The way back to Orbax: what we export the real library reads, v0 and v1; or it is refused and nothing is there."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import milepost as mp
import milepost.compat.orbax as door
import milepost.compat.orbax_v1 as door_v1
from cli_runs import as_json, milepost
from milepost.interop import orbax
from milepost.interop.orbax.export import Exported, export_checkpoint

ocp: Any = pytest.importorskip("orbax.checkpoint")
v1: Any = ocp.v1

# The real library warns of many things.
pytestmark = pytest.mark.filterwarnings("ignore")

Point = namedtuple("Point", "x y")


def sharded(array: Any, *spec: str | None, shape: tuple[int, int] = (2, 2)) -> jax.Array:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(shape), ("a", "b"))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


def exported(tmp_path: Path, tree: Any, *, step: int = 3, **options: Any) -> Path:
    """Save a tree and export it; return the directory."""
    said = {name: options.pop(name) for name in ("metrics", "metadata") if name in options}
    checkpoint = mp.save(tmp_path / "store", tree, step=step, **said)
    export_checkpoint(checkpoint, tmp_path / "orbax", **options)
    return tmp_path / "orbax"


def words(value: Any) -> bytes:
    """Return the bytes of an array, or of a key."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_equal(words(a), words(b)), found, expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def state() -> dict[str, Any]:
    """Return what a program of Orbax's users saves; of all dtypes and kinds that it holds."""
    params = {"w": sharded(jnp.arange(32.0).reshape(4, 8), "a", "b"), "b": jnp.ones(3, jnp.bfloat16)}
    return {
        "params": params,
        "opt": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        "int4": jnp.array([1, -2, 7, -8], jnp.int4),
        "fp8": jnp.array([[1, 0.5], [-2, 448]], jnp.float8_e4m3fn),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "host": np.arange(6, dtype=np.int16),
        "zeros": np.zeros(5),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "step": 3,
        "lr": 0.5,
        "flag": True,
        "none": None,
        "list": [jnp.ones(2), {"q": 4}],
        "tuple": (jnp.zeros(1), 5),
        "empty": {},
        "no_items": [],
        "numbered": {7: jnp.ones(2)},
    }


def abstract(value: Any) -> Any:
    if not isinstance(value, jax.Array):
        return value
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    first = value.shape[:1]
    spec = PartitionSpec("x") if first and first[0] % 4 == 0 else PartitionSpec()
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec))


# --- what the real library reads


def test_a_manager_restores_everything_into_other_shardings(tmp_path: Path) -> None:
    tree = state()
    folder = exported(tmp_path, tree, metrics={"loss": 0.5}, metadata={"git": "abc", "shape": (1, 2)})

    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])) as manager:
        found = manager.restore(3, args=ocp.args.StandardRestore(jax.tree.map(abstract, tree)))
        assert (manager.all_steps(), manager.best_step()) == ([3], 3)
        assert manager.metrics(3) == {"loss": 0.5}
        assert manager.metadata(3).custom_metadata == {"git": "abc", "shape": [1, 2]}
    assert_same(found, tree)
    assert found["params"]["w"].sharding.spec == PartitionSpec("x")
    assert type(found["opt"][1][0]).__name__ == "ScaleByAdamState"


def test_the_v1_functions_and_checkpointer_restore_it_too(tmp_path: Path) -> None:
    tree = {**state(), "text": "ünï"}
    folder = exported(tmp_path, tree, item="state", metrics={"loss": 0.5}, metadata={"git": "abc"})

    like = jax.tree.map(abstract, tree)
    assert_same({**v1.load(folder / "3", like), "text": 0}, {**tree, "text": 0})
    with v1.training.Checkpointer(folder) as checkpointer:
        found = checkpointer.load(3, like)
        assert found["text"] == "ünï"
        assert checkpointer.latest.metrics == {"loss": 0.5}
        assert checkpointer.metadata(3).custom_metadata == {"git": "abc"}


def test_without_a_target_arrays_come_back_as_numpy_anywhere_and_keys_as_keys(tmp_path: Path) -> None:
    tree = state()
    folder = exported(tmp_path, tree)

    for found in (
        ocp.CheckpointManager(folder).restore(3),
        ocp.StandardCheckpointer().restore(folder / "3" / "default"),
        v1.load(folder / "3"),
    ):
        assert type(found["params"]["w"]) is np.ndarray
        assert words(found["params"]["w"]) == words(tree["params"]["w"])
        assert found["params"]["b"].dtype == ml_dtypes.bfloat16
        assert (found["step"], found["lr"], found["flag"], found["none"]) == (3, 0.5, True, None)
        assert (found["empty"], found["no_items"], found["opt"][0]) == ({}, [], None)
        assert jax.random.key_impl(found["key"]) == jax.random.key_impl(tree["key"])
        assert words(found["keys"]) == words(tree["keys"])


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16", "float16", "float64", "bool", "uint8", "int64", "complex128", "int2", "int4", "float4_e2m1fn",
        "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ],
)  # fmt: skip
def test_every_dtype_that_orbax_has_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(np.dtype(getattr(ml_dtypes, name, name)))

    found = ocp.CheckpointManager(exported(tmp_path, {"a": array})).restore(3)["a"]

    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype(np.complex128), array.astype(np.complex128))


def test_shards_become_chunks_and_large_ones_are_cut(tmp_path: Path) -> None:
    tree = {"w": sharded(jnp.arange(32.0).reshape(4, 8), "a", "b"), "big": np.arange(100_000)}
    folder = exported(tmp_path, tree, memory_bytes=1 << 16)

    said = json.loads((folder / "3" / "default" / "array_metadatas" / "process_0").read_text())["array_metadatas"]
    chunks = {each["array_metadata"]["param_name"]: each["array_metadata"]["chunk_shape"] for each in said}
    assert chunks == {"w": [2, 4], "big": [2_000]}
    assert_same(ocp.CheckpointManager(folder).restore(3), tree)


def test_the_tree_may_be_a_single_array_a_namedtuple_or_hold_text_alone(tmp_path: Path) -> None:
    for number, (tree, expected) in enumerate(
        [
            (np.arange(3.0), np.arange(3.0)),
            (Point(np.ones(2), 3), {"x": np.ones(2), "y": 3}),
            ({"s": "x", "a/b": "y"}, {"s": "x", "a/b": "y"}),
            ({"n": np.float32(2.5), "u": 2**64 - 1, "i": -(2**63)}, {"n": 2.5, "u": 2**64 - 1, "i": -(2**63)}),
        ]
    ):
        folder = exported(tmp_path / str(number), tree)
        found = ocp.CheckpointManager(folder).restore(3)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        jax.tree.map(np.testing.assert_array_equal, v1.load(folder / "3"), expected)
        jax.tree.map(np.testing.assert_array_equal, orbax.open(folder)[3].load(), expected)


def test_a_part_of_a_checkpoint_becomes_the_item(tmp_path: Path) -> None:
    checkpoint = mp.save(tmp_path / "store", {"params": {"w": np.ones(2)}, "rest": dt.date(2026, 1, 1)}, step=1)

    export_checkpoint(checkpoint.at("params"), tmp_path / "orbax")

    assert list(ocp.CheckpointManager(tmp_path / "orbax").restore(1)) == ["w"]


def test_a_tree_may_be_the_checkpoint_itself(tmp_path: Path) -> None:
    tree = {"w": np.arange(3.0), "s": "x"}
    checkpoint = mp.save(tmp_path / "store", tree, step=1, metrics={"loss": 1.0}, metadata={"a": 1})
    done = export_checkpoint(checkpoint, tmp_path / "orbax", item=None)

    assert done.items == ()
    for found in (ocp.StandardCheckpointer().restore(done.path), v1.load(done.path)):
        assert found["s"] == "x" and np.array_equal(found["w"], tree["w"])
    assert ocp.StandardCheckpointer().metadata(done.path).custom_metadata == {"a": 1}
    assert orbax.open(done.path)[1].metrics == {"loss": 1.0}


def test_what_is_said_of_the_run_is_written_once(tmp_path: Path) -> None:
    for run in (1, 2):
        with mp.Checkpointer(tmp_path / str(run), metadata={"run": run}) as saver:
            saver.save(run, {"w": np.ones(1)})
        export_checkpoint(mp.open(tmp_path / str(run))[run], tmp_path / "orbax")

    with ocp.CheckpointManager(tmp_path / "orbax") as manager:
        assert manager.metadata().custom_metadata == {"run": 1}
        assert manager.all_steps() == [1, 2]


# --- items


def test_the_items_of_a_v0_manager_stay_items_with_their_handlers(tmp_path: Path) -> None:
    tree = {
        "w": sharded(jnp.arange(32.0).reshape(4, 8), "a", "b"),
        "empty": optax.EmptyState(),
        "key": jax.random.key(5),
    }
    numpy_state = np.random.RandomState(3).get_state()
    with door.CheckpointManager(tmp_path / "door") as manager:
        manager.save(
            4,
            args=door.args.Composite(
                state=door.args.PyTreeSave(tree), config=door.args.JsonSave({"a": [1, None]}),
                typed=door.args.JaxRandomKeySave(jax.random.key(1)),
                raw=door.args.JaxRandomKeySave(jax.random.PRNGKey(2)),
                array=door.args.ArraySave(jnp.arange(3.0)), numpy=door.args.NumpyRandomKeySave(numpy_state),
            ),
            metrics={"loss": 1.0}, custom_metadata={"c": 1},
        )  # fmt: skip

    done = export_checkpoint(mp.open(tmp_path / "door")[4], tmp_path / "orbax")

    assert done.items == ("state", "config", "typed", "raw", "array", "numpy")
    with ocp.CheckpointManager(tmp_path / "orbax") as manager:
        found = manager.restore(4)
        assert manager.metadata(4).custom_metadata == {"c": 1}
    assert found.state["w"].sharding == tree["w"].sharding and words(found.state["w"]) == words(tree["w"])
    assert found.state["empty"] is None and words(found.state["key"]) == words(tree["key"])
    assert found.config == {"a": [1, None]}
    assert words(found.typed) == words(jax.random.key(1)) and words(found.raw) == words(jax.random.PRNGKey(2))
    assert np.array_equal(found.array, np.arange(3.0))
    assert found.numpy[0] == "MT19937" and np.array_equal(found.numpy[1], numpy_state[1])


def test_the_checkpointables_of_a_v1_checkpointer_stay_apart(tmp_path: Path) -> None:
    tree = {"w": sharded(jnp.arange(32.0).reshape(4, 8), "a", "b")}
    with door_v1.training.Checkpointer(tmp_path / "door") as checkpointer:
        checkpointer.save_checkpointables(
            5, {"state": tree, "config": {"x": 1}}, metrics={"loss": 1.0}, custom_metadata={"q": 2}
        )

    export_checkpoint(mp.open(tmp_path / "door")[5], tmp_path / "orbax", exclude="config")

    with v1.training.Checkpointer(tmp_path / "orbax") as checkpointer:
        assert_same(checkpointer.load(), tree)
        assert set(checkpointer.load_checkpointables()) == {"state"}
        assert (checkpointer.latest.metrics, checkpointer.metadata().custom_metadata) == ({"loss": 1.0}, {"q": 2})


def test_files_of_a_handler_of_the_user_become_files_again(tmp_path: Path) -> None:
    class Notes(door.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            (directory / "deep").mkdir()
            (directory / "deep" / "note.txt").write_text(args.item)

        def restore(self, directory: Any, args: Any) -> Any:
            return (directory / "deep" / "note.txt").read_text()

    @door.args.register_with_handler(Notes, for_save=True, for_restore=True)
    class NotesArgs(door.args.CheckpointArgs):
        item: Any = None

        def __init__(self, item: Any = None) -> None:
            self.item = item

    with door.CheckpointManager(tmp_path / "door") as manager:
        manager.save(1, args=door.args.Composite(notes=NotesArgs("hello")))

    export_checkpoint(mp.open(tmp_path / "door")[1], tmp_path / "orbax")

    assert (tmp_path / "orbax" / "1" / "notes" / "deep" / "note.txt").read_text() == "hello"
    handlers = json.loads((tmp_path / "orbax" / "1" / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
    assert handlers["notes"].endswith("Notes")


def test_what_orbax_wrote_goes_through_us_and_back_unchanged(tmp_path: Path) -> None:
    tree = state()
    with ocp.CheckpointManager(
        tmp_path / "old", options=ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    ) as old:
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), config=ocp.args.JsonSave({"a": 1}))
        old.save(7, args=items, metrics={"loss": 0.25}, custom_metadata={"run": 3})
        old.wait_until_finished()
        expected = old.restore(7)

    orbax.import_checkpoints(tmp_path / "old", tmp_path / "ours")
    export_checkpoint(mp.open(tmp_path / "ours")[7], tmp_path / "new")

    with ocp.CheckpointManager(tmp_path / "new") as new:
        found = new.restore(7)
        assert_same(found.state, expected.state)
        assert found.config == expected.config and found.state["params"]["w"].sharding == tree["params"]["w"].sharding
        assert (new.metrics(7), new.metadata(7).custom_metadata) == ({"loss": 0.25}, {"run": 3})
        like = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(abstract, tree)))
        assert_same(new.restore(7, args=like).state, tree)


# --- what it cannot hold


def test_all_that_orbax_cannot_hold_is_told_at_once_before_anything_is_written(tmp_path: Path) -> None:
    tree = {
        "date": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "huge": 2**70, "none": np.zeros((0, 3)),
        "names": np.array(["x"]), "raw": b"x", "phase": 1j, "7": 1, 7: 2, "a.b": 1, "a": {"b": 2},
        "list": {"a~": "x"}, "fine": 1,
    }  # fmt: skip
    checkpoint = mp.save(tmp_path / "store", tree, step=1, metadata={"day": dt.date(2026, 1, 1)})

    with pytest.raises(mp.UnsupportedLeafError) as caught:
        export_checkpoint(checkpoint, tmp_path / "orbax")

    text = str(caught.value)
    for line in (
        "date: a value of type datetime", "huge: an integer of 71 bits",
        "none: an array without elements, float64[0, 3]",
        "names: an array of str1", "raw: a value of type bytes", "phase: a value of type complex",
        "%int:7: Orbax would store it as '7', as it does 7", "a/b: Orbax would store it as 'a.b', as it does a.b",
        "list/a~: text under a key with `~`", "metadata.day: a date", "`exclude`", "catalog.annotate",
    ):  # fmt: skip
        assert line in text, line
    assert "fine" not in text
    assert not (tmp_path / "orbax").exists()


def test_what_is_excluded_is_left_out_and_a_list_keeps_its_length(tmp_path: Path) -> None:
    tree = {"date": dt.date(2026, 1, 1), "list": [np.ones(1), dt.date(2026, 1, 1), np.zeros(2)], "w": np.ones(2)}
    folder = exported(tmp_path, tree, exclude=["date", "list/1"])

    found = ocp.CheckpointManager(folder).restore(3)

    assert set(found) == {"list", "w"}
    assert found["list"][1] is None and np.array_equal(found["list"][2], np.zeros(2))


def test_metadata_that_json_cannot_hold_is_said_anew_with_annotate(tmp_path: Path) -> None:
    checkpoint = mp.save(tmp_path / "store", {"w": np.ones(1)}, step=1, metadata={"day": dt.date(2026, 1, 1)})
    catalog = mp.open(tmp_path / "store")
    with pytest.raises(mp.UnsupportedLeafError, match="annotate"):
        export_checkpoint(checkpoint, tmp_path / "orbax")

    catalog.annotate(1, metadata={"day": "2026-01-01"})
    export_checkpoint(catalog[1], tmp_path / "orbax")

    assert ocp.CheckpointManager(tmp_path / "orbax").metadata(1).custom_metadata == {"day": "2026-01-01"}


@pytest.mark.parametrize("tree", [{}, {"a": dt.date(2026, 1, 1)}])
def test_a_tree_of_which_nothing_is_left_is_refused(tmp_path: Path, tree: Any) -> None:
    checkpoint = mp.save(tmp_path / "store", tree, step=1)
    with pytest.raises(mp.UnsupportedLeafError, match="the root: (it is empty|nothing of it is left)"):
        export_checkpoint(checkpoint, tmp_path / "orbax", exclude="a")


def test_the_state_of_an_object_is_refused_as_an_item(tmp_path: Path) -> None:
    class Iterator:
        def get_state(self) -> dict[str, int]:
            return {"at": 3}

        def set_state(self, state: Any) -> None: ...

    with door.CheckpointManager(tmp_path / "door") as manager:
        tree = door.args.StandardSave({"w": np.ones(1)})
        manager.save(1, args=door.args.Composite(data=_grain(Iterator()), state=tree))
    checkpoint = mp.open(tmp_path / "door")[1]

    with pytest.raises(mp.UnsupportedLeafError, match="data: it is the state of an object"):
        export_checkpoint(checkpoint, tmp_path / "orbax")
    export_checkpoint(checkpoint, tmp_path / "orbax", exclude="data")
    assert list(ocp.CheckpointManager(tmp_path / "orbax").restore(1).keys()) == ["state"]
    with pytest.raises(ValueError, match="has the items data, state"):
        export_checkpoint(checkpoint, tmp_path / "alone", item=None)
    done = export_checkpoint(checkpoint, tmp_path / "alone", item=None, exclude="data")
    assert ocp.StandardCheckpointer().restore(done.path)["w"][0] == 1


def _grain(iterator: Any) -> Any:
    """Return arguments as libraries of data loaders have them: with the object as `item`."""

    class Arguments:
        item = iterator

    return Arguments()


# --- whole, or not there


def test_a_step_that_is_there_and_a_root_of_ours_are_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path, {"w": np.ones(1)})
    checkpoint = mp.open(tmp_path / "store")[3]

    for where in (folder, tmp_path / "store"):
        with pytest.raises(mp.ConflictError) as caught:
            export_checkpoint(checkpoint, where)
        assert caught.value.code == "exists"
    (tmp_path / "other" / "3").mkdir(parents=True)
    with pytest.raises(mp.ConflictError):
        export_checkpoint(checkpoint, tmp_path / "other")
    for name in ("", "metrics", "a/b"):
        with pytest.raises(ValueError, match="item"):
            export_checkpoint(checkpoint, tmp_path / "third", item=name)


def test_a_damaged_checkpoint_is_not_exported_and_nothing_stays(tmp_path: Path) -> None:
    checkpoint = mp.save(tmp_path / "store", {"a": np.arange(1000.0), "w": np.ones(4)}, step=3)
    pack = next((tmp_path / "store" / "3").glob("*.safetensors"))
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)

    with pytest.raises(mp.CorruptionError, match="step 3 is damaged at w"):
        export_checkpoint(checkpoint, tmp_path / "orbax")
    assert list((tmp_path / "orbax").iterdir()) == []


@pytest.mark.parametrize("when", [1, 3, 5])
def test_an_export_that_is_killed_leaves_nothing_that_orbax_takes_for_a_checkpoint(tmp_path: Path, when: int) -> None:
    mp.save(tmp_path / "store", {"a": np.ones(4), "b": np.ones(4), "c": np.ones(4)}, step=3)
    program = f"""
import os, milepost as mp
from milepost.interop.orbax import export_checkpoint
seen = []
def progress(nbytes):
    seen.append(nbytes)
    if len(seen) == {when}:
        os._exit(9)
export_checkpoint(mp.open({str(tmp_path / "store")!r})[3], {str(tmp_path / "orbax")!r}, progress=progress)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9

    assert ocp.CheckpointManager(tmp_path / "orbax").all_steps() == []
    assert len(os.listdir(tmp_path / "orbax")) == 1
    export_checkpoint(mp.open(tmp_path / "store")[3], tmp_path / "orbax")
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
    with ocp.CheckpointManager(tmp_path / "orbax", options=options) as manager:
        assert manager.all_steps() == [3]
        manager.save(4, args=ocp.args.StandardSave({"a": np.ones(1)}))
        manager.wait_until_finished()
    assert sorted(os.listdir(tmp_path / "orbax")) == ["3", "4"]


def test_the_state_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    mp.save(tmp_path / "store", {"w": np.random.default_rng(0).random((2_000, 12_800))}, step=3)  # 195 MiB
    program = f"""
import resource, milepost as mp, tensorstore
from milepost.interop.orbax import export_checkpoint
checkpoint = mp.open({str(tmp_path / "store")!r})[3]
parts = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_checkpoint(checkpoint, {str(tmp_path / "orbax")!r}, memory_bytes=16 << 20, progress=parts.append)
print(max(parts), sum(parts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    largest, total, grown_kib = map(int, done.stdout.split())
    assert largest <= 4 << 20 and total == 2 * 2_000 * 12_800 * 8
    assert grown_kib < 80 << 10


def test_bytes_that_read_back_as_others_are_no_export(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    checkpoint = mp.save(tmp_path / "store", {"a": np.ones(4), "b": noise}, step=3)
    seen: list[int] = []

    def flip(nbytes: int) -> None:
        seen.append(nbytes)
        if len(seen) == 3:  # both are written, the first is read back
            file = max((tmp_path / "orbax").rglob("d/*"), key=lambda file: file.stat().st_size)
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)

    with pytest.raises(mp.CorruptionError, match="b .*reads back as something else"):
        export_checkpoint(checkpoint, tmp_path / "orbax", progress=flip)
    assert list((tmp_path / "orbax").iterdir()) == []


def test_a_full_disk_is_a_storage_error_and_nothing_stays(tmp_path: Path) -> None:
    mp.save(tmp_path / "store", {"w": np.random.default_rng(0).random(1 << 19)}, step=3)
    program = f"""
import resource, milepost as mp, tensorstore
from milepost.interop.orbax import export_checkpoint
checkpoint = mp.open({str(tmp_path / "store")!r})[3]
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    export_checkpoint(checkpoint, {str(tmp_path / "orbax")!r})
except mp.StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert "TensorStore failed" in done.stdout and "File too large" in done.stdout
    assert list((tmp_path / "orbax").iterdir()) == []


def test_neither_orbax_nor_jax_is_needed(tmp_path: Path) -> None:
    mp.save(tmp_path / "store", {"w": jnp.ones(3), "key": jax.random.key(1)}, step=3)
    program = f"""
import sys, milepost as mp
from milepost.interop.orbax import export_checkpoint
export_checkpoint(mp.open({str(tmp_path / "store")!r})[3], {str(tmp_path / "orbax")!r})
print({{"orbax", "orbax.checkpoint", "jax", "torch"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout == "set()\n"
    assert set(ocp.CheckpointManager(tmp_path / "orbax").restore(3)) == {"w", "key"}


# --- the command


def test_the_command_exports_a_step_and_says_where_it_is(tmp_path: Path) -> None:
    mp.save(tmp_path / "store", {"w": np.ones(4), "day": dt.date(2026, 1, 1)}, step=3)
    where = tmp_path / "orbax"

    refused = milepost("export", f"{tmp_path / 'store'}@latest", where, "--format", "orbax")
    assert refused.exit_code == 1 and "day: a value of type date" in refused.stderr
    done = as_json(
        "export", f"{tmp_path / 'store'}@latest", where, "--format", "orbax", "--exclude", "day", "--item", "state"
    )
    assert done["schema"] == "milepost.export/1"
    assert (done["step"], done["path"], done["items"], done["leaves"]) == (3, str(where / "3"), ["state"], 1)
    assert np.array_equal(v1.load(where / "3")["w"], np.ones(4))
    again = milepost("export", f"{tmp_path / 'store'}@3", where, "--format", "orbax", "--exclude", "day")
    assert again.exit_code == 1 and "is there already" in again.stderr
    wrong = milepost("export", f"{tmp_path / 'store'}@3", where, "--format", "orbax", "--item", "metrics")
    assert wrong.exit_code == 2
    words = ("export", f"{tmp_path / 'store'}@3", tmp_path / "a", "--format", "orbax", "--exclude", "day", "--alone")
    assert milepost(*words).exit_code == 0
    assert ocp.StandardCheckpointer().restore(tmp_path / "a" / "3")["w"][0] == 1
    text = milepost("export", f"{tmp_path / 'store'}@3", tmp_path / "b", "--format", "orbax", "--exclude", "day").stdout
    assert text == f"step 3 is in {tmp_path / 'b' / '3'}: 1 leaf, 32 B, read back\n"


def test_what_was_exported_is_told(tmp_path: Path) -> None:
    checkpoint = mp.save(tmp_path / "store", {"w": np.ones(4), "n": 1}, step=3)
    done = export_checkpoint(checkpoint, tmp_path / "orbax")
    assert done == Exported(tmp_path / "orbax" / "3", ("default",), 2, 40)


@pytest.mark.parametrize("metrics", [0.5, {}, {"a": {"b": float("inf")}}, None])
def test_metrics_come_back_as_they_were_given(tmp_path: Path, metrics: Any) -> None:
    best = door.CheckpointManagerOptions(best_fn=lambda _: 0.0)
    with door.CheckpointManager(tmp_path / "v0", options=best) as manager:
        manager.save(1, args=door.args.StandardSave({"w": np.ones(1)}), metrics=metrics)
    with door_v1.training.Checkpointer(tmp_path / "v1") as checkpointer:
        checkpointer.save(1, {"w": np.ones(1)}, metrics=metrics)

    for version in ("v0", "v1"):
        export_checkpoint(mp.open(tmp_path / version)[1], tmp_path / "orbax" / version)
        found = ocp.CheckpointManager(tmp_path / "orbax" / version).metrics(1)
        assert found == metrics or (not metrics and found is None)
