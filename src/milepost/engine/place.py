# SPDX-License-Identifier: Apache-2.0
"""Put stored leaves into the user's tree: read what was matched, then give objects their state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

from milepost.adapters import adapter_of
from milepost.engine.ahead import Wanted
from milepost.engine.fit import CLASSIFY, Fit, Options, abstract
from milepost.engine.stored import Stored
from milepost.errors import CheckpointError, StructureError, folded
from milepost.model import keypath, structure, tree
from milepost.model.keypath import KeyPath, join, under
from milepost.model.leaf import LeafSpec
from milepost.model.tree import SKIP, StateObject
from milepost.model.value import encode

_Change = tuple[KeyPath, Callable[[], None]]


def load_plain(stored: Stored, options: Options) -> Any:
    """Return the saved structure in builtin containers with NumPy leaves; what is not wanted comes as `SKIP`."""
    if options.lazy and options.frameworks != "numpy":
        raise StructureError('frameworks="saved" reads every leaf: it cannot be lazy')
    if options.rename or (options.missing, options.unexpected, options.dtype) != ("error", "error", "error"):
        raise StructureError(
            "`rename`, `missing`, `unexpected` and `dtype` say how the saved tree becomes `like`: they need a `like`"
        )
    globs = [] if options.only is None else [options.only] if isinstance(options.only, str) else list(options.only)
    entries = stored.entries(None)
    for glob in globs:
        if not any(map(keypath.matcher(glob), entries)):  # a misspelt glob would load nothing, and say nothing
            raise StructureError(f"only: {glob!r} matches nothing saved\n  Saved: {folded(keypath.top_level(entries))}")
    wanted = keypath.matcher(keypath.ROOT if options.only is None else globs)
    left_out = keypath.matcher(options.exclude)
    read: dict[KeyPath, Any] = {}  # what was saved shared comes back shared
    arrays = stored.table.arrays

    def leaf(path: KeyPath, there: KeyPath) -> Any:
        if not wanted(path) or left_out(path):
            return SKIP
        if there not in read:
            if options.frameworks == "saved":
                read[there] = reading.native(there)
            elif options.lazy and there in arrays:
                read[there] = reading.source.mapped(there, arrays[there])
            else:
                read[there] = reading.leaf(there)
        return read[there]

    with tree.collector_paused(), stored.ahead() as (reading, ahead):
        if not options.lazy:
            ahead.begin(
                Wanted(there, arrays[there])
                for path, there in entries.items()
                if there in arrays and wanted(path) and not left_out(path)
            )
        return structure.rebuild(stored.table.tree, leaf, node=stored.node, stored=stored.path)


def fit_like(stored: Stored, like: Any, options: Options) -> Fit:
    """Compare a tree with what is saved, for `load_like`."""
    fit = Fit(stored, like, options)
    for path in fit.inside():
        item = fit.objects[path]
        if not item.provider.by_value:
            raise StructureError(
                f"{stored.where}: {path or 'the root'} of `like` is a {type(item.value).__name__}, which has a state of"
                " its own\n  Use `load_into(tree)`, which restores such objects in place, or put `mp.SKIP` there."
            )
    return fit


def load_like(stored: Stored, like: Any, options: Options) -> Any:
    """Return a tree like `like` with the stored leaves; nothing of `like` is changed."""
    copies: dict[Hashable, Any] = {}

    def leaf(path: KeyPath, value: Any) -> Any:
        item = fit.objects.get(path)
        if item is None:
            return fit.value(path, value)
        if path not in fit.pairs:
            return value
        key = (id(value), fit.source(path))
        if key not in copies:  # what was shared stays shared
            copies[key] = copy.deepcopy(value)
            _give(item, copies[key], fit.state(path), path)
        return copies[key]

    with tree.collector_paused(), stored.ahead() as (reading, ahead):
        fit = fit_like(reading, like, options)
        if not options.lazy:
            ahead.begin(fit.wanted(in_place=False))
        return tree.replaced(like, CLASSIFY, leaf)


def fit_into(stored: Stored, target: Any, options: Options) -> tuple[Fit, list[_Change]]:
    """Compare a tree with what is saved, and return what `load_into` is then to do, one change after the other."""
    fit = Fit(stored, target, options)
    return fit, [*_object_changes(fit), *_leaf_changes(fit, target)]


def load_into(stored: Stored, target: Any, options: Options) -> None:
    """Put the stored leaves into `target`, in place; everything is compared before anything changes."""
    changed: dict[KeyPath, None] = {}
    with tree.collector_paused(), stored.ahead() as (reading, ahead):
        fit, changes = fit_into(reading, target, options)
        if not options.lazy:
            ahead.begin(fit.wanted(in_place=True))
        try:
            for path, change in changes:
                changed[path] = None  # what fails half-way has changed
                change()
        except Exception as error:
            # What is read ahead is read to where it goes.
            begun = [path for path, saved in fit.pairs.items() if fit.there.get(saved) in ahead.begun]
            changed |= {path: None for path, _ in changes if any(under(pair, path) for pair in begun)}
            error.add_note(f"Already changed, wholly or in part: {folded(path or 'the root' for path in changed)}.")
            raise


def _object_changes(fit: Fit) -> list[_Change]:
    """Return how objects get their state: first those that take it whole, as they are the likeliest to refuse it."""
    whole: list[_Change] = []
    by_leaf: list[_Change] = []
    sources: dict[int, tuple[KeyPath, list[Hashable]]] = {}
    empty: list[KeyPath] = []
    for path, pairs in fit.inside().items():
        item = fit.objects[path]
        source = [fit.source(pair) for pair in pairs]
        first, before = sources.setdefault(id(item.value), (path, source))
        if first != path:
            if before != source:
                raise StructureError(
                    f"{fit.stored.where}: one {type(item.value).__name__} stands at {first} and at {path}, which were"
                    " saved apart\n  Load one of them, with `exclude` for the other."
                )
            continue
        empty += [pair for pair in pairs if abstract(fit.leaves.get(pair))]
        if item.provider.by_leaf:
            by_leaf.append((path, _restorer(fit, path, item)))
        else:
            whole.append((path, _giver(fit, path, item)))
    if empty:
        raise StructureError(
            f"{fit.stored.where}: {len(empty)} arrays have no memory to load into: {folded(empty, 4)}\n"
            "  Give them some first, as `module.to_empty(device=...)` does."
        )
    return whole + by_leaf


def _giver(fit: Fit, path: KeyPath, item: StateObject) -> Callable[[], None]:
    return lambda: _give(item, item.value, fit.state(path), path)


def _restorer(fit: Fit, path: KeyPath, item: StateObject) -> Callable[[], None]:
    def restore() -> None:
        state = item.provider.tree(item.value)
        filled: dict[Hashable, Hashable] = {}
        for key, value in list(state.items()):
            at = join(path, keypath.segment(key))
            if at not in fit.pairs:
                continue
            adapter = adapter_of(value)
            if at in fit.whole:
                state[key] = fit.state(at)
            elif adapter is None or adapter.nature(value) != "variable":
                state[key] = fit.value(at, value)
            elif filled.setdefault(adapter.identity(value) or at, source := fit.source(at)) != source:
                state[key] = fit.value(at, value)  # tied, but saved apart: the object decides
            else:
                fit.fill(at, value)
        _give(item, item.value, state, path)

    return restore


def _leaf_changes(fit: Fit, target: Any) -> list[_Change]:
    setters = dict(tree.setters(target, CLASSIFY))
    inside = {path for paths in fit.inside().values() for path in paths}
    changes: list[_Change] = []
    fixed: list[KeyPath] = []
    filled: dict[Hashable, Hashable] = {}
    for path, value in fit.leaves.items():
        if path not in fit.pairs or path in inside:
            continue
        adapter = adapter_of(value)
        if adapter is not None and adapter.nature(value) == "variable":
            identity, source = adapter.identity(value), fit.source(path)
            if identity is None or identity not in filled:
                filled[identity or path] = source
                changes.append((path, _filler(fit, path, value)))
                continue
            if filled[identity] == source:
                continue
        if path in setters:
            changes.append((path, _setter(fit, path, value, setters[path])))
        elif adapter is not None or not _equal(fit.value(path, value), value):
            fixed.append(path)
    if fixed:
        raise StructureError(
            f"{fit.stored.where}: {len(fixed)} leaves cannot be changed in place: {folded(fixed, 4)}\n"
            "  They stand in a tuple, a frozen class or at the root, or share memory with others that were saved apart:"
            " use `load(like=...)` for that part."
        )
    return changes


def _filler(fit: Fit, path: KeyPath, target: Any) -> Callable[[], None]:
    return lambda: fit.fill(path, target)


def _setter(fit: Fit, path: KeyPath, like: Any, put: Callable[[Any], None]) -> Callable[[], None]:
    return lambda: put(fit.value(path, like))


def _equal(new: Any, old: Any) -> bool:
    return not isinstance(old, LeafSpec) and encode(new) == encode(old)  # NaN is then equal to itself


def _give(item: StateObject, value: Any, state: Any, path: KeyPath) -> None:
    try:
        item.provider.restore(value, state)
    except StructureError as error:
        raise StructureError(f"{path or 'the root'}: {error}") from None
    except CheckpointError:
        raise
    except Exception as error:
        raise StructureError(
            f"{path or 'the root'}: the {type(value).__name__} did not take its saved state:"
            f" {type(error).__name__}: {error}\n"
            "  Make it as it was when it was saved, or leave it out with `exclude`."
        ) from error
