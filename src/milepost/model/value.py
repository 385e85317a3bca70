# SPDX-License-Identifier: Apache-2.0
"""Everything that is no array, as tagged JSON and back; nothing stored is ever executed.

None, booleans, text, finite floats and integers below 2^53 are JSON's own (a number with `.`, `e` or `E` is a float).
The rest is an object with one member whose name starts with `$`. `docs/reference/format.md` lists the tags.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import math
import pathlib
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from milepost.errors import FormatError, UnsupportedLeafError, message
from milepost.model.leaf import LeafSpec, dtype_info, dtype_name

_SAFE_INT = 1 << 53
_MAX_INT_DIGITS = 10_000
_MAX_DEPTH = 64


def value_type(value: object) -> str | None:
    """Return the name of a value's type (`int`, `datetime`, a NumPy scalar's dtype, ...), None when it is no value."""
    if (name := _EXACT.get(type(value))) is not None:
        return name
    if isinstance(value, np.generic):
        return dtype_name(value.dtype)
    if isinstance(value, enum.Enum):
        return "enum"
    for base, name in _BASES:
        if isinstance(value, base):
            return name
    return _framework_type(value)


def value_spec(value: object) -> LeafSpec | None:
    """Return the spec of a value, None when it is no value."""
    name = value_type(value)
    return None if name is None else LeafSpec("value", name)


def encode(value: object) -> Any:
    """Return the JSON data of a value, or of dicts, lists, tuples and small arrays of values (metadata).

    Raises:
        UnsupportedLeafError: the value is of a type that has no data form.
    """
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else {"$int": _big(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _float_text(value)}
    if kind is str:
        return _text(value)
    if depth > _MAX_DEPTH:
        raise UnsupportedLeafError(f"metadata is nested deeper than {_MAX_DEPTH} levels (does it contain itself?)")
    if isinstance(value, Mapping):
        return _encode_dict(value, depth)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list):
        return [_encode(item, depth + 1) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, depth + 1) for item in value]}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, np.ndarray):
        return {"$array": [dtype_name(value.dtype), list(value.shape), _base64(value.tobytes())]}
    name = value_type(value)
    if name is None:
        raise UnsupportedLeafError(
            f"a value of type {_type_text(value)} cannot be stored\n"
            "  Store numbers, text, bytes, dates, None or arrays; or give the object `state_dict()` and"
            " `load_state_dict()`."
        )
    if isinstance(value, np.generic):
        return {"$numpy": [name, _base64(value.tobytes())]}
    if name in _PLAIN:  # a subclass, which comes back as what it is made of
        return _encode(_PLAIN[name](value), depth)
    return {f"${name}": _ENCODERS[name](value)}


def _encode_dict(value: Mapping[Any, Any], depth: int) -> Any:
    for key in value:
        if type(key) is not str and not isinstance(key, str):
            raise UnsupportedLeafError(
                f"a metadata key of type {_type_text(key)} cannot be stored\n  Use text as the keys of metadata."
            )
    data = {_text(str(key)): _encode(item, depth + 1) for key, item in value.items()}
    return {"$dict": data} if any(key.startswith("$") for key in data) else data


def decode(data: Any) -> Any:
    """Return the value of JSON data made by `encode`.

    Enums come back as their names, devices as text, paths as `pathlib.Path`, framework dtypes as NumPy dtypes.

    Raises:
        FormatError: the data is nothing that `encode` makes.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(data, dict):
        return data
    items: dict[str, Any] = data  # pyright: ignore[reportUnknownVariableType]
    tag = next(iter(items), "")
    if not tag.startswith("$"):
        return {key: decode(item) for key, item in items.items()}
    decoder = _DECODERS.get(tag)
    if decoder is None or len(items) != 1:
        raise FormatError(f"unknown tag {tag[:40]!r} of a stored value")
    try:
        return decoder(items[tag])
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise FormatError(f"the stored value with tag {tag!r} is malformed: {error}") from error


def fitted(like: object, value: Any, path: str) -> Any:
    """Return a decoded value in the type that `like` has, where a type has more than one form.

    Raises:
        FormatError: an enum of `like` has no member of the stored name.
    """
    if isinstance(like, enum.Enum) and isinstance(value, str):
        members = type(like).__members__
        if value not in members:
            raise FormatError(
                message(
                    f"{path}: no member of {type(like).__name__}",
                    expected=", ".join(members),
                    found=value,
                    remedy="Give the enum that member, or put `mp.SKIP` there.",
                )
            )
        return members[value]
    if isinstance(like, pathlib.PurePath) and isinstance(value, str | pathlib.PurePath):
        return type(like)(str(value))
    if isinstance(like, dt.datetime) and isinstance(value, dt.datetime) and like.tzinfo and value.tzinfo:
        return value.astimezone(like.tzinfo)
    if isinstance(like, np.generic) and isinstance(value, bool | int | float | complex | np.generic):
        return like.dtype.type(value) if not isinstance(value, np.generic) else value
    if type(like) in (bool, int, float, complex) and isinstance(value, np.generic):
        return value.item()
    return _framework_fitted(like, value)


def _big(value: int) -> str:
    text = hex(value)
    if len(text) > _MAX_INT_DIGITS:
        raise UnsupportedLeafError(f"an integer of {value.bit_length()} bits cannot be stored; the limit is 40,000")
    return text


