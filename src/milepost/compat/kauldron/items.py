# SPDX-License-Identifier: Apache-2.0
"""What is saved of a state, and how it comes back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import milepost as mp

DEFAULT = "default"


class CheckpointItem(ABC):
    """Something that says itself what is saved of it, and how it comes back.

    The hooks give the tree to save; the tree to restore into, None for whatever was saved; and the item for what was
    read. Kauldron's own items have them too; where these wrap a tree in arguments of Orbax, it is taken out.
    """

    __slots__ = ()

    def __kd_ocp_handlers__(self) -> Any:
        return None  # nothing here asks for handlers of Orbax

    @abstractmethod
    def __kd_ocp_save_args__(self) -> Any: ...
    @abstractmethod
    def __kd_ocp_restore_args__(self) -> Any: ...

    def __kd_ocp_restore_post__(self, value: Any) -> Any:
        return value


class StandardCheckpointItem(CheckpointItem):
    """Mix-in for a tree of arrays. An instance of this very class stands for a tree that is not known."""

    __slots__ = ()

    def __kd_ocp_save_args__(self) -> Any:
        return self

    def __kd_ocp_restore_args__(self) -> Any:
        return None if type(self) is StandardCheckpointItem else self


class TopLevelCheckpointItem(CheckpointItem):
    """Mix-in for a named tuple of items. `DEFAULT_ITEM` names the one that can be restored alone."""

    __slots__ = ()
    DEFAULT_ITEM: str | None = None

    def __kd_ocp_save_args__(self) -> Any:
        return saved(self)

    def __kd_ocp_restore_args__(self) -> Any:
        return {name: _tree(item, "restore") for name, item in _named(self).items()}


def saved(state: Any) -> dict[str, Any]:
    """Return what is stored of each item, by name."""
    trees = {name: _tree(item, "save") for name, item in _named(state).items()}
    return {name: None if tree is mp.SKIP else tree for name, tree in trees.items()}


def restored(checkpoint: mp.Checkpoint, state: Any) -> Any:
    """Return the state as it was saved. Trees are read before any item takes its state: a failed read changes none."""
    read: dict[str, Any] = {}
    trees = [(name, item, _tree(item, "restore")) for name, item in _named(state).items()]
    for name, item, tree in sorted(trees, key=lambda each: mp.is_stateful(each[2])):
        part = checkpoint.at(name)
        if tree is mp.SKIP:
            value = item
        elif tree is None:
            value = part.load()
        elif mp.is_stateful(tree):
            _give(part, tree)
            value = tree
        else:
            value = loaded(part, tree)
        post = getattr(item, "__kd_ocp_restore_post__", None)
        read[name] = value if post is None or value is item else post(value)
    if not hasattr(state, "DEFAULT_ITEM"):
        return read[DEFAULT]
    return type(state)(*(read[DEFAULT if name == state.DEFAULT_ITEM else name] for name in state._fields))


def loaded(saved: mp.Checkpoint, like: Any, left_out: Sequence[str] = ()) -> Any:
    """Return a tree like another with what is saved; its dtypes win, as they did."""
    try:
        return saved.load(like, exclude=left_out, dtype="cast")
    except mp.StructureError as error:
        differ = [(each.kind, each.saved and each.saved.dtype) for each in error.mismatches]
        if set(differ) != {("unexpected", "none")}:
            raise
    # What was imported from Orbax: it writes None for a named tuple without fields, too.
    return saved.load(like, exclude=left_out, dtype="cast", unexpected="ignore")


def _give(saved: mp.Checkpoint, owner: Any) -> None:
    file = saved.leaves.get("process_0-of-1.json")  # what Grain wrote, imported from Orbax
    if file is None:
        saved.load_into(owner)
    else:
        state = bytes(file.read())
        owner.set_state(state if isinstance(owner.get_state(), bytes) else json.loads(state))


def _named(state: Any) -> dict[str, Any]:
    """Return the items of a state by the names they are saved under."""
    if not hasattr(state, "DEFAULT_ITEM"):
        return {DEFAULT: state}
    return {DEFAULT if name == state.DEFAULT_ITEM else name: getattr(state, name) for name in state._fields}


def _tree(item: Any, verb: str) -> Any:
    """Return the tree that a hook of an item gives: itself when it has none, `mp.SKIP` when it stores nothing."""
    hook = getattr(item, f"__kd_ocp_{verb}_args__", None)
    found = item if hook is None else hook()
    if all(kind.__name__ != "CheckpointArgs" for kind in type(found).__mro__):
        return found
    if hasattr(found, "item"):  # Orbax's own, and those of Grain
        return found.item
    if getattr(found, "value", None) is item:  # Kauldron's for iterators without a state
        return mp.SKIP
    raise TypeError(
        f"a {type(item).__name__} is stored by a handler of Orbax alone ({type(found).__name__})\n"
        "  Give it `get_state()` and `set_state()`, or save an iterator that has them (Grain's)."
    )
