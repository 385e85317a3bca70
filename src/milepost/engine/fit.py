# SPDX-License-Identifier: Apache-2.0
"""Compare a `like` with what is saved, all of it before anything is read: which stored leaf goes where."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, final

import numpy as np

from milepost.adapters import Array, Classifier, adapter_of
from milepost.engine.ahead import Wanted
from milepost.engine.stored import Stored, converted, number_reader, reader
from milepost.errors import StructureError, UnsupportedLeafError
from milepost.model import keypath, tree
from milepost.model.keypath import Globs, KeyPath, under
from milepost.model.leaf import Box, LeafSpec, data_spec, dtype_info
from milepost.model.match import compare
from milepost.model.tree import SKIP, Flat, StateObject
from milepost.model.value import fitted, shown, value_spec

CLASSIFY = Classifier()
_STATE = LeafSpec("value", "state")


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
    frameworks: Literal["numpy", "saved"] = "numpy"


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """What a load would do, found out without reading an array; it holds nothing of the tree that it was made with.

    Attributes:
        read: path in the tree -> path of what is saved, for all that would be read.
        kept: paths in the tree that would keep what is there.
        unread: what is saved and would not be read.
    """

    read: dict[KeyPath, KeyPath]
    kept: tuple[KeyPath, ...] = ()
    unread: tuple[KeyPath, ...] = ()


@final
class Fit:
    """A `like` that was compared with what is saved: which stored leaf goes where.

    Attributes:
        leaves: the leaves of `like`, at every path that they stand at.
        objects: its objects with state, the same way.
        whole: paths of states, or parts of one, that are given back whole.
        pairs: path in `like` -> saved path.
    """

    def __init__(self, stored: Stored, like: Any, options: Options) -> None:
        self.stored, self.options = stored, options
        self.leaves, self.objects, self.whole = _spread(tree.flatten(like, CLASSIFY, rank=stored.rank, present=True))
        entries = stored.entries(stored.rank)
        states = set(self._saved_states(entries).values())
        self.there = {path: there for path, there in entries.items() if not states or not _below(path, states)}
        self.specs = {path: _spec_of(value, path) for path, value in self.leaves.items()}
        match = compare(
            {path: stored.spec(there) for path, there in self.there.items()} | dict.fromkeys(states, _STATE),
            self.specs | dict.fromkeys(self.whole, _STATE),
            rename=options.rename, missing=options.missing, unexpected=options.unexpected, dtype=options.dtype,
            only=options.only, exclude=options.exclude,
            keepable=self.whole | {path for path, value in self.leaves.items() if not abstract(value)},
        )  # fmt: skip
        match.raise_for(stored.where)
        self.pairs, self._kept = match.pairs, match.kept
        self._saved = [*self.there, *states]
        self.values: dict[KeyPath, Any] = {}
        self._placed: dict[tuple[Any, ...], Any] = {}
        for path in self.pairs:
            if path not in self.whole:
                self._check(path, self.leaves[path])

    def _saved_states(self, entries: Iterable[KeyPath]) -> dict[KeyPath, KeyPath]:
        """Return path in `like` -> saved path of what is given back whole."""
        rules = [keypath.renamer(glob, name) for glob, name in self.options.rename.items()]
        if not rules or not self.whole:
            return {path: path for path in self.whole if self.stored.at(path) is not None}
        saved: dict[KeyPath, KeyPath] = {}
        for path in dict.fromkeys(node for entry in entries for node in _ancestors(entry)):
            names = (name for rule in rules if (name := rule(path)) is not None)
            saved.setdefault(next(names, path), path)
        return {path: saved[path] for path in self.whole if path in saved}

    def _check(self, path: KeyPath, like: Any) -> None:
        """Find out whether a leaf can become what `like` wants, before anything is read or changed."""
        there, spec, adapter = self.there[self.pairs[path]], self.specs[path], adapter_of(like)
        if there in self.stored.table.arrays:
            if adapter is not None:
                adapter.check_like(like, spec)
            return
        self.values[path] = value = fitted(like, self.stored.table.values[there], path)
        if spec.kind != "value":
            _check_number(value, spec, path)

    @property
    def comparison(self) -> Comparison:
        """What was found out."""
        read = set(self.pairs.values())
        return Comparison(dict(self.pairs), self._kept, tuple(path for path in self._saved if path not in read))

    def value(self, path: KeyPath, like: Any) -> Any:
        """Return the stored leaf for a path, as `like`'s framework has it; `like` itself when nothing goes there."""
        saved = self.pairs.get(path)
        if saved is None:
            return like
        there, spec = self.there[saved], self.specs[path]
        array = self.stored.table.arrays.get(there)
        if array is None and spec.kind == "value":
            return self.values[path]
        if array is not None and spec.kind == "value":
            return _python_number(like, self.stored.leaf(there))
        key = (there, path if array is None else "", spec, *_make(like))
        if key not in self._placed:  # what was saved shared comes back shared
            read, adapter = self._reader(path), adapter_of(like)
            whole = Box.whole(data_spec(spec).shape)
            self._placed[key] = placed = read(whole) if adapter is None else adapter.place(like, spec, read)
            if array is not None:
                self.stored.note(there, spec, placed)
        return self._placed[key]

    def fill(self, path: KeyPath, target: Any) -> None:
        """Read the stored leaf for a path into the array `target`."""
        adapter = adapter_of(target)
        assert adapter is not None
        adapter.fill(target, self.specs[path], self._reader(path))

    def _reader(self, path: KeyPath) -> Callable[..., Array]:
        there, wanted = self.there[self.pairs[path]], data_spec(self.specs[path])
        array = self.stored.table.arrays.get(there)
        if array is None:
            return number_reader(self.values[path], wanted)
        return reader(self.stored.source, there, array, wanted, lazy=self.options.lazy)

    def wanted(self, *, in_place: bool) -> Iterator[Wanted]:
        """Yield the stored arrays that will be read whole.

        Args:
            in_place: they are read into the memory of `like` where that can be.
        """
        arrays, states = self.stored.table.arrays, {self.source(path) for path in self.pairs if path in self.whole}
        if states:
            yield from (Wanted(there, array) for there, array in arrays.items() if _below(there, states))
        for path, saved in self.pairs.items():
            array = None if path in self.whole else arrays.get(self.there[saved])
            like = self.leaves.get(path)
            adapter = adapter_of(like)
            if array is None:
                continue
            out = None
            if (
                in_place
                and adapter is not None
                and array.spec == self.specs[path]
                and adapter.nature(like) == "variable"
            ):
                out = adapter.memory(like)
            yield Wanted(self.there[saved], array, out)

    def state(self, path: KeyPath) -> Any:
        """Return the whole stored state for a path."""
        found = self.stored.at(self.pairs[path])
        assert found is not None  # it was there when it was compared
        return self.stored.state(*found)

    def inside(self) -> dict[KeyPath, list[KeyPath]]:
        """Return what is to be given to each object with state: its own path, or those of its parts."""
        found: dict[KeyPath, list[KeyPath]] = {}
        for path in self.pairs if self.objects else ():
            owner = next((node for node in _ancestors(path) if node in self.objects), None)
            if owner is not None:
                found.setdefault(owner, []).append(path)
        return found

    def source(self, path: KeyPath) -> Hashable:
        """Return a key that is equal for paths that get the same stored leaf or state."""
        if path not in self.whole:
            return self.there[self.pairs[path]]
        found = self.stored.at(self.pairs[path])
        return None if found is None else found[1]


