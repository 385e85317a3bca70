# SPDX-License-Identifier: Apache-2.0
"""A stored tree as the program wants it: what is asked for becomes a native `like`, and the rest is done afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

import milepost as mp
from milepost.compat import orbax_shardings
from milepost.compat.orbax import trees
from milepost.compat.orbax.leaf_args import RestoreArgs
from milepost.compat.orbax.metadata import ArrayMetadata, ScalarMetadata, StringMetadata, TreeMetadata
from milepost.compat.orbax.trees import ABSENT, Path, jax

Shardings = Callable[[Path], dict[str, Any] | None]
_SCALARS = (bool, int, float, complex)
_VALUES = {"bool": bool, "int": int, "float": float, "complex": complex}


@dataclass(slots=True)
class Restoring:
    """One restore of an item that is a tree.

    Attributes:
        view: the item in its checkpoint.
        shardings: tells how each leaf was sharded.
        hollow: paths of what comes back as None without a target.
        finish: path -> what is done with the leaf that was loaded, where that is not all.
    """

    view: mp.Checkpoint
    shardings: Shardings
    hollow: frozenset[Path] = frozenset()
    saved: Any = None
    finish: dict[Path, Callable[[Any], Any]] = field(default_factory=dict[Path, Callable[[Any], Any]])

    def __post_init__(self) -> None:
        self.saved = self.view.tree

    # --- three ways to ask

    def as_saved(self) -> Any:
        """Return the tree as it was saved, in dicts and lists."""
        return self._dressed(self.view.load(like=trees.plain(self.saved, self._own)))

    def to_target(self, target: Any, *, strict: bool = True, fallback: Any = None) -> Any:
        """Return a tree like `target`: its containers, shapes, dtypes, shardings.

        Raises:
            ValueError: the trees differ.
        """
        target = target.tree if isinstance(target, TreeMetadata) else target
        like = trees.plain(target, lambda path, leaf: self._like_target(path, leaf, strict, fallback))
        return self._finished(target, self._loaded(like))

    def by_args(self, item: Any, restore_args: Any, *, partial: bool = False) -> Any:
        """Return a tree of the structure of `item` (None: of what was saved), each leaf as `restore_args` says.

        Raises:
            ValueError: the trees differ.
        """
        item = item.tree if isinstance(item, TreeMetadata) else item
        restore_args = restore_args.tree if isinstance(restore_args, TreeMetadata) else restore_args
        structure = trees.plain(self.saved, lambda _, ref: ref) if item is None else item
        like = trees.plain(structure, lambda path, leaf: self._like_args(path, leaf, restore_args))
        loaded = self._loaded(like, "ignore" if partial else "error")
        return self._dressed(self._finished(structure, loaded)) if item is None else self._finished(structure, loaded)

    # --- loading

    def _loaded(self, like: Any, unexpected: Literal["error", "ignore"] = "error") -> Any:
        try:
            return self.view.load(like=_without_hollow(like, self.saved), dtype="cast", unexpected=unexpected)
        except mp.StructureError as error:
            error.add_note(
                "`like` is here the item to restore. `partial_restore=True` of PyTreeRestore leaves unread what the"
                " item does not have; `...` (PLACEHOLDER) leaves one leaf unread."
            )
            raise

    def _finished(self, target: Any, loaded: Any) -> Any:
        def leaf(path: Path, _: Any) -> Any:
            value = trees.at(loaded, path)
            return self.finish[path](value) if path in self.finish else value

        return trees.mapped(target, leaf)

    def _dressed(self, tree: Any, path: Path = ()) -> Any:
        if path in self.hollow:
            return None
        if isinstance(tree, dict):
            items = cast("dict[str, Any]", tree)
            return {name: self._dressed(child, (*path, name)) for name, child in items.items()}
        if isinstance(tree, list):
            if not tree and trees.at(self.saved, path) == ():
                return ()  # of Orbax, which tells it from a list only when it is empty
            return [self._dressed(child, (*path, str(i))) for i, child in enumerate(cast("list[Any]", tree))]
        return tree

    # --- one leaf

    def _own(self, path: Path, ref: Any, dtype: Any = None) -> Any:
        """Return the leaf of `like` that brings a leaf back as it was saved, maybe in another dtype."""
        struct = self._struct(ref, orbax_shardings.restored(self.shardings(path)), dtype)
        if struct is not None:
            return struct
        return ref.spec if dtype is None or ref.spec.kind != "array" else _array_spec(dtype, ref.spec.shape)

    def _struct(self, ref: Any, placed: Any, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Any:
        """Return the ShapeDtypeStruct of a leaf that JAX gave; None for others, and where JAX cannot hold it."""
        return None if ref.origin != "jax" else _jax_struct(ref, placed, dtype, shape)

    def _like_target(self, path: Path, leaf: Any, strict: bool, fallback: Any) -> Any:
        if leaf is ...:
            return self._skipped(path, leaf)
        ref = trees.at(self.saved, path)
        if not isinstance(ref, mp.LeafRef):
            return _spec_of(leaf)  # told, with all else that differs, before anything is read
        if isinstance(leaf, StringMetadata):
            return ref.spec
        if isinstance(leaf, ScalarMetadata):
            return _VALUES.get(ref.spec.dtype, float)() if ref.spec.kind == "value" else ref.spec
        if type(leaf) in _SCALARS:
            return self._scalar(path, ref, cast("Any", type(leaf)), leaf)
        shape = getattr(leaf, "shape", None)
        if shape is None or not hasattr(leaf, "dtype"):
            return leaf
        placed = _sharding_of(leaf)
        if not strict and ref.spec.kind == "array" and tuple(shape) != ref.spec.shape:
            return self._resized(path, ref, tuple(shape), leaf.dtype, placed if placed is not None else fallback)
        if isinstance(leaf, ArrayMetadata) or _is_struct(leaf):
            if placed is None and fallback is None:
                own = self._struct(ref, orbax_shardings.restored(self.shardings(path)), leaf.dtype, tuple(shape))
                return _array_spec(leaf.dtype, tuple(shape)) if own is None else own
            return _placed_struct(leaf, placed if placed is not None else fallback)
        return leaf

    def _like_args(self, path: Path, leaf: Any, restore_args: Any) -> Any:
        if leaf is ...:
            return self._skipped(path, leaf)
        ref = trees.at(self.saved, path)
        if not isinstance(ref, mp.LeafRef):
            return _spec_of(leaf)
        if restore_args is None:
            return self._own(path, ref)
        args = _args_at(restore_args, path)
        if args is ABSENT:
            raise ValueError(
                f"restore_args has nothing for {'.'.join(path) or 'the root'}\n  Make it of the item, with"
                " `checkpoint_utils.construct_restore_args(item)`."
            )
        if args.restore_type is type(...):
            return self._skipped(path, ...)
        return self._by_args(path, ref, args)

    def _by_args(self, path: Path, ref: Any, args: Any) -> Any:
        kind, dtype = args.restore_type, args.dtype
        placed = _sharding_of(args)
        module = jax()
        if module is not None and (kind is module.Array or placed is not None):
            shape = getattr(args, "global_shape", None)
            shape = ref.spec.shape if shape is None else tuple(shape)
            if not getattr(args, "strict", True) and shape != ref.spec.shape and ref.spec.kind == "array":
                return self._resized(path, ref, shape, dtype, placed)
            placed = orbax_shardings.restored(self.shardings(path)) if placed is None else placed
            struct = _jax_struct(ref, placed, dtype, shape)
            if struct is not None:
                return struct
        if kind is np.ndarray:
            own = np.asarray(0 if ref.dtype is None else np.zeros((), ref.dtype)).dtype
            if ref.spec.kind == "value":
                own = np.dtype(_VALUES.get(ref.spec.dtype, float))
            return ref.spec if ref.spec.kind == "key" else _array_spec(dtype or own, ref.spec.shape)
        if kind in _SCALARS or kind is str:
            return self._scalar(path, ref, kind, kind())
        if ref.spec.kind == "value" and dtype is not None and ref.spec.dtype in _VALUES:
            self.finish[path] = lambda value: np.dtype(dtype).type(value).item()
        return self._own(path, ref, dtype)

    def _scalar(self, path: Path, ref: Any, kind: type[Any], leaf: Any) -> Any:
        if ref.spec.kind == "value" and ref.spec.dtype in _VALUES and kind in _SCALARS:
            self.finish[path] = kind
            return ref.spec
        return leaf  # a 0-d array becomes a number, and what has other dimensions is told

    def _skipped(self, path: Path, leaf: Any) -> Any:
        self.finish[path] = lambda _: leaf
        return mp.SKIP

    def _resized(self, path: Path, ref: Any, shape: tuple[int, ...], dtype: Any, placed: Any) -> Any:
        if len(shape) != len(ref.spec.shape):
            raise ValueError(
                f"{'.'.join(path)}: saved with shape {ref.spec.shape}, wanted with {shape}: only the sizes of"
                " dimensions can be cut or padded, not their number"
            )

        def resize(array: Any) -> Any:
            result = np.zeros(shape, array.dtype)
            common = tuple(slice(0, min(old, new)) for old, new in zip(array.shape, shape, strict=True))
            result[common] = array[common]
            module = jax()
            return result if module is None or ref.origin != "jax" else module.device_put(result, placed)

        self.finish[path] = resize
        return _array_spec(ref.dtype if dtype is None else dtype, ref.spec.shape)


def _args_at(restore_args: Any, path: Path) -> Any:
    """Return the arguments for a leaf; those of a node above it hold for all below."""
    if hasattr(restore_args, "restore_type"):
        return restore_args
    for depth in range(len(path) + 1):
        found = trees.at(restore_args, path[:depth])
        if found is ABSENT or hasattr(found, "restore_type"):
            return found
    return RestoreArgs()


def _array_spec(dtype: Any, shape: tuple[int, ...]) -> mp.LeafSpec:
    return mp.LeafSpec("array", np.dtype(dtype).name, shape)


def _spec_of(leaf: Any) -> Any:
    """Return what stands in `like` for a leaf that was not saved."""
    if isinstance(leaf, mp.LeafRef):
        return leaf.spec
    if isinstance(leaf, ArrayMetadata) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        try:
            return _array_spec(leaf.dtype, tuple(leaf.shape))
        except TypeError:
            return leaf
    return leaf


def _without_hollow(like: Any, saved: Any) -> Any:
    """Return `like` without the nodes that hold nothing, and that Orbax stored as None (states of Optax)."""
    if isinstance(like, dict):
        items = cast("dict[str, Any]", like)
        if not items and isinstance(saved, mp.LeafRef) and saved.spec.dtype == "none":
            return mp.SKIP
        return {name: _without_hollow(child, trees.at(saved, (name,))) for name, child in items.items()}
    if isinstance(like, list):
        children = enumerate(cast("list[Any]", like))
        return [_without_hollow(child, trees.at(saved, (str(place),))) for place, child in children]
    return like


def _is_struct(leaf: Any) -> bool:
    module = jax()
    return module is not None and isinstance(leaf, module.ShapeDtypeStruct)


def _placed_struct(leaf: Any, placed: Any) -> Any:
    return jax().ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=placed)


def _jax_struct(ref: Any, placed: Any, dtype: Any, shape: tuple[int, ...] | None) -> Any:
    """Return the ShapeDtypeStruct that a leaf becomes; None where JAX cannot hold it."""
    module = jax()
    if module is None or (ref.dtype is None and ref.spec.dtype not in _VALUES):
        return None
    shape = ref.spec.shape if shape is None else shape
    if ref.spec.kind == "key":
        dtype = module.random.key(0, impl=ref.spec.dtype[4:-1]).dtype
        return module.ShapeDtypeStruct(shape, dtype, sharding=placed)
    own: Any = np.dtype(_VALUES[ref.spec.dtype]) if ref.dtype is None else ref.dtype
    try:
        held = np.dtype(module.dtypes.canonicalize_dtype(own if dtype is None else np.dtype(dtype)))
    except TypeError:
        return None
    if dtype is None and held != own and ref.origin == "jax":
        return None  # saved with 64 bits, read without them: NumPy holds what JAX would cut off
    return module.ShapeDtypeStruct(shape, held, sharding=placed)


def _sharding_of(value: Any) -> Any:
    """Return the sharding that a leaf or its arguments ask for; None where they do not say."""
    placed = getattr(value, "sharding", None)
    if placed is None and getattr(value, "mesh", None) is not None:
        return jax().sharding.NamedSharding(value.mesh, value.mesh_axes)
    if hasattr(placed, "to_jax_sharding"):
        return cast("Any", placed).to_jax_sharding()
    inner = getattr(placed, "sharding", None)  # of a layout
    return placed if inner is None else inner
