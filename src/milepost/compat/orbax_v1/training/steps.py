# SPDX-License-Identifier: Apache-2.0
"""The steps that a Checkpointer knows of: those it found, those it saves, and those that are to go."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import milepost as mp
from milepost.compat.orbax_v1 import items
from milepost.compat.orbax_v1.described import StepCheckpointMetadata, nanoseconds
from milepost.compat.orbax_v1.training.preservation_policies import PreservationContext, PreservationPolicy
from milepost.interop.orbax import OrbaxStep, beside

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_log = logging.getLogger("milepost")


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        step: its number.
        time: when it was committed, or its save began.
        metrics: None when there are none.
        slot: the name of its folder.
        checkpoint: None while it is being written.
        theirs: when Orbax itself wrote it.
    """

    step: int
    time: dt.datetime
    metrics: Any
    slot: str
    checkpoint: mp.Checkpoint | None = None
    theirs: OrbaxStep | None = None


def step_of(checkpoint: mp.Checkpoint) -> Step:
    """Return what is to be known of a checkpoint."""
    committed = _EPOCH + dt.timedelta(microseconds=items.committed_ns(checkpoint) // 1000)
    return Step(checkpoint.step, committed, metrics_of(checkpoint), checkpoint.info.slot, checkpoint)


def metrics_of(checkpoint: mp.Checkpoint) -> Any:
    """Return the metrics as they were given, and what was annotated since; None when there are none."""
    return items.record_of(checkpoint).get("metrics", checkpoint.metrics or None)


def _of_orbax(step: OrbaxStep) -> Step:
    try:
        metrics = step.metrics
    except mp.CorruptionError as error:  # the state is there all the same
        _log.warning("%s", str(error).partition("\n")[0])
        metrics = None
    return Step(step.step, step.created, None if metrics == {} else metrics, step.path.name, step.checkpoint, step)


@final
class Steps:
    """The steps under a root, in the order in which they were found or saved. Any thread may ask.

    Args:
        root: the directory.
        accepts: says which folders that Orbax wrote there are steps.
    """

    def __init__(self, root: Path, accepts: Callable[[str, int], bool] | None = None) -> None:
        self.root, self.home = root, beside.home(root)
        self._accepts = accepts
        self._lock = threading.Lock()
        self._steps: dict[int, Step] = {}
        self._doomed: set[int] = set()
        self.catalog: mp.Catalog | None = None
        """The catalog as of the last look, None when there was no root."""
        self.last_whole: mp.Checkpoint | None = None
        """The newest whole checkpoint, when newer ones are damaged."""
        self.look()

    def look(self) -> None:
        """List the root anew; damaged checkpoints are left out, and said in the log."""
        try:
            catalog = mp.open(self.home)
        except mp.NotFoundError:
            catalog = None
        found: dict[int, Step] = {}
        theirs = beside.theirs(self.root, self._accepts)
        damaged = -1
        for step in sorted({*(catalog or ()), *theirs}):
            try:
                if catalog is None or step not in catalog:
                    found[step] = _of_orbax(theirs[step])
                    continue
                checkpoint = catalog[step]
                if not checkpoint.info.superseded:
                    found[step] = step_of(checkpoint)
            except mp.CorruptionError as error:
                damaged = damaged if step in theirs else step
                _log.warning("step %d of %s is left out: %s", step, self.root, str(error).partition("\n")[0])
            except mp.NotFoundError:
                continue  # retired since it was listed
        ours = {step: each for step, each in found.items() if each.theirs is None}
        newest = ours.get(max(ours, default=-1))
        with self._lock:
            self.catalog = catalog
            self.last_whole = newest.checkpoint if newest is not None and newest.step < damaged else None
            flying = {each.step: each for each in self._steps.values() if each.checkpoint is None}
            self._steps = flying | found
            self._doomed &= self._steps.keys()

    def all(self) -> list[Step]:
        """Return the steps that are there and stay, by number."""
        with self._lock:
            return sorted(self._listed(), key=lambda each: each.step)

    def _listed(self) -> list[Step]:
        return [each for each in self._steps.values() if each.step not in self._doomed]

    def get(self, step: int) -> Step | None:
        """Return one step, None when it is not there."""
        with self._lock:
            return None if step in self._doomed else self._steps.get(step)

    def begun(self, step: Step, doomed: Iterable[int]) -> Step | None:
        """Add a step whose save has begun, hide those that go when it is committed, and return what it replaces."""
        with self._lock:
            before = self._steps.pop(step.step, None)
            self._steps[step.step] = step
            self._doomed.update(each for each in doomed if each != step.step)
            return before

    def ended(self, step: Step) -> None:
        """Put a step that was committed in the place of the one that had begun."""
        with self._lock:
            self._steps[step.step] = step
            self.last_whole = None  # the line goes on from this one

    def failed(self, step: int, before: Step | None, doomed: Iterable[int]) -> None:
        """Take back what `begun` did."""
        with self._lock:
            self._steps.pop(step, None)
            if before is not None:
                self._steps[step] = before
            self._doomed.difference_update(doomed)

    def gone(self, step: int) -> None:
        """Forget a step."""
        with self._lock:
            self._steps.pop(step, None)
            self._doomed.discard(step)

    def goes(self, step: int) -> None:
        """Hide a step that is being deleted."""
        with self._lock:
            self._doomed.add(step)

    def stays(self, step: int) -> None:
        """Show a step again that could not be deleted."""
        with self._lock:
            self._doomed.discard(step)

    def to_delete(self, new: Step, policy: PreservationPolicy) -> list[int]:
        """Return the steps that no longer stay once `new` is there.

        A step behind the latest is both the newest and not: the policy is asked in the order of saving and in the
        order of steps, and what either answer keeps stays. So it deletes neither the latest nor what was just saved.

        Raises:
            ValueError: the policy's answer is not one flag for each checkpoint.
        """
        with self._lock:
            order = [each for each in self._listed() if each.step != new.step] + [new]
        by_step = sorted(order, key=lambda each: each.step)
        kept = self._kept(order, policy)
        if order != by_step:
            kept |= self._kept(by_step, policy)
        return [each.step for each in by_step if each.step not in kept]

    def _kept(self, order: list[Step], policy: PreservationPolicy) -> set[int]:
        flags = list(policy.should_preserve([self.info(each) for each in order], context=PreservationContext()))
        if len(flags) != len(order):
            raise ValueError(f"{policy!r} answered {len(flags)} flags for {len(order)} checkpoints")
        return {each.step for each, flag in zip(order, flags, strict=True) if flag}

    def info(self, step: Step) -> StepCheckpointMetadata[None]:
        """Return what users see of a step."""
        return StepCheckpointMetadata(
            step.step,
            (self.home if step.theirs is None else self.root) / step.slot,
            metadata=None,
            metrics=step.metrics,
            commit_timestamp_nsecs=nanoseconds(step.time),
        )

    def delete(self, step: int, *, pinned: bool = True) -> bool:
        """Delete a step now; False when somebody is reading it, or when it is pinned and `pinned` is False."""
        known = self._steps.get(step)
        try:
            if known is not None and known.theirs is not None:
                beside.delete(known.theirs)
                self.gone(step)
                return True
            catalog = mp.open(self.home)
            if not pinned and catalog[step].info.pins:
                self.stays(step)
                return False
            catalog.delete(step)
        except mp.NotFoundError:
            pass
        except mp.ConflictError as error:
            if error.code != "busy":
                raise
            self.stays(step)
            return False
        self.gone(step)
        return True
