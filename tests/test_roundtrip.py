# SPDX-License-Identifier: Apache-2.0
"""What is saved comes back bit for bit, through real stores: NumPy arrays, values, and every option of `load`."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from safetensors import safe_open
from safetensors.numpy import load_file

import milepost as mp
from milepost import SKIP, LeafSpec, NotFoundError, StructureError, UnsupportedLeafError
from milepost.model import keypath
from milepost.model.format import CHUNK
from milepost.stores import MemoryStore
from samples import ML_DTYPES, NUMPY_DTYPES, CountingStore, bits, forms, numbers, same


@pytest.fixture(scope="module", params=["local", "memory"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Arrays of every dtype in every form, and the checkpoint that holds them."""
    tree = {name: forms(numbers(dtype)) for name, dtype in NUMPY_DTYPES.items()}
    where = tmp_path_factory.mktemp("everything") / "root" if request.param == "local" else MemoryStore()
    return tree, mp.save(where, tree)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


# Arrays of NumPy.


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_arrays_of_every_dtype_and_form_come_back_bit_for_bit(everything: Any, name: str) -> None:
    tree, saved = everything
    found = saved.at(keypath.segment(name)).load()

    assert list(found) == list(tree[name])
    for form, array in tree[name].items():
        assert same(found[form], array), form
        assert found[form].flags.c_contiguous, form
        assert found[form].flags.writeable, form


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_like_may_be_the_arrays_themselves_or_their_specs(everything: Any, name: str) -> None:
    tree, saved = everything
    specs = {form: ref.spec for form, ref in saved.at(keypath.segment(name)).leaves.items()}

    for like in (tree[name], specs):
        found = saved.at(keypath.segment(name)).load(like=like)
        for form, array in tree[name].items():
            assert same(found[form], array), form


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_arrays_of_every_dtype_and_form_are_filled_in_place(everything: Any, name: str) -> None:
    tree, saved = everything
    target = {form: np.zeros_like(array, subok=False) for form, array in tree[name].items()}
    target["strided"] = np.zeros((4, 6), tree[name]["strided"].dtype)[::2, 1::3]
    before = dict(target)
    saved.at(keypath.segment(name)).load_into(target)

    for form, array in tree[name].items():
        assert target[form] is before[form], form
        if array.dtype.names is None or target[form].flags.c_contiguous:
            assert bits(target[form]) == bits(array), form
        for field in array.dtype.names or ():  # into strided memory NumPy copies no padding
            assert bits(target[form][field]) == bits(array[field]), form


def test_lazy_arrays_are_views_of_the_file_that_nobody_else_sees_changed(root: Any) -> None:
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=">i4"), "c": np.zeros((0, 2)), "d": 7}
    saved = mp.save(root, tree)
    found = saved.load(lazy=True)

    assert same(found["a"], tree["a"])
    assert same(found["b"], tree["b"])
    assert (found["c"].shape, found["d"]) == ((0, 2), 7)
    assert found["a"].base is not None
    found["a"][0, 0] = 5
    assert same(saved.load(lazy=True)["a"], tree["a"])
    assert saved.verify().leaves == 4


@given(
    st_np.arrays(
        st_np.scalar_dtypes() | st_np.array_dtypes(max_size=3), st_np.array_shapes(min_dims=0, max_dims=3, max_side=4)
    )
)
def test_any_array_that_hypothesis_makes_comes_back(array: Any) -> None:
    saved = mp.save(MemoryStore(), {"x": array})

    assert same(saved.load()["x"], array)
    assert same(saved.load(like={"x": array})["x"], array)


