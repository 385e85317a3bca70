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
from typing import Any, TypeGuard, cast

import numpy as np

from milepost.errors import FormatError, StructureError, UnsupportedLeafError, message
from milepost.model.leaf import LeafSpec, dtype_info, dtype_name

_SAFE_INT = 1 << 53
_MAX_INT_DIGITS = 10_000
_MAX_DEPTH = 64
_NUMBERS = (bool, int, float, complex)


def value_type(value: object) -> str | None:
    """Return the name of a value's type (`int`, `datetime`, a NumPy scalar's dtype, ...), None when it is no value.

    Raises:
        UnsupportedLeafError: a NumPy scalar of a dtype that cannot be stored.
    """
    if (name := _EXACT.get(type(value))) is not None:
        return name
    if _is_scalar(value):
        return dtype_name(value.dtype)
    for base, name in _BASES:
        if isinstance(value, base):
            return name
    return _framework_type(value)


def value_spec(value: object) -> LeafSpec | None:
    """Return the spec of a value, None when it is no value."""
    name = value_type(value)
    return None if name is None else LeafSpec("value", name)


def data_type(data: Any) -> str:
    """Return the name of the type of a value from its JSON data, `unknown` when it is nothing that `encode` makes."""
    if not isinstance(data, dict):
        return _EXACT.get(cast("type[object]", type(data)), "unknown")
    tag, body = next(iter(cast("dict[str, Any]", data).items()), ("", None))
    if tag == "$numpy" and isinstance(body, list) and body and isinstance(body[0], str):
        return body[0]
    return tag[1:] if tag in _DECODERS else "unknown"


def encode(value: object) -> Any:
    """Return the JSON data of a value, or of dicts, lists, tuples and small arrays of values (metadata).

    A framework's array of one number without dimensions (a loss) counts as that number.

    Raises:
        UnsupportedLeafError: the value is of a type that has no data form.
    """
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> Any:
    kind = cast("type[object]", type(value))
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
    if _is_scalar(value):
        return {"$numpy": [dtype_name(value.dtype), _base64(_scalar_bytes(value))]}
    if isinstance(value, Mapping):
        return _encode_dict(cast("Mapping[Any, Any]", value), depth)
    if isinstance(value, list):
        return [_encode(item, depth + 1) for item in cast("list[Any]", value)]
    if isinstance(value, tuple) and not isinstance(value, enum.Enum):
        return {"$tuple": [_encode(item, depth + 1) for item in cast("tuple[Any, ...]", value)]}
    if _is_array(value):
        return {"$array": [dtype_name(value.dtype), list(value.shape), _base64(value.tobytes())]}
    name = value_type(value)
    if name is not None:
        # A subclass of text or of a number comes back as what it is made of.
        return _encode(_PLAIN[name](value), depth) if name in _PLAIN else {f"${name}": _ENCODERS[name](value)}
    if getattr(value, "shape", None) == () and callable(getattr(kind, "item", None)):
        return _encode(cast("Any", value).item(), depth)
    raise UnsupportedLeafError(
        f"a value of type {_type_text(value)} cannot be stored\n"
        "  Store numbers, text, bytes, dates, None or arrays; or give the object `state_dict()` and"
        " `load_state_dict()`."
    )


def _is_scalar(value: object) -> TypeGuard[np.generic[Any]]:
    return isinstance(value, np.generic)


def _is_array(value: object) -> TypeGuard[np.ndarray[Any, Any]]:
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def _encode_dict(value: Mapping[Any, Any], depth: int) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise UnsupportedLeafError(
                f"a metadata key of type {_type_text(key)} cannot be stored\n  Use text as the keys of metadata."
            )
    data = {_text(key): _encode(item, depth + 1) for key, item in value.items()}
    return {"$dict": data} if any(key.startswith("$") for key in data) else data


def decode(data: Any) -> Any:
    """Return the value of JSON data made by `encode`.

    Enums come back as their names, devices as text, paths as `pathlib.Path`, framework dtypes as NumPy dtypes.

    Raises:
        FormatError: the data is nothing that `encode` makes.
    """
    try:
        return _decode(data)
    except RecursionError as error:
        raise FormatError("a stored value is nested too deeply") from error


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode(item) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    items = cast("dict[str, Any]", data)
    tag = next(iter(items), "")
    if not tag.startswith("$"):
        return {key: _decode(item) for key, item in items.items()}
    decoder = _DECODERS.get(tag)
    if decoder is None or len(items) != 1:
        raise FormatError(f"unknown tag {tag[:40]!r} of a stored value")
    try:
        return decoder(items[tag])
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise FormatError(f"the stored value with tag {tag!r} is malformed: {error}") from error


