# SPDX-License-Identifier: Apache-2.0
"""Changes to a state that was just made: what is known already from another run."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, final

import milepost as mp
from milepost.compat.kauldron.checkpointer import find
from milepost.compat.kauldron.items import DEFAULT, loaded


class InitTransform(ABC):
    """Changes values of a new state, never its structure, shapes or dtypes; a context manager."""

    @abstractmethod
    def transform(self, state: Any) -> Any:
        """Return the state with other values, before its optimizer is made."""

    def transform_after_optimizer(self, state: Any) -> Any:
        """Return the state with other values, once its optimizer is made."""
        return state

    def close(self) -> None: ...  # noqa: B027 nothing is open between two calls

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
                error.args = (f"init_transform {name!r} failed: {first}", *rest)
                raise
        return state


@dataclass(frozen=True, kw_only=True)
class PartialKauldronLoader(InitTransform):
    """Copies parts of another run's state into a new one, which keeps its types and shardings.

    Args:
        workdir, step: the other run's, -1 for its latest step.
        new_to_old: path in the new state -> in the saved one. Those at or below `opt_state` wait for the optimizer.
        ignore_model_keys: globs over keys below a new path that need not be saved (`head.**`).
        ignore_restored_keys: globs over saved keys that are not taken, and need not be in the new state.

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

    def _copied(self, state: Any, *, after: bool) -> Any:
        parts = {new: old for new, old in self.new_to_old.items() if (_names(new)[0] == "opt_state") == after}
        if not parts:
            return state
        checkpoint = find(Path(self.workdir) / "checkpoints", self.step)
        with checkpoint.lease():
            for new, old in parts.items():
                saved = checkpoint.at("/".join([DEFAULT, *_names(old)]))
                state = _changed(state, _names(new), lambda part, saved=saved: self._read(saved, part))
        return state

    def _read(self, saved: mp.Checkpoint, part: Any) -> Any:
        left_out = _matching(self.ignore_restored_keys, saved.leaves)
        try:
            return loaded(saved, part, left_out)
        except mp.StructureError as error:
            missing = [each.path for each in error.mismatches if each.kind == "missing"]
            absent = _matching(self.ignore_model_keys, missing)
            if not absent:
                raise
        return loaded(saved, part, left_out + absent)  # or tells what else differs


@dataclass(frozen=True, kw_only=True)
class SimpleCheckpointLoader(InitTransform):
    """Takes `params` and `collections` of the same model's run; with `load_opt_state` `opt_state`, too."""

    workdir: Any
    step: int = -1
    load_opt_state: bool = False

    def transform(self, state: Any) -> Any:
        return PartialKauldronLoader(workdir=self.workdir, step=self.step).transform(state)

    def transform_after_optimizer(self, state: Any) -> Any:
        parts = {"opt_state": "opt_state"} if self.load_opt_state else {}
        loader = PartialKauldronLoader(workdir=self.workdir, step=self.step, new_to_old=parts)
        return loader.transform_after_optimizer(state)


def _names(path: str) -> list[str]:
    return re.split(r"[./\[]", path.replace("]", ""))


def _matching(globs: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Return the paths at or below what a glob matches: `*` stands for one name, `**` for any number of them."""
    rules = [
        "".join("(.+/)?" if name == "**" else re.escape(name).replace(r"\*", "[^/]*") + "/" for name in _names(glob))
        for glob in globs
    ]
    return [path for path in paths if any(re.match(rule, f"{path}/") for rule in rules)]


def _changed(tree: Any, names: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """Return a state in which one part is changed; its containers are copied, not changed."""
    if not names:
        return change(tree)
    name, *rest = names
    if isinstance(tree, Mapping):
        mapping = cast("Mapping[str, Any]", tree)
        kind: Any = type(cast("object", tree))
        return kind({**mapping, name: _changed(mapping[name], rest, change)})
    if name.isdigit():
        return type(tree)(_changed(each, rest, change) if i == int(name) else each for i, each in enumerate(tree))
    new = {name: _changed(getattr(tree, name), rest, change)}
    return tree._replace(**new) if hasattr(tree, "_replace") else replace(tree, **new)