def test_memory_maps_and_records_come_back_as_plain_arrays(memory: MemoryStore, tmp_path: pathlib.Path) -> None:
    mapped = np.memmap(tmp_path / "file", np.float32, "w+", shape=(3,))
    mapped[:] = 1.5
    record = np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    found = mp.save(memory, {"mapped": mapped, "record": record}).load()

    assert (type(found["mapped"]), found["mapped"].tolist()) == (np.ndarray, [1.5] * 3)
    assert (type(found["record"]), found["record"]["b"].tolist()) == (np.ndarray, [2.5])


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.array([1, None], object), "dtype object cannot be stored"),
        (np.array(["a", "bc"], np.dtypes.StringDType()), r"astype\('U'\)"),
        (np.ma.masked_array([1], [True]), r"\.mask"),
        (np.zeros(2, [("a", object)]), "dtype object cannot be stored"),
        (np.zeros(2).view(type("Metres", (np.ndarray,), {})), "Metres cannot be stored"),
    ],
)
def test_arrays_without_bytes_of_their_own_are_refused_with_their_path(
    memory: MemoryStore, array: Any, what: str
) -> None:
    with pytest.raises(UnsupportedLeafError, match=f"(?s)^params/0/w: .*{what}"):
        mp.save(memory, {"params": [{"w": array}]})
    with pytest.raises(NotFoundError):
        mp.load(memory)


def test_the_program_may_change_its_arrays_once_save_returned(root: Any) -> None:
    array = np.arange(1_000_000.0)
    with mp.Checkpointer(root) as saver:
        pending = saver.save(1, {"x": array, "view": array[::2]})
        array[:] = -1
        found = pending.result().load()

    assert np.array_equal(found["x"], np.arange(1_000_000.0))
    assert np.array_equal(found["view"], np.arange(0, 1_000_000.0, 2))


# Values.


class Phase(enum.Enum):
    WARM = 1
    COLD = 2


VALUES = {
    "none": None, "bool": True, "int": 2**100, "negative": -(2**70), "float": 0.1, "minus zero": -0.0, "inf": -np.inf,
    "complex": 1 - 0.0j, "text": "naïve ☃", "bytes": b"\x00\xff", "date": dt.date(2026, 11, 24),
    "datetime": dt.datetime(2026, 11, 24, 20, 15, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    "delta": dt.timedelta(1, 2, 3), "scalar": np.float32(0.1), "half": ml_dtypes.bfloat16(1.5),
    "dtype": np.dtype(">f4"), "empty": np.str_(""), "path": pathlib.Path("runs/7"), "time": np.datetime64("NaT", "ms"),
}  # fmt: skip


def test_values_come_back_as_they_were(memory: MemoryStore) -> None:
    saved = mp.save(memory, VALUES)

    for found in (saved.load(), saved.load(like=VALUES)):
        assert repr(found) == repr(VALUES)
        assert [type(value) for value in found.values()] == [type(value) for value in VALUES.values()]


def test_an_enum_comes_back_by_name_and_with_like_as_the_member(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"phase": Phase.COLD})

    assert saved.load() == {"phase": "COLD"}
    assert saved.load(like={"phase": Phase.WARM}) == {"phase": Phase.COLD}
    assert saved.leaves["phase"].spec == LeafSpec("value", "enum")


def test_values_are_replaced_in_place_and_those_that_cannot_be_must_be_equal_already(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"step": 3, "pair": (1, float("nan")), "list": [None, "a"]})
    target = {"step": 0, "pair": (1, float("nan")), "list": [5, "b"]}
    saved.load_into(target)

    assert (target["step"], target["list"]) == (3, [None, "a"])
    with pytest.raises(StructureError, match="1 leaves cannot be changed in place: pair/0"):
        saved.load_into({"step": 0, "pair": (2, float("nan")), "list": [5, "b"]})


@pytest.mark.parametrize(
    ("value", "like", "found"),
    [
        (3, np.zeros((), np.int64), np.array(3)), (np.array(3), 0, 3), (np.array(True), False, True),
        (2.5, np.zeros((), np.float32), np.array(2.5, "f4")), (np.array(2.5, "f4"), 0.0, 2.5),
        (3, np.zeros((), np.float32), np.array(3, "f4")), (np.str_("ab"), np.array("", "U2"), np.array("ab")),
        (np.array(3, "i2"), np.int16(0), np.int16(3)), (7, np.zeros((), ml_dtypes.int4), np.array(7, ml_dtypes.int4)),
    ],
)  # fmt: skip
def test_a_number_fills_an_array_without_dimensions_and_the_reverse(
    memory: MemoryStore, value: Any, like: Any, found: Any
) -> None:
    loaded = mp.save(memory, {"n": value}).load(like={"n": like})["n"]

    assert loaded == found
    assert type(loaded) is type(found)
    assert getattr(loaded, "dtype", None) == getattr(found, "dtype", None)