def fitted(like: object, data: Any, path: str) -> Any:
    """Return the value of JSON data in the type that `like` has, where a type has more than one form.

    Raises:
        StructureError: the stored value has no form of that type (an enum without that member, a number out of range).
        FormatError: the data is nothing that `encode` makes.
    """
    value = decode(data)
    if isinstance(like, enum.Enum) and isinstance(value, str):
        return _member(type(like), value, path)
    if isinstance(like, pathlib.PurePath) and isinstance(value, str | pathlib.PurePath):
        return type(like)(str(value))
    if isinstance(like, dt.datetime) and isinstance(value, dt.datetime) and like.tzinfo and value.tzinfo:
        return value.astimezone(like.tzinfo)
    if isinstance(like, bytearray) and isinstance(value, bytes):
        return bytearray(value)
    if _is_scalar(like) and type(value) in _NUMBERS:
        return _scalar(like, value, path)
    if type(like) in _NUMBERS and _is_scalar(value):
        return value.item()
    return _framework_fitted(like, value, cast("dict[str, Any]", data) if isinstance(data, dict) else {})


def _member(kind: type[enum.Enum], name: str, path: str) -> enum.Enum:
    names = name.split("|") if issubclass(kind, enum.Flag) and name not in kind.__members__ else [name]
    if absent := [text for text in names if text and text not in kind.__members__]:
        raise StructureError(
            message(
                f"{path or 'the root'}: no member of {kind.__name__}",
                expected=", ".join(kind.__members__),
                found=", ".join(absent),
                remedy="Give the enum that member, or put `mp.SKIP` there.",
            )
        )
    member: Any = kind[names[0]] if names[0] else kind(0)
    for text in names[1:]:
        member |= kind[text]
    return member


