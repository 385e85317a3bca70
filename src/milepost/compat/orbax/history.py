# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that a manager knows of, in the order in which it learned of them."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, final

import milepost as mp
from milepost.compat.orbax.preservation_policy import PreservationContext, PreservationPolicy
from milepost.compat.orbax.record import RECORD
from milepost.interop.orbax import OrbaxStep

_BARE = "value"


@dataclass
class CheckpointInfo:
    """One checkpoint as policies see it."""

    step: int
    time: dt.datetime
    metrics: Any | None


@final
class _Unread:
    """A step that was listed; its records are read when somebody asks for them."""

    def __init__(self, catalog: mp.Catalog, step: int) -> None:
        self._catalog, self.step = catalog, step

    @cached_property
    def _info(self) -> CheckpointInfo:
        return _read(self._catalog, self.step) or CheckpointInfo(self.step, _NEVER, None)

    @property
    def time(self) -> dt.datetime:
        return self._info.time

    @property
    def metrics(self) -> Any:
        return self._info.metrics


@final
class History:
    """What a manager knows of its checkpoints; changed by the manager's own thread alone."""

    def __init__(self) -> None:
        self._known: dict[int, CheckpointInfo | _Unread] = {}
        self.newest_whole: mp.Checkpoint | None = None
        """The checkpoint to go on from, where later ones are damaged; None when the latest is whole."""

    def load(
        self, catalog: mp.Catalog | None, theirs: Mapping[int, OrbaxStep] | None = None, *, lightly: bool = False
    ) -> None:
        """Learn anew what there is, by step.

        A step whose manifest is damaged is left out, with a warning: it can neither be restored nor judged.

        Args:
            catalog: the root; None when there is none.
            theirs: steps that Orbax itself wrote in the same directory.
            lightly: list only; times and metrics are read when a policy asks for them.
        """
        self._known, self.newest_whole = {}, None
        theirs, last = theirs or {}, None
        for step in sorted({*(catalog or ()), *theirs}):
            if catalog is None or step not in catalog:
                info = _read_theirs(theirs[step])
                if info is not None:
                    self._known[step] = info
                continue
            if lightly:
                self._known[step] = _Unread(catalog, step)
                continue
            info = _read(catalog, step)
            if info is None:
                self.newest_whole = None if last is None else catalog[last]
            elif info is not _SUPERSEDED:
                self._known[step], self.newest_whole, last = info, None, step

    @property
    def steps(self) -> list[int]:
        """The steps, in the order in which they were learned of or saved."""
        return list(self._known)

    def infos(self) -> list[Any]:
        """Return what policies see, in the same order."""
        return list(self._known.values())

    def doomed(self, policy: PreservationPolicy, new: CheckpointInfo) -> list[int]:
        """Return the steps that a policy gives up when a new one is saved.

        Judged by step, as they are after a restart: a step that was forced behind the latest does not take its place.
        It stays until the next save.
        """
        known = sorted([*self.infos(), new], key=lambda info: info.step)
        kept = policy.should_preserve(known, context=PreservationContext())
        behind = new is not known[-1]
        return [
            info.step
            for info, keep in zip(known, kept, strict=True)
            if not keep and not (behind and info is new)
        ]  # fmt: skip

    def saved(self, info: CheckpointInfo, doomed: Sequence[int]) -> Callable[[], None]:
        """Add a step and forget those that go; return what undoes it when the save fails."""
        before = dict(self._known)
        self._known[info.step] = info
        for step in doomed:
            self._known.pop(step, None)
        self.newest_whole = None

        def undo() -> None:
            self._known = before

        return undo

    def forget(self, step: int) -> None:
        """Take a step out."""
        self._known.pop(step, None)

    def add(self, saving: CheckpointInfo, doomed: Sequence[int]) -> None:
        """After `load`, add the step that is still being saved, and leave out those that go with it."""
        for step in doomed:
            self._known.pop(step, None)
        self._known[saving.step] = saving


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)
_SUPERSEDED = CheckpointInfo(-1, _NEVER, None)


def _read(catalog: mp.Catalog, step: int) -> CheckpointInfo | None:
    """Return what policies see of a step; None, with a warning, when it is damaged."""
    try:
        checkpoint = catalog.get(step)
    except mp.CorruptionError as error:
        text = str(error).partition("\n")[0]
        warnings.warn(f"step {step} is left out: {text}", RuntimeWarning, stacklevel=5)
        return None
    if checkpoint is None:  # deleted since it was listed
        return _SUPERSEDED
    superseded, metrics, created = False, None, checkpoint.created
    try:
        superseded, metrics, created = checkpoint.info.superseded, metrics_of(checkpoint), _committed(checkpoint)
    except mp.CorruptionError as error:
        text = str(error).partition("\n")[0]
        warnings.warn(f"the metrics of step {step} cannot be read: {text}", RuntimeWarning, stacklevel=5)
    return _SUPERSEDED if superseded else CheckpointInfo(step, created, metrics)


def _committed(checkpoint: mp.Checkpoint) -> dt.datetime:
    """Return when a step was committed; of one that was imported, when Orbax did."""
    record: Any = checkpoint.metadata.get(RECORD)
    said = cast("dict[str, Any]", record).get("commit_timestamp_nsecs") if isinstance(record, dict) else None
    return checkpoint.created if said is None else _EPOCH + dt.timedelta(microseconds=said // 1_000)


def _read_theirs(step: OrbaxStep) -> CheckpointInfo | None:
    """Return what policies see of a step that Orbax wrote; None, with a warning, when its record is damaged."""
    try:
        created = step.created
    except mp.CheckpointError as error:
        text = str(error).partition("\n")[0]
        warnings.warn(f"step {step.step} is left out: {text}", RuntimeWarning, stacklevel=5)
        return None
    try:
        return CheckpointInfo(step.step, created, step.metrics)
    except mp.CorruptionError as error:
        text = str(error).partition("\n")[0]
        warnings.warn(f"the metrics of step {step.step} cannot be read: {text}", RuntimeWarning, stacklevel=5)
        return CheckpointInfo(step.step, created, None)


def to_metrics(metrics: Any) -> tuple[dict[str, Any], str | None]:
    """Return metrics in the native form, and what kind they were: native metrics have names."""
    if metrics is None:
        return {}, None
    if isinstance(metrics, dict):
        return cast("dict[str, Any]", metrics), "named"
    return {_BARE: metrics}, "bare"


def metrics_of(checkpoint: mp.Checkpoint) -> Any:
    """Return the metrics of a checkpoint as they were given; None when there were none.

    Raises:
        CorruptionError: they cannot be read.
    """
    metrics = checkpoint.metrics
    record: Any = checkpoint.metadata.get(RECORD)
    kind = cast("dict[str, Any]", record).get("metrics") if isinstance(record, dict) else None
    if kind == "bare" and list(metrics) == [_BARE]:
        return metrics[_BARE]
    return metrics if metrics or kind == "named" else None
