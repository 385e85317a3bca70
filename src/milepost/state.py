# SPDX-License-Identifier: Apache-2.0
"""The state of a dataclass as a tree that the engine stores, and back into the very object.

The engine gives arrays, numbers, text, bytes, dates and paths back as what they were. What it would give back as
something else (enums, sets, dtypes and devices of PyTorch, nested dataclasses, objects with state) is wrapped in a dict
with one reserved key, which says how it is put back. No stored name is ever imported: enums are those that the class
itself names in annotations and defaults.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import random
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast, final

import numpy as np

from milepost.adapters import provider_of
from milepost.checkpoint import Checkpoint
from milepost.errors import StructureError, UnsupportedLeafError
from milepost.model import keypath
from milepost.model.keypath import KeyPath
from milepost.model.tree import PerProcess

__all__ = ["fields_of", "load_value", "name_of", "restore_fields", "schema_digest", "schema_of", "stored"]

_KIND, _OBJECT, _VALUE = "$kind", "$object", "value"
_Enums: TypeAlias = Mapping[str, type[enum.Enum]]


def name_of(kind: type) -> str:
    """Return a class's own name, `module.qualname`."""
    return f"{kind.__module__}.{kind.__qualname__}"


# --- what a state looks like


def schema_of(state: Any) -> dict[str, str]:
    """Return field -> annotation and kind of default, which together decide whether a saved state fits."""
    return {field.name: f"{field.type!r}:{_default_kind(field)}" for field in dataclasses.fields(state)}


def schema_digest(schema: Mapping[str, str]) -> str:
    """Return the digest of a schema."""
    return hashlib.sha256("\n".join(f"{name}:{text}" for name, text in schema.items()).encode()).hexdigest()


