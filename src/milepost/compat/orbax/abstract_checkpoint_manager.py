# SPDX-License-Identifier: Apache-2.0
"""What every checkpoint manager has."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from milepost.compat.orbax.metadata import RootMetadata, StepMetadata


@runtime_checkable
class AbstractCheckpointManager(Protocol):
    """Manages the checkpoints under a directory. What has all these members is one, whatever its base classes."""

    @property
    @abc.abstractmethod
    def directory(self) -> Path:
        """The directory that holds the steps."""

    @abc.abstractmethod
    def all_steps(self, read: bool = False) -> Sequence[int]:
        """Return all steps that the manager knows of; with `read`, list the directory anew."""

    @abc.abstractmethod
    def latest_step(self) -> int | None:
        """Return the step saved last, None when there is none."""

    @abc.abstractmethod
    def best_step(self) -> int | None:
        """Return the best step by `options.best_fn`, None when there is none."""

    @abc.abstractmethod
    def reload(self) -> None:
        """List the directory anew."""

    @abc.abstractmethod
    def reached_preemption(self, step: int) -> bool:
        """Return whether the machine is about to go away, and every process agrees on it."""
        ...

    @abc.abstractmethod
    def should_save(self, step: int) -> bool:
        """Return whether a save is due."""
        ...

    @abc.abstractmethod
    def delete(self, step: int) -> None:
        """Delete a step."""

    @abc.abstractmethod
    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Save a step, if one is due; return whether it was."""
        ...

    @abc.abstractmethod
    def restore(self, step: int | None, *args: Any, **kwargs: Any) -> Any:
        """Return what a step holds."""
        ...

    @abc.abstractmethod
    def item_metadata(self, step: int) -> Any:
        """Describe the items of a step."""

    @abc.abstractmethod
    def metadata(self, step: int | None = None) -> StepMetadata | RootMetadata:
        """Describe a step; or what all share, when no step is given."""
        ...

    @abc.abstractmethod
    def metrics(self, step: int) -> Any:
        """Return the metrics of a step, None when it has none."""

    @abc.abstractmethod
    def wait_until_finished(self) -> None:
        """Wait until the save in flight is durable."""

    @abc.abstractmethod
    def check_for_errors(self) -> None:
        """Raise what went wrong with a save that is over."""

    @abc.abstractmethod
    def close(self) -> None:
        """Wait, and give back what is held."""

    @classmethod
    def __subclasshook__(cls, other: type, /) -> bool:
        if cls is not AbstractCheckpointManager:
            return NotImplemented
        return all(hasattr(other, name) for name in _MEMBERS)


_MEMBERS = (
    "directory", "all_steps", "latest_step", "best_step", "reload", "reached_preemption", "should_save", "delete",
    "save", "restore", "item_metadata", "metadata", "metrics", "wait_until_finished", "check_for_errors", "close",
)  # fmt: skip