@pytest.mark.parametrize(
    ("value", "like"),
    [
        (300, np.zeros((), np.int8)),
        (2**70, np.zeros((), np.int64)),
        (2**24 + 1, np.zeros((), np.float32)),
        (-1, np.zeros((), "u1")),
    ],
)
def test_a_number_that_does_not_fit_is_told_before_anything_changes(memory: MemoryStore, value: Any, like: Any) -> None:
    saved = mp.save(memory, {"w": np.ones(2), "n": value})
    target = {"w": np.zeros(2), "n": like}

    with pytest.raises(StructureError, match="n: the saved number .* does not fit"):
        saved.load_into(target)
    assert target["w"].tolist() == [0, 0]


# What is shared.


def test_what_was_saved_shared_is_stored_once_and_comes_back_shared(memory: MemoryStore) -> None:
    w = np.arange(6.0)
    saved = mp.save(memory, {"a": w, "b": [w], "c": w + 1})

    assert saved.nbytes == 96
    for found in (saved.load(), saved.load(like={"a": w, "b": [w], "c": w})):
        assert found["a"] is found["b"][0]
        assert found["c"] is not found["a"]
        assert found["c"][0] == 1


def test_a_part_whose_array_lies_outside_of_it_can_be_read_alone(memory: MemoryStore) -> None:
    w = np.arange(6.0)
    saved = mp.save(memory, {"a": {"w": w}, "b": {"x": w, "y": [w]}})

    assert saved.at("b").load()["x"] is not None
    assert same(saved.at("b").load(like={"x": w, "y": [w]})["y"][0], w)
    assert same(saved.at("b/y/0").load(), w)
    assert same(saved.leaf("b/x").read(), w)
    assert saved.load(only="b/x")["b"]["x"].tolist() == w.tolist()
    assert saved.load(only="b/x")["a"]["w"] is SKIP


def test_arrays_of_like_that_are_shared_do_not_hide_that_they_were_saved_apart(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"mu": np.ones(3), "nu": np.full(3, 2.0), "t": (np.zeros(3),)})
    zeros = np.zeros(3)
    target = {"mu": zeros, "nu": zeros, "t": (np.ones(3),)}
    saved.load_into(target)

    assert saved.load(like={"mu": zeros, "nu": zeros, "t": (zeros,)})["nu"].tolist() == [2.0] * 3
    assert (target["mu"].tolist(), target["nu"].tolist()) == ([1.0] * 3, [2.0] * 3)
    with pytest.raises(StructureError, match="share memory"):
        saved.load_into({"mu": zeros, "nu": np.zeros(3), "t": (zeros,)})


# The options of `load`.


TREE = {
    "model": {"layers": [{"w": np.full((2, 3), float(i)), "b": np.zeros(3)} for i in range(3)], "head": np.ones(4)},
    "step": 7,
    "name": "run",
}


@pytest.fixture
def saved() -> mp.Checkpoint:
    return mp.save(MemoryStore(), TREE)


def like(**changes: Any) -> dict[str, Any]:
    layers = [{"w": np.full((2, 3), -1.0), "b": np.full(3, -1.0)} for _ in range(3)]
    return {"model": {"layers": layers, "head": np.full(4, -1.0)}, "step": -1, "name": "", **changes}


