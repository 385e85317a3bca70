# SPDX-License-Identifier: Apache-2.0
"""Arrays of the frameworks, and objects with state: the protocols, and the choice by type.

A framework's adapter is loaded when a value of that framework is first met, so nothing is imported that the program
did not import itself.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, cast, final

import numpy as np

from milepost.errors import StructureError, UnsupportedLeafError
from milepost.model.leaf import Box, LeafSpec
from milepost.model.tree import StateProvider
from milepost.stores.direct import SMALL, copy_bytes

Array = np.ndarray[Any, Any]


Nature = Literal["abstract", "constant", "variable"]


class Read(Protocol):
    """Reads a box of a stored leaf, in the dtype that is wanted; into `out` when given (C-contiguous, of that box)."""

    def __call__(self, box: Box, out: Array | None = None) -> Array: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an array that lies in one place.

    Attributes:
        box: its range in the array's global shape.
        handle: the framework's own object.
        replica: which of the equal copies this is; the plan lets one of them be written.
    """

    box: Box
    handle: Any
    replica: int = 0


class Adapter(Protocol):
    """Teaches the library one framework's arrays."""

    name: str
    """The framework's name in the leaf table (`torch`, `jax`), so that objects get back what they gave."""
    immutable: bool
    """Whether memory that `capture` returns without `out` may be held after `save` returned."""

    def owns(self, value: Any) -> bool:
        """Return whether this value is an array of this framework."""
        ...

    def spec(self, array: Any) -> LeafSpec:
        """Return kind, dtype and global shape.

        Raises:
            UnsupportedLeafError: the array has no bytes to store (abstract, sparse, quantized).
        """
        ...

    def identity(self, array: Any) -> Hashable | None:
        """Return a key that is equal for arrays over the same memory; None where sharing means nothing."""
        ...

    def likeness(self, array: Any) -> Hashable | None:
        """Return a key; arrays of equal keys have equal specs and boxes. None: this one must be looked at."""
        ...

    def pieces(self, array: Any) -> Sequence[Piece]:
        """Return the parts of the array that this process holds."""
        ...

    def start(self, pieces: Sequence[Piece]) -> None:
        """Begin to fetch the pieces from their devices."""
        ...

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        """Return the piece's bytes, little-endian and in C order, in `out` when given."""
        ...

    def place(self, like: Any, spec: LeafSpec, read: Read) -> Any:
        """Return a new array of this framework; `like` gives device and sharding, None the framework's default."""
        ...

    def check_like(self, like: Any, spec: LeafSpec) -> None:
        """Find out whether `place` can make such an array, before anything is read or changed.

        Raises:
            StructureError: it cannot.
        """
        ...

    def fill(self, target: Any, spec: LeafSpec, read: Read) -> None:
        """Read into an existing array, one that is `variable`."""
        ...

    def memory(self, target: Any) -> Array | None:
        """Return the memory that `fill` reads into, C-contiguous; None where it goes another way."""
        ...

    def nature(self, value: Any) -> Nature:
        """Return whether the value has a spec but no data (`ShapeDtypeStruct`, meta tensors), and may change."""
        ...


def array_bytes(array: Array, out: memoryview | None) -> memoryview:
    """Return the bytes of an array in C order, little-endian; in `out` when given, else a view or a copy."""
    if array.dtype.byteorder == ">" and array.dtype.names is None:
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.names is not None:  # would be copied field by field, which leaves out their padding
        array = array.view(f"V{array.itemsize}")
    if out is None:
        return flat_bytes(np.ascontiguousarray(array).reshape(array.shape))
    if array.nbytes < SMALL:
        out[:] = array.tobytes()
    elif array.nbytes:
        np.copyto(np.frombuffer(out, array.dtype).reshape(array.shape), array, casting="no")
    return out


def copied(data: memoryview, out: memoryview | None) -> memoryview:
    """Return bytes, in `out` when given."""
    if out is None:
        return data
    copy_bytes(data, out)
    return out


def flat_bytes(array: Array) -> memoryview:
    """Return the memory of a C-contiguous array, without a copy."""
    if not array.nbytes:
        return memoryview(b"")
    data: Any = array if array.ndim == 1 and array.dtype == np.uint8 else array.reshape(-1).view(np.uint8)
    return memoryview(data)


_FRAMEWORKS = ("numpy", "jax", "torch")
_adapters: dict[str, Adapter] = {}
_by_type: dict[type, Adapter | None] = {}
_providers: list[StateProvider] = []
_provider_by_type: dict[type, StateProvider | None] = {}
_MAX_TYPES = 10_000  # types made in a loop must not pile up


