# SPDX-License-Identifier: Apache-2.0
"""What an abstract leaf asks for, said as a leaf of a native `like`, and what is done with what was loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

import milepost as mp
from milepost.compat.orbax_v1.described import ArrayMetadata, NumpyMetadata
from milepost.compat.orbax_v1.plain import Path, child, jax, mapped, plain

PLACEHOLDER = ...
"""As a leaf of an abstract tree: leave what is saved there unread."""

Array = np.ndarray[Any, Any]
Shardings = Callable[[Path], Any]
_ABSENT: Any = object()
_SCALARS: Any = (str, bytes, int, float, complex, np.generic)
_EXAMPLES = {"int": 0, "float": 0.0, "bool": False, "complex": 0j, "str": "string", "bytes": b"", "none": None}


def as_saved(saved: Any, shardings: Shardings) -> Any:
    """Return the `like` that brings a saved tree back as it was: arrays of JAX to JAX, sharded as they were."""

    def leaf(path: Path, ref: Any) -> Any:
        struct = _struct_of(ref, shardings(path))
        return ref.spec if struct is None else struct

    return mapped(saved, leaf)


def described_tree(saved: Any, shardings: Shardings) -> Any:
    """Return a saved tree with a description of each leaf."""

    def leaf(path: Path, ref: Any) -> Any:
        if ref.dtype is None:
            return _EXAMPLES[ref.spec.dtype] if ref.spec.dtype in _EXAMPLES else ref.read()
        struct = _struct_of(ref, None)
        if struct is None:
            return NumpyMetadata(ref.spec.shape, ref.dtype)
        return ArrayMetadata(struct.shape, struct.dtype, shardings(path))

    return plain(saved, leaf)


def _struct_of(ref: Any, sharding: Any) -> Any:
    """Return the ShapeDtypeStruct of a leaf that was saved from JAX; None when it was not, or JAX cannot hold it."""
    module = jax()
    if module is None or ref.origin != "jax":
        return None
    if ref.spec.kind == "key":
        dtype = module.random.key(0, impl=ref.spec.dtype[4:-1]).dtype
        return module.ShapeDtypeStruct(ref.spec.shape, dtype, sharding=sharding)
    if np.dtype(module.dtypes.canonicalize_dtype(ref.dtype)) != ref.dtype:
        return None
    return module.ShapeDtypeStruct(ref.spec.shape, ref.dtype, sharding=sharding)


@dataclass(slots=True)
class Wanted:
    """An abstract tree beside what is saved.

    Attributes:
        rich: the saved tree has containers of all kinds, not only dicts with text keys and lists.
        pad: fill up or cut arrays of another shape.
        like: the native `like`.
        finish: path -> what is done with the leaf that was loaded, where that is not all.
    """

    abstract: Any
    saved: Any
    shardings: Shardings
    rich: bool = False
    pad: bool = False
    like: Any = None
    finish: dict[Path, Callable[[Any], Any]] = field(default_factory=dict[Path, Callable[[Any], Any]])

    def __post_init__(self) -> None:
        like = mapped(self.abstract, self._leaf) if self.rich else plain(self.abstract, self._leaf)
        self.like = like if self.rich else _without_hollow(like, self.saved)

    def result(self, loaded: Any) -> Any:
        """Return the loaded tree in the containers of the abstract one."""

        def finished(path: Path, value: Any) -> Any:
            return self.finish[path](value) if path in self.finish else value

        if self.rich:
            return mapped(loaded, finished)
        return mapped(self.abstract, lambda path, _: finished(path, _at(loaded, path)))

    def _leaf(self, path: Path, value: Any) -> Any:
        saved = _at(self.saved, path)
        if value is ... or value is None:
            if isinstance(saved, dict | list) and saved:
                raise ValueError(
                    f"{'/'.join(path) or 'the root'}: {value!r} stands where a whole container was saved\n"
                    "  Put it at each leaf that is to stay unread."
                )
            self.finish[path] = lambda _: value
            return mp.SKIP
        if isinstance(value, type):
            return self._typed(path, value, saved)
        if isinstance(value, _SCALARS):
            scalar = cast("Any", type(value))
            self.finish[path] = lambda loaded: _converted(path, loaded, scalar)
            return value
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return self._array(path, value, saved)
        return value

    def _typed(self, path: Path, kind: type[Any], saved: Any) -> Any:
        """Handle `int`, `float`, `np.ndarray`, `jax.Array`: the type alone."""
        module = jax()
        if issubclass(kind, np.ndarray) or (module is not None and issubclass(kind, module.Array)):
            if not isinstance(saved, mp.LeafRef):
                return mp.LeafSpec("array", "float32")  # not saved: what is told of it is its path
            struct = None if issubclass(kind, np.ndarray) else _struct_of(saved, self.shardings(path))
            return saved.spec if struct is None else struct
        try:
            example = kind()
        except TypeError:
            raise ValueError(f"{'/'.join(path)}: {kind.__qualname__} is no abstract leaf") from None
        self.finish[path] = lambda loaded: _converted(path, loaded, kind)
        return example

    def _array(self, path: Path, value: Any, saved: Any) -> Any:
        shape = tuple(value.shape)
        stored = saved.spec if isinstance(saved, mp.LeafRef) else None
        other = stored is not None and stored.kind == "array" and stored.shape != shape
        dtype = value.dtype
        if jax() is not None and hasattr(value, "sharding"):
            if self.pad and other and stored is not None and len(stored.shape) == len(shape):
                self.finish[path] = lambda loaded: jax().device_put(_resized(loaded, shape), value.sharding)
                return _numpy_like(stored.shape, np.dtype(dtype))
            return self._jax_like(path, value)
        try:
            dtype = np.dtype(value.dtype)
        except TypeError:
            return value  # a tensor of PyTorch
        if self.pad and other and stored is not None and len(stored.shape) == len(shape):
            self.finish[path] = lambda loaded: _resized(loaded, shape)
            return _numpy_like(stored.shape, dtype)
        return _numpy_like(shape, dtype)

    def _jax_like(self, path: Path, value: Any) -> Any:
        if isinstance(value, jax().Array):
            return value
        sharding = getattr(value.sharding, "sharding", value.sharding)  # of a layout: its sharding
        if sharding is None:
            sharding = self.shardings(path)
        return jax().ShapeDtypeStruct(tuple(value.shape), value.dtype, sharding=sharding)


def _without_hollow(like: Any, saved: Any) -> Any:
    """Return `like` without the nodes that hold nothing, and that Orbax stored as None (states of Optax)."""
    if isinstance(like, dict):
        items = cast("dict[str, Any]", like)
        if not items and isinstance(saved, mp.LeafRef) and saved.spec.dtype == "none":
            return mp.SKIP
        return {name: _without_hollow(each, _at(saved, (name,))) for name, each in items.items()}
    if isinstance(like, list):
        children = enumerate(cast("list[Any]", like))
        return [_without_hollow(each, _at(saved, (str(place),))) for place, each in children]
    return like


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        try:
            tree = child(tree, name)
        except KeyError:
            return _ABSENT
    return tree


def _numpy_like(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)  # takes no memory


def _converted(path: Path, loaded: Any, kind: type[Any]) -> Any:
    value: Any = loaded[()] if hasattr(loaded, "shape") else loaded
    if type(value) is kind:
        return value
    result: Any = kind(value.item() if hasattr(value, "item") and not issubclass(kind, np.generic) else value)
    if issubclass(kind, int) and result != value:
        raise ValueError(f"{'/'.join(path)}: the saved number {value} is no {kind.__name__}\n  Give a float there.")
    return result


def _resized(array: Array, shape: tuple[int, ...]) -> Array:
    """Return the array cut to a shape, or filled up with zeros."""
    result = np.zeros(shape, array.dtype)
    common = tuple(slice(0, min(old, new)) for old, new in zip(array.shape, shape, strict=True))
    result[common] = array[common]
    return result
