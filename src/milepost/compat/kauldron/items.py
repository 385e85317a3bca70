# SPDX-License-Identifier: Apache-2.0
"""What is saved of a state, and how it comes back."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import milepost as mp

DEFAULT = "default"


class CheckpointItem(ABC):
    """Something that says itself what is saved of it, and how it comes back.

    The last of the hooks makes the item from what was read. Kauldron's own items have these hooks too; where they wrap
    a tree in arguments of Orbax, the tree is taken out.
    """

    __slots__ = ()

    @abstractmethod
    def __kd_ocp_handlers__(self) -> Any:
        """Return handlers of Orbax; nothing here asks for them."""

    @abstractmethod
    def __kd_ocp_save_args__(self) -> Any:
        """Return the tree to save."""

    @abstractmethod
    def __kd_ocp_restore_args__(self) -> Any:
        """Return the tree to restore into, None for whatever was saved."""

    def __kd_ocp_restore_post__(self, value: Any) -> Any:
        """Return the item for what was read."""
        return value


class StandardCheckpointItem(CheckpointItem):
    """Mix-in for a tree of arrays. An instance of this very class stands for a tree that is not known."""

    __slots__ = ()

    def __kd_ocp_handlers__(self) -> Any:
        return None

    def __kd_ocp_save_args__(self) -> Any:
        return self

    def __kd_ocp_restore_args__(self) -> Any:
        return None if type(self) is StandardCheckpointItem else self


class TopLevelCheckpointItem(CheckpointItem):
    """Mix-in for a named tuple of items. `DEFAULT_ITEM` names the one that can be restored alone."""

    __slots__ = ()
    DEFAULT_ITEM: str | None = None

    def __kd_ocp_handlers__(self) -> Any:
        return None

    def __kd_ocp_save_args__(self) -> Any:
        return {name: saved(item) for name, item in named(self).items()}

    def __kd_ocp_restore_args__(self) -> Any:
        return {name: wanted(item) for name, item in named(self).items()}


def is_top_level(state: Any) -> bool:
    return hasattr(state, "DEFAULT_ITEM") and hasattr(state, "_fields")


def named(state: Any) -> dict[str, Any]:
    """Return the items of a state by the names they are saved under."""
    if not is_top_level(state):
        return {DEFAULT: state}
    return {DEFAULT if name == state.DEFAULT_ITEM else name: getattr(state, name) for name in state._fields}


_NOTHING: Any = object()


def _hook(item: Any, name: str) -> Any:
    """Return the tree that a hook of an item gives; itself when it has none, `_NOTHING` if it stores nothing."""
    hook = getattr(item, f"__kd_ocp_{name}_args__", None)
    found = item if hook is None else hook()
    if all(kind.__name__ != "CheckpointArgs" for kind in type(found).__mro__):
        return found
    if hasattr(found, "item"):  # Orbax's own, and those of Grain
        return found.item
    if getattr(found, "value", None) is item:  # Kauldron's for iterators without a state
        return _NOTHING
    raise TypeError(
        f"a {type(item).__name__} is stored by a handler of Orbax alone ({type(found).__name__})\n"
        "  Give it `get_state()` and `set_state()`, or save an iterator that has them (Grain's)."
    )


def saved(item: Any) -> Any:
    tree = _hook(item, "save")
    return None if tree is _NOTHING else tree


def wanted(item: Any) -> Any:
    return _hook(item, "restore")


def restored(saved: mp.Checkpoint, item: Any) -> Any:
    like = wanted(item)
    if like is _NOTHING:
        return item
    if like is None:
        value = saved.load()
    elif has_state(like):
        saved.load_into(like)
        value = like
    else:
        value = saved.load(like, dtype="cast")  # the state's dtypes win, as they did
    post = getattr(item, "__kd_ocp_restore_post__", None)
    return value if post is None or value is item else post(value)


def has_state(value: Any) -> bool:
    return any(
        callable(getattr(value, get, None)) and callable(getattr(value, put, None))
        for get, put in (("state_dict", "load_state_dict"), ("get_state", "set_state"))
    )


def donate(state: Any, restored: Any) -> None:
    """Free the JAX arrays of a state that was replaced: only now that the new one is there."""
    jax: Any = sys.modules.get("jax")
    if jax is not None:
        kept = {id(leaf) for leaf in jax.tree.leaves(restored)}
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array) and id(leaf) not in kept and not leaf.is_deleted():
                leaf.delete()