def test_only_reads_what_it_names_and_leaves_the_rest_of_like(saved: mp.Checkpoint) -> None:
    found = saved.load(like=like(), only=["model/layers/{0..1}/w", "step"])

    assert [layer["w"][0, 0] for layer in found["model"]["layers"]] == [0.0, 1.0, -1.0]
    assert (found["model"]["layers"][0]["b"][0], found["step"], found["name"]) == (-1.0, 7, "")
    plain = saved.load(only="model/head")
    assert (plain["model"]["head"].tolist(), plain["step"], plain["model"]["layers"][1]["w"]) == ([1.0] * 4, SKIP, SKIP)


def test_exclude_leaves_what_it_names_as_it_is(saved: mp.Checkpoint) -> None:
    target = like()
    saved.load_into(target, exclude=["**/b", "name"])

    assert [layer["b"][0] for layer in target["model"]["layers"]] == [-1.0] * 3
    assert (target["model"]["layers"][2]["w"][0, 0], target["step"], target["name"]) == (2.0, 7, "")
    assert saved.load(exclude="model")["model"] == {"layers": [{"w": SKIP, "b": SKIP}] * 3, "head": SKIP}


@pytest.mark.parametrize("options", [{}, {"like": like()}])
def test_a_glob_that_matches_nothing_is_an_error(saved: mp.Checkpoint, options: Any) -> None:
    with pytest.raises(StructureError, match="only: 'modle' matches no"):
        saved.load(only="modle", **options)


def test_rename_moves_leaves_and_whole_subtrees(saved: mp.Checkpoint) -> None:
    layers = [{"kernel": np.zeros((2, 3)), "b": np.zeros(3)} for _ in range(3)]
    found = saved.load(
        like={"net": {"layers": layers, "head": np.zeros(4)}, "step": 0, "name": ""},
        rename={"model/**/w": "net/**/kernel", "model": "net"},
    )

    assert [layer["kernel"][0, 0] for layer in found["net"]["layers"]] == [0.0, 1.0, 2.0]


def test_missing_keep_leaves_what_was_not_saved(saved: mp.Checkpoint) -> None:
    extra = np.full(2, 5.0)
    with pytest.raises(StructureError, match="1 not saved"):
        saved.load(like=like(extra=extra))
    found = saved.load(like=like(extra=extra), missing="keep")

    assert found["extra"] is extra
    with pytest.raises(StructureError, match="No value to keep"):
        saved.load(like=like(extra=LeafSpec("array", "float32", (2,))), missing="keep")


def test_unexpected_ignore_leaves_unread_what_like_does_not_have(saved: mp.Checkpoint) -> None:
    with pytest.raises(StructureError, match="8 not wanted|7 not wanted"):
        saved.load(like={"step": 0})

    assert saved.load(like={"step": 0}, unexpected="ignore") == {"step": 7}


def test_skip_leaves_a_node_unread(saved: mp.Checkpoint) -> None:
    found = saved.load(like=like(model=SKIP))

    assert found == {"model": SKIP, "step": 7, "name": "run"}


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", "int8", "complex64", "bool", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ">f8", ">i2"],
)
def test_cast_converts_to_the_dtype_of_like(saved: mp.Checkpoint, dtype: Any) -> None:
    wanted = {
        "head": np.zeros(4, dtype),
        "layers": [{"w": np.zeros((2, 3), dtype), "b": np.zeros(3, dtype)} for _ in range(3)],
    }
    if np.dtype(dtype) != np.dtype(">f8"):
        with pytest.raises(StructureError, match="7 other dtypes"):
            saved.at("model").load(like=wanted)
    found = saved.at("model").load(like=wanted, dtype="cast")
    saved.at("model").load_into(wanted, dtype="cast")

    for tree in (found, wanted):
        assert tree["head"].dtype == np.dtype(dtype)
        assert same(tree["layers"][2]["w"], np.full((2, 3), 2.0).astype(dtype))


def test_cast_follows_numpy_without_a_warning_where_numbers_do_not_fit(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"x": np.array([1e300, np.nan, -2.5])})

    assert saved.load(like={"x": np.zeros(3, "f4")}, dtype="cast")["x"][0] == np.inf
    assert saved.load(like={"x": np.zeros(3, "i4")}, dtype="cast")["x"][2] == -2


