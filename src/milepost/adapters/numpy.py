# SPDX-License-Identifier: Apache-2.0
"""NumPy: arrays of every dtype, and the states of its random generators."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, final

import numpy as np

from milepost.adapters import Array, Nature, Piece, Read, array_bytes, register_provider, state_error
from milepost.errors import UnsupportedLeafError
from milepost.model.leaf import Box, LeafSpec, array_spec, dtype_name

# Subclasses of others hold more than their memory: a mask, a unit.
_PLAIN = (np.ndarray, np.memmap, np.recarray)


@final
class NumpyAdapter:
    """NumPy arrays; memory maps and record arrays come back as plain ones."""

    name = "numpy"
    immutable = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def spec(self, array: Array) -> LeafSpec:
        if type(array) not in _PLAIN:
            what = (
                "Save its `.data` and `.mask`." if isinstance(array, np.ma.MaskedArray) else "Save `np.asarray` of it."
            )
            kind = type(array)
            raise UnsupportedLeafError(f"a {kind.__module__}.{kind.__qualname__} cannot be stored\n  {what}")
        return array_spec(dtype_name(array.dtype), array.shape)

    def identity(self, array: Array) -> Hashable | None:
        if not array.nbytes:
            return None
        return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype

    def likeness(self, array: Array) -> Hashable | None:
        return (array.dtype, array.shape) if type(array) in _PLAIN else None

    def pieces(self, array: Array) -> Sequence[Piece]:
        return [Piece(Box.whole(array.shape), array)]

    def start(self, pieces: Sequence[Piece]) -> None:
        pass

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        return array_bytes(piece.handle, out)

    def place(self, like: Any, spec: LeafSpec, read: Read) -> Array:
        return read(Box.whole(spec.shape))

    def check_like(self, like: Any, spec: LeafSpec) -> None:
        pass

    def fill(self, target: Array, spec: LeafSpec, read: Read) -> None:
        if target.flags.c_contiguous:
            read(Box.whole(spec.shape), target)
        else:
            target[...] = read(Box.whole(spec.shape))

    def memory(self, target: Array) -> Array | None:
        return target if target.flags.c_contiguous else None

    def nature(self, value: Any) -> Nature:
        return "variable" if value.flags.writeable else "constant"


ADAPTER = NumpyAdapter()


@final
class _Generator:
    """Generators and their bit generators, with the seeds that `spawn` goes on from."""

    by_leaf = False
    by_value = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.random.Generator | np.random.BitGenerator)

    def tree(self, value: Any) -> Any:
        bits = getattr(value, "bit_generator", value)
        state = dict(bits.state)
        if type(bits.seed_seq) is np.random.SeedSequence:  # what `spawn` goes on from
            state["seed_seq"] = dict(bits.seed_seq.state)
        return state

    def restore(self, value: Any, tree: Any) -> None:
        bits = getattr(value, "bit_generator", value)
        _check(tree, type(bits).__name__)
        state = dict(tree)
        seeds = state.pop("seed_seq", None)
        if seeds is None:
            bits.state = state
        else:
            entropy = seeds["entropy"]
            seeds["entropy"] = [int(word) for word in entropy] if isinstance(entropy, np.ndarray) else entropy
            bits.__setstate__((state, np.random.SeedSequence(**seeds)))


@final
class _RandomState:
    """The older `RandomState`, and NumPy's global one."""

    by_leaf = False
    by_value = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.random.RandomState)

    def tree(self, value: np.random.RandomState) -> Any:
        return value.get_state(legacy=False)

    def restore(self, value: np.random.RandomState, tree: Any) -> None:
        _check(tree, type(getattr(value, "_bit_generator", None)).__name__)
        value.set_state(tree)


def _check(tree: Any, kind: str) -> None:
    saved = tree.get("bit_generator") if isinstance(tree, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if saved != kind:
        raise state_error(f"a NumPy generator over {kind}", f"a generator over {saved}")


register_provider(_Generator())
register_provider(_RandomState())