def _scalar(like: np.generic[Any], value: Any, path: str) -> Any:
    try:
        return like.dtype.type(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise StructureError(
            f"{path or 'the root'}: the saved number {shown(value)} is no {like.dtype} ({error})\n"
            "  Give a `like` with a wider type, or put `mp.SKIP` there."
        ) from error


def shown(value: object) -> str:
    """Return a value for a message; Python itself prints no integer of more than 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"(of {value.bit_length():,} bits)"
    return repr(value)[:200]


def _big(value: int) -> str:
    text = hex(value)
    if len(text) > _MAX_INT_DIGITS:
        raise UnsupportedLeafError(
            f"an integer of {value.bit_length():,} bits cannot be stored; the limit is {4 * _MAX_INT_DIGITS - 12:,}\n"
            "  Store its bytes."
        )
    return text


def _hex(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise ValueError("too long")
    return int(text, 16)


def _float_text(value: float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    bits = struct.pack(">d", value).hex()
    return "nan" if bits == "7ff8000000000000" else f"nan:{bits}"


def _float(text: object) -> float:
    kind, _, pattern = _string(text).partition(":")
    if kind != "nan" or not pattern:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[_string(text)]
    return struct.unpack(">d", bytes.fromhex(pattern))[0]


def _text(value: str) -> str:
    text = str.__str__(value)  # of an enum of texts: what it holds, not how it prints
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnsupportedLeafError(
            f"the text {text[:40]!r} holds a lone surrogate, which cannot be stored\n  Store it as bytes."
        ) from None
    return text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _complex(value: complex) -> list[Any]:
    return [_encode(float(value.real), 0), _encode(float(value.imag), 0)]


def _complex_of(parts: list[Any]) -> complex:
    real, imag = (float(decode(part)) for part in parts)
    return complex(real, imag)


def _datetime(value: dt.datetime) -> Any:
    # The zone's name would have to be looked up by the reader; the offset alone gives the same instant.
    text = value.isoformat()
    try:
        whole = dt.datetime.fromisoformat(text).isoformat() == text
    except ValueError:
        whole = False
    if not whole:  # pandas has subclasses with nanoseconds, and one that is no time
        raise UnsupportedLeafError(
            f"a {_type_text(value)} that is no datetime of Python cannot be stored: {text}\n"
            "  Store it as a `numpy.datetime64`."
        )
    return [text, 1] if value.fold else text


def _datetime_of(data: Any) -> dt.datetime:
    text, fold = cast("list[Any]", data) if isinstance(data, list) else (data, 0)
    return dt.datetime.fromisoformat(text).replace(fold=fold)


def _scalar_bytes(value: np.generic[Any]) -> bytes:
    # NumPy gives empty text one NUL, and drops all trailing ones when it reads text from memory.
    if isinstance(value, str):
        return value.encode("utf-32-le", "surrogatepass")
    return bytes(value) if isinstance(value, bytes) else value.tobytes()


def _numpy(parts: list[Any]) -> Any:
    name, text = parts
    dtype, data = _named(name), _bytes(text)
    if dtype.kind == "U":
        return np.str_(data.decode("utf-32-le", "surrogatepass"))
    if dtype.kind == "S":
        return np.bytes_(data)
    if not dtype.itemsize:
        return np.zeros((), dtype)[()]
    return np.frombuffer(data, dtype, 1).copy()[0]


def _array(parts: list[Any]) -> np.ndarray[Any, Any]:
    name, shape, text = parts
    dtype = _named(name)
    if 0 in shape or not dtype.itemsize:
        return np.zeros(shape, dtype) if math.prod(shape) <= 1 << 20 else _refuse(shape)
    return np.frombuffer(_bytes(text), dtype).reshape(shape).copy()


def _refuse(shape: object) -> Any:
    raise ValueError(f"shape {shape}")


def _named(name: object) -> np.dtype[Any]:
    return dtype_info(_string(name)).numpy


def _string(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"expected text, found {text!r}"[:200])
    return text


def _timedelta(parts: list[int]) -> dt.timedelta:
    days, seconds, microseconds = parts
    return dt.timedelta(days, seconds, microseconds)


def _dtype_text(value: Any) -> str:
    if isinstance(value, np.dtype | type):
        return dtype_name(np.dtype(cast("Any", value)))
    name = str(value).removeprefix("torch.")
    try:
        return dtype_info(name).name
    except FormatError:
        raise UnsupportedLeafError(f"{value} cannot be stored\n  Store `str(dtype)`.") from None


def _device_text(value: Any) -> str:
    return str(value) if type(value).__module__ == "torch" else f"{value.platform}:{value.id}"


def _enum_name(value: enum.Enum) -> str:
    members = type(value).__members__
    if value.name in members:
        return _text(value.name)
    parts: list[Any] = list(cast("Any", value)) if isinstance(value, enum.Flag) else []
    if sum(part.value for part in parts) != value.value:
        raise UnsupportedLeafError(f"{value!r} has bits without a name, and cannot be stored\n  Store its `.value`.")
    return "|".join(part.name for part in parts)


def _dict(items: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(items, dict):
        raise TypeError("no object")
    return {key: _decode(item) for key, item in items.items()}


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    return tuple(_decode(item) for item in items)


def _type_text(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _framework_type(value: object) -> str | None:
    """Tell dtypes and devices of the frameworks by type, without importing one."""
    if isinstance(value, type):
        return "dtype" if _is_scalar_type(value) else None
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(value).__module__ == "torch":
        return "dtype" if isinstance(value, torch.dtype) else "device" if isinstance(value, torch.device) else None
    jax: Any = sys.modules.get("jax")
    if jax is not None and hasattr(jax, "Device") and isinstance(value, jax.Device):
        return "device"
    return None


def _is_scalar_type(kind: type[Any]) -> bool:
    """Return whether a class stands for a dtype: `np.float32`, `ml_dtypes.bfloat16`, `jnp.float32`."""
    if issubclass(kind, np.generic):
        try:
            np.dtype(cast("Any", kind))
        except TypeError:  # `np.floating` and other abstract ones
            return False
        return True
    return type(kind).__module__.startswith("jax.") and isinstance(getattr(kind, "dtype", None), np.dtype)


def _framework_fitted(like: object, value: Any, data: dict[str, Any]) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(like).__module__ == "torch":
        if isinstance(like, torch.dtype) and "$dtype" in data:
            return getattr(torch, data["$dtype"], value)
        if isinstance(like, torch.device) and isinstance(value, str):
            return torch.device(value)
    if isinstance(like, type) and isinstance(value, np.dtype):
        dtype = cast("np.dtype[Any]", value)
        if not issubclass(like, np.generic):
            return getattr(sys.modules["jax"].numpy, data["$dtype"], dtype)
        return dtype.type if np.dtype(cast("Any", dtype.type)) == dtype else dtype
    if _framework_type(like) == "device":
        return like  # a JAX device is this machine's own; the stored one may not exist here
    return value


_EXACT: dict[type, str] = {
    type(None): "none", bool: "bool", int: "int", float: "float", complex: "complex", str: "str", bytes: "bytes",
    dt.datetime: "datetime", dt.date: "date", dt.timedelta: "timedelta",
}  # fmt: skip
_BASES: tuple[tuple[type, str], ...] = (
    (enum.Enum, "enum"), (np.dtype, "dtype"), (pathlib.PurePath, "path"), (str, "str"), (bytes, "bytes"),
    (bytearray, "bytes"), (int, "int"), (float, "float"), (complex, "complex"),
    (dt.datetime, "datetime"), (dt.date, "date"), (dt.timedelta, "timedelta"),
)  # fmt: skip
_PLAIN: dict[str, Callable[[Any], Any]] = {"str": str.__str__, "int": int.__int__, "float": float.__float__}
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "complex": _complex,
    "bytes": lambda value: _base64(bytes(value)),
    "datetime": _datetime,
    "date": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "dtype": _dtype_text,
    "device": _device_text,
    "enum": _enum_name,
    "path": lambda value: _text(str(value)),
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": _hex, "$float": _float, "$complex": _complex_of, "$bytes": _bytes, "$numpy": _numpy, "$array": _array,
    "$datetime": _datetime_of, "$date": dt.date.fromisoformat, "$timedelta": _timedelta, "$dtype": _named,
    "$device": _string, "$enum": _string, "$path": lambda text: pathlib.Path(_string(text)), "$dict": _dict,
    "$tuple": _tuple,
}  # fmt: skip