def test_without_like_the_options_that_need_one_are_refused(saved: mp.Checkpoint) -> None:
    for options in ({"rename": {"a": "b"}}, {"missing": "keep"}, {"unexpected": "ignore"}, {"dtype": "cast"}):
        with pytest.raises(StructureError, match="need a `like`"):
            saved.load(**options)


def test_every_difference_is_told_before_a_byte_is_read() -> None:
    store = CountingStore(MemoryStore())
    saved = mp.save(store, TREE)
    wrong = like(more=1, step=np.zeros(3))
    del wrong["name"]
    wrong["model"]["head"] = np.zeros(5)
    wrong["model"]["layers"][0]["w"] = np.zeros((2, 3), "f4")
    before = wrong["model"]["layers"][1]["w"].copy()

    for load in (lambda: saved.load(like=wrong), lambda: saved.load_into(wrong)):
        with pytest.raises(StructureError) as caught:
            load()
        kinds = {mismatch.path: mismatch.kind for mismatch in caught.value.mismatches}
        assert kinds == {
            "more": "missing", "name": "unexpected", "model/head": "shape", "model/layers/0/w": "dtype", "step": "kind",
        }  # fmt: skip
    assert store.nbytes == 0
    assert np.array_equal(wrong["model"]["layers"][1]["w"], before)


def test_in_place_is_all_or_an_error_before_the_first_change(saved: mp.Checkpoint) -> None:
    frozen = np.full(4, -1.0)
    frozen.flags.writeable = False
    Pair = collections.namedtuple("Pair", "head layers step name")
    target = like()
    target["model"] = {"layers": target["model"]["layers"], "head": (frozen)}
    saved.load_into(target)

    assert target["model"]["head"].tolist() == [1.0] * 4  # replaced where it stood, as it cannot change
    fixed = Pair(frozen, like()["model"]["layers"], 1, "a")
    with pytest.raises(StructureError, match="1 leaves cannot be changed in place: head"):
        saved.at("model").load_into(fixed, missing="keep")
    assert fixed.layers[1]["w"][0, 0] == -1.0


def test_a_read_that_fails_half_way_says_what_was_changed_already(root: pathlib.Path) -> None:
    saved = mp.save(root, {"a": np.ones(4096), "b": np.ones(4096), "c": np.ones(4096)})
    pack = next((root / "0").glob("*.safetensors"))
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[4096 + 2 * 32768 - 1] ^= 1
    pack.write_bytes(data)
    target = {"a": np.zeros(4096), "b": np.zeros(4096), "c": np.zeros(4096)}

    with pytest.raises(mp.CorruptionError) as caught:
        saved.load_into(target)
    assert caught.value.__notes__ == ["Already changed, wholly or in part: a, b."]
    assert target["c"][0] == 0


def test_the_root_itself_may_be_a_leaf(memory: MemoryStore) -> None:
    saved = mp.save(memory, np.arange(3))
    target = np.zeros(3, int)
    saved.load_into(target)

    assert saved.load().tolist() == target.tolist() == [0, 1, 2]
    assert mp.save(memory, 5).load(like=0) == 5
    with pytest.raises(StructureError, match="the root"):
        mp.save(memory, 5).load_into(6)


# Packs.


OFFICIAL = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "int64",
    "uint64",
    "float64",
]


def test_packs_open_with_the_official_reader_and_are_aligned(root: pathlib.Path) -> None:
    tree = {name: numbers(np.dtype(name), count).reshape(-1, 2) for name in OFFICIAL for count in (24,)}
    tree |= {
        "a/b@c": np.zeros((3, 0)),
        "big": np.arange(100_000.0),
        "sixty-four": np.ones((4, 4)),
        "odd": np.ones(3, "i1"),
    }
    saved = mp.save(root, tree)
    (pack,) = (root / "0").glob("*.safetensors")
    found = load_file(pack)

    assert {name.replace("%2F", "/").replace("%40", "@") for name in found} == set(tree)
    for name, array in tree.items():
        assert same(found[name.replace("/", "%2F").replace("@", "%40")], array)
    (table,) = [saved._opened.stored.table]
    for stored in table.arrays.values():
        for box in stored.boxes:
            alignment = 64 if box.nbytes % 64 == 0 else np.dtype(stored.dtype).itemsize
            assert box.offset % alignment == 0
    header = int.from_bytes(pack.read_bytes()[:8], "little")
    assert (8 + header) % 4096 == 0
    assert pack.stat().st_size == 8 + header + sum(array.nbytes for array in tree.values())


