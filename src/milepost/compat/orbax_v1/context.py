# SPDX-License-Identifier: Apache-2.0
"""`Context`: the options that are in force in a `with` block, and in the calls of a Checkpointer."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, final

from milepost.compat.orbax_v1 import options as opt

_T = TypeVar("_T")
_active: contextvars.ContextVar[Context | None] = contextvars.ContextVar("milepost_orbax_v1_context", default=None)
# Not in the context itself: several threads may be in one at a time.
_entered: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("milepost_orbax_v1_entered", default=())


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
        parent = context
        self._pytree = _own(pytree_options, parent and parent.pytree, opt.PyTreeOptions)
        self._array = _own(array_options, parent and parent.array, opt.ArrayOptions)
        self._asynchronous = _own(async_options, parent and parent.asynchronous, opt.AsyncOptions)
        self._multiprocessing = _own(
            multiprocessing_options, parent and parent.multiprocessing, opt.MultiprocessingOptions
        )
        self._file = _own(file_options, parent and parent.file, opt.FileOptions)
        self._checkpointables = _own(
            checkpointables_options, parent and parent.checkpointables, opt.CheckpointablesOptions
        )
        self._pathways = _own(pathways_options, parent and parent.pathways, opt.PathwaysOptions)
        self._deletion = _own(deletion_options, parent and parent.deletion, opt.DeletionOptions)
        self._memory = _own(memory_options, parent and parent.memory, opt.MemoryOptions)
        self._safetensors = _own(safetensors_options, parent and parent.safetensors, opt.SafetensorsOptions)
        self._atomicity = _own(atomicity_options, parent and parent.atomicity, opt.AtomicityOptions)
        layout = checkpoint_layout or (parent and parent.checkpoint_layout) or opt.CheckpointLayout.ORBAX
        self._layout = opt.CheckpointLayout(layout)

    @property
    def pytree(self) -> opt.PyTreeOptions:
        return self._pytree

    @property
    def array(self) -> opt.ArrayOptions:
        return self._array

    @property
    def asynchronous(self) -> opt.AsyncOptions:
        return self._asynchronous

    @property
    def multiprocessing(self) -> opt.MultiprocessingOptions:
        return self._multiprocessing

    @property
    def file(self) -> opt.FileOptions:
        return self._file

    @property
    def checkpointables(self) -> opt.CheckpointablesOptions:
        return self._checkpointables

    @property
    def pathways(self) -> opt.PathwaysOptions:
        return self._pathways

    @property
    def deletion(self) -> opt.DeletionOptions:
        return self._deletion

    @property
    def memory(self) -> opt.MemoryOptions:
        return self._memory

    @property
    def safetensors(self) -> opt.SafetensorsOptions:
        return self._safetensors

    @property
    def atomicity(self) -> opt.AtomicityOptions:
        return self._atomicity

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

    # The longer names by which older programs read them.
    pytree_options = pytree
    array_options = array
    async_options = asynchronous
    multiprocessing_options = multiprocessing
    file_options = file
    checkpointables_options = checkpointables
    pathways_options = pathways
    deletion_options = deletion
    memory_options = memory
    safetensors_options = safetensors

    def __enter__(self) -> Context:
        frozen = opt.FROZEN.get() | {id(self), *map(id, _namespaces(vars(self).values()))}
        _entered.set((*_entered.get(), (_active.set(self), opt.FROZEN.set(frozen))))
        return self

    def __exit__(self, *_: object) -> None:
        *before, (active, frozen) = _entered.get()
        _entered.set(tuple(before))
        _active.reset(active)
        opt.FROZEN.reset(frozen)


def _own(given: _T | None, inherited: _T | None, default: Callable[[], _T]) -> _T:
    source = given if given is not None else inherited
    return default() if source is None else copy.deepcopy(source)


def _namespaces(parts: Iterable[object]) -> Iterator[object]:
    for part in parts:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield part
            yield from _namespaces(vars(part).values())


def get_context(default: Context | None = None) -> Context:
    """Return the context of the enclosing `with` block, else `default`, else one with every default."""
    return _active.get() or default or Context()
