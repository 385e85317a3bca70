# SPDX-License-Identifier: Apache-2.0
"""Everything that is no array comes back bit for bit, and data that nobody wrote is a FormatError."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import json
import math
import pathlib
import struct
import zoneinfo
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milepost import StructureError, UnsupportedLeafError
from milepost.errors import FormatError
from milepost.model.leaf import LeafSpec
from milepost.model.value import data_type, decode, encode, fitted, value_spec, value_type


def back(value: Any) -> Any:
    """The value after a journey through the bytes of a record."""
    data = encode(value)
    assert data_type(data) == value_type(value) or value_type(value) is None
    return decode(msgspec.json.decode(msgspec.json.encode(data)))


def fitted_back(like: Any, value: Any) -> Any:
    return fitted(like, msgspec.json.decode(msgspec.json.encode(encode(value))), "a/b")


def bits(number: float) -> str:
    return struct.pack(">d", number).hex()


class Colour(enum.Enum):
    RED = 1
    BLUE = (2, "b")


class Word(enum.StrEnum):
    ONE = "one"


class Loud(str, enum.Enum):  # noqa: UP042 not a StrEnum: it prints as its name
    YES = "yes"


class Count(enum.IntEnum):
    TWO = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Kept(enum.Flag, boundary=enum.KEEP):
    A = 1


class Pair(tuple[int, int], enum.Enum):
    ORIGIN = (0, 0)


class Name(str):
    __slots__ = ()

    def __str__(self) -> str:
        return f"<{super().__str__()}>"


@given(st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True))
def test_floats_come_back_bit_for_bit(number: float) -> None:
    assert bits(back(number)) == bits(number)


@pytest.mark.parametrize(
    "pattern", ["7ff8000000000000", "fff8000000000000", "7ff8000000000001", "7ff0000000000001", "ffffffffffffffff"]
)
def test_every_payload_of_nan_comes_back(pattern: str) -> None:
    number = struct.unpack(">d", bytes.fromhex(pattern))[0]

    assert bits(back(number)) == pattern
    assert [bits(part) for part in (back(complex(number, -0.0)).real, back(complex(1, number)).imag)] == [pattern] * 2


@pytest.mark.parametrize("number", [0.0, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 2.0**53, 1.0, 0.1, -1e-7])
def test_a_float_stays_a_float(number: float) -> None:
    assert type(back(number)) is float
    assert bits(back(number)) == bits(number)


@given(st.integers() | st.integers(-(1 << 4000), 1 << 4000))
def test_integers_of_any_size_come_back(number: int) -> None:
    assert back(number) == number
    assert type(back(number)) is int


@pytest.mark.parametrize("number", [2**53 - 1, 2**53, -(2**53), 2**53 + 1, 2**64, 1 << 30_000], ids=int.bit_length)
def test_no_reader_of_json_can_round_a_stored_integer(number: int) -> None:
    assert back(number) == number
    assert type(encode(number)) is dict or abs(encode(number)) < 2**53


def test_an_integer_past_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(UnsupportedLeafError, match=r"50,001 bits.*limit is 39,988"):
        encode(1 << 50_000)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, "", "text", "naïve ☃ 😀", "\x00\n\u2028", "$int", 1 + 2j, complex(-0.0, math.inf),
        b"", b"\x00\xff", dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.timedelta(-3, 4, 5), dt.timedelta.max,
        dt.timedelta.min, dt.datetime.fromisoformat("0001-01-01"), dt.datetime.fromisoformat("2026-11-24T20:15:03.141"),
    ],
)  # fmt: skip
def test_the_other_values_of_python_come_back(value: Any) -> None:
    assert back(value) == value
    assert type(back(value)) is type(value)


def test_a_complex_number_keeps_both_signs_of_zero() -> None:
    assert str(back(complex(-0.0, -0.0))) == "(-0-0j)"


def test_a_bytearray_comes_back_as_bytes_and_as_what_like_has() -> None:
    assert back(bytearray(b"ab")) == b"ab"
    assert type(fitted_back(bytearray(), bytearray(b"ab"))) is bytearray


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_a_datetime_keeps_its_instant_its_offset_and_its_fold(moment: dt.datetime) -> None:
    found = back(moment)

    assert found.replace(tzinfo=None) == moment.replace(tzinfo=None)
    assert (found.utcoffset(), found.fold) == (moment.utcoffset(), moment.fold)


def test_like_gives_a_datetime_its_zone_back() -> None:
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    moment = dt.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=1)
    found = fitted_back(dt.datetime(2000, 1, 1, tzinfo=zone), moment)

    assert (found.tzinfo, found.fold, found.utcoffset()) == (zone, 1, dt.timedelta(hours=1))


def test_a_datetime_that_python_cannot_read_back_is_refused_at_save() -> None:
    class Nanoseconds(dt.datetime):
        def isoformat(self, *_: Any) -> str:
            return super().isoformat() + ".000000001"

    class NoTime(dt.datetime):
        def isoformat(self, *_: Any) -> str:
            return "NaT"

    for kind in (Nanoseconds, NoTime):
        with pytest.raises(UnsupportedLeafError, match="datetime64"):
            encode(kind(2026, 1, 1))


@pytest.mark.parametrize(
    "scalar",
    [
        np.bool_(True), np.int8(-3), np.uint64(2**64 - 1), np.float16(-0.0), np.float32(1e-45), np.float64(0.1),
        np.longdouble(1) / 3, np.complex64(1 - 2j), np.datetime64("2026-11-24T20:15:03.141592653"),
        np.datetime64("NaT"), np.timedelta64(5, "D"), np.timedelta64(7), np.str_("naïve"), np.str_(""),
        np.str_("trailing\x00"), np.bytes_(b""), np.bytes_(b"a\x00"), np.void(b"\x01\x02"), np.void(b""),
        *(getattr(ml_dtypes, name)(1) for name in ("bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int4", "uint2")),
        np.array((1, 2.5, "x"), [("a", ">i4"), ("b", "<f8"), ("c", "U3")])[()],
    ],
    ids=lambda scalar: f"{scalar.dtype}-{scalar!s}",
)  # fmt: skip
def test_numpy_scalars_come_back_with_their_dtype(scalar: np.generic) -> None:
    found = back(scalar)

    assert type(found) is type(scalar)
    assert found.dtype == scalar.dtype
    assert found.tobytes() == scalar.tobytes()
    assert not isinstance(scalar, str | bytes) or len(found) == len(scalar)


@given(st.binary(min_size=8, max_size=8))
def test_numpy_scalars_keep_every_bit(data: bytes) -> None:
    for code in ("f8", "f4", "c8", "M8[ns]", "i2"):
        scalar = np.frombuffer(data, code)[0]

        assert back(scalar).tobytes() == scalar.tobytes()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.dtype("float32"), "float32"), (np.dtype(">i4"), ">int32"), (np.float32, "float32"),
        (ml_dtypes.bfloat16, "bfloat16"), (jnp.bfloat16, "bfloat16"), (jnp.int8, "int8"),
        (torch.bfloat16, "bfloat16"), (torch.complex32, "complex32"), (torch.float4_e2m1fn_x2, "float4_e2m1fn_x2"),
        (np.dtype([("a", "<f4"), ("b", "<i2", (3,))]), None),
    ],
)  # fmt: skip
def test_dtypes_of_every_framework_are_values(value: Any, name: str | None) -> None:
    assert value_spec(value) == LeafSpec("value", "dtype")
    if name is not None:
        assert encode(value) == {"$dtype": name}
    assert isinstance(back(value), np.dtype)
    assert fitted_back(value, value) == value
    assert type(fitted_back(value, value)) is type(value)


def test_a_dtype_of_one_framework_becomes_that_of_like() -> None:
    assert fitted_back(torch.float32, jnp.bfloat16) == torch.bfloat16
    assert fitted_back(jnp.float32, torch.bfloat16) is jnp.bfloat16
    assert fitted_back(np.float32, np.dtype("float64")) is np.float64


@pytest.mark.parametrize("value", [torch.qint8, torch.bits8, np.dtype(object), np.object_, np.dtype("T")])
def test_a_dtype_without_a_name_of_ours_is_refused_at_save(value: Any) -> None:
    with pytest.raises(UnsupportedLeafError, match="cannot be stored"):
        encode(value)


@pytest.mark.parametrize("value", [np.floating, np.generic, int, dict, type("Mine", (), {"dtype": np.dtype("f4")})])
def test_a_class_that_stands_for_no_dtype_is_no_value(value: type) -> None:
    assert value_type(value) is None


def test_devices_are_values_and_come_back_as_those_of_this_machine() -> None:
    device = jax.devices()[2]

    assert back(torch.device("cuda:1")) == "cuda:1"
    assert fitted_back(torch.device("cpu"), torch.device("cuda:1")) == torch.device("cuda:1")
    assert back(device) == "cpu:2"
    assert fitted_back(device, jax.devices()[0]) is device


@pytest.mark.parametrize(
    "member", [Colour.RED, Colour.BLUE, Word.ONE, Loud.YES, Count.TWO, Pair.ORIGIN, Access.READ, Access.BOTH]
)
def test_an_enum_is_stored_by_name_and_like_gives_the_member_back(member: enum.Enum) -> None:
    assert encode(member) == {"$enum": member.name}
    assert back(member) == member.name
    assert fitted_back(next(iter(type(member))), member) is member


@pytest.mark.parametrize("value", [Access(0), Access.READ | Access.WRITE, Access.WRITE])
def test_flags_are_stored_by_the_names_of_their_bits(value: enum.Flag) -> None:
    assert fitted_back(Access.READ, value) == value


def test_bits_without_a_name_are_refused() -> None:
    with pytest.raises(UnsupportedLeafError, match=r"without a name.*\n.*\.value"):
        encode(Kept(5))


def test_a_member_that_the_enum_of_like_lacks_is_told_with_those_it_has() -> None:
    with pytest.raises(StructureError, match="(?s)a/b: no member of Colour: expected RED, BLUE, found TWO"):
        fitted_back(Colour.RED, Count.TWO)


@pytest.mark.parametrize("path", [pathlib.Path("a/b"), pathlib.PurePosixPath("/"), pathlib.PureWindowsPath("C:\\x")])
def test_a_path_comes_back_and_like_chooses_its_flavour(path: pathlib.PurePath) -> None:
    assert back(path) == pathlib.Path(str(path))
    assert fitted_back(path, path) == path
    assert type(fitted_back(path, path)) is type(path)


@pytest.mark.parametrize(
    "value", ["half a character \ud800", pathlib.Path("\udcff"), {"key \udfff": 1}, [["\ud800"]], Name("\ud800")]
)
def test_lone_surrogates_are_refused_at_save(value: Any) -> None:
    with pytest.raises(UnsupportedLeafError, match="lone surrogate"):
        encode(value)


def test_subclasses_of_text_and_numbers_come_back_as_what_they_hold() -> None:
    class Metres(float):
        pass

    class Steps(int):
        pass

    assert [back(value) for value in (Name("x"), Metres(0.1), Steps(2**70))] == ["x", 0.1, 2**70]
    assert back(Metres("nan")) != back(Metres("nan"))


JSON_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["$int", "$", "$dict", ""])
METADATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | JSON_KEYS | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(JSON_KEYS, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=20,
)


@given(METADATA)
def test_metadata_of_any_shape_comes_back(data: Any) -> None:
    assert back(data) == data


@pytest.mark.parametrize("key", ["$int", "$dict", "$", "$enum"])
def test_keys_of_the_user_may_look_like_tags(key: str) -> None:
    for data in ({key: 1}, {key: {key: [{key: None}]}}, {"a": 1, key: 2}):
        assert back(data) == data


def test_mappings_and_small_arrays_are_metadata_too() -> None:
    data = collections.OrderedDict(a=np.arange(6, dtype=">i2").reshape(2, 3), b=np.zeros((0, 3), "U0"), c=np.array(1.5))
    found = back(data)

    assert list(found) == ["a", "b", "c"]
    for name, array in data.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert back(np.arange(10)[::-3]).tolist() == [9, 6, 3, 0]


@pytest.mark.parametrize("loss", [jnp.float32(0.5), torch.tensor(0.5, requires_grad=True), torch.tensor(0.5)])
def test_a_loss_of_a_framework_counts_as_its_number(loss: Any) -> None:
    assert back({"loss": loss}) == {"loss": 0.5}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "object"), ({1, 2}, "set"), (print, "builtin_function"), (jnp.zeros(2), "ArrayImpl"),
        (np.ma.masked_array([1], [True]), "MaskedArray"), ({1: 2}, "Use text as the keys"), (1j.__add__, "method"),
        (np.array([None]), "as a list"), (dt.time(1), "datetime.time"),
    ],
)  # fmt: skip
def test_what_has_no_data_form_is_refused_by_type(value: Any, what: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=what):
        encode({"a": [value]})


def test_metadata_that_contains_itself_is_refused() -> None:
    data: list[Any] = []
    data.append({"again": data})

    with pytest.raises(UnsupportedLeafError, match="nested deeper"):
        encode(data)


@pytest.mark.parametrize(
    ("like", "value", "found"),
    [
        (np.float32(0), 3, np.float32(3)), (np.int8(0), 5, np.int8(5)), (1.5, np.float32(0.5), 0.5),
        (1, np.int64(7), 7), (ml_dtypes.bfloat16(0), 1.5, ml_dtypes.bfloat16(1.5)), (True, np.bool_(False), False),
        (1, 2.5, 2.5), ("a", None, None), (None, "a", "a"),
        (np.datetime64("2026-01-01"), np.datetime64(3, "s"), np.datetime64(3, "s")),
    ],
)  # fmt: skip
def test_a_number_comes_in_the_form_that_like_has(like: Any, value: Any, found: Any) -> None:
    assert fitted_back(like, value) == found
    assert type(fitted_back(like, value)) is type(found)


@pytest.mark.parametrize(
    ("like", "value"),
    [(np.int8(0), 300), (np.float32(0), 1j), (np.uint8(0), -1), (np.int64(0), 1 << 30_000)],
    ids=["int8", "complex", "negative", "huge"],
)
def test_a_number_that_the_scalar_of_like_cannot_hold_is_told_with_its_path(like: Any, value: Any) -> None:
    with pytest.raises(StructureError, match="a/b: the saved number"):
        fitted_back(like, value)


TAGS = [
    "$int", "$float", "$complex", "$bytes", "$numpy", "$array", "$datetime", "$date", "$timedelta", "$dtype",
    "$device", "$enum", "$path", "$dict", "$tuple", "$unknown", "$",
]  # fmt: skip
BODIES = [
    None, True, 0, -1, 1.5, "", "x", "nan:", "nan:00", "0x", "é", "A", [], [None], [1], ["a", "b"], [1, 2, 3],
    ["float32", "AAAA"], ["float32", [2], "AAAA"], ["float32", [-1], ""], ["floof", ""], [5, ""], [["float32"], ""],
    ["str3", "AAAA"], ["void0", [1 << 40], ""], ["float32", [0, 1 << 62], ""], [[], []], {}, {"$int": "x"},
    [0.5, {}, []], ["float32", None, None], ["2026-01-01", 7], ["2026-01-01", "1"], [10**30, 0, 0],
]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_malformed_data_is_a_format_error_and_nothing_else(tag: str) -> None:
    for body in BODIES:
        for data in ({tag: body}, [{tag: body}], {tag: body, "more": 1}, {"$tuple": [{tag: body}]}):
            try:
                decode(json.loads(json.dumps(data)))
            except FormatError:
                pass
            assert isinstance(data_type(data), str)


@given(st.dictionaries(st.sampled_from(TAGS), METADATA, min_size=1, max_size=2))
def test_no_data_makes_the_reader_fail_in_another_way(data: Any) -> None:
    try:
        decode(msgspec.json.decode(msgspec.json.encode(encode(data)["$dict"])))
    except FormatError:
        pass


def test_data_nested_past_every_limit_is_a_format_error() -> None:
    data: Any = None
    for _ in range(5_000):
        data = [data]

    with pytest.raises(FormatError, match="too deeply"):
        decode(data)


def test_no_stored_name_is_imported() -> None:
    for tag in TAGS:
        with pytest.raises(FormatError):
            decode({tag: ["os", "system"]} if tag != "$tuple" else {"$os.system": "true"})
