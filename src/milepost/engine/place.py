# SPDX-License-Identifier: Apache-2.0
"""Put stored leaves into the user's tree: match all specs first, then read, then give objects their state."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from milepost.adapters import Array, Classifier, adapter_named, adapter_of
from milepost.engine.transfer import Source
from milepost.errors import CheckpointError, CorruptionError, StructureError, UnsupportedLeafError
from milepost.model import keypath, structure, tree
from milepost.model.format import LeafTable, StoredArray
from milepost.model.keypath import Globs, KeyPath
from milepost.model.leaf import Box, LeafSpec, data_spec, dtype_info
from milepost.model.match import compare
from milepost.model.tree import SKIP, Flat, StateObject
from milepost.model.value import decode, fitted, value_spec

_STATE = LeafSpec("value", "state")
_CLASSIFY = Classifier()


@dataclass(frozen=True, slots=True)
class Options:
    """How a saved tree may differ from the wanted one; see `Checkpoint.load`."""

    rename: Mapping[str, str] = field(default_factory=dict[str, str])
    missing: Literal["error", "keep"] = "error"
    unexpected: Literal["error", "ignore"] = "error"
    dtype: Literal["error", "cast"] = "error"
    only: Globs | None = None
    exclude: Globs = ()
    lazy: bool = False


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """A saved tree, or a part of one, with its bytes.

    Attributes:
        table: the leaf table.
        source: reads the boxes.
        path: where the part lies, as stored.
        node: its structure.
        rank: this process, for `PerProcess` values.
        where: for messages, `step 12000 of runs/7`.
    """

    table: LeafTable
    source: Source
    path: KeyPath
    node: Any
    rank: int
    where: str

    def entries(self, rank: int | None) -> dict[KeyPath, KeyPath]:
        """Return path -> stored path of every leaf of this part; with rank None those of all processes."""
        return dict(structure.visible(self.table.tree, rank, node=self.node, stored=self.path))

    def spec(self, stored: KeyPath) -> LeafSpec:
        """Return the spec of a leaf."""
        array = self.table.arrays.get(stored)
        if array is not None:
            return array.spec
        if stored not in self.table.values:
            raise CorruptionError(f"{self.where}: the leaf table has no entry for {stored or 'the root'}")
        value = self.table.values[stored]
        return value_spec(value if not isinstance(value, dict) else decode(value)) or LeafSpec("value", "unknown")  # pyright: ignore[reportUnknownArgumentType]

    def leaf(self, stored: KeyPath) -> Any:
        """Return a leaf as it comes without `like`: a NumPy array, or the value."""
        array = self.table.arrays.get(stored)
        if array is None:
            return decode(self.table.values[stored])
        return self.source.read(stored, array, Box.whole(array.shape))


def load_plain(stored: Stored, options: Options) -> Any:
    """Return the saved structure in builtin containers with NumPy leaves; what is not wanted comes as `SKIP`."""
    if options.rename or options.dtype == "cast":
        raise StructureError("`rename` and `dtype` say how the saved tree becomes `like`: they need a `like`")
    wanted = keypath.matcher(options.only) if options.only is not None else None
    left_out = keypath.matcher(options.exclude)
    read: dict[KeyPath, Any] = {}  # what was saved shared comes back shared

    def leaf(path: KeyPath, there: KeyPath) -> Any:
        if (wanted is not None and not wanted(path)) or left_out(path):
            return SKIP
        if there not in read:
            array = stored.table.arrays.get(there)
            if options.lazy and array is not None:
                read[there] = stored.source.mapped(there, array)
            else:
                read[there] = stored.leaf(there)
        return read[there]

    return structure.rebuild(stored.table.tree, leaf, node=stored.node, stored=stored.path)


@final
class _Fit:
    """A `like` that was compared with what is saved: which stored leaf goes where."""

    def __init__(self, stored: Stored, like: Any, options: Options) -> None:
        self.stored, self.options = stored, options
        self.flat: Flat = tree.flatten(like, _CLASSIFY, rank=stored.rank, present=True)
        self.objects = {self._unranked(item.path): item for item in self._objects()}
        whole = [path for path, item in self.objects.items() if not item.provider.by_leaf]
        wanted = {path: _spec_of(value, path) for path, value in self._leaves()} | dict.fromkeys(whole, _STATE)
        entries = stored.entries(stored.rank)
        self.there = {p: s for p, s in entries.items() if not any(keypath.under(p, path) for path in whole)}
        saved = {path: stored.spec(place) for path, place in self.there.items()}
        saved |= {path: _STATE for path in whole if self._node(path) is not None}
        keepable = {path for path, value in self._leaves() if not _abstract(value)} | set(whole)
        match = compare(
            saved, wanted, rename=options.rename, missing=options.missing, unexpected=options.unexpected,
            dtype=options.dtype, only=options.only, exclude=options.exclude, keepable=keepable,
        )  # fmt: skip
        match.raise_for(stored.where)
        self.pairs = match.pairs
        self.specs = wanted
        self._placed: dict[tuple[Any, ...], Any] = {}

    def _objects(self) -> Iterator[StateObject]:
        """Yield each object with state at every path that it stands at."""
        first = {item.path: item for item in self.flat.objects}
        yield from first.values()
        for alias, there in self.flat.aliases.items():
            if there in first:
                yield dataclasses.replace(first[there], path=alias)

    def _leaves(self) -> Iterator[tuple[KeyPath, Any]]:
        """Yield each leaf of `like` at every path that it stands at."""
        leaves = self.flat.leaves
        for there, value in leaves.items():
            yield self._unranked(there), value
        modules = {item.path for item in self.flat.objects if item.provider.by_leaf}
        for alias, first in self.flat.aliases.items():
            if first in leaves:
                yield self._unranked(alias), leaves[first]
            elif first in modules:
                for there, value in leaves.items():
                    if keypath.under(there, first):
                        yield self._unranked(alias + there[len(first) :]), value

    def _unranked(self, there: KeyPath) -> KeyPath:
        return self.flat.unranked.get(there, there)

    def _node(self, path: KeyPath) -> tuple[Any, KeyPath] | None:
        try:
            return structure.subtree(self.stored.table.tree, path, self.stored.rank, node=self.stored.node, stored=self.stored.path)
        except KeyError:
            return None

    def value(self, path: KeyPath, like: Any) -> Any:
        """Return the stored leaf for a path, as `like`'s framework has it; `like` itself when nothing goes there."""
        saved = self.pairs.get(path)
        if saved is None:
            return like
        there = self.there[saved]
        spec = self.specs[path]
        array = self.stored.table.arrays.get(there)
        if array is None:
            value = fitted(like, decode(self.stored.table.values[there]), path)
            return value if spec.kind == "value" else self._number(like, spec, value)
        if spec.kind == "value":
            return _python_number(like, self.stored.leaf(there))
        key = (there, type(like), spec, getattr(like, "sharding", None) or getattr(like, "device", None))
        if key not in self._placed:  # what was saved shared comes back shared
            self._placed[key] = self._place(like, spec, there, array)
        return self._placed[key]

    def _place(self, like: Any, spec: LeafSpec, there: KeyPath, array: StoredArray) -> Any:
        read = reader(self.stored.source, there, array, data_spec(spec), lazy=self.options.lazy)
        adapter = adapter_of(like)
        return read(Box.whole(spec.shape)) if adapter is None else adapter.place(like, spec, read)

    def _number(self, like: Any, spec: LeafSpec, value: Any) -> Any:
        adapter = adapter_of(like)
        read = number_reader(value, spec)
        return read(Box.whole(spec.shape)) if adapter is None else adapter.place(like, spec, read)

    def fill(self, path: KeyPath, target: Any) -> bool:
        """Read the stored leaf for a path into the array `target`; False when it cannot change."""
        there = self.there[self.pairs[path]]
        spec = self.specs[path]
        array = self.stored.table.arrays.get(there)
        adapter = adapter_of(target)
        if adapter is None or spec.kind != "array":
            return False
        if array is None:
            return adapter.fill(target, spec, number_reader(decode(self.stored.table.values[there]), spec))
        return adapter.fill(target, spec, reader(self.stored.source, there, array, spec))

    def state(self, path: KeyPath) -> Any:
        """Return the whole stored state for the object at a path, arrays in the frameworks that they came from."""
        found = self._node(self.pairs[path])
        if found is None:
            raise StructureError(f"{self.stored.where}: no state at {path}")
        node, there = found
        if isinstance(node, dict) and "per_process" in node:
            node, there = structure.subtree(self.stored.table.tree, str(self.stored.rank), node=node, stored=there)
        return state_tree(self.stored, node, there)


