# SPDX-License-Identifier: Apache-2.0
"""The states that are saved: their leaves, and the same random bytes for every peer.

The bytes lie in one file in shared memory, which every process maps: so all peers may live at once, each in a process
of its own, without one copy of the state each. A variant of a state is the same file read some bytes further on: every
leaf differs from that of another variant, as after a training step.
"""

from __future__ import annotations

import math
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

VARIANTS = 8
FROZEN_SHARE = 0.02
_ALIGNMENT = 64
_SHIFT = 65 * _ALIGNMENT  # odd: no leaf of a variant may have the bytes of its neighbour in another
_PIECE = 16 << 20
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of a state: its path, dtype and shape."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return _DTYPES[self.dtype].itemsize * math.prod(self.shape)


def leaves_of(workload: str, *, quick: bool) -> list[Leaf]:
    """Return the leaves of a workload's state; `quick` makes it small."""
    if workload == "many":
        return _many(200 if quick else 20_000)
    if workload == "big":
        return [Leaf("w/big", "float32", ((1 << 20) if quick else (1 << 29),))]
    if workload in ("tiny", "open"):
        return [Leaf("x", "float32", (256,))]
    return _transformer(64, 128, 500, 2) if quick else _transformer(768, 2048, 32_000, 12)


def _transformer(width: int, inner: int, vocabulary: int, layers: int) -> list[Leaf]:
    """Return weights in bfloat16, and two moments of Adam in float32."""
    shapes: dict[str, tuple[int, ...]] = {"embed/weight": (vocabulary, width), "final_norm/scale": (width,)}
    for i in range(layers):
        layer = f"layers_{i}"
        shapes |= {f"{layer}/attn/{name}": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}/mlp/gate": (width, inner), f"{layer}/mlp/up": (width, inner)}
        shapes |= {f"{layer}/mlp/down": (inner, width), f"{layer}/norm1/scale": (width,)}
        shapes[f"{layer}/norm2/scale"] = (width,)
    trees = (("params", "bfloat16"), ("opt/m", "float32"), ("opt/v", "float32"))
    return [Leaf(f"{tree}/{name}", dtype, shape) for tree, dtype in trees for name, shape in shapes.items()]


def _many(count: int) -> list[Leaf]:
    drawn = random.Random(0)
    return [
        Leaf(f"g{i // 2000}/h{i // 100 % 20}/t{i % 100}", "float32", (drawn.randint(256, 4096),)) for i in range(count)
    ]


def one_leaf(leaves: list[Leaf]) -> str:
    """Return the path of the leaf that is loaded alone: one from the middle, of common size."""
    return sorted(leaves, key=lambda leaf: leaf.nbytes)[len(leaves) // 2].path


def changing(leaves: list[Leaf]) -> set[str]:
    """Return the paths of the leaves that change at each save where nearly everything is frozen."""
    middle = [leaf.path for leaf in leaves if "/attn/" in leaf.path or "/norm" in leaf.path]
    count = max(1, round(FROZEN_SHARE * len(leaves)))
    return set(middle[:: max(1, len(middle) // count)][:count])


class Source:
    """The bytes of a workload's state, in shared memory.

    Args:
        folder: where the file is, in memory (`/dev/shm`) where there is such a place.
        name: of the file.
        leaves: the state's.
    """

    def __init__(self, folder: Path, name: str, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        self.path = folder / f"{name}.raw"
        self._offsets = list(_offsets(leaves))
        self._size = sum(-(-leaf.nbytes // _ALIGNMENT) * _ALIGNMENT for leaf in leaves) + VARIANTS * _SHIFT
        self._bytes: Any = None

    def make(self) -> None:
        """Write the file: random numbers as weights have them, so that compressors have what they would have."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(0)
        with open(self.path, "wb") as file:
            for leaf in [*self.leaves, Leaf("", "float32", (VARIANTS * _SHIFT // 4,))]:
                left = math.prod(leaf.shape)
                while left:
                    count = min(left, _PIECE // 4)
                    left -= count
                    values = drawn.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                    values.astype(_DTYPES[leaf.dtype]).tofile(file)
                file.write(bytes(-leaf.nbytes % _ALIGNMENT))

    def variant(self, number: int) -> dict[str, np.ndarray[Any, Any]]:
        """Return the state as writable NumPy arrays by path; variants share memory, in part with one another."""
        if self._bytes is None:
            fd = os.open(self.path, os.O_RDONLY)
            try:
                # Private, so that no peer can change what another one saves.
                mapped = mmap.mmap(fd, self._size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            finally:
                os.close(fd)
            self._bytes = np.frombuffer(mapped, np.uint8)
            # So that no peer pays for the first touch. It must be a reading one (MAP_POPULATE is not): what is written
            # to becomes a copy of this process.
            self._bytes[:: mmap.PAGESIZE].sum()
        shift = number % VARIANTS * _SHIFT
        return {
            leaf.path: self._bytes[shift + offset : shift + offset + leaf.nbytes]
            .view(_DTYPES[leaf.dtype])
            .reshape(leaf.shape)
            for leaf, offset in zip(self.leaves, self._offsets, strict=True)
        }


def _offsets(leaves: list[Leaf]) -> Iterator[int]:
    offset = 0
    for leaf in leaves:
        yield offset
        offset += -(-leaf.nbytes // _ALIGNMENT) * _ALIGNMENT


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of dicts: `a/b` becomes `["a"]["b"]`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of dicts by path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def in_framework(flat: dict[str, np.ndarray[Any, Any]], framework: str) -> dict[str, Any]:
    """Return the same memory as arrays of a framework: `numpy`, `torch` or `jax`."""
    if framework == "torch":
        import torch

        return {path: _as_tensor(torch, value) for path, value in flat.items()}
    if framework == "jax":
        import jax

        return jax.block_until_ready({path: jax.device_put(value) for path, value in flat.items()})
    return flat


def _as_tensor(torch: Any, value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def as_bytes(value: Any) -> np.ndarray[Any, Any]:
    """Return the bytes of an array of any framework, without a copy where it lies in host memory."""
    if type(value).__module__.startswith("torch"):
        import torch

        value = value.detach().reshape(-1).view(torch.uint8).numpy()
    return np.asarray(value).reshape(-1).view(np.uint8)


def touch(flat: dict[str, Any]) -> None:
    """Read one byte of every page, so that a mapping is really there."""
    for value in flat.values():
        as_bytes(value)[::4096].sum()