def test_dtypes_that_the_official_reader_lacks_are_bytes_with_one_more_dimension(root: pathlib.Path) -> None:
    tree = {name: numbers(NUMPY_DTYPES[name]) for name in [*ML_DTYPES, "U3", "aligned"] if name != "bfloat16"}
    mp.save(root, tree)
    (pack,) = (root / "0").glob("*.safetensors")
    with safe_open(pack, "np") as reader:
        for name in ("int4", "U3", "aligned", "float4_e2m1fn"):
            stored = reader.get_tensor(name)
            assert (stored.dtype, stored.shape) == (np.dtype("u1"), (24, tree[name].itemsize))
            assert stored.tobytes() == tree[name].tobytes()


# Parts of leaves.


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    return st_np.basic_indices(shape, allow_newaxis=False, allow_ellipsis=True)


SHAPES = st_np.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)


@given(st.data(), SHAPES)
def test_a_slice_of_a_stored_leaf_equals_numpys(data: st.DataObject, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=">i4").reshape(shape)
    ref = mp.save(MemoryStore(), {"x": array}).leaf("x")
    for _ in range(10):
        index = data.draw(indices(shape))
        found, wanted = ref[index], array[index]

        assert np.array_equal(found, wanted)
        assert (np.shape(found), np.asarray(found).dtype) == (np.shape(wanted), np.asarray(wanted).dtype)


@pytest.mark.parametrize(
    "index", [True, np.True_, None, [0], np.array([0]), "a", 1.5, (0, [1]), (slice(0.5),)], ids=repr
)
def test_other_indices_are_refused_as_they_would_read_everything(memory: MemoryStore, index: Any) -> None:
    ref = mp.save(memory, {"x": np.zeros((3, 4))}).leaf("x")

    with pytest.raises(TypeError):
        ref[index]


@pytest.mark.parametrize("index", [3, -4, (0, 4), (0, 0, 0), (..., ...), (0, ..., 0, 0)], ids=repr)
def test_an_index_out_of_bounds_is_an_index_error(memory: MemoryStore, index: Any) -> None:
    ref = mp.save(memory, {"x": np.zeros((3, 4))}).leaf("x")

    with pytest.raises(IndexError):
        ref[index]


def test_a_slice_reads_only_the_chunks_that_it_needs() -> None:
    store = CountingStore(MemoryStore())
    rows = 5 * CHUNK // 4096
    ref = mp.save(store, {"x": np.arange(rows * 1024, dtype="i4").reshape(rows, 1024), "y": np.ones(CHUNK)}).leaf("x")

    for index, chunks in [
        (0, 1),
        (-1, 1),
        (slice(rows // 5 - 1, rows // 5 + 1), 2),
        ((7, slice(3, 4)), 1),
        (slice(0, 0), 0),
    ]:
        store.nbytes = 0
        ref[index]
        assert store.nbytes == chunks * CHUNK, index


def test_a_leaf_that_was_not_read_tells_what_it_is(saved: mp.Checkpoint) -> None:
    ref = saved.leaf("model/head")

    assert (ref.path, str(ref.spec), ref.nbytes) == ("model/head", "float64[4]", 32)
    assert np.asarray(ref).tolist() == [1.0] * 4
    assert saved.leaf("step").read() == 7
    with pytest.raises(TypeError, match="step is a int"):
        saved.leaf("step")[0]
    assert list(saved.at("model").leaves) == [f"layers/{i}/{name}" for i in range(3) for name in "wb"] + ["head"]