def state_tree(stored: Stored, node: Any, path: KeyPath) -> Any:
    """Return the saved state of an object, each array in the framework that it came from when that is loaded."""

    read: dict[KeyPath, Any] = {}

    def leaf(_: KeyPath, there: KeyPath) -> Any:
        if there not in read:
            array = stored.table.arrays.get(there)
            adapter = adapter_named(array.origin) if array is not None else None
            if array is None or adapter is None:
                read[there] = stored.leaf(there)
            else:
                source = reader(stored.source, there, array, array.data_spec)
                read[there] = adapter.place(None, array.spec, source)
        return read[there]

    return structure.rebuild(stored.table.tree, leaf, node=node, stored=path)


def load_like(stored: Stored, like: Any, options: Options) -> Any:
    """Return a tree like `like` with the stored leaves; nothing of `like` is changed."""
    fit = _Fit(stored, like, options)
    for path, item in fit.objects.items():
        if not item.provider.by_value:
            raise StructureError(
                f"{stored.where}: {path or 'the root'} of `like` is a {type(item.value).__name__}, which has a state of"
                " its own\n  Use `load_into(tree)`, which restores such objects in place, or put `mp.SKIP` there."
            )
    copies: dict[int, Any] = {}

    def leaf(path: KeyPath, value: Any) -> Any:
        item = fit.objects.get(path)
        if item is None:
            return fit.value(path, value)
        if path not in fit.pairs:
            return value
        if id(value) not in copies:  # what was shared stays shared
            copies[id(value)] = copy.deepcopy(item.value)
            _give(item, copies[id(value)], fit.state(path), path)
        return copies[id(value)]

    return tree.replaced(like, _CLASSIFY, leaf)


