# SPDX-License-Identifier: Apache-2.0
"""`milepost.interop.orbax`: what Orbax itself wrote is read, and copied into a store."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import milepost as mp
from cli_runs import as_json, milepost
from milepost.interop import orbax
from milepost.interop.orbax.arrays import parts
from orbax_written import LARGE, W, expected

HERE = Path(__file__).parent
ALONE = ["alone_true_true", "alone_true_false", "alone_false_true", "alone_false_false"]
TREES = [
    ("single", 1, "default"), ("single", 10, "default"), ("named", 4, "state"), ("v1", 1, "state"), ("v1", 2, "state"),
    ("v1_alone", 0, "state"), *((name, 0, "default") for name in ALONE),
]  # fmt: skip
# What JAX gives for these; as in the program that wrote them.
KEY = [0, 3]
ITEM_KEY = [0, 5]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Orbax wrote, for all tests: nothing changes it."""
    if importlib.util.find_spec("orbax") is None:
        pytest.skip("orbax-checkpoint is not installed")
    folder = tmp_path_factory.mktemp("written")
    done = subprocess.run(
        [sys.executable, HERE / "orbax_written.py", folder], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def theirs(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "theirs")


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(wanted, dict):
        for name in wanted:
            yield from differences(found[name], wanted[name], f"{path}/{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for place, child in enumerate(wanted):
            yield from differences(found[place], child, f"{path}/{place}")
    elif isinstance(wanted, np.ndarray | np.generic):
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape) or found.tobytes() != wanted.tobytes():
            yield f"{path}: {found!r} for {wanted!r}"
    elif type(found) is not type(wanted) or found != wanted:
        yield f"{path}: {found!r} for {wanted!r}"


# --- reading


@pytest.mark.parametrize(("name", "step", "item"), TREES)
def test_a_tree_reads_as_it_was_saved(written: Path, name: str, step: int, item: str) -> None:
    found = orbax.open(written / name)[step].load(item)

    assert list(differences(found, expected(step))) == []
    assert found["key"].tolist() == KEY and found["keys"].shape == (3, 4)
    assert set(found) - set(expected(step)) <= {"key", "keys", "text"}


def test_leaves_are_lazy_and_say_what_they_are(written: Path) -> None:
    tree = orbax.open(written / "v1")[1].tree()

    assert tree["w"].spec == mp.LeafSpec("array", "float32", (8, 8)) and tree["w"].origin == "jax"
    assert tree["numpy"].origin == "numpy" and tree["int"].read() == 3
    assert tree["key"].spec == mp.LeafSpec("key", "key<threefry2x32>")
    assert tree["keys"].spec == mp.LeafSpec("key", "key<rbg>", (3,))
    assert tree["int4"].spec.dtype == "int4" and tree["bf16"].spec.dtype == "bfloat16"
    assert np.array_equal(tree["w"][2:5, ::3], (W + 1)[2:5, ::3])
    assert tree["list"][1]["z"].read().dtype == np.float16


def test_a_slice_reads_the_chunks_of_its_range_alone(theirs: Path) -> None:
    (theirs / "alone_false_false" / "w" / "1.1").unlink()
    leaf = orbax.open(theirs / "alone_false_false")[0].tree()["w"]

    assert np.array_equal(leaf[:4], W[:4]) and np.array_equal(leaf[4:, :4], W[4:, :4])
    with pytest.raises(mp.CorruptionError, match=r"step 0, default is damaged at w"):
        leaf.read()  # a chunk that is lost is not read as zeros


def test_chunks_smaller_than_a_shard_are_put_together(written: Path) -> None:
    assert np.array_equal(orbax.open(written / "cut")[0].load()["large"], LARGE)


def test_items_of_every_kind_are_read(written: Path) -> None:
    step = orbax.open(written / "named")[4]

    assert set(step.items) == {"state", "config", "array", "key", "old_key", "numpy_key"}
    assert step.load("config") == {"layers": [1, None, "x"]}
    assert step.load("state")["text"] == "hello"
    assert step.load("array").tolist() == [0, 1, 2]
    assert step.tree("key").spec.kind == "key" and step.load("key").tolist() == ITEM_KEY
    assert step.tree("old_key").spec.kind == "array" and step.load("old_key").tolist() == ITEM_KEY
    name, words, *rest = step.load("numpy_key")
    there = np.random.RandomState(0).get_state()
    assert (name, rest) == ("MT19937", list(there[2:])) and np.array_equal(words, there[1])
    with pytest.raises(mp.NotFoundError, match="no item 'sate'"):
        step.tree("sate")


def test_what_another_handler_wrote_is_kept_as_its_files(theirs: Path, tmp_path: Path) -> None:
    step = theirs / "named" / "ck_000004"
    (step / "loader" / "part").mkdir(parents=True)
    (step / "loader" / "part" / "state.bin").write_bytes(b"12345")
    record = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    record["item_handlers"]["loader"] = "mine.LoaderHandler"
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(record))

    orbax.import_checkpoints(theirs / "named", tmp_path / "store")

    for found in (orbax.open(theirs / "named")[4].checkpoint, mp.open(tmp_path / "store")[4]):
        assert found.at("loader").leaves["part%2Fstate.bin"].read().tobytes() == b"12345"
        assert found.leaves["loader/part%2Fstate.bin"][1:3].tobytes() == b"23"
        assert found.metadata["orbax"]["handlers"] == {"loader": "mine.LoaderHandler"}


