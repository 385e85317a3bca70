# SPDX-License-Identifier: Apache-2.0
"""What is known of a leaf without its data: its kind, dtype and global shape; and boxes, the ranges of a leaf.

dtypes go by a name that does not depend on the framework: NumPy's and ml_dtypes' own (`float32`, `bfloat16`, `int4`,
`datetime64[ns]`), `str<n>` and `bytes<n>` for fixed-width text, `void<n>`, a leading `>` for big-endian, `float128_x87`
for the C long double of x86, and compact JSON for structured dtypes. A name that is no NumPy dtype (`complex32`,
`float4_e2m1fn_x2`) is handed out as its raw parts.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from operator import sub
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np

from milepost.errors import FormatError, UnsupportedLeafError

# 32-bit words in the data of one key of each JAX generator (jax.random, "Advanced RNG configuration").
KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}

Kind = Literal["array", "value", "key", "skip"]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open N-d range of a leaf: `start[i] <= index[i] < stop[i]`."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=4096)  # many leaves have few shapes: fewer objects are less work for the garbage collector
    def whole(shape: tuple[int, ...]) -> Box:
        return Box((0,) * len(shape), shape)

    @classmethod
    def of_slices(cls, index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
        """Return the box of unit-step slices, as shardings give them."""
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        return cls(tuple(b[0] for b in bounds), tuple(max(b[0], b[1]) for b in bounds))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(sub, self.stop, self.start))

    @property
    def size(self) -> int:
        return math.prod(map(sub, self.stop, self.start))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))

    def intersection(self, other: Box) -> Box | None:
        """Return the common range, or None when it is empty (a 0-d box meets itself)."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def within(self, outer: Box) -> Box:
        """Return this box counted from the corner of `outer`."""
        return Box(
            tuple(a - b for a, b in zip(self.start, outer.start, strict=True)),
            tuple(a - b for a, b in zip(self.stop, outer.start, strict=True)),
        )

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """Kind, dtype and global shape of a leaf.

    Attributes:
        kind: `array`; `value` (anything that is no array; dtype is then its type: `int`, `str`, `datetime`, ...);
            `key` (a typed JAX key: dtype is `key<impl>`, shape without the key data); `skip` (`mp.SKIP` in a `like`).
        dtype: the dtype's name.
        shape: the global shape; `()` for values.
    """

    kind: Kind
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        data = data_spec(self)
        return math.prod(data.shape) * dtype_info(data.dtype).itemsize if data.kind == "array" else 0

    def __str__(self) -> str:
        """`float32[2, 3]`, `float32[]` for 0-d, the type's name alone for a value."""
        return self.dtype if self.kind in ("value", "skip") else f"{self.dtype}{list(self.shape)}"


@lru_cache(maxsize=4096)
def array_spec(dtype: str, shape: tuple[int, ...]) -> LeafSpec:
    """Return the spec of an array."""
    return LeafSpec("array", dtype, shape)


def data_spec(spec: LeafSpec) -> LeafSpec:
    """Return the spec of the array that holds a leaf's data: for keys their words, else the spec itself."""
    if spec.kind != "key":
        return spec
    return LeafSpec("array", "uint32", (*spec.shape, KEY_WORDS[spec.dtype[4:-1]]))


@dataclass(frozen=True, slots=True)
class DtypeInfo:
    """One dtype: its name, what NumPy hands out, and how safetensors stores it.

    Attributes:
        name: the framework-independent name.
        numpy: the dtype that a reader gets.
        tag: the dtype of the safetensors header.
        raw: whether the pack holds U8 of shape `(*shape, itemsize)` because safetensors lacks the dtype.
        swapped: whether the bytes in the pack are the reverse of `numpy`'s (big-endian leaves).
    """

    name: str
    numpy: np.dtype[Any]
    tag: str
    raw: bool
    swapped: bool = False

    @property
    def itemsize(self) -> int:
        return self.numpy.itemsize

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in the pack's header."""
        return (*shape, self.itemsize) if self.raw else shape


# Tags that every safetensors since 0.6 reads; what it lacks is stored as U8 (safetensors README, "Format").
_TAGS = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_ML = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz",
        "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn",
        "int1", "int2", "int4", "uint1", "uint2", "uint4", "bcomplex32", "complex32",
    )
    if hasattr(ml_dtypes, name)
}  # fmt: skip
# Dtypes of torch that NumPy may not have (ml_dtypes has complex32 since 0.6): handed out as their parts.
_PARTS: dict[str, np.dtype[Any]] = {
    "complex32": np.dtype([("real", "<f2"), ("imag", "<f2")]),
    "float4_e2m1fn_x2": np.dtype("u1"),
}
_ML_NAMES = {dtype.type: name for name, dtype in _ML.items()}
_PLAIN = re.compile(r"(bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128))")
_SIZED = re.compile(r"(str|bytes|void)(\d+)")
_TIME = re.compile(r"(datetime64|timedelta64)(\[\w+\])?")
_LONG = {"float128": "longdouble", "float96": "longdouble", "complex256": "clongdouble", "complex192": "clongdouble"}