def load_into(stored: Stored, target: Any, options: Options) -> None:
    """Put the stored leaves into `target`, in place; everything is compared before anything changes."""
    fit = _Fit(stored, target, options)
    setters = dict(tree.setters(target, _CLASSIFY))
    _check_changeable(fit, setters)
    changed: list[KeyPath] = []
    try:
        for path, item in fit.objects.items():
            if any(keypath.under(pair, path) for pair in fit.pairs):
                changed.append(path)  # a state that fails half-way has changed
                _restore_object(fit, path, item)
        for there, value in fit.flat.leaves.items():
            path = fit.flat.unranked.get(there, there)
            if path not in fit.pairs or any(keypath.under(path, parent) for parent in fit.objects):
                continue
            changed.append(path)
            if not fit.fill(path, value):
                new = fit.value(path, value)
                if path in setters:
                    setters[path](new)
    except CheckpointError as error:
        if changed:
            error.add_note(f"Already changed, wholly or in part: {', '.join(path or 'the root' for path in changed)}.")
        raise


def _check_changeable(fit: _Fit, setters: Mapping[KeyPath, Any]) -> None:
    fixed: list[KeyPath] = []
    for there, value in fit.flat.leaves.items():
        path = fit.flat.unranked.get(there, there)
        if path not in fit.pairs or path in setters or any(keypath.under(path, parent) for parent in fit.objects):
            continue
        adapter = adapter_of(value)
        if adapter is not None and not adapter.immutable and not adapter.abstract(value):
            continue
        if adapter is None and fit.value(path, value) == value:
            continue
        fixed.append(path)
    if fixed:
        raise StructureError(
            f"{fit.stored.where}: {len(fixed)} leaves cannot be changed in place, among them {fixed[0] or 'the root'}\n"
            "  They stand in a tuple, a frozen class or at the root: use `load(like=...)` for that part.",
        )


def _restore_object(fit: _Fit, path: KeyPath, item: StateObject) -> None:
    if not item.provider.by_leaf:
        if path in fit.pairs:
            _give(item, item.value, fit.state(path), path)
        return

    def leaf(at: KeyPath, value: Any) -> Any:
        if at not in fit.pairs:
            return value
        return value if fit.fill(at, value) else fit.value(at, value)

    _give(item, item.value, tree.replaced(item.provider.tree(item.value), _CLASSIFY, leaf, path=path), path)


def _give(item: StateObject, value: Any, state: Any, path: KeyPath) -> None:
    try:
        item.provider.restore(value, state)
    except CheckpointError:
        raise
    except Exception as error:
        raise StructureError(
            f"{path or 'the root'}: the {type(value).__name__} did not take its saved state: {error}\n"
            "  Make it as it was when it was saved, or leave it out with `exclude`."
        ) from error


def reader(
    source: Source, path: KeyPath, array: StoredArray, wanted: LeafSpec, *, lazy: bool = False
) -> Callable[..., Array]:
    """Return the function that reads boxes of a stored leaf in the dtype that is wanted."""
    target = dtype_info(wanted.dtype).numpy
    same = array.dtype.lstrip(">") == wanted.dtype.lstrip(">")

    def read(box: Box, out: Array | None = None) -> Array:
        if lazy and out is None and same and box == Box.whole(array.shape):
            data = source.mapped(path, array)
        elif array.dtype == wanted.dtype:
            return source.read(path, array, box, out)
        else:
            data = source.read(path, array, box)
        if data.dtype != target:
            data = data.astype(target)
        if out is None:
            return data
        out[...] = data
        return out

    return read


def number_reader(value: Any, wanted: LeafSpec) -> Callable[..., Array]:
    """Return the function that gives a stored number as the 0-d array that is wanted."""

    def read(box: Box, out: Array | None = None) -> Array:
        data = np.asarray(value).astype(dtype_info(wanted.dtype).numpy)
        if out is None:
            return data
        out[...] = data
        return out

    return read


def _python_number(like: Any, array: Array) -> Any:
    if isinstance(like, np.generic):
        return array[()].astype(like.dtype) if array.dtype != like.dtype else array[()]
    if type(like) in (bool, int, float, complex):
        return type(like)(array[()])
    return array.item()


def _spec_of(value: Any, path: KeyPath) -> LeafSpec:
    if value is SKIP:
        return LeafSpec("skip", "skip")
    if isinstance(value, LeafSpec):
        return value
    adapter = adapter_of(value)
    if adapter is not None:
        try:
            return adapter.spec(value)
        except UnsupportedLeafError as error:
            raise UnsupportedLeafError(f"{path or 'the root'} of `like`: {error}") from error
    spec = value_spec(value)
    if spec is None:
        raise UnsupportedLeafError(f"{path or 'the root'} of `like`: a {type(value).__name__} has no spec")
    return spec


def _abstract(value: Any) -> bool:
    adapter = adapter_of(value)
    return isinstance(value, LeafSpec) or (adapter is not None and adapter.abstract(value))
