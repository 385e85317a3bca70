# SPDX-License-Identifier: Apache-2.0
"""Types of trees, and their union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np

from milepost.compat.orbax_v1.arrays import AbstractArray, AbstractScalar, AbstractShardedArray, Scalar
from milepost.compat.orbax_v1.plain import opened

_T = TypeVar("_T")


class PyTreeOf(Generic[_T]):
    """A tree with leaves of one type; for annotations."""


class PyTree:
    """A tree with any leaves; for annotations."""


PyTreeKey: TypeAlias = Any
PyTreeKeyPath: TypeAlias = tuple[Any, ...]
JsonType: TypeAlias = dict[str, Any] | list[Any]
Leaf: TypeAlias = np.ndarray[Any, Any] | Scalar | str
AbstractLeaf: TypeAlias = AbstractArray | AbstractShardedArray | AbstractScalar | str


def merge(*trees: Any, overwrite: bool = False, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Return one tree with the leaves of all.

    Dicts are united by key, lists and other containers of the same size place by place.

    Args:
        trees: `...` and None in one give way to what the others have there.
        overwrite: the later tree has the say where two have a leaf; without it that is refused.
        is_leaf: what is not to be looked into.

    Raises:
        ValueError: two trees have a leaf at the same place, or containers of different kinds.
    """
    merged: Any = {} if not trees else trees[0]
    for tree in trees[1:]:
        merged = _merged(merged, tree, overwrite, is_leaf or (lambda _: False), ())
    return merged


def _merged(first: Any, second: Any, overwrite: bool, is_leaf: Callable[[Any], bool], path: tuple[str, ...]) -> Any:
    if first is ... or first is None:
        return second
    if second is ... or second is None:
        return first
    one = None if is_leaf(first) else opened(first)
    two = None if is_leaf(second) else opened(second)
    if one is None or two is None or type(first) is not type(second):
        if overwrite:
            return second
        what = "both trees have a leaf" if one is None and two is None else "the trees differ in kind"
        raise ValueError(f"{'/'.join(path) or 'the root'}: {what}\n  Pass overwrite=True to take the later one.")
    if isinstance(first, dict):
        result: dict[Any, Any] = dict(cast("dict[Any, Any]", first))
        for key, value in second.items():
            result[key] = _merged(result[key], value, overwrite, is_leaf, (*path, str(key))) if key in result else value
        return result
    if len(one.children) != len(two.children):
        raise ValueError(
            f"{'/'.join(path) or 'the root'}: {len(one.children)} parts in one, {len(two.children)} in the other"
        )
    parts = zip(one.names, one.children, two.children, strict=True)
    return one.build([_merged(a, b, overwrite, is_leaf, (*path, name)) for name, a, b in parts])
