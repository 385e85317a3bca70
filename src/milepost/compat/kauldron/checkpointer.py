# SPDX-License-Identifier: Apache-2.0
"""Checkpointers of a trainer."""

from __future__ import annotations

import datetime as dt
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, final

import milepost as mp
from milepost.compat.kauldron.items import DEFAULT, has_state, is_top_level, named, restored, saved, wanted
from milepost.compat.kauldron.items import donate as free
from milepost.compat.kauldron.retention import kept_by, plain_metrics

_T = TypeVar("_T")
_STEPS = mp.StepFormat(prefix="ckpt_")


class BaseCheckpointer(ABC):
    """What a trainer asks of a checkpointer; a context manager that closes it."""

    @abstractmethod
    def restore(self, state: Any, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> Any: ...
    @abstractmethod
    def should_save(self, step: int) -> bool: ...
    @abstractmethod
    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool: ...
    @abstractmethod
    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool: ...

    @property
    def latest_step(self) -> int | None:
        return None

    @property
    def all_steps(self) -> Sequence[int]:
        return []

    def iter_new_checkpoints(
        self,
        *,
        min_interval_secs: float = 0,
        seconds_to_sleep: float = 1,
        timeout: float | None = None,
        timeout_fn: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        yield from ()

    def reload(self) -> None: ...  # noqa: B027 what a checkpointer need not do
    def wait_until_finished(self) -> None: ...  # noqa: B027 what a checkpointer need not do
    def close(self) -> None: ...  # noqa: B027 what a checkpointer need not do

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class MultiprocessingOptions:
    """As Orbax's; only their defaults are taken: one process saves."""

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


_ALONE = vars(MultiprocessingOptions())


@final
class _Unset:
    """Stands for `cfg.workdir`, which a trainer puts in."""

    def __repr__(self) -> str:
        return "cfg.workdir"


_UNSET = _Unset()


@final
@dataclass(frozen=True, kw_only=True)
class Checkpointer(BaseCheckpointer):
    """Saves the states of one run below `workdir/checkpoints`; a value that can be compared, until it is used.

    Args:
        workdir: the run's folder.
        save_interval_steps: save at multiples of it, and at the first step that is asked about.
        max_to_keep: how many stay, the newest, or with `best_metric_path` the best; None for all.
        keep_time_interval: keep one in each such span, too.
        keep_period: keep the multiples of it, too.
        save_on_steps: save at these steps, too.
        best_metric_path: dotted path of the metric that says which are the best; may hold `*`.
        preservation_policy: says in place of `max_to_keep` what stays: a keep policy of milepost, or an object with
            Orbax's `should_preserve`.
        best_mode: `max` or `min`.
        multiprocessing_options: its defaults.
        never_save_step_zero: step 0 is not due.
        lightweight_initialize, cleanup_orphaned_snapshots, fast: taken, and nothing left to do for them.
        create: make the folder when it is not there.
    """

    workdir: Any = _UNSET
    save_interval_steps: int
    max_to_keep: int | None = 3
    keep_time_interval: dt.timedelta | None = None
    keep_period: int | None = None
    save_on_steps: Sequence[int] | None = None
    best_metric_path: str | None = None
    preservation_policy: Any = None
    best_mode: Literal["max", "min"] = "max"
    multiprocessing_options: Any = field(default_factory=MultiprocessingOptions)
    never_save_step_zero: bool = False
    lightweight_initialize: bool = False
    cleanup_orphaned_snapshots: bool = False
    fast: bool = True
    create: bool = True
    _open: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False, compare=False)

    # --- restore

    def restore(self, state: _T, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> _T:
        """Return the state of a step, -1 for the latest. With `donate`, the arrays of `state` are freed afterwards.

        Raises:
            FileNotFoundError: there is no checkpoint, or not that one.
            ValueError: the state differs from what was saved; nothing was freed.
        """
        self._finished()
        if noop_if_missing and self.latest_step is None:
            return state
        result = self._read(find(self._directory, step), state)
        if donate:
            free(state, result)
        return result

    def _read(self, checkpoint: mp.Checkpoint, state: Any) -> Any:
        with checkpoint.lease():
            if not is_top_level(state):
                return restored(checkpoint.at(DEFAULT), state)
            # Read before anything takes its state: a failed read then changes nothing.
            order = sorted(named(state).items(), key=lambda pair: has_state(wanted(pair[1])))
            read = {name: restored(checkpoint.at(name), item) for name, item in order}
        fields = {name: read[DEFAULT if name == state.DEFAULT_ITEM else name] for name in state._fields}
        return type(state)(**fields)

    # --- save

    def should_save(self, step: int) -> bool:
        """Return whether a step is due; every step is as long as there is no checkpoint."""
        latest = self.latest_step
        if (step == 0 and self.never_save_step_zero) or (latest is not None and step <= latest):
            return False
        return latest is None or step % self.save_interval_steps == 0 or step in (self.save_on_steps or ())

    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool:
        """Begin to save a step that is due, any step with `force`; returns whether it did.

        Raises:
            ValueError: the step is there already; or a metric is no number, text or array.
        """
        said = plain_metrics(metrics)
        if not force and not self.should_save(step):
            return False
        tree = {name: saved(item) for name, item in named(state).items()}
        latest = self.latest_step
        try:
            pending = self._saver().save(step, tree, metrics=said, behind=latest is not None and step < latest)
        except mp.ConflictError as error:
            if error.code == "exists":
                raise ValueError(f"step {step} is in {self._directory} already") from error
            raise
        self._open["pending"] = pending
        return True

    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool:
        """Save a step when it is due; `force` does not change that (use `save`)."""
        return self.should_save(step) and self.save(state, step=step, force=force)

    def delete(self, step: int) -> None:
        """Remove a step.

        Raises:
            FileNotFoundError: it is not there.
        """
        self._finished()
        catalog = self._catalog()
        if catalog is None or step not in catalog:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self._directory}")
        catalog.delete(step)

    def wait_until_finished(self) -> None:
        """Wait for the save in flight, and let others write until the next; raises its error, once."""
        self.close()

    def close(self) -> None:
        """As `wait_until_finished`; a later save opens it again."""
        self._open.pop("pending", None)
        saver = self._open.pop("saver", None)
        if saver is not None:
            saver.close()

    # --- look

    @property
    def latest_step(self) -> int | None:
        """The highest step in the run's line, the same for everybody; one in flight counts."""
        return max(self.all_steps, default=None)

    @property
    def all_steps(self) -> Sequence[int]:
        """The steps that are there, rising; one in flight counts."""
        pending = self._open.get("pending")
        in_flight = (
            set[int]() if pending is None or pending.done() else {pending.step}
        )  # before looking: none is missed
        return sorted(in_flight.union(self._catalog() or ()))

    def reload(self) -> None:
        """Look again; here every look does."""

    def item_metadata(self, step: int = -1) -> dict[str, Any]:
        """Return the tree of a step with shape and dtype for leaves: of its only item, or of each by name."""
        self._finished()
        found = find(self._directory, step)
        tree = _described(found.tree)
        return tree[DEFAULT] if list(tree) == [DEFAULT] else tree

    def iter_new_checkpoints(
        self,
        *,
        min_interval_secs: float = 0,
        seconds_to_sleep: float = 1,
        timeout: float | None = None,
        timeout_fn: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        """Yield the newest step each time there is a newer one; it cannot be deleted until the next is asked for.

        Args:
            min_interval_secs: time between two of them, at least.
            seconds_to_sleep: time between two looks.
            timeout: stop when there was none for so long, unless
            timeout_fn: says False then.
        """
        last, since, waiting = -1, -float("inf"), time.monotonic()
        while True:
            found = self._newer(last) if time.monotonic() - since >= min_interval_secs else None
            if found is not None:
                checkpoint, lease = found
                with lease:
                    last, since = checkpoint.step, time.monotonic()
                    yield checkpoint.step
                waiting = max(time.monotonic(), since + min_interval_secs)
                continue
            if timeout is not None and time.monotonic() - waiting >= timeout:
                if timeout_fn is None or timeout_fn():
                    return
                waiting = time.monotonic()
            time.sleep(seconds_to_sleep)

    def _newer(self, last: int) -> tuple[mp.Checkpoint, Any] | None:
        catalog = self._catalog()
        newest = None if catalog is None else catalog.latest()
        if newest is None or newest.step <= last:
            return None
        try:
            return newest, newest.lease()
        except mp.NotFoundError:
            return None  # retired this moment: there is a newer one

    # --- the run

    @property
    def _directory(self) -> Path:
        return Path(self.workdir) / "checkpoints"  # a TypeError as long as `workdir` is not set

    def _catalog(self) -> mp.Catalog | None:
        if (saver := self._open.get("saver")) is not None:
            saver.catalog.refresh()
            return saver.catalog
        return catalog_at(self._directory)

    def _finished(self) -> None:
        if (saver := self._open.get("saver")) is not None:
            saver.wait()

    def _saver(self) -> mp.Checkpointer:
        if "saver" not in self._open:
            if any(getattr(self.multiprocessing_options, name) != value for name, value in _ALONE.items()):
                raise ValueError(f"{self.multiprocessing_options}: only its defaults are supported, one process saves")
            if not self.create and not self._directory.exists():
                raise FileNotFoundError(f"{self._directory} does not exist, and create=False")
            self._open["saver"] = mp.Checkpointer(
                self._directory, save="first", keep=kept_by(self), step_format=_STEPS, shared=True
            )
        return self._open["saver"]


def catalog_at(directory: Path) -> mp.Catalog | None:
    """Return the checkpoints in a folder, None when there are none.

    Raises:
        FormatError: those of Kauldron itself are there.
    """
    try:
        return mp.open(directory)
    except mp.NotFoundError:
        if any(directory.glob("ckpt_*/_CHECKPOINT_METADATA")):
            raise mp.FormatError(
                f"{directory} holds checkpoints of Kauldron itself, which milepost does not read\n"
                "  Restore with the original's Checkpointer and save with this one, with a workdir of its own."
            ) from None
        return None


def find(directory: Path, step: int) -> mp.Checkpoint:
    """Return the checkpoint of a step, -1 for the latest.

    Raises:
        FileNotFoundError: there is none.
    """
    catalog = catalog_at(directory)
    found = None if catalog is None else catalog.latest() if step == -1 else catalog.get(step)
    if found is None:
        steps = sorted(catalog or ())
        raise FileNotFoundError(f"no checkpoint{'' if step == -1 else f' of step {step}'} in {directory}: {steps}")
    return found


@dataclass(frozen=True)
class ArrayMetadata:
    """What is known of a leaf without reading it."""

    shape: tuple[int, ...]
    dtype: Any


def _described(tree: Any) -> Any:
    if isinstance(tree, mp.LeafRef):
        return ArrayMetadata(tree.spec.shape, tree.dtype)
    if isinstance(tree, dict):
        return {key: _described(value) for key, value in cast("dict[Any, Any]", tree).items()}
    if isinstance(tree, list | tuple):
        return [_described(value) for value in cast("Iterable[Any]", tree)]
    return tree


@final
class NoopCheckpointer(BaseCheckpointer):
    """Saves nothing, and restores what it is given."""

    def restore(self, state: Any, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> Any:
        if state is None:
            raise ValueError("NoopCheckpointer has nothing to restore: give it a state")
        return state

    def should_save(self, step: int) -> bool:
        return False

    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool:
        return False

    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool:
        if force:
            raise ValueError("NoopCheckpointer cannot be forced to save")
        return False