def _long_double() -> str:
    bits = np.finfo(np.longdouble).nmant
    return {63: "x87", 112: "ieee", 105: "double_double"}.get(bits, f"mantissa{bits}")


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a NumPy dtype.

    Raises:
        UnsupportedLeafError: object, StringDType and other dtypes whose bytes are references.
    """
    if dtype.names is not None:
        return _structured_name(dtype)
    big = dtype.byteorder == ">" or (dtype.byteorder == "=" and not np.little_endian)
    return f">{_little_name(dtype)}" if big and dtype.itemsize > 1 else _little_name(dtype)


@lru_cache(maxsize=4096)
def _little_name(dtype: np.dtype[Any]) -> str:
    if dtype.type in _ML_NAMES:
        return _ML_NAMES[dtype.type]
    if dtype.kind == "U":
        return f"str{dtype.itemsize // 4}"
    if dtype.kind in "SV" and dtype.subdtype is None:
        return f"{'bytes' if dtype.kind == 'S' else 'void'}{dtype.itemsize}"
    if dtype.name in _LONG:
        return f"{dtype.name}_{_long_double()}"
    if dtype.kind in "biufcmM" and (_PLAIN.fullmatch(dtype.name) or dtype.kind in "mM"):
        return dtype.name
    remedy = (
        "An array of objects has no bytes of its own: store numbers, fixed-width text, or the objects as a list."
        if dtype == object
        else "Convert it to fixed-width text with `.astype('U')`."
        if dtype.kind == "T"
        else "Convert it to a dtype of NumPy or ml_dtypes."
    )
    raise UnsupportedLeafError(f"dtype {dtype} cannot be stored\n  {remedy}")


def _structured_name(dtype: np.dtype[Any]) -> str:
    fields: Any = dtype.fields or {}
    names = dtype.names or ()
    formats: list[object] = []
    for name in names:
        entry = fields[name][0]
        base, shape = entry.subdtype or (entry, ())
        formats.append([dtype_name(base), list(shape)] if shape else dtype_name(base))
    record: dict[str, Any] = {
        "names": list(names),
        "formats": formats,
        "offsets": [fields[name][1] for name in names],
        "itemsize": dtype.itemsize,
    }
    if any(len(fields[name]) > 2 for name in names):
        record["titles"] = [(*fields[name], None)[2] for name in names]
    try:
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    except TypeError:
        raise UnsupportedLeafError(f"dtype {dtype} has a title that is no text\n  Name its fields by text.") from None


@lru_cache(maxsize=4096)
def dtype_info(name: str) -> DtypeInfo:
    """Return what is known of the dtype with that name.

    Raises:
        FormatError: no such dtype, or one that this machine does not have (a long double of another processor).
    """
    tag = _TAGS.get(name)
    dtype = _numpy_dtype(name)
    if tag is not None:
        return DtypeInfo(name, dtype, tag, raw=False)
    little = name.removeprefix(">")
    if little != name:
        return DtypeInfo(name, dtype, _TAGS.get(little, "U8"), raw=little not in _TAGS, swapped=True)
    return DtypeInfo(name, dtype, "U8", raw=True)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    order, little = (">", name[1:]) if name.startswith(">") else ("<", name)
    try:
        if little in _ML:
            return _ML[little].newbyteorder(order) if order == ">" else _ML[little]
        if name in _PARTS:
            return _PARTS[name]
        if match := _SIZED.fullmatch(little):
            kind, size = {"str": "U", "bytes": "S", "void": "V"}[match[1]], int(match[2])
            return np.dtype(f"{order}{kind}{size}")
        if name.startswith("{"):
            return _structured(json.loads(name))
        base, _, flavour = little.partition("_")
        if base in _LONG:
            if flavour != _long_double():
                raise FormatError(
                    f"dtype {little[:80]} is the long double of another processor; here it is {base}_{_long_double()}\n"
                    "  Load it there and save it as float64."
                )
            return np.dtype(_LONG[base]).newbyteorder(order)
        if _PLAIN.fullmatch(little) or _TIME.fullmatch(little):
            dtype = np.dtype(little)
            # An explicit "<" where it is the machine's own order anyway would print as `dtype('<f4')`.
            return dtype if order == "<" and dtype.newbyteorder("<") == dtype else dtype.newbyteorder(order)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
        pass
    raise FormatError(f"{name[:200]!r} is no dtype of this format")


def _structured(record: dict[str, Any]) -> np.dtype[Any]:
    parts: dict[str, Any] = {
        "names": record["names"],
        "formats": [_field(entry) for entry in record["formats"]],
        "offsets": record["offsets"],
        "itemsize": record["itemsize"],
    }
    if "titles" in record:
        parts["titles"] = record["titles"]
    return np.dtype(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _field(entry: Any) -> Any:
    if isinstance(entry, list):
        base, shape = cast("list[Any]", entry)
        return _field(base), tuple(shape)
    if not isinstance(entry, str):
        raise TypeError(entry)
    return _numpy_dtype(entry)
