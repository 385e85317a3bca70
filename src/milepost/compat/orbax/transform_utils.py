# SPDX-License-Identifier: Apache-2.0
"""Rename, compute and leave out leaves while restoring; trees as flat dicts, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from milepost.compat.orbax import trees
from milepost.compat.orbax.leaf_args import RestoreArgs
from milepost.compat.orbax.restoring import Restoring
from milepost.compat.orbax.trees import ABSENT, Path

__all__ = [
    "RestoreArgs", "RestoreTransform", "Transform", "apply_transformations", "from_flat_dict", "intersect_trees",
    "merge_trees", "to_flat_dict", "transformed",
]  # fmt: skip


@dataclass
class Transform:
    """How one leaf of the result comes to be.

    Attributes:
        original_key: the saved leaf, `a/b`; groups of the transform's own key (a regular expression) as `\\1`.
        use_fallback: take it from the item (with `default_to_original`), else from what was saved.
        value_fn: applied to the saved leaf.
        multi_value_fn: gives the leaf, from its key and the whole saved tree.
    """

    original_key: str | tuple[str, ...] | None = None
    use_fallback: bool = False
    value_fn: Callable[..., Any] | None = None
    multi_value_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        ways = {
            "use_fallback": self.use_fallback,
            "original_key or value_fn": self.original_key is not None or self.value_fn is not None,
            "multi_value_fn": self.multi_value_fn is not None,
        }
        if sum(ways.values()) > 1:
            raise ValueError(f"a Transform takes one of {', '.join(ways)}")


@dataclass
class RestoreTransform(Transform):
    """A Transform whose functions are given the RestoreArgs of the leaf, too."""

    multi_value_fn_input_args: dict[str, Any] | None = None


def apply_transformations(
    original_tree: Any, transformations: Any, new_tree: Any, default_to_original: bool | None = True
) -> Any:
    """Return a tree of the structure of `new_tree` with leaves of the original one, transformed.

    Args:
        original_tree: where leaves come from.
        transformations: a tree of Transforms; keys are regular expressions over paths such as `a/b`.
        new_tree: the structure; its own leaves stay where nothing else is said.
        default_to_original: leaves without a transform come from the original tree, where it has them.

    Raises:
        ValueError: a leaf of the original tree is asked for that it does not have.
    """
    return _applied(original_tree, transformations, new_tree, bool(default_to_original), None)


def transformed(restoring: Restoring, arguments: Any) -> Any:
    """Return what a PyTreeRestore with transforms asks for.

    Raises:
        ValueError: there is no item, or no restore_args for it.
    """
    if arguments.item is None or arguments.restore_args is None:
        raise ValueError("transforms need `item`, and `restore_args` of the same structure")
    default, args = arguments.transforms_default_to_original, arguments.restore_args
    result = _applied(restoring.as_saved(), arguments.transforms, arguments.item, default, args)
    return trees.mapped(result, lambda path, leaf: _converted(leaf, trees.at(args, path)))


def _applied(original_tree: Any, transforms: Any, new_tree: Any, default: bool, args: Any) -> Any:
    original = to_flat_dict(original_tree, sep="/")
    rules = to_flat_dict(transforms, sep="/", is_leaf=lambda value: isinstance(value, Transform))

    def leaf(path: Path, value: Any) -> Any:
        key = "/".join(path)
        for pattern, transform in rules.items():
            match = re.fullmatch(pattern, key)
            if match is not None:
                extra = [] if not isinstance(transform, RestoreTransform) else [trees.at(args, path)]
                return _result(transform, match, key, value, original, original_tree, default, extra)
        return original[key] if default and key in original else value

    return trees.mapped(new_tree, leaf)


def _result(
    transform: Any, match: re.Match[str], key: str, own: Any, original: Mapping[str, Any], tree: Any, default: bool,
    extra: list[Any],
) -> Any:  # fmt: skip
    if transform.use_fallback and default:
        return own
    if transform.multi_value_fn is not None:
        return transform.multi_value_fn(key, tree, *extra)
    source: Any = key if transform.original_key is None else transform.original_key
    source = "/".join(source) if isinstance(source, tuple) else match.expand(source)  # pyright: ignore[reportUnknownArgumentType]
    if source not in original:
        raise ValueError(f'"{source}" is not in the original tree; there are {", ".join(original)}')
    value = original[source]
    return value if transform.value_fn is None else transform.value_fn(value, *extra)


def _converted(leaf: Any, args: Any) -> Any:
    """Return a leaf of the result in the dtype and sharding that its RestoreArgs ask for."""
    if args is ABSENT or not hasattr(leaf, "astype"):
        return leaf
    leaf = leaf if args.dtype is None else leaf.astype(args.dtype)
    placed: Any = getattr(args, "sharding", None)
    module: Any = trees.jax()
    if module is not None and (placed is not None or args.restore_type is module.Array):
        placed = cast("Any", placed).to_jax_sharding() if hasattr(placed, "to_jax_sharding") else placed
        return module.device_put(leaf, placed)
    return leaf


def to_flat_dict(
    tree: Any,
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[Any], bool] | None = None,
) -> dict[Any, Any]:
    """Return the leaves by their paths: tuples of names, or text when there is a separator."""
    flat = dict(_flat(tree, (), keep_empty_nodes, is_leaf))
    return flat if sep is None else {sep.join(path): value for path, value in flat.items()}


def _flat(tree: Any, path: Path, keep_empty: bool, is_leaf: Callable[[Any], bool] | None) -> list[tuple[Path, Any]]:
    node = None if is_leaf is not None and is_leaf(tree) else trees.opened(tree)
    if node is None:
        return [] if tree is None and not keep_empty else [(path, tree)]
    if not node.children:
        return [(path, tree)] if keep_empty else []
    result: list[tuple[Path, Any]] = []
    for name, child in zip(node.names, node.children, strict=True):
        result += _flat(child, (*path, name), keep_empty, is_leaf)
    return result


def from_flat_dict(
    flat_dict: dict[Any, Any], target: Any = None, sep: str | None = None, *, inplace: bool = False
) -> Any:
    """Return the tree of leaves by path: like `target`, else in dicts."""
    flat = {tuple(key.split(sep)) if sep is not None else tuple(key): value for key, value in flat_dict.items()}
    if inplace:
        flat_dict.clear()
    if target is not None:
        return trees.mapped(target, lambda path, _: flat[path])
    if () in flat:
        return flat[()]
    result: dict[str, Any] = {}
    for path, value in flat.items():
        node = result
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return result


def merge_trees(*trees: Any, target: Any = None) -> Any:
    """Return one tree with the leaves of all; of those at the same path the last one counts."""
    merged: dict[Any, Any] = {}
    for tree in trees:
        merged.update(to_flat_dict(tree))
    return from_flat_dict(merged, target)


def intersect_trees(*trees: Any, target: Any = None) -> Any:
    """Return one tree with the leaves at the paths that all have, from the last tree."""
    flats = [to_flat_dict(tree) for tree in trees]
    common = {path: value for path, value in flats[-1].items() if all(path in flat for flat in flats)}
    return from_flat_dict(common, target)