def _spread(flat: Flat) -> tuple[dict[KeyPath, Any], dict[KeyPath, StateObject], set[KeyPath]]:
    """Return leaves, objects and parts that are given back whole, without ranks, at every path that they stand at."""

    def seen(path: KeyPath) -> KeyPath:
        return flat.unranked.get(path, path)

    leaves = {seen(path): value for path, value in flat.leaves.items()}
    objects = {seen(item.path): item for item in flat.objects}
    whole = {seen(path) for path in flat.whole}
    for place, first in ((seen(place), seen(first)) for place, first in flat.aliases.items()):
        if first in objects:
            objects[place] = objects[first]
            inside = {path: place + path[len(first) :] for path in [*leaves, *whole] if under(path, first)}
            leaves |= {new: leaves[path] for path, new in inside.items() if path in leaves}
            whole |= {new for path, new in inside.items() if path in whole}
        else:
            leaves[place] = leaves[first]
    return leaves, objects, whole


def _ancestors(path: KeyPath) -> Iterator[KeyPath]:
    """Yield the path of every node on the way, from the root to the path itself."""
    yield keypath.ROOT
    for place, char in enumerate(path):
        if char == "/":
            yield path[:place]
    yield path


def _below(path: KeyPath, nodes: Container[Hashable]) -> bool:
    return any(node in nodes for node in _ancestors(path))


def _check_number(value: Any, spec: LeafSpec, path: KeyPath) -> None:
    """Refuse a saved number that a 0-d array cannot hold: an integer must fit exactly, a float in range."""
    dtype = dtype_info(spec.dtype).numpy
    if getattr(value, "dtype", None) == dtype:
        return
    try:
        held = converted(np.asarray(value), dtype, None)
        fits = held.item() == value if isinstance(value, int) else bool(np.isinf(held) <= np.isinf(value))
    except (OverflowError, TypeError, ValueError):
        fits = False
    if not fits:
        raise StructureError(
            f"{path or 'the root'}: the saved number {shown(value)} does not fit {spec}\n"
            "  Give a `like` with a wider dtype, or `mp.SKIP` there."
        )


def _python_number(like: Any, array: Array) -> Any:
    if isinstance(like, np.generic):
        dtype: Any = cast("np.generic[Any]", like).dtype
        return converted(array, dtype, None)[()]
    if type(like) in (bool, int, float, complex):
        return type(like)(array[()])
    return array.item()


def _make(like: Any) -> tuple[Any, ...]:
    """Return what two leaves of `like` must have in common for one array to stand for both."""
    kind = cast("type[object]", type(like))
    names = ("committed", "weak_type") if hasattr(like, "sharding") else ("device", "requires_grad")
    return kind, getattr(like, "sharding", None), *(getattr(like, name, None) for name in names)


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
    assert spec is not None  # `flatten` refused everything else
    return spec


def abstract(value: Any) -> bool:
    adapter = adapter_of(value)
    return isinstance(value, LeafSpec) or (adapter is not None and adapter.nature(value) == "abstract")