def adapter_named(name: str) -> Adapter | None:
    """Return the adapter of a framework that the program has loaded, else None."""
    if name not in _FRAMEWORKS or name not in sys.modules:
        return None
    if name not in _adapters:
        _adapters[name] = import_module(f"milepost.adapters.{name}").ADAPTER
    return _adapters[name]


def adapter_of(value: Any) -> Adapter | None:
    """Return the adapter that owns the value, None when it is no array."""
    kind = cast("type[object]", type(value))
    try:
        return _by_type[kind]
    except KeyError:
        pass
    found: Adapter | None = getattr(kind, "__milepost_adapter__", None)  # a type may bring its own
    if found is None:
        loaded = (adapter_named(name) for name in _FRAMEWORKS)
        found = next((adapter for adapter in loaded if adapter is not None and adapter.owns(value)), None)
    if len(_by_type) > _MAX_TYPES:
        _by_type.clear()
    _by_type[kind] = found
    return found


def register_provider(provider: StateProvider) -> None:
    """Let a provider take part in the choice, before those that are there."""
    _providers.insert(0, provider)
    _provider_by_type.clear()


def provider_of(value: Any) -> StateProvider | None:
    """Return the provider for an object with state, None when it has none."""
    for name in _FRAMEWORKS:
        adapter_named(name)  # their modules register providers
    kind = cast("type[object]", type(value))
    try:
        return _provider_by_type[kind]
    except KeyError:
        pass
    if len(_provider_by_type) > _MAX_TYPES:
        _provider_by_type.clear()
    _provider_by_type[kind] = found = next((provider for provider in _providers if provider.owns(value)), None)
    return found


def is_stateful(value: Any) -> bool:
    """Return whether an object owns state that is saved and restored as a whole.

    Modules, optimizers, schedulers, loaders, random generators, and anything of the user's with `state_dict()` and
    `load_state_dict()`, or `get_state()` and `set_state()`. Arrays, values and containers of them own none.
    """
    return provider_of(value) is not None


@final
class Classifier:
    """The walker's questions (`model.tree.Classify`), answered by the adapters."""

    def is_array(self, value: Any) -> bool:
        return adapter_of(value) is not None

    def identity(self, array: Any) -> Hashable | None:
        adapter = adapter_of(array)
        return None if adapter is None else adapter.identity(array)

    def provider(self, value: Any) -> StateProvider | None:
        return provider_of(value)


def _both(value: Any, *names: str) -> bool:
    # Asked of the type: proxies and mappings with `__getattr__` answer to every name.
    kind = cast("type[object]", type(value))
    return not isinstance(value, type) and all(callable(getattr(kind, name, None)) for name in names)


@final
class _StateDict:
    """`state_dict()` and `load_state_dict()`: optimizers, schedulers, loaders, anything of the user's."""

    by_leaf = False
    by_value = False

    def owns(self, value: Any) -> bool:
        return _both(value, "state_dict", "load_state_dict")

    def tree(self, value: Any) -> Any:
        return value.state_dict()

    def restore(self, value: Any, tree: Any) -> None:
        value.load_state_dict(tree)


@final
class _GetState:
    """`get_state()` and `set_state()`: Grain's iterators."""

    by_leaf = False
    by_value = False

    def owns(self, value: Any) -> bool:
        return _both(value, "get_state", "set_state")

    def tree(self, value: Any) -> Any:
        return value.get_state()

    def restore(self, value: Any, tree: Any) -> None:
        value.set_state(tree)


@final
class _PythonRandom:
    """`random.Random`: Mersenne Twister, 624 words and a position."""

    by_leaf = False
    by_value = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, random.Random)

    def tree(self, value: Any) -> Any:
        if isinstance(value, random.SystemRandom):
            raise UnsupportedLeafError("random.SystemRandom has no state to store\n  Use random.Random(seed).")
        version, words, gauss = value.getstate()
        return {"version": version, "words": np.array(words, np.uint32), "gauss_next": gauss}

    def restore(self, value: Any, tree: Any) -> None:
        words = tuple(int(word) for word in tree["words"])
        value.setstate((tree["version"], words, tree["gauss_next"]))


_providers += [_PythonRandom(), _StateDict(), _GetState()]


def state_error(what: str, found: str) -> StructureError:
    """Return the error for a state of one kind of object given to another."""
    return StructureError(f"the saved state is that of {found}, which {what} cannot take\n  Make one of that kind.")
