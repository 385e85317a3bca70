# SPDX-License-Identifier: Apache-2.0
"""Functions on trees that programs call by hand: `ocp.tree`, `ocp.arrays`."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from milepost.compat.orbax import trees
from milepost.compat.orbax.transform_utils import from_flat_dict, to_flat_dict
from milepost.compat.orbax.trees import jax

__all__ = [
    "deserialize_tree", "from_flat_dict", "get_param_names", "is_flat_dict", "serialize_tree", "to_flat_dict",
    "to_shape_dtype_struct",
]  # fmt: skip


def serialize_tree(tree: Any, keep_empty_nodes: bool = False) -> Any:
    """Return the tree in dicts with text keys and lists.

    Raises:
        ValueError: it is empty, and empty nodes are left out.
    """
    if not keep_empty_nodes and next(trees.leaves(tree), None) is None:
        raise ValueError("an empty tree has no form without empty nodes")
    return trees.plain(tree, lambda _, leaf: leaf)


def deserialize_tree(serialized: Any, target: Any, keep_empty_nodes: bool = False) -> Any:  # noqa: ARG001
    """Return what `serialize_tree` made, in the containers of `target`."""

    def leaf(path: trees.Path, _: Any) -> Any:
        value = trees.at(serialized, path)
        if value is trees.ABSENT:
            raise KeyError(".".join(path))
        return value

    return trees.mapped(target, leaf)


def is_flat_dict(tree: Any) -> bool:
    """Return whether a tree is a dict of leaves."""
    if not isinstance(tree, dict):
        return False
    return all(trees.opened(value) is None for value in cast("dict[Any, Any]", tree).values())


def get_param_names(item: Any, *, include_empty_nodes: bool = True) -> Any:  # noqa: ARG001
    """Return the tree with the name of each leaf: the names on the way to it, joined by dots."""
    return trees.mapped(item, lambda path, _: ".".join(path))


def to_shape_dtype_struct(
    arr: Any,
    dtype: Any = None,
    scalar_dtype: Any = None,
    support_format: bool = False,  # noqa: ARG001
) -> Any:
    """Return shape, dtype and sharding of an array as a `jax.ShapeDtypeStruct`; numbers stay numbers.

    Args:
        arr: an array, a spec, the metadata of an array, or a number.
        dtype: for arrays, instead of their own.
        scalar_dtype: `int` or `float`, for numbers.
        support_format: nothing here.
    """
    if isinstance(arr, bool | int | float | complex | np.generic):
        return cast("Any", arr) if scalar_dtype is None else scalar_dtype(arr)
    module = jax()
    if not hasattr(arr, "shape") or not hasattr(arr, "dtype") or module is None:
        return arr
    placed: Any = getattr(arr, "sharding", None)
    placed = placed.to_jax_sharding() if hasattr(placed, "to_jax_sharding") else placed
    return module.ShapeDtypeStruct(tuple(arr.shape), arr.dtype if dtype is None else dtype, sharding=placed)
