# SPDX-License-Identifier: Apache-2.0
"""What is told of a checkpoint without reading its arrays."""

from __future__ import annotations

import datetime as dt
import pprint
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

_T = TypeVar("_T")
PyTreeMetadata = Any
"""A saved tree in dicts and lists, with a NumpyMetadata or ArrayMetadata for each array."""


@dataclass(frozen=True, slots=True)
class NumpyMetadata:
    """An array that was saved from NumPy. As a leaf of an abstract tree it comes back as one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    storage_metadata: Any = None


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """An array that was saved from JAX. As a leaf of an abstract tree it comes back as one, sharded as it was."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: Any = None
    storage_metadata: Any = None


class CheckpointMetadata(Generic[_T]):
    """Describes a checkpoint at a path."""

    def __init__(
        self,
        path: Path,
        *,
        metadata: _T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
    ) -> None:
        self._path = path
        self._metadata = metadata
        self._init_ns = init_timestamp_nsecs
        self._commit_ns = commit_timestamp_nsecs
        self._custom = custom_metadata

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    @property
    def metadata(self) -> _T:
        """Its tree, or a dict of what each name holds; None where only the step was asked for."""
        return self._metadata

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When the save began, in nanoseconds since 1970."""
        return self._init_ns

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When it was committed, in nanoseconds since 1970."""
        return self._commit_ns

    @property
    def init_timestamp(self) -> dt.datetime | None:
        """When the save began."""
        return _time(self._init_ns)

    @property
    def commit_timestamp(self) -> dt.datetime | None:
        """When it was committed."""
        return _time(self._commit_ns)

    @property
    def custom_metadata(self) -> Any:
        """What the user said of it."""
        return self._custom

    def _shown(self) -> dict[str, str]:
        names = ("metadata", "init_timestamp_nsecs", "commit_timestamp_nsecs", "custom_metadata")
        return {name: str(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        return f"CheckpointMetadata({pprint.pformat(self._shown())})"


class StepCheckpointMetadata(CheckpointMetadata[_T]):
    """Describes one step of a Checkpointer."""

    def __init__(
        self,
        step: int,
        path: Path,
        *,
        metadata: _T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        metrics: Any = None,
    ) -> None:
        super().__init__(
            path,
            metadata=metadata,
            init_timestamp_nsecs=init_timestamp_nsecs,
            commit_timestamp_nsecs=commit_timestamp_nsecs,
            custom_metadata=custom_metadata,
        )
        self._step = step
        self._metrics = metrics

    @property
    def step(self) -> int:
        """The step."""
        return self._step

    @property
    def metrics(self) -> Any:
        """The metrics it was saved with, and those annotated since; None when there are none."""
        return self._metrics

    @property
    def time(self) -> dt.datetime:
        """When it was committed; of a step that is asked about, now."""
        time = self.commit_timestamp
        assert time is not None
        return time

    def _shown(self) -> dict[str, str]:
        return {"step": str(self.step), **super()._shown(), "metrics": str(self.metrics)}


@dataclass(frozen=True, kw_only=True)
class RootMetadata:
    """Describes all checkpoints of a Checkpointer."""

    directory: Path
    custom_metadata: Any = None

    def __repr__(self) -> str:
        shown = {"custom_metadata": str(self.custom_metadata), "directory": str(self.directory)}
        return f"RootMetadata({pprint.pformat(shown)})"


def nanoseconds(time: dt.datetime) -> int:
    """Return a time in nanoseconds since 1970."""
    return round(time.timestamp() * 1_000_000) * 1_000


def _time(ns: int | None) -> dt.datetime | None:
    return None if ns is None else dt.datetime.fromtimestamp(ns / 1e9, tz=dt.UTC)