def _default_kind(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"factory {getattr(field.default_factory, '__qualname__', type(field.default_factory).__qualname__)}"
    return "required" if field.default is dataclasses.MISSING else f"default {type(field.default).__qualname__}"


def _enums_of(state: Any) -> _Enums:
    try:
        hints = typing.get_type_hints(cast("type[Any]", type(state)))
    except NameError:  # an annotation that names something of a function
        hints = {}
    found: list[Any] = [hint for field in dataclasses.fields(state) for hint in _parts(hints.get(field.name))]
    found += [type(field.default) for field in dataclasses.fields(state)]
    return {name_of(kind): kind for kind in found if isinstance(kind, type) and issubclass(kind, enum.Enum)}


def _parts(hint: Any) -> list[Any]:
    return [hint, *(part for argument in typing.get_args(hint) for part in _parts(argument))]


def is_dataclass(value: object) -> bool:
    """Return whether a value is an instance of a dataclass that the engine would give back as a dict of its fields."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type | PerProcess):
        return False
    jax: Any = sys.modules.get("jax")
    return jax is None or not hasattr(jax, "tree_util") or jax.tree_util.all_leaves([value])


# --- into a tree


def fields_of(state: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the fields of a dataclass as a tree that the engine stores; `names` are some of them.

    Raises:
        UnsupportedLeafError: a value would not come back as what it is.
    """
    enums = _enums_of(state)
    names = [field.name for field in dataclasses.fields(state)] if names is None else names
    return {name: _stored(getattr(state, name), name, enums) for name in names}


def stored_dict(state: dict[Any, Any]) -> dict[Any, Any]:
    """Return a dict as such a tree; `restore_dict` puts it back."""
    return _stored(state, "the dict", {})


def stored(value: Any, where: str) -> Any:
    """Return a value that belongs to no dataclass as such a tree; `load_value` gives it back.

    Raises:
        UnsupportedLeafError: it would not come back as what it is.
    """
    return _stored(value, where, None)


def _stored(value: Any, where: str, enums: _Enums | None) -> Any:
    if isinstance(value, enum.Enum):
        return _stored_enum(value, where, enums or {})
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        if reserved := {_KIND, _OBJECT} & items.keys():
            raise UnsupportedLeafError(f"{where}: the key {reserved.pop()!r} is reserved\n  Use another one.")
        return {key: _stored(item, f"{where}/{key}", enums) for key, item in items.items()}
    if isinstance(value, tuple):
        return tuple(_stored(item, f"{where}/{i}", enums) for i, item in enumerate(cast("tuple[Any, ...]", value)))
    if type(value) is list:
        return [_stored(item, f"{where}/{i}", enums) for i, item in enumerate(cast("list[Any]", value))]
    if isinstance(value, set | frozenset):
        items = _stored(list(cast("set[Any]", value)), where, enums)
        return {_KIND: "frozenset" if isinstance(value, frozenset) else "set", _VALUE: items}
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return {_KIND: f"torch.{type(value).__name__}", _VALUE: str(value).removeprefix("torch.")}
    if is_dataclass(value):
        return {_KIND: "dataclass", "schema": schema_digest(schema_of(value)), _VALUE: fields_of(value)}
    if provider_of(value) is not None:
        if enums is None:
            raise UnsupportedLeafError(f"{where} is an object with a state of its own\n  Bind it as a state.")
        return {_OBJECT: name_of(cast("type[Any]", type(value))), _VALUE: value}
    return value


def _stored_enum(value: enum.Enum, where: str, enums: _Enums) -> Any:
    name = name_of(type(value))
    if name not in enums:
        raise UnsupportedLeafError(
            f"{where} is a {type(value).__name__}, which no annotation or default of the state names, so that it could"
            " not be made again\n  Annotate the field with that enum, or store its `.name`."
        )
    return {_KIND: "enum", "type": name, _VALUE: value.name}


# --- back


def load_value(view: Checkpoint) -> Any:
    """Return what `stored` was given."""
    return _Decoder(view, {}).value(view.load(frameworks="saved"), keypath.ROOT, None)


def restore_fields(state: Any, view: Checkpoint, names: Iterable[str]) -> None:
    """Put saved fields into a dataclass, a frozen one too, as the caller holds this very object.

    Objects with state and nested dataclasses that stand there are restored in place. Everything is read first.

    Raises:
        StructureError: a saved value has no place here.
        CorruptionError: bytes are not those that were written; nothing was changed.
    """
    decoder = _Decoder(view, _enums_of(state))
    for name in names:
        path, current = keypath.segment(name), getattr(state, name)
        value = decoder.placed(view.tree[name], path, current)
        decoder.changes.append(_setter(state, name, value))
    for change in decoder.changes:
        change()


def restore_dict(state: dict[Any, Any], view: Checkpoint) -> None:
    """Make a dict what was saved of it; objects with state that stand in it are restored in place."""
    decoder = _Decoder(view, {})
    saved = decoder.value(view.load(frameworks="saved"), keypath.ROOT, state)
    for change in decoder.changes:
        change()
    state.clear()
    state.update(saved)


def _setter(state: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: object.__setattr__(state, name, value)


@final
class _Decoder:
    """Turns stored trees into values; `changes` are what has to be done in place, once everything was read."""

    def __init__(self, view: Checkpoint, enums: _Enums) -> None:
        self._view, self._enums = view, enums
        self.changes: list[Callable[[], None]] = []

    def placed(self, tree: Any, path: KeyPath, current: Any) -> Any:
        """Return the value at a path; the state of an object is not read beside."""
        if isinstance(tree, dict) and _OBJECT in tree:
            kind = self._view.at(keypath.join(path, keypath.segment(_OBJECT))).load()
            return self._object(str(kind), path, current)
        return self.value(self._view.at(path).load(frameworks="saved"), path, current)

    def value(self, tree: Any, path: KeyPath, current: Any) -> Any:
        """Return the value of a tree; `current` stands at its place now, and is restored in place where it can be."""
        if isinstance(tree, dict):
            items = cast("dict[Any, Any]", tree)
            if _OBJECT in items:
                return self._object(items[_OBJECT], path, current)
            if _KIND in items:
                return self._marked(items, path, current)
            now = cast("dict[Any, Any]", current) if isinstance(current, dict) else {}
            return {
                key: self.value(item, keypath.join(path, keypath.segment(key)), now.get(key))
                for key, item in items.items()
            }
        if isinstance(tree, tuple | list):
            parts = enumerate(cast("list[Any]", tree))
            values = [self.value(item, keypath.join(path, str(i)), None) for i, item in parts]
            return tuple(values) if isinstance(tree, tuple) else values
        return tree

    def _marked(self, items: dict[Any, Any], path: KeyPath, current: Any) -> Any:
        kind, value = items[_KIND], items[_VALUE]
        there = keypath.join(path, _VALUE)
        if kind in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[kind](self.value(value, there, None))
        if kind in ("torch.dtype", "torch.device"):
            torch: Any = sys.modules.get("torch")
            if torch is None:
                return value
            return getattr(torch, value) if kind == "torch.dtype" else torch.device(value)
        if kind == "enum":
            return self._member(items["type"], value, current)
        fits = is_dataclass(current) and schema_digest(schema_of(current)) == items["schema"]
        if not fits:
            return self.value(value, there, None)
        self._enums = {**self._enums, **_enums_of(current)}
        for name, tree in value.items():
            part = self.value(tree, keypath.join(there, keypath.segment(name)), getattr(current, name))
            self.changes.append(_setter(current, name, part))
        return current

    def _member(self, name: str, member: str, current: Any) -> Any:
        known = type(current) if isinstance(current, enum.Enum) else None
        kind = known if known is not None and name_of(known) == name else self._enums.get(name)
        if kind is None or member not in kind.__members__:
            raise StructureError(f"saved: {member} of {name}, which is not there now")
        return kind[member]

    def _object(self, name: str, path: KeyPath, current: Any) -> Any:
        saved = self._view.at(keypath.join(path, _VALUE))
        if provider_of(current) is not None:
            self.changes.append(lambda: saved.load_into(current))
            return current
        made = _new_generator(name)
        if made is None:
            raise StructureError(
                f"saved: the state of a {name}, to be restored in place, and no such object is there now\n"
                "  Make it before the state is bound."
            )
        saved.load_into(made)
        return made


def _new_generator(name: str) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and name == name_of(torch.Generator):
        return torch.Generator()
    known = {name_of(random.Random): random.Random, name_of(np.random.Generator): np.random.default_rng}
    make = known.get(name)
    return None if make is None else make()
