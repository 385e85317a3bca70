# SPDX-License-Identifier: Apache-2.0
"""Arrays of every dtype and form, how to tell that two of any framework hold the same bits, and a store that counts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from milepost.stores import Store

Array = np.ndarray[Any, Any]

ML_DTYPES = sorted(
    name for name, kind in vars(ml_dtypes).items() if isinstance(kind, type) and issubclass(kind, np.generic)
)
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    **{code: np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
    **{unit: np.dtype(unit) for unit in ("M8[ns]", "M8[D]", "m8[25s]", "M8", "U3", "S3", "V3", "V0")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ML_DTYPES},
    "packed": np.dtype([("a", "i1"), ("b", ">f8"), ("c", "U2")]),
    "aligned": np.dtype([("a", "i1"), ("b", "<f8"), ("c", "<i2")], align=True),
    "nested": np.dtype([("in", [("x", "<f4", (2,)), ("y", ml_dtypes.bfloat16)]), ("t", "M8[s]")]),
    "offsets": np.dtype({"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [3, 11], "itemsize": 20}),
    "no fields": np.dtype([]),
}


def numbers(dtype: np.dtype[Any], count: int = 24) -> Array:
    """Elements of a dtype; where every pattern of bits is an element, any patterns: NaNs with payloads among them."""
    rng = np.random.default_rng([count, *dtype.str.encode()])
    if dtype.kind in "iufcMm" and dtype.itemsize <= 16 and dtype.name not in ("float128", "complex256"):
        data = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()
        if dtype.kind == "f":
            data[:3] = [np.nan, -0.0, -np.inf]
        return data
    if dtype.kind == "U":
        return np.array(["", "é☃", "abc"] * count, dtype)[:count]
    if dtype.kind in "SV" and dtype.names is None and dtype.name not in ML_DTYPES:
        return (
            np.frombuffer(rng.bytes(count * dtype.itemsize), dtype, count).copy()
            if dtype.itemsize
            else np.zeros(count, dtype)
        )
    if dtype.names is None:
        return (np.arange(count) % 2 - 0.0).astype(dtype)
    data = np.zeros(count, dtype)
    for name in dtype.names:
        field: Any = dtype.fields and dtype.fields[name][0]
        base, shape = field.subdtype or (field, ())
        size = count * int(np.prod(shape, dtype=int))
        data[name] = numbers(base, size).reshape(count, *shape)
    return data


def forms(data: Array) -> dict[str, Array]:
    """An array of 24 elements in every form that memory can have."""
    grid = data.reshape(4, 6)
    frozen = grid.copy()
    frozen.flags.writeable = False
    found = {
        "0-d": data[3:4].reshape(()),
        "1-d": data.copy(),
        "empty": grid[:0].copy(),
        "empty inside": grid[:, :0].copy(),
        "strided": grid[::2, 1::3],
        "reversed": grid[::-1, ::-1],
        "transposed": grid.T,
        "Fortran": np.asfortranarray(grid),
        "offset": data[1:],
        "broadcast": np.broadcast_to(data[:6], (3, 6)),
        "read-only": frozen,
        "4-d": data.reshape(2, 3, 1, 4).transpose(2, 0, 3, 1),
    }
    swapped = data.dtype.newbyteorder(">")
    if data.dtype.names is None and data.dtype.itemsize > 1 and swapped.byteorder == ">":
        found["big-endian"] = grid.astype(swapped)
        found["big-endian, reversed"] = grid.astype(swapped)[::-1, ::2]
    return found


def bits(array: Any) -> tuple[tuple[int, ...], bytes]:
    """The shape of an array of any framework, and its elements' bytes in C order, little-endian."""
    if hasattr(array, "detach"):
        import torch

        plain = array.detach().resolve_conj().resolve_neg().contiguous()
        movers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
        return tuple(plain.shape), plain.view(movers[plain.element_size()]).numpy().tobytes()
    data = np.asarray(array)
    if data.dtype.names is not None and data.itemsize:
        data = data.view(f"V{data.itemsize}")  # else padding is not copied
    if data.dtype.byteorder == ">" and data.dtype.names is None:
        data = data.astype(data.dtype.newbyteorder("<"))
    return data.shape, data.tobytes()


def same(found: Any, wanted: Any) -> bool:
    """Whether two NumPy arrays agree in dtype, byte order, shape and every bit."""
    return found.dtype == wanted.dtype and found.dtype.isnative == wanted.dtype.isnative and bits(found) == bits(wanted)


class CountingStore:
    """A store that counts the bytes that are read from packs; everything else is the real store's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.nbytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key: str, **options: Any) -> memoryview:
        data = self._store.get(key, **options)
        if key.endswith(".safetensors"):
            self.nbytes += len(data)
        return data