def _float_text(value: float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    bits = struct.pack(">d", value).hex()
    return "nan" if bits == "7ff8000000000000" else f"nan:{bits}"


def _float(text: object) -> float:
    if isinstance(text, str) and text.startswith("nan:") and len(text) == 20:
        return struct.unpack(">d", bytes.fromhex(text[4:]))[0]
    if text in ("nan", "inf", "-inf"):
        return float(text)  # pyright: ignore[reportArgumentType]
    raise ValueError(text)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnsupportedLeafError(
            f"the text {value[:40]!r} holds a lone surrogate, which cannot be stored\n  Store it as bytes."
        ) from None
    return str(value)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _complex(value: complex) -> list[Any]:
    return [_encode(float(value.real), 0), _encode(float(value.imag), 0)]


def _complex_of(parts: list[Any]) -> complex:
    real, imag = (decode(part) for part in parts)
    return complex(real, imag)


def _datetime(value: dt.datetime) -> Any:
    # The zone's name would have to be looked up by the reader; the offset alone gives the same instant.
    return [value.isoformat(), 1] if value.fold else value.isoformat()


def _datetime_of(data: Any) -> dt.datetime:
    if isinstance(data, list):
        text, fold = data  # pyright: ignore[reportUnknownVariableType]
        return dt.datetime.fromisoformat(text).replace(fold=int(fold))  # pyright: ignore[reportUnknownArgumentType]
    return dt.datetime.fromisoformat(data)


def _numpy(parts: list[Any]) -> np.generic:
    name, text = parts
    return np.frombuffer(_bytes(text), dtype_info(name).numpy, 1)[0]


def _array(parts: list[Any]) -> np.ndarray[Any, Any]:
    name, shape, text = parts
    return np.frombuffer(_bytes(text), dtype_info(name).numpy).reshape(shape).copy()


def _timedelta(parts: list[int]) -> dt.timedelta:
    days, seconds, microseconds = parts
    return dt.timedelta(days, seconds, microseconds)


def _dtype_text(value: Any) -> str:
    if isinstance(value, type):
        return dtype_name(np.dtype(value))
    return dtype_name(value) if isinstance(value, np.dtype) else str(value).removeprefix("torch.")


def _dtype_of(text: str) -> Any:
    return dtype_info(text).numpy


def _device_text(value: Any) -> str:
    return str(value) if type(value).__module__ == "torch" else f"{value.platform}:{value.id}"


def _dict(items: dict[str, Any]) -> dict[str, Any]:
    return {key: decode(item) for key, item in items.items()}


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    return tuple(decode(item) for item in items)


def _hex(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise ValueError("too long")
    return int(text, 16)


def _type_text(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _framework_type(value: object) -> str | None:
    """dtypes and devices of the frameworks, told by type without importing one."""
    if isinstance(value, type):
        return "dtype" if isinstance(value, type) and isinstance(getattr(value, "dtype", None), np.dtype) else None
    torch = sys.modules.get("torch")
    if torch is not None and type(value).__module__ == "torch":
        return "dtype" if isinstance(value, torch.dtype) else "device" if isinstance(value, torch.device) else None
    jax = sys.modules.get("jax")
    if jax is not None and hasattr(jax, "Device") and isinstance(value, jax.Device):
        return "device"
    return None


def _framework_fitted(like: object, value: Any) -> Any:
    module = type(like).__module__
    torch: Any = sys.modules.get("torch")
    if torch is not None and module == "torch":
        if isinstance(like, torch.dtype) and isinstance(value, np.dtype):
            return getattr(torch, _dtype_text(value), value)
        if isinstance(like, torch.device) and isinstance(value, str):
            return torch.device(value)
    if _framework_type(like) == "device":
        return like  # a JAX device is this machine's own; the stored one may not exist here
    return value


_EXACT: dict[type, str] = {
    type(None): "none", bool: "bool", int: "int", float: "float", complex: "complex", str: "str", bytes: "bytes",
    dt.datetime: "datetime", dt.date: "date", dt.timedelta: "timedelta",
}  # fmt: skip
_BASES: tuple[tuple[type, str], ...] = (
    (np.dtype, "dtype"), (pathlib.PurePath, "path"), (str, "str"), (bytes, "bytes"), (bytearray, "bytes"),
    (int, "int"), (float, "float"), (complex, "complex"),
    (dt.datetime, "datetime"), (dt.date, "date"), (dt.timedelta, "timedelta"),
)  # fmt: skip
_PLAIN: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "complex": _complex,
    "bytes": lambda value: _base64(bytes(value)),
    "datetime": _datetime,
    "date": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "dtype": _dtype_text,
    "device": _device_text,
    "enum": lambda value: value.name,
    "path": str,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": _hex, "$float": _float, "$complex": _complex_of, "$bytes": _bytes, "$numpy": _numpy, "$array": _array,
    "$datetime": _datetime_of, "$date": dt.date.fromisoformat, "$timedelta": _timedelta, "$dtype": _dtype_of,
    "$device": str, "$enum": str, "$path": pathlib.Path, "$dict": _dict, "$tuple": _tuple,
}  # fmt: skip
