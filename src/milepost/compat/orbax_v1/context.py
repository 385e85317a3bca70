# SPDX-License-Identifier: Apache-2.0
"""`Context`: the options that are in force in a `with` block, and in the calls of a Checkpointer."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, final

from milepost.compat.orbax_v1 import options as opt

_active: contextvars.ContextVar[Context | None] = contextvars.ContextVar("milepost_orbax_v1_context", default=None)
_NAMES = {
    "pytree_options": opt.PyTreeOptions,
    "array_options": opt.ArrayOptions,
    "async_options": opt.AsyncOptions,
    "multiprocessing_options": opt.MultiprocessingOptions,
    "file_options": opt.FileOptions,
    "checkpointables_options": opt.CheckpointablesOptions,
    "pathways_options": opt.PathwaysOptions,
    "deletion_options": opt.DeletionOptions,
    "memory_options": opt.MemoryOptions,
    "safetensors_options": opt.SafetensorsOptions,
    "atomicity_options": opt.AtomicityOptions,
}


@final
class Context:
    """Options for saving and loading, in namespaces: `ctx.pytree.loading.partial_load = True`.

    Nothing in it changes while it is active. Threads that the program starts itself do not inherit it.

    Args:
        context: the parent, from which options are copied; by default every option has its default.
    """

    def __init__(
        self,
        context: Context | None = None,
        *,
        pytree_options: opt.PyTreeOptions | None = None,
        array_options: opt.ArrayOptions | None = None,
        async_options: opt.AsyncOptions | None = None,
        multiprocessing_options: opt.MultiprocessingOptions | None = None,
        file_options: opt.FileOptions | None = None,
        checkpointables_options: opt.CheckpointablesOptions | None = None,
        pathways_options: opt.PathwaysOptions | None = None,
        checkpoint_layout: opt.CheckpointLayout | str | None = None,
        deletion_options: opt.DeletionOptions | None = None,
        memory_options: opt.MemoryOptions | None = None,
        safetensors_options: opt.SafetensorsOptions | None = None,
        atomicity_options: opt.AtomicityOptions | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "pytree_options": pytree_options,
            "array_options": array_options,
            "async_options": async_options,
            "multiprocessing_options": multiprocessing_options,
            "file_options": file_options,
            "checkpointables_options": checkpointables_options,
            "pathways_options": pathways_options,
            "deletion_options": deletion_options,
            "memory_options": memory_options,
            "safetensors_options": safetensors_options,
            "atomicity_options": atomicity_options,
        }
        self._parts: dict[str, Any] = {}
        for name, kind in _NAMES.items():
            source = given[name] if given[name] is not None else None if context is None else context._parts[name]
            self._parts[name] = kind() if source is None else copy.deepcopy(source)
        self._layout = opt.CheckpointLayout.ORBAX if context is None else context._layout
        if checkpoint_layout is not None:
            self._layout = opt.CheckpointLayout(checkpoint_layout)
        self._tokens: list[tuple[contextvars.Token[Any], contextvars.Token[Any]]] = []

    @property
    def pytree(self) -> opt.PyTreeOptions:
        return self._parts["pytree_options"]

    @property
    def array(self) -> opt.ArrayOptions:
        return self._parts["array_options"]

    @property
    def asynchronous(self) -> opt.AsyncOptions:
        return self._parts["async_options"]

    @property
    def multiprocessing(self) -> opt.MultiprocessingOptions:
        return self._parts["multiprocessing_options"]

    @property
    def file(self) -> opt.FileOptions:
        return self._parts["file_options"]

    @property
    def checkpointables(self) -> opt.CheckpointablesOptions:
        return self._parts["checkpointables_options"]

    @property
    def pathways(self) -> opt.PathwaysOptions:
        return self._parts["pathways_options"]

    @property
    def deletion(self) -> opt.DeletionOptions:
        return self._parts["deletion_options"]

    @property
    def memory(self) -> opt.MemoryOptions:
        return self._parts["memory_options"]

    @property
    def safetensors(self) -> opt.SafetensorsOptions:
        return self._parts["safetensors_options"]

    @property
    def atomicity(self) -> opt.AtomicityOptions:
        return self._parts["atomicity_options"]

    @property
    def checkpoint_layout(self) -> opt.CheckpointLayout:
        return self._layout

    @checkpoint_layout.setter
    def checkpoint_layout(self, value: opt.CheckpointLayout | str) -> None:
        if id(self) in opt.FROZEN.get():
            raise RuntimeError(
                "Context.checkpoint_layout cannot be set while the context is active\n"
                "  Set options before the `with` block."
            )
        self._layout = opt.CheckpointLayout(value)

    def __getattr__(self, name: str) -> Any:
        # The longer names (`ctx.array_options`) by which older programs read them.
        parts: dict[str, Any] = self.__dict__.get("_parts", {})
        if name in parts:
            return parts[name]
        raise AttributeError(f"Context has no {name!r}", name=name, obj=self)

    def __enter__(self) -> Context:
        frozen = opt.FROZEN.get() | {id(self), *(id(part) for part in _namespaces(self._parts.values()))}
        self._tokens.append((_active.set(self), opt.FROZEN.set(frozen)))
        return self

    def __exit__(self, *_: object) -> None:
        active, frozen = self._tokens.pop()
        _active.reset(active)
        opt.FROZEN.reset(frozen)


def _namespaces(parts: Any) -> Iterator[object]:
    for part in parts:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield part
            yield from _namespaces(vars(part).values())


def get_context(default: Context | None = None) -> Context:
    """Return the context of the enclosing `with` block, else `default`, else one with every default."""
    return _active.get() or default or Context()
