# SPDX-License-Identifier: Apache-2.0
"""JAX: arrays under any sharding over this process's devices, typed keys, and `ShapeDtypeStruct` in a `like`.

Run here on CPU devices only; device fetches follow JAX's public contract (`copy_to_host_async`, `numpy.asarray`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, final

import jax as jax_module
import numpy as np

from milepost.adapters import Array, Nature, Piece, Read, array_bytes, copied
from milepost.errors import StructureError, UnsupportedLeafError, message
from milepost.model.leaf import KEY_WORDS, Box, LeafSpec, array_spec, data_spec, dtype_info, dtype_name

jax: Any = jax_module  # its annotations differ from release to release


def _is_key(value: Any) -> bool:
    return not isinstance(value.dtype, np.dtype) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _impl(value: Any) -> str:
    """Return the name of a key's generator; an abstract key tells it only to a trace."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return str(jax.random.key_impl(value))
    names: list[str] = []

    def ask(key: Any) -> Any:
        names.append(str(jax.random.key_impl(key)))
        return key

    jax.eval_shape(ask, jax.ShapeDtypeStruct(value.shape, value.dtype))
    return names[0]


@final
class JaxAdapter:
    """JAX arrays. Immutable by JAX's contract; on CPU an array may alias a NumPy array that `device_put` was given."""

    name = "jax"
    immutable = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array | jax.ShapeDtypeStruct)

    def spec(self, array: Any) -> LeafSpec:
        if isinstance(array, jax.core.Tracer):
            raise UnsupportedLeafError("a traced value has no data\n  Save outside of `jax.jit` and the like.")
        if not _is_key(array):
            return array_spec(dtype_name(np.dtype(array.dtype)), tuple(array.shape))
        impl = _impl(array)
        if impl not in KEY_WORDS:
            raise UnsupportedLeafError(
                message(
                    "a key of this generator cannot be stored",
                    expected=", ".join(KEY_WORDS),
                    found=impl,
                    remedy="Save `jax.random.key_data(key)` and wrap it again with `jax.random.wrap_key_data`.",
                )
            )
        return LeafSpec("key", f"key<{impl}>", tuple(array.shape))

    def identity(self, array: Any) -> Hashable | None:
        return id(array)

    def likeness(self, array: Any) -> Hashable | None:
        if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct) or array.is_deleted():
            return None
        return (array.dtype, array.shape, array.sharding)

    def pieces(self, array: Any) -> Sequence[Piece]:
        if array.is_deleted():
            raise UnsupportedLeafError(
                "the array was deleted or donated\n  Save before the call that donates it, or save its result."
            )
        data: Any = jax.random.key_data(array) if _is_key(array) else array
        if len(data.sharding.device_set) == 1 and data.is_fully_addressable:
            return [Piece(Box.whole(data.shape), data)]
        return [
            Piece(Box.of_slices(shard.index, data.shape), shard.data, shard.replica_id)
            for shard in data.addressable_shards
        ]

    def start(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.handle.device.platform != "cpu":
                piece.handle.copy_to_host_async()

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        # The buffer protocol takes 2 us where `numpy.asarray` takes 12 (jax 0.10, 2026-11); it is there on CPU, for the
        # dtypes of C.
        try:
            data = memoryview(piece.handle).cast("B")
        except (BufferError, TypeError, ValueError, NotImplementedError):
            return array_bytes(np.asarray(piece.handle), out)
        return copied(data, out)

    def place(self, like: Any, spec: LeafSpec, read: Read) -> Any:
        self.check_like(like, spec)
        data = data_spec(spec)
        sharding = _sharding(like)
        boxes: dict[Box, Array] = {}

        def block(index: tuple[slice, ...]) -> Array:
            box = Box.of_slices(index, data.shape)
            if box not in boxes:  # equal shards are asked for once each
                boxes[box] = read(box)
            return boxes[box]

        # Without a sharding the array stays uncommitted, so that a jitted program may still move it.
        if sharding is None:
            array = jax.device_put(read(Box.whole(data.shape)))
        else:
            # Where none of its devices is this process's, nothing else tells the dtype.
            told = {} if sharding.addressable_devices else {"dtype": dtype_info(data.dtype).numpy}
            array = jax.make_array_from_callback(data.shape, sharding, block, **told)
        if spec.kind == "key":
            return jax.random.wrap_key_data(array, impl=spec.dtype[4:-1])
        if getattr(like, "weak_type", False) and not data.shape and array.is_fully_addressable:
            weak: Any = jax.numpy.asarray(array.item())  # a Python scalar's array is the only weak one to be made
            weak = weak if sharding is None else jax.device_put(weak, sharding)
            return weak if weak.dtype == array.dtype else array
        return array

    def check_like(self, like: Any, spec: LeafSpec) -> None:
        data = data_spec(spec)
        dtype = dtype_info(data.dtype).numpy
        try:
            held = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
        except TypeError:
            raise StructureError(
                f'JAX has no {data.dtype}\n  Give a NumPy or PyTorch `like` there, or a JAX one with dtype="cast".'
            ) from None
        if held != dtype:
            raise StructureError(
                f"JAX holds no {data.dtype} in its 32-bit mode\n"
                '  Set `jax.config.update("jax_enable_x64", True)`, or give a 32-bit `like` with dtype="cast".'
            )
        sharding = _sharding(like)
        if sharding is not None:
            try:
                sharding.shard_shape(data.shape)
            except ValueError as error:
                raise StructureError(
                    f"the sharding of `like` does not divide {spec}: {error}\n"
                    "  Give that leaf of `like` a sharding that divides its shape."
                ) from error

    def fill(self, target: Any, spec: LeafSpec, read: Read) -> None:
        raise AssertionError("arrays of JAX never change")

    def memory(self, target: Any) -> Array | None:
        return None

    def nature(self, value: Any) -> Nature:
        return "abstract" if isinstance(value, jax.ShapeDtypeStruct) else "constant"


def _sharding(like: Any) -> Any:
    """Return where a new array is to lie, None for wherever JAX puts it."""
    sharding = getattr(like, "sharding", None)
    if sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return None
    if not isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.abstract_mesh != sharding.mesh:
        raise StructureError(
            "the shardings of `like` name a mesh without devices (`jax.eval_shape` keeps only its shape)\n"
            "  Load within `jax.set_mesh(mesh)`, or give `ShapeDtypeStruct`s with a `NamedSharding` of a mesh."
        )
    return jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


ADAPTER = JaxAdapter()
