# SPDX-License-Identifier: Apache-2.0
"""Values of component states as trees that the engine stores, and back.

The engine keeps arrays of every framework, numbers, text, bytes, dates and paths as they are. What would come back as
something else is wrapped in a dict with one reserved key that names its kind; objects that own state (random
generators, modules) are stored beside the tree, so that each can be restored in place.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import random
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast, final

import numpy as np

import milepost as mp
from milepost.compat.earth2studio.errors import CheckpointSerializationError, CheckpointStateSchemaError

KIND = "$earth2studio"
Enums = Mapping[str, type[enum.Enum]]


def schema_of(state: Any) -> dict[str, str]:
    """Return field -> annotation and kind of default, which together decide whether a saved state fits."""
    return {field.name: f"{field.type!r}:{_default_kind(field)}" for field in dataclasses.fields(state)}


def schema_hash(schema: Mapping[str, str]) -> str:
    """Return the digest of a schema."""
    return hashlib.sha256("\n".join(f"{name}:{text}" for name, text in schema.items()).encode()).hexdigest()


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Return whether a dataclass may be made without this field."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default_kind(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"factory {getattr(field.default_factory, '__qualname__', type(field.default_factory).__qualname__)}"
    return "required" if field.default is dataclasses.MISSING else f"default {type(field.default).__qualname__}"


def enums_of(state: Any) -> Enums:
    """Return the enums that a dataclass names in annotations and defaults: no stored name is ever imported."""
    try:
        hints = typing.get_type_hints(cast("type[Any]", type(state)))
    except NameError:  # an annotation that names something of a function
        hints = {}
    found: list[Any] = [hint for field in dataclasses.fields(state) for hint in _parts(hints.get(field.name))]
    found += [type(field.default) for field in dataclasses.fields(state)]
    return {name_of(kind): kind for kind in found if isinstance(kind, type) and issubclass(kind, enum.Enum)}


def _parts(hint: Any) -> list[Any]:
    return [hint, *(part for argument in typing.get_args(hint) for part in _parts(argument))]


def name_of(kind: type) -> str:
    """Return a class's own name, `module.qualname`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def owns_state(value: Any) -> bool:
    """Return whether a value is stored by its state: a random generator, a module, an iterator."""
    kind = cast("type[object]", type(value))
    if isinstance(value, type):
        return False
    pairs = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
    has_pair = any(all(callable(getattr(kind, name, None)) for name in pair) for pair in pairs)
    return has_pair or isinstance(value, np.random.Generator | random.Random)


@final
class Encoder:
    """Turns values into trees; `objects` collects what owns state."""

    def __init__(self, enums: Enums) -> None:
        self.enums = enums
        self.objects: dict[str, Any] = {}

    def tree(self, value: Any, where: str) -> Any:
        """Return a value as a tree that the engine stores.

        Raises:
            CheckpointSerializationError: it would not come back as what it is.
        """
        if isinstance(value, enum.Enum):
            return self._enum(value, where)
        if isinstance(value, dict):
            items = cast("dict[Any, Any]", value)
            if KIND in items:
                raise CheckpointSerializationError(f"{where}: the key {KIND!r} is reserved\n  Use another one.")
            return {key: self.tree(item, f"{where}/{key}") for key, item in items.items()}
        if isinstance(value, tuple):
            return tuple(self.tree(item, f"{where}/{i}") for i, item in enumerate(cast("tuple[Any, ...]", value)))
        if isinstance(value, list):
            return [self.tree(item, f"{where}/{i}") for i, item in enumerate(cast("list[Any]", value))]
        if isinstance(value, set | frozenset):
            items = list(cast("set[Any]", value))
            return {KIND: "frozenset" if isinstance(value, frozenset) else "set", "value": self.tree(items, where)}
        if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
            return {KIND: f"torch.{type(value).__name__}", "value": str(value).removeprefix("torch.")}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.enums = {**self.enums, **enums_of(value)}
            fields = {f.name: self.tree(getattr(value, f.name), f"{where}/{f.name}") for f in dataclasses.fields(value)}
            return {KIND: "dataclass", "schema": schema_hash(schema_of(value)), "value": fields}
        if owns_state(value):
            key = str(len(self.objects))
            self.objects[key] = value
            return {KIND: "object", "type": name_of(cast("type[Any]", type(value))), "value": key}
        return value

    def _enum(self, value: enum.Enum, where: str) -> Any:
        name = name_of(type(value))
        if name not in self.enums:
            raise CheckpointSerializationError(
                f"{where} is a {type(value).__name__}, which no annotation or default of the state names, so that it"
                " could not be made again\n  Annotate the field with that enum, or store its `.name`."
            )
        return {KIND: "enum", "type": name, "value": value.name}


@final
class Decoder:
    """Turns stored trees into values. `changes` are what has to be done in place, once everything was read."""

    def __init__(self, objects: mp.Checkpoint | None, enums: Enums) -> None:
        self._objects, self._enums = objects, enums
        self.changes: list[Callable[[], None]] = []

    def value(self, tree: Any, current: Any = None) -> Any:
        """Return the value of a tree; `current` stands at its place now, and is restored in place where it can be."""
        if isinstance(tree, dict):
            items = cast("dict[Any, Any]", tree)
            if KIND in items:
                return self._marked(items, current)
            now = cast("dict[Any, Any]", current) if isinstance(current, dict) else {}
            return {key: self.value(item, now.get(key)) for key, item in items.items()}
        if isinstance(tree, tuple):
            return tuple(map(self.value, cast("tuple[Any, ...]", tree)))
        if isinstance(tree, list):
            return list(map(self.value, cast("list[Any]", tree)))
        return tree

    def _marked(self, items: dict[Any, Any], current: Any) -> Any:
        kind, stored = items[KIND], items["value"]
        if kind in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[kind](self.value(stored))
        if kind in ("torch.dtype", "torch.device"):
            torch: Any = sys.modules.get("torch")
            if torch is None:
                return stored
            return getattr(torch, stored) if kind == "torch.dtype" else torch.device(stored)
        if kind == "enum":
            return self._member(items["type"], stored, current)
        if kind == "dataclass":
            return self._dataclass(items, current)
        return self._object(items["type"], stored, current)

    def _member(self, name: str, member: str, current: Any) -> Any:
        known = type(current) if isinstance(current, enum.Enum) else None
        kind = known if known is not None and name_of(known) == name else self._enums.get(name)
        if kind is None or member not in kind.__members__:
            raise CheckpointStateSchemaError(f"saved: {member} of {name}, which is not there now")
        return kind[member]

    def _dataclass(self, items: dict[Any, Any], current: Any) -> Any:
        stored: dict[str, Any] = items["value"]
        fits = dataclasses.is_dataclass(current) and not isinstance(current, type)
        if not fits or schema_hash(schema_of(current)) != items["schema"]:
            return self.value(stored)
        self._enums = {**self._enums, **enums_of(current)}
        for name, tree in stored.items():
            self.changes.append(setter(current, name, self.value(tree, getattr(current, name))))
        return current

    def _object(self, name: str, key: str, current: Any) -> Any:
        assert self._objects is not None
        saved = self._objects.at(key)
        if owns_state(current) and name_of(cast("type[Any]", type(current))) == name:
            self.changes.append(lambda: saved.load_into(current))
            return current
        made = _new_generator(name)
        if made is None:
            raise CheckpointStateSchemaError(
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


def setter(state: Any, name: str, value: Any) -> Callable[[], None]:
    """Return what puts a restored value into a dataclass: a frozen one too, as the caller holds this very object."""
    return lambda: object.__setattr__(state, name, value)
