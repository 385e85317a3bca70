# SPDX-License-Identifier: Apache-2.0
"""Changes to a state that was just made: what is known already from another run."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, final

import milepost as mp
from milepost.compat.kauldron.checkpointer import find
from milepost.compat.kauldron.items import DEFAULT


class InitTransform(ABC):
    """Changes values of a new state, never its structure, shapes or dtypes."""

    @abstractmethod
    def transform(self, state: Any) -> Any:
        """Return the state with other values, before its optimizer is made."""

    def transform_after_optimizer(self, state: Any) -> Any:
        """Return the state with other values, once its optimizer is made."""
        return state


@final
class NoopTransform(InitTransform):
    """Changes nothing."""

    def transform(self, state: Any) -> Any:
        return state


@final
class MultiTransform(InitTransform):
    """One transform after the other; an error names the one it came from."""

    def __init__(self, **transforms: InitTransform) -> None:
        self.transforms = transforms

    def transform(self, state: Any) -> Any:
        return self._each(state, "transform")

    def transform_after_optimizer(self, state: Any) -> Any:
        return self._each(state, "transform_after_optimizer")

    def _each(self, state: Any, phase: str) -> Any:
        for name, transform in self.transforms.items():
            try:
                state = getattr(transform, phase)(state)
            except Exception as error:
                first, *rest = error.args or ("",)
                error.args = (f"{name}: {first}", *rest)
                raise
        return state


@dataclass(frozen=True, kw_only=True)
class PartialKauldronLoader(InitTransform):
    """Copies parts of another run's state into a new one, which keeps its types and shardings; a context manager.

    Args:
        workdir: the other run's.
        new_to_old: dotted path in the new state -> in the saved one. Paths at or below `opt_state` wait for the
            optimizer.
        ignore_model_keys: globs over keys below a new path that stay as they are (`head.**`; `/` or `.` between names).
        ignore_restored_keys: globs over saved keys that need not be in the new state.
        step: of the other run, -1 for its latest.
        lightweight_initialize: taken, and nothing left to do for it.

    Raises:
        ValueError: the parts differ otherwise.
        FileNotFoundError: there is no such checkpoint.
    """

    workdir: Any
    new_to_old: Mapping[str, str] = field(default_factory=lambda: {"params": "params", "collections": "collections"})
    ignore_model_keys: Sequence[str] = ()
    ignore_restored_keys: Sequence[str] = ()
    step: int = -1
    lightweight_initialize: bool = False

    def transform(self, state: Any) -> Any:
        return self._copied(state, after=False)

    def transform_after_optimizer(self, state: Any) -> Any:
        return self._copied(state, after=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _copied(self, state: Any, *, after: bool) -> Any:
        paths = {new: old for new, old in self.new_to_old.items() if (new.split(".")[0] == "opt_state") == after}
        if not paths:
            return state
        checkpoint = find(Path(self.workdir) / "checkpoints", self.step)
        with checkpoint.lease():
            for new, old in paths.items():
                state = _with(state, new.split("."), lambda part, old=old: self._part(checkpoint, part, old))
        return state

    def _part(self, checkpoint: mp.Checkpoint, part: Any, old: str) -> Any:
        saved = checkpoint.at("/".join([DEFAULT, *old.split(".")]))
        exclude = [glob.replace(".", "/") for glob in self.ignore_model_keys]
        try:
            return saved.load(part, exclude=exclude, dtype="cast")
        except mp.StructureError as error:
            allowed = [glob.replace(".", "/") for glob in self.ignore_restored_keys]
            if not error.mismatches or not all(
                one.kind == "unexpected" and any(_matches(one.path, glob) for glob in allowed)
                for one in error.mismatches
            ):
                raise
        return saved.load(part, exclude=exclude, dtype="cast", unexpected="ignore")


@dataclass(frozen=True, kw_only=True)
class SimpleCheckpointLoader(InitTransform):
    """Takes `params` and `collections` of the same model's run; with `load_opt_state` `opt_state`, too."""

    workdir: Any
    step: int = -1
    load_opt_state: bool = False

    def transform(self, state: Any) -> Any:
        return PartialKauldronLoader(workdir=self.workdir, step=self.step).transform(state)

    def transform_after_optimizer(self, state: Any) -> Any:
        if not self.load_opt_state:
            return state
        paths = {"opt_state": "opt_state"}
        loader = PartialKauldronLoader(workdir=self.workdir, step=self.step, new_to_old=paths)
        return loader.transform_after_optimizer(state)


def _matches(path: str, glob: str) -> bool:
    """Return whether a glob matches a path or a node above it: `*` within a name, `**` over any number of names."""
    pattern = re.escape(glob).replace(r"/\*\*", "(?:/.*)?").replace(r"\*\*/", "(?:.*/)?")
    pattern = pattern.replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.fullmatch(f"(?:{pattern})(?:/.*)?", path) is not None


def _with(tree: Any, names: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """Return a state in which one part is changed; its containers are copied, not changed."""
    if not names:
        return change(tree)
    name, rest = names[0], names[1:]
    if isinstance(tree, Mapping):
        mapping = cast("Mapping[str, Any]", tree)
        new = {**mapping, name: _with(mapping[name], rest, change)}
        kind: Any = type(cast("object", tree))
        return new if kind is dict else kind(new)
    new = {name: _with(getattr(tree, name), rest, change)}
    for method in ("_replace", "replace"):  # of named tuples, and of Flax
        if hasattr(tree, method):
            return getattr(tree, method)(**new)
    return replace(tree, **new)
