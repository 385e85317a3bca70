# SPDX-License-Identifier: Apache-2.0
"""Types of arrays, and of what stands for them."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from milepost.compat.orbax_v1.plain import jax

Shape = tuple[int, ...]
DType = np.dtype
Scalar: TypeAlias = int | float | np.number[Any] | bytes | bool
AbstractScalar = Scalar


class AbstractArray(Protocol):
    """Has a shape and a dtype: comes back as an array of NumPy."""

    shape: Any
    dtype: Any


class AbstractShardedArray(Protocol):
    """Has a sharding too: comes back as an array of JAX."""

    shape: Any
    dtype: Any
    sharding: Any


ArrayLike: TypeAlias = AbstractArray | AbstractShardedArray


def to_shape_dtype_struct(arr: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False) -> Any:
    """Return the `jax.ShapeDtypeStruct` of an array, or the number itself.

    Args:
        arr: an array, or anything with shape, dtype and perhaps sharding, or a number.
        dtype: instead of the array's own.
        scalar_dtype: what a number is turned into.
        support_format: keep the layout that the sharding has.

    Raises:
        ValueError: the program has not loaded JAX.
    """
    if not hasattr(arr, "shape") or issubclass(type(arr), np.generic):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    module = jax()
    if module is None:
        raise ValueError("there is no jax.ShapeDtypeStruct before the program has loaded JAX: import it first")
    sharding = getattr(arr, "sharding", None)
    if not support_format:
        sharding = getattr(sharding, "sharding", sharding)
    return module.ShapeDtypeStruct(tuple(arr.shape), arr.dtype if dtype is None else dtype, sharding=sharding)