def test_an_aggregate_file_of_an_old_orbax_is_refused(theirs: Path) -> None:
    file = theirs / "cut" / "_METADATA"
    record = json.loads(file.read_text())
    record["tree_metadata"]["('w',)"]["value_metadata"]["skip_deserialize"] = True
    file.write_text(json.dumps(record))

    with pytest.raises(mp.FormatError, match="the data of w, a jax.Array, lie in an aggregate file"):
        orbax.open(theirs / "cut")[0].load()


def test_leaves_under_one_name_are_told(theirs: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = theirs / "single" / "1" / "default" / "_METADATA"
    record = json.loads(file.read_text())
    names = [{"key": key, "key_type": 2} for key in ("a", "b.c/d")]
    record["tree_metadata"]["('a', 'b.c/d')"] = {**record["tree_metadata"]["('a.b', 'c/d')"], "key_metadata": names}
    file.write_text(json.dumps(record))

    orbax.open(theirs / "single")[1].tree()

    assert "2 leaves under the one name a.b.c/d" in caplog.text


def test_what_is_exported_is_read_again(tmp_path: Path) -> None:
    state = {"w": np.arange(6.0).reshape(2, 3), "n": 3, "list": [np.ones(2, np.int8)], "name": "x", "none": None}
    saved = mp.save(tmp_path / "ours", state, step=5, metrics={"loss": 0.5}, metadata={"lr": 0.1})

    orbax.export_checkpoint(saved, tmp_path / "theirs")

    step = orbax.open(tmp_path / "theirs")[5]
    assert list(differences(step.load(), state)) == []
    assert step.metrics == {"loss": 0.5} and step.metadata["lr"] == 0.1


def test_a_load_takes_a_like(written: Path) -> None:
    step = orbax.open(written / "single")[1]
    like = {"w": np.zeros((8, 8), np.float64), "nothing": None}

    found = step.load("default", like=like, dtype="cast", unexpected="ignore")

    assert found["w"].dtype == np.float64 and found["w"][0, 0] == 1
    with pytest.raises(mp.StructureError, match="q"):
        step.load("default", like={"q": 0})


def test_metrics_metadata_and_times_are_told(written: Path) -> None:
    single, v1 = orbax.open(written / "single"), orbax.open(written / "v1")

    assert list(single) == [1, 2, 10] and single.metadata == {"run": "x"} and not single.alone
    assert single[2].metrics == {"loss": 0.5} and single[2].metadata == {"note": "n2"}
    assert single[1].created < single[2].created and single[2].created.tzinfo is not None
    assert v1.metadata == {"run": "y"} and v1[1].metrics == {"loss": 1.0} and v1[2].metrics is None
    alone = orbax.open(written / "v1_alone")
    assert alone.alone and alone[0].metadata == {"q": 1}


def test_what_orbax_wrote_has_no_digests_to_verify(written: Path) -> None:
    with pytest.raises(mp.StorageError, match="Import it first"):
        orbax.open(written / "single")[1].checkpoint.verify()


def test_neither_orbax_nor_jax_is_needed(written: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from milepost.interop import orbax;"
        f"orbax.import_checkpoints({str(written / 'named')!r}, {str(tmp_path / 'store')!r});"
        "print(sorted({'jax', 'orbax', 'tensorstore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['tensorstore']\n"


def test_without_tensorstore_the_remedy_is_told(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(mp.StorageError, match=r"pip install 'milepost\[orbax\]'") as caught:
        orbax.open(written / "single")[1].tree()
    assert caught.value.code == "unsupported"


# --- which folders are checkpoints


def test_what_is_not_finished_is_no_checkpoint(theirs: Path) -> None:
    root = theirs / "single"
    shutil.copytree(root / "1", root / "3.orbax-checkpoint-tmp")
    (root / "4").mkdir()
    shutil.copytree(root / "1", root / "5")
    (root / "5" / "default").rename(root / "5" / "default.orbax-checkpoint-tmp")
    (root / "6").mkdir()
    (root / "6" / "_CHECKPOINT_METADATA").write_text('{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null}')
    (root / "run_2024").mkdir()

    assert list(orbax.open(root)) == [1, 2, 10]


def test_a_step_without_the_marker_of_a_commit_is_one_where_older_versions_wrote_none(theirs: Path) -> None:
    for file in (theirs / "single").rglob("commit_success.txt"):
        file.unlink()
    (theirs / "single" / "1" / "_CHECKPOINT_METADATA").unlink()

    found = orbax.open(theirs / "single")

    assert list(found) == [1, 2, 10]
    assert list(differences(found[1].load("default"), expected(1))) == []


def test_steps_of_one_number_are_told_apart_by_their_prefix(theirs: Path) -> None:
    (theirs / "named" / "ck_000004").rename(theirs / "single" / "ck_000001")

    with pytest.raises(mp.ConflictError, match="1 and ck_000001 are both step 1"):
        orbax.open(theirs / "single")
    assert list(orbax.open(theirs / "single", prefix="ck")) == [1]
    assert list(orbax.open(theirs / "single", prefix="")) == [1, 2, 10]


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(mp.NotFoundError, match="is not there"):
        orbax.open(tmp_path / "no")
    with pytest.raises(mp.NotFoundError, match="no finished checkpoint"):
        orbax.import_checkpoints(tmp_path, tmp_path / "store")
    with pytest.raises(mp.StorageError, match="local directories"):
        orbax.open("gs://bucket/run")


# --- damage


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("default/_METADATA", "{", "_METADATA is damaged: expected JSON"),
        ("default/_METADATA", '{"tree_metadata": {"x": 1}}', "the tree of an item"),
        ("_CHECKPOINT_METADATA", "", "_CHECKPOINT_METADATA is damaged"),
        ("default/array_metadatas/process_0", "[]", "process_0 is damaged"),
        ("default/manifest.ocdbt", "nonsense", "step 1, default is damaged"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_it(theirs: Path, file: str, text: str, told: str) -> None:
    (theirs / "single" / "1" / file).write_text(text)
    found = orbax.open(theirs / "single")

    with pytest.raises(mp.CorruptionError, match=told):
        found[1].load()
    assert list(differences(found[2].load(), expected(2))) == []


def test_damaged_metrics_are_told_and_leave_the_state_readable(theirs: Path, tmp_path: Path) -> None:
    (theirs / "single" / "1" / "metrics" / "metrics").write_text("")
    step = orbax.open(theirs / "single")[1]

    with pytest.raises(mp.CorruptionError, match="metrics/metrics is damaged"):
        step.metrics  # noqa: B018
    assert list(differences(step.load(), expected(1))) == []
    with pytest.raises(mp.CorruptionError, match="metrics/metrics is damaged"):
        orbax.import_checkpoints(theirs / "single", tmp_path / "store")


def test_a_truncated_data_file_is_an_error_that_names_leaf_and_folder(theirs: Path) -> None:
    folder = theirs / "alone_true_false"
    for file in folder.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(mp.CorruptionError, match=r"step 0, default is damaged at .*alone_true_false"):
        orbax.open(folder)[0].load()


def test_a_lost_item_is_not_restored_as_nothing(theirs: Path) -> None:
    shutil.rmtree(theirs / "named" / "ck_000004" / "array")

    with pytest.raises(mp.NotFoundError, match="lost its item 'array'"):
        orbax.open(theirs / "named")[4].load("state")


def test_a_stored_name_leads_nowhere_else(theirs: Path) -> None:
    file = theirs / "alone_false_false" / "_METADATA"
    record = json.loads(file.read_text())
    entry = record["tree_metadata"].pop("('w',)")
    record["tree_metadata"]["x"] = {**entry, "key_metadata": [{"key": "../alone_false_true/w", "key_type": 2}]}
    file.write_text(json.dumps(record))
    with pytest.raises(mp.CorruptionError, match="names of leaves"):
        orbax.open(theirs / "alone_false_false")[0].tree()

    record_file = theirs / "single" / "1" / "_CHECKPOINT_METADATA"
    record = json.loads(record_file.read_text())
    record["item_handlers"]["../2/default"] = ""
    record_file.write_text(json.dumps(record))
    with pytest.raises(mp.CorruptionError, match="names of items"):
        orbax.open(theirs / "single")[1].tree("default")


def test_shardings_can_be_done_without(theirs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (theirs / "single" / "1" / "default" / "_sharding").write_text("{")

    assert list(differences(orbax.open(theirs / "single")[1].load(), expected(1))) == []
    assert "_sharding is damaged" in caplog.text


# --- copies


@pytest.mark.parametrize(("name", "step", "item"), TREES)
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_an_import_holds_what_was_saved(
    written: Path, tmp_path: Path, name: str, step: int, item: str, memory_bytes: int
) -> None:
    done = orbax.import_checkpoints(written / name, tmp_path / "store", memory_bytes=memory_bytes)

    catalog = mp.open(tmp_path / "store")
    assert done.copied == tuple(sorted(catalog)) and done.verified and not done.skipped
    found, source = catalog[step], orbax.open(written / name)[step]
    assert list(differences(found.at(item).load(), expected(step))) == []
    assert str(found.leaves[f"{item}/keys"].spec) == "key<rbg>[3]" and found.leaves[f"{item}/w"].origin == "jax"
    assert found.metrics == (source.metrics or {})
    record = found.metadata.pop("orbax")
    assert {**found.metadata, "orbax": None} == {**source.metadata, "orbax": None}
    assert record["commit_timestamp_nsecs"] == source.committed_ns
    assert record["source"] == {"path": str(source.path), "fingerprint": source.fingerprint}
    assert found.reason == "imported from Orbax"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]  # nothing is left of the scratch file


def test_an_import_keeps_names_and_metadata_of_the_root(written: Path, tmp_path: Path) -> None:
    orbax.import_checkpoints(written / "single", tmp_path / "single", steps=[1])
    orbax.import_checkpoints(written / "named", tmp_path / "named")

    assert mp.open(tmp_path / "single").metadata == {"run": "x"}
    assert (tmp_path / "named" / "ck_000004" / "manifest.json").exists()


def test_an_import_goes_on_where_it_was(written: Path, theirs: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    orbax.import_checkpoints(written / "single", store, steps=[1, 10])

    done = orbax.import_checkpoints(theirs / "single", store)  # the same, moved elsewhere

    assert (done.copied, done.skipped) == ((2,), (1, 10))
    latest = mp.open(store).latest()
    assert latest is not None and latest.step == 10


def test_an_import_takes_no_step_for_that_of_another_source(written: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    mp.save(store, {"x": np.zeros(2)}, step=2, metadata=None)

    with pytest.raises((mp.ConflictError, mp.StructureError)):
        orbax.import_checkpoints(written / "single", store)

    orbax.import_checkpoints(written / "v1", tmp_path / "other", steps=[1])
    for file in ("single", "v1"):
        shutil.rmtree(tmp_path / "mixed", ignore_errors=True)
        shutil.copytree(written / file, tmp_path / "mixed")
        (tmp_path / "mixed" / "metadata" / "_ROOT_METADATA").unlink()
        if file == "single":
            orbax.import_checkpoints(tmp_path / "mixed", tmp_path / "third", steps=[1])
    with pytest.raises(mp.ConflictError, match="is not a copy of"):
        orbax.import_checkpoints(tmp_path / "mixed", tmp_path / "third")


def test_an_import_of_a_damaged_source_keeps_what_it_copied(theirs: Path, tmp_path: Path) -> None:
    (theirs / "single" / "2" / "default" / "_METADATA").write_text("{")

    with pytest.raises(mp.CorruptionError, match="2/default/_METADATA"):
        orbax.import_checkpoints(theirs / "single", tmp_path / "store")

    assert list(mp.open(tmp_path / "store")) == [1]
    orbax.import_checkpoints(theirs / "single", tmp_path / "store", steps=[10])
    assert sorted(mp.open(tmp_path / "store")) == [1, 10]
    with pytest.raises(mp.NotFoundError, match="no step 7"):
        orbax.import_checkpoints(theirs / "single", tmp_path / "store", steps=[7])


def test_an_import_tells_its_progress_and_may_leave_out_the_check(written: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    read: list[int] = []
    done = orbax.import_checkpoints(
        orbax.open(written / "cut"), tmp_path / "a", verify=False, progress=read.append, memory_bytes=1, scratch=scratch
    )

    assert sum(read) == done.nbytes == LARGE.nbytes + W.nbytes and not done.verified
    assert list(scratch.iterdir()) == []
    orbax.import_checkpoints(written / "cut", tmp_path / "b", progress=read.append)
    assert sum(read) == 3 * done.nbytes  # copied, copied, read back


@given(st.data())
def test_an_array_is_copied_in_parts_of_whole_chunks(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=3)))
    chunk = [data.draw(st.integers(1, max(1, size))) for size in shape]
    nbytes = data.draw(st.integers(1, 400))

    seen = np.zeros(shape, int)
    for box in parts(shape, chunk, 4, nbytes):
        seen[box.slices] += 1
        assert box.size * 4 <= max(nbytes, 4 * math.prod(chunk))
        assert all(start % part == 0 for start, part in zip(box.start, chunk, strict=True))
    assert (seen == 1).all()


# --- the command


@pytest.mark.parametrize("where", ["single", "single/1"])
def test_who_opens_a_directory_of_orbax_as_a_root_is_told_how_to_bring_it_along(written: Path, where: str) -> None:
    with pytest.raises(mp.NotFoundError, match=rf"milepost import .*{where} STORE"):
        mp.open(written / where)


def test_the_command_imports_and_goes_on(written: Path, tmp_path: Path) -> None:
    first = milepost("import", written / "single", tmp_path / "store", "--steps", "1,9-12")
    assert first.exit_code == 0 and "imported 2 steps" in first.stdout and "verified" in first.stdout
    again = milepost("import", written / "single", tmp_path / "store", "--no-verify")
    assert "imported 1 step" in again.stdout and "there already: 1, 10" in again.stdout

    told = as_json("import", written / "named", tmp_path / "named", "--prefix", "ck")
    assert told["schema"] == "milepost.import/1" and told["copied"] == [4] and told["verified"]
    assert json.dumps(told["skipped"]) == "[]"
    assert "imported from Orbax" in milepost("ls", tmp_path / "named").stdout


def test_the_command_says_what_is_wrong_by_its_exit_code(theirs: Path, tmp_path: Path) -> None:
    assert milepost("import", tmp_path / "no", tmp_path / "store").exit_code == 10
    assert milepost("import", theirs / "single", tmp_path / "store", "--prefix", "no").exit_code == 10
    assert milepost("import", theirs / "single", tmp_path / "store", "--steps", "7").exit_code == 12
    assert milepost("import", theirs / "single", tmp_path / "store", "--steps", "a").exit_code == 2
    (theirs / "single" / "2" / "default" / "_METADATA").write_text("{")
    assert milepost("import", theirs / "single", tmp_path / "store").exit_code == 4
