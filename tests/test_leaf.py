# SPDX-License-Identifier: Apache-2.0
"""dtypes have names that can be read back, boxes are ranges, and what has no bytes is refused."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from safetensors.numpy import save as official_bytes

from milepost import UnsupportedLeafError
from milepost.adapters import adapter_of
from milepost.errors import FormatError
from milepost.model.leaf import KEY_WORDS, Box, LeafSpec, data_spec, dtype_info, dtype_name

ML_DTYPES = sorted(
    name
    for name, kind in vars(ml_dtypes).items()
    if isinstance(kind, type) and issubclass(kind, np.generic) and name not in ("finfo", "iinfo")
)
PLAIN = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "25s", "3M"]
STRUCTURED: dict[str, Any] = {
    "packed": [("a", "i1"), ("b", "<f8")],
    "aligned": np.dtype([("a", "i1"), ("b", "<f8")], align=True),
    "offsets": {"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [3, 11], "itemsize": 20},
    "overlapping": {"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2], "itemsize": 4},
    "out of order": {"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [8, 0], "itemsize": 16},
    "nested": [("in", [("x", ">f4"), ("y", [("z", "U3")])]), ("n", "<M8[ms]")],
    "subarrays": [("grid", "<f4", (2, 3)), ("names", "S5", (4,))],
    "nested subarrays": [("cells", [("v", "<f4", (2,))], (3,))],
    "big-endian": [("a", ">i4"), ("b", ">c16"), ("c", "<i4")],
    "ml_dtypes": [("w", ml_dtypes.bfloat16), ("q", ml_dtypes.int4, (2,))],
    "long double": [("a", "i1"), ("b", np.longdouble)],
    "titles": [(("the title", "a"), "<i4"), ("b", "<f4")],
    "unicode": [("größe", "<f4"), ("a/b", "<i4"), ('"', "<i4")],
    "void": [("raw", "V7"), ("none", "V0"), ("empty", "U0")],
    "no fields": {"names": [], "formats": [], "offsets": [], "itemsize": 8},
    "nothing": [],
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_dtype_goes_by_numpys_name(name: str) -> None:
    assert dtype_name(np.dtype(name)) == name
    assert dtype_info(name).numpy == np.dtype(name).newbyteorder("<")


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_dtype_of_ml_dtypes_goes_by_its_own_name(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))

    assert dtype_name(dtype) == name
    assert dtype_info(name).numpy is dtype


def test_platform_names_of_integers_are_those_of_their_size() -> None:
    for code in "bBhHiIlLqQpPnN":
        dtype = np.dtype(code)

        assert dtype_name(dtype) == f"{'int' if dtype.kind == 'i' else 'uint'}{8 * dtype.itemsize}"


@pytest.mark.parametrize("code", [">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8", ">c16", ">U3", ">M8[ns]", ">m8[s]"])
def test_a_big_endian_dtype_has_a_leading_mark_and_is_stored_swapped(code: str) -> None:
    dtype = np.dtype(code)
    name = dtype_name(dtype)

    assert name == f">{dtype_name(dtype.newbyteorder('<'))}"
    assert dtype_info(name).numpy == dtype
    assert dtype_info(name).swapped


@pytest.mark.parametrize("name", ["bfloat16", "complex32"])
def test_big_endian_dtypes_of_ml_dtypes_are_told_from_native_ones_although_they_compare_equal(name: str) -> None:
    if name not in ML_DTYPES:
        pytest.skip("not in this ml_dtypes")
    native = np.dtype(getattr(ml_dtypes, name))
    swapped = native.newbyteorder(">")

    assert [dtype_name(native), dtype_name(swapped), dtype_name(native)] == [name, f">{name}", name]
    assert dtype_info(f">{name}").numpy.byteorder == ">"


@pytest.mark.parametrize("code", ["i1", "u1", "?", "S3", "V3"])
def test_dtypes_without_a_byte_order_have_no_mark(code: str) -> None:
    assert not dtype_name(np.dtype(code).newbyteorder(">")).startswith(">")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["datetime64", "timedelta64"])
def test_dates_keep_their_unit(kind: str, unit: str) -> None:
    name = f"{kind}[{unit}]"

    assert dtype_name(np.dtype(name)) == name
    assert dtype_info(name).numpy == np.dtype(name)


def test_dates_without_a_unit_are_dtypes_too() -> None:
    assert dtype_info(dtype_name(np.dtype("M8"))).numpy == np.dtype("M8")


@pytest.mark.parametrize(
    ("code", "name"), [("U5", "str5"), ("S5", "bytes5"), ("V5", "void5"), ("U0", "str0"), ("V0", "void0")]
)
def test_text_bytes_and_void_tell_their_length(code: str, name: str) -> None:
    assert dtype_name(np.dtype(code)) == name
    assert dtype_info(name).numpy == np.dtype(code)


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_a_long_double_names_its_processors_form(dtype: Any) -> None:
    name = dtype_name(np.dtype(dtype))
    bits = np.finfo(np.longdouble).nmant

    assert name.endswith({63: "_x87", 112: "_ieee"}.get(bits, ""))
    assert dtype_info(name).numpy == np.dtype(dtype)


def test_the_long_double_of_another_processor_says_what_to_do() -> None:
    with pytest.raises(FormatError, match=r"another processor(.|\n)*save it as float64"):
        dtype_info("float128_ppc")


@pytest.mark.parametrize("form", STRUCTURED)
def test_a_structured_dtype_is_read_back_with_padding_offsets_and_byte_orders(form: str) -> None:
    dtype = np.dtype(STRUCTURED[form])
    back = dtype_info(dtype_name(dtype)).numpy

    assert back == dtype
    assert back.itemsize == dtype.itemsize
    assert back.fields == dtype.fields


def test_byte_orders_within_a_structured_dtype_are_part_of_its_name() -> None:
    names = {dtype_name(np.dtype([("a", code)])) for code in ("<i4", ">i4", "<f4")}

    assert len(names) == 3


@given(st_np.scalar_dtypes() | st_np.array_dtypes() | st_np.nested_dtypes())
def test_every_dtype_that_hypothesis_knows_has_a_name_that_is_read_back(dtype: np.dtype[Any]) -> None:
    assume(dtype.subdtype is None)
    back = dtype_info(dtype_name(dtype)).numpy

    assert back == dtype
    assert dtype_name(back) == dtype_name(dtype)


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (np.dtype(object), "as a list"),
        (np.dtype([("a", "<f4"), ("b", object)]), "as a list"),
        (np.dtypes.StringDType(), "astype"),
    ],
)
def test_dtypes_whose_bytes_are_references_are_refused_with_the_remedy(dtype: Any, remedy: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=remedy):
        dtype_name(dtype)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.ma.masked_array([1, 2], [True, False]), r"\.data.*\.mask"),
        (np.zeros((2, 2)).view(type("Metres", (np.ndarray,), {})), "asarray"),
        (np.array([1, "a", None], object), "as a list"),
    ],
)
def test_arrays_that_are_more_than_their_bytes_are_refused_with_the_remedy(array: Any, remedy: str) -> None:
    adapter = adapter_of(array)
    assert adapter is not None

    with pytest.raises(UnsupportedLeafError, match=remedy):
        adapter.spec(array)


@pytest.mark.parametrize(
    "name",
    [
        "", "float", "float33", "floof", "object", "str", "str-1", "str99999999999999999999", "bytes" + "9" * 5000,
        "datetime64[]", "datetime64[parsec]", ">", ">>int8", ">{}", "{", "{}", "[]", "null", "torch.float32",
        '{"names":["a"],"formats":["int8"],"offsets":[0]}',
        '{"names":["a"],"formats":[5],"offsets":[0],"itemsize":8}',
        '{"names":["a"],"formats":[[5,[2]]],"offsets":[0],"itemsize":8}',
        '{"names":["a"],"formats":[["int8"]],"offsets":[0],"itemsize":8}',
        '{"names":["a"],"formats":["object"],"offsets":[0],"itemsize":8}',
        '{"names":["a","a"],"formats":["int8","int8"],"offsets":[0,1],"itemsize":8}',
        '{"names":["a"],"formats":["int8"],"offsets":[-1],"itemsize":8}',
        '{"names":["a"],"formats":["int64"],"offsets":[4],"itemsize":8}',
        '{"names":["a"],"formats":["int8"],"offsets":[0],"itemsize":4611686018427387904}',
        '{"names":["a"],"formats":[["int8",[1099511627776]]],"offsets":[0],"itemsize":8}',
        '{"names":"a","formats":"int8","offsets":0,"itemsize":8}',
        '{"names":null,"formats":null,"offsets":null,"itemsize":null}',
        '{"names":' + "[" * 100_000,
    ],
)  # fmt: skip
def test_a_name_that_is_no_dtype_is_a_format_error_and_nothing_else(name: str) -> None:
    with pytest.raises(FormatError, match="dtype"):
        dtype_info(name)


@given(st.text(max_size=40) | st.from_regex(r"\A>?(str|bytes|void|int|float|datetime64\[)\w{0,6}\]?\Z"))
def test_no_text_makes_the_reader_of_dtype_names_fail_in_another_way(name: str) -> None:
    try:
        assert dtype_info(name).name == name
    except FormatError:
        pass


@pytest.mark.parametrize("name", [*PLAIN, "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_dtypes_that_safetensors_knows_are_stored_as_such(name: str) -> None:
    info = dtype_info(name)
    if name != "complex128":
        assert not info.raw
        assert info.stored_shape((2, 3)) == (2, 3)
    if name in PLAIN and name not in ("complex64", "complex128"):  # the official NumPy writer lacks the others
        assert f'"dtype":"{info.tag}"'.encode() in official_bytes({"x": np.zeros(1, name)})


@pytest.mark.parametrize("name", ["str3", "int4", "float4_e2m1fn_x2", "complex32", "datetime64[ns]", "float8_e4m3"])
def test_dtypes_that_safetensors_lacks_are_stored_as_bytes_with_one_more_dimension(name: str) -> None:
    info = dtype_info(name)

    assert (info.tag, info.raw) == ("U8", True)
    assert info.stored_shape((2, 3)) == (2, 3, info.itemsize)


def test_a_spec_reads_as_dtype_and_shape_and_knows_its_size() -> None:
    assert str(LeafSpec("array", "float32", (2, 3))) == "float32[2, 3]"
    assert str(LeafSpec("array", "float32")) == "float32[]"
    assert str(LeafSpec("value", "int")) == "int"
    assert LeafSpec("array", "float32", (2, 3)).nbytes == 24
    assert LeafSpec("value", "int").nbytes == 0


@pytest.mark.parametrize("impl", KEY_WORDS)
def test_the_data_of_a_key_are_its_words(impl: str) -> None:
    spec = LeafSpec("key", f"key<{impl}>", (5,))

    assert data_spec(spec) == LeafSpec("array", "uint32", (5, KEY_WORDS[impl]))
    assert spec.nbytes == 5 * 4 * KEY_WORDS[impl]


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    bounds = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Box(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))


@given(st.data(), st_np.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
def test_the_intersection_of_boxes_holds_what_both_hold(data: st.DataObject, shape: tuple[int, ...]) -> None:
    one, other = data.draw(boxes(shape)), data.draw(boxes(shape))
    marks = [np.zeros(shape, bool), np.zeros(shape, bool)]
    for mark, box in zip(marks, (one, other), strict=True):
        mark[box.slices] = True
    both = one.intersection(other)

    found = np.zeros(shape, bool)
    if both is not None:
        found[both.slices] = True
        assert both.size == math.prod(both.shape) > 0
        assert (both.within(one).shape, both.within(other).shape) == (both.shape, both.shape)
    assert np.array_equal(found, marks[0] & marks[1])


def test_a_box_without_dimensions_meets_itself() -> None:
    point = Box.whole(())

    assert point.intersection(point) == point
    assert point.size == 1


def test_the_box_of_slices_takes_open_ends_from_the_shape() -> None:
    assert Box.of_slices((slice(None), slice(2, None), slice(0, 3)), (4, 5, 6)) == Box((0, 2, 0), (4, 5, 3))
    assert str(Box((0, 2), (4, 5))) == "[0:4, 2:5]"
