# SPDX-License-Identifier: Apache-2.0
"""Files of safetensors that others wrote: read only, a flat dict of arrays by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from milepost.compat.orbax_v1.context import Context
from milepost.compat.orbax_v1.described import NumpyMetadata
from milepost.compat.orbax_v1.errors import InvalidLayoutError
from milepost.compat.orbax_v1.options import CheckpointLayout
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.compat.orbax_v1.plain import Path as Names
from milepost.compat.orbax_v1.plain import jax, mapped

Array = np.ndarray[Any, Any]

_MAX_HEADER = 100_000_000  # the format's own limit (safetensors README, "Format")
_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
}  # fmt: skip


def asked_for(path: PathLike, context: Context) -> bool:
    """Return whether the context's layout asks for safetensors at a path."""
    if context.checkpoint_layout is CheckpointLayout.AUTO:
        where = Path(path)
        return where.suffix == ".safetensors" or (not (where / "milepost.json").exists() and _is_folder_of_them(where))
    return context.checkpoint_layout is CheckpointLayout.SAFETENSORS


def _is_folder_of_them(where: Path) -> bool:
    return not (where / "manifest.json").exists() and any(where.glob("*.safetensors"))


def load(path: PathLike, abstract: Any = None) -> Any:
    """Return the arrays by name: NumPy's own copies, or as the abstract tree says.

    Raises:
        InvalidLayoutError: a file is cut short, or none of safetensors.
        KeyError: a name of the abstract tree is not there.
        ValueError: an abstract leaf has another shape.
    """
    there = _arrays(path)
    if abstract is None:
        return {name: np.array(array) for name, array in there.items()}

    def leaf(names: Names, value: Any) -> Any:
        name = ".".join(names)
        if value is ...:
            return value
        if name not in there:
            raise KeyError(f"{path} has no {name!r}; there are {', '.join(list(there)[:8])}")
        array = there[name]
        if tuple(value.shape) != array.shape:
            raise ValueError(f"{name}: saved with shape {array.shape}, wanted {tuple(value.shape)}")
        return _placed(array, value)

    return mapped(abstract, leaf)


def _placed(array: Array, value: Any) -> Any:
    if jax() is None or not hasattr(value, "sharding"):
        return np.array(array, dtype=value.dtype)
    if value.sharding is None:
        return jax().device_put(np.array(array, dtype=value.dtype))

    def part(index: Any) -> Array:
        return np.array(array[index], dtype=value.dtype)

    return jax().make_array_from_callback(array.shape, value.sharding, part)


def described(path: PathLike) -> dict[str, NumpyMetadata]:
    """Return shape and dtype of each array by name."""
    return {name: NumpyMetadata(array.shape, array.dtype) for name, array in _arrays(path).items()}


def _arrays(path: PathLike) -> dict[str, Array]:
    where = Path(path)
    files = sorted(where.glob("*.safetensors")) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise InvalidLayoutError(f"there is no file of safetensors at {where}")
    found: dict[str, Array] = {}
    for file in files:
        found |= _arrays_of(file)
    return found


def _arrays_of(file: Path) -> dict[str, Array]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise InvalidLayoutError(f"{file} is cut short, or no file of safetensors")
        try:
            header = cast("dict[str, Any]", json.loads(stream.read(length)))
        except ValueError as error:
            raise InvalidLayoutError(f"{file} has no header of safetensors: {error}") from error
    data = np.memmap(file, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    return {name: _array(file, name, data, entry) for name, entry in header.items() if name != "__metadata__"}


def _array(file: Path, name: str, data: Array, entry: dict[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise InvalidLayoutError(f"{file}: {name!r} has the dtype {entry['dtype']}, which is not known here")
    if not 0 <= start <= stop <= data.nbytes:
        raise InvalidLayoutError(f"{file} is cut short: {name!r} ends at byte {stop} of {data.nbytes}")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if stop - start != dtype.itemsize * int(np.prod(entry["shape"], dtype=np.int64)):
        raise InvalidLayoutError(f"{file}: {name!r} has {stop - start} bytes for a {dtype}{entry['shape']}")
    return data[start:stop].view(dtype).reshape(entry["shape"])
