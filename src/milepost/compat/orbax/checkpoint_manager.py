# SPDX-License-Identifier: Apache-2.0
"""The manager of the checkpoints under a directory."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import milepost as mp
from milepost.compat.orbax import history, manager_options, places, processes, record, saving
from milepost.compat.orbax import items as items_lib
from milepost.compat.orbax import save_decision_policy as deciding
from milepost.compat.orbax.abstract_checkpoint_manager import AbstractCheckpointManager
from milepost.compat.orbax.args import Composite
from milepost.compat.orbax.checkpointers import step_metadata
from milepost.compat.orbax.history import CheckpointInfo
from milepost.compat.orbax.loggers import AbstractLogger, RestoreStepStatistics, SaveStepStatistics, StandardLogger
from milepost.compat.orbax.manager_options import CheckpointManagerOptions
from milepost.compat.orbax.metadata import RootMetadata
from milepost.compat.orbax.preservation_policy import ranked
from milepost.compat.orbax.record import DEFAULT, Stored
from milepost.compat.orbax.registry import CheckpointHandlerRegistry
from milepost.compat.orbax.requests import Requests
from milepost.compat.orbax.step import accepts, checked
from milepost.interop.orbax import OrbaxStep, beside

DEFAULT_ITEM_NAME = DEFAULT
METRIC_ITEM_NAME = "metrics"

_log = logging.getLogger("milepost.compat.orbax")


class StepAlreadyExistsError(ValueError):
    """A step is there already; `force` does not overwrite."""


@final
class _Told:
    """The native save policy: the manager asks Orbax's policies, and tells the reason."""

    reason: str | None = None

    def due(self, moment: Any, /) -> str | None:
        return self.reason

    def __str__(self) -> str:
        return "a manager's"


class CheckpointManager(AbstractCheckpointManager):
    """Saves the steps of a run into a directory, decides when to, and what to keep.

    Args:
        directory: holds a folder for each step, and whatever else the program puts there.
        checkpointers: deprecated: a Checkpointer, or one for each item.
        options: when to save, what to keep, how steps are named.
        metadata: of all steps; stored once, when the directory becomes a root.
        item_names, item_handlers: deprecated: the items, or a handler for each.
        logger: is told of each save and restore.
        handler_registry: handlers by item and class of arguments.
    """

    def __init__(
        self,
        directory: Any,
        checkpointers: Any = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any = None,
        logger: AbstractLogger | None = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
    ) -> None:
        self._options = options or CheckpointManagerOptions()
        self._save_policy = manager_options.save_policy(self._options)
        self._keep_policy = manager_options.keep_policy(self._options)
        self._requests = Requests(checkpointers, item_names, item_handlers, handler_registry)
        if self._requests.in_background is not None:
            self._options = dataclasses.replace(self._options, enable_async_checkpointing=self._requests.in_background)
        self._logger = logger or StandardLogger()
        self._directory = places.absolute(directory)
        self._home = beside.home(self._directory)
        manager_options.check(self._options)
        self._metadata = dict(metadata or {})
        self._told = _Told()
        self._saver: mp.Checkpointer | None = None
        self._saving: saving.Saving | None = None
        self._left: list[int] = []
        self._saved_s: float | None = None
        self._closed = False
        self._history = history.History()
        if self._options.create:
            self._saver = self._opened(None)
        self._history.load(self._catalog(), self._theirs(), lightly=self._options.lightweight_initialize)

    def _opened(self, resume_from: mp.Checkpoint | None) -> mp.Checkpointer:
        """Return a native Checkpointer; it makes the directory a root if it is none."""
        options, metadata = self._options, None
        there = self._catalog()
        if there is None and options.save_root_metadata:
            metadata = beside.root_metadata(self._directory) or self._metadata or None
        timeout_s = None if options.async_options is None else options.async_options.timeout_secs
        saver = mp.Checkpointer(
            self._home,
            save=self._told,
            keep="all",
            limits=mp.Limits(timeout_s=timeout_s),
            step_format=manager_options.step_format(options, there),
            metadata=metadata,
            resume_from=resume_from,
            shared=True,
        )
        mode = options.file_options.path_permission_mode
        if there is None and mode is not None:
            self._home.chmod(mode)
        return saver

    def _catalog(self) -> mp.Catalog | None:
        return places.catalog_at(self._directory)

    def _theirs(self) -> dict[int, OrbaxStep]:
        """Return the steps that Orbax itself wrote into the directory."""
        return beside.theirs(self._directory, self._accepts)

    def _accepts(self, name: str, step: int) -> bool:
        return accepts(manager_options.names(self._options), name, step)

    @property
    def directory(self) -> Path:
        """The directory that holds the steps."""
        return self._directory

    # --- which steps

    def all_steps(self, read: bool = False) -> Sequence[int]:
        """Return all steps that the manager knows of, one that is still being saved among them."""
        if read:
            self.reload()
        return self._history.steps

    def latest_step(self) -> int | None:
        """Return the step that was saved last, None when there is none."""
        steps = self._history.steps
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """Return the best step by `best_fn`; on a tie the later one; NaN is worse than any number."""
        best_fn = self._options.best_fn
        if best_fn is None:
            return self.latest_step()
        infos = self._history.infos()
        ranking = ranked(infos, best_fn, reverse=self._options.best_mode == "min")
        return infos[ranking[-1]].step if ranking else None

    def reload(self) -> None:
        """List the directory anew."""
        self._history.load(self._catalog(), self._theirs())
        if self._saving is not None and not self._saving.over:
            self._history.add(self._saving.info, self._saving.doomed)

    # --- when

    def reached_preemption(self, step: int) -> bool:
        """Return whether JAX says that the machine goes away and that all processes know."""
        return processes.reached_preemption(step)

    def should_save(self, step: int) -> bool:
        """Return whether a save is due: the step is above the latest, and the policy says so."""
        return self._due(checked(step)) is not None

    def _due(self, step: int) -> str | None:
        if self._options.read_only:
            _log.info("%s is read only, save will be skipped", self._directory)
            return None
        latest = self.latest_step()
        if latest is not None and latest >= step:
            return None
        asked = self._options.enable_should_save_is_saving_in_progress_check
        context = deciding.DecisionContext(
            is_saving_in_progress=asked and self.is_saving_in_progress(),
            reached_preemption=self.reached_preemption(step),
            multiprocessing_options=self._options.multiprocessing_options,
        )
        info = CheckpointInfo(step, dt.datetime.now(dt.UTC), None)
        return deciding.reason(self._save_policy, info, self._history.infos(), context)

    def is_saving_in_progress(self) -> bool:
        """Return whether a save is still being written."""
        return self._saving is not None and not self._saving.over

    # --- save

    def save(
        self,
        step: int,
        items: Any = None,
        save_kwargs: Any = None,
        metrics: Any = None,
        force: bool | None = False,
        args: Any = None,
        custom_metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Save a step, if one is due; return whether a save was begun.

        A failure of the save before is raised here, once; this one is then not begun.

        Args:
            step: 0 or more.
            items, save_kwargs: deprecated: what to save, for the `checkpointers` of the constructor.
            metrics: what `best_fn` looks at; always stored.
            force: save whether one is due or not; a step that is there is not overwritten.
            args: what to save: arguments for the only item, or a Composite of them.
            custom_metadata: anything to be found again by `metadata(step)`.

        Raises:
            ValueError: arguments that do not fit; StepAlreadyExistsError, the step is there.
        """
        begun_s, step = time.time(), checked(step)
        wanted, default = self._requests.to_save(items, save_kwargs, args)
        self._told.reason = "forced" if force and not self._options.read_only else self._due(step)
        if self._told.reason is None:
            return False
        if self._closed:
            raise RuntimeError(f"the manager of {self._directory} was closed")
        waiting_s = time.time()
        self.wait_until_finished()
        if step in self._history.steps:
            raise StepAlreadyExistsError(f"Checkpoint for step {step} already exists.")
        saving_s = time.time()
        self._begin(step, wanted, metrics, custom_metadata, begun_s)
        self._requests.default = default
        blocked_s = time.time() - saving_s
        if not self._options.enable_async_checkpointing:
            self.wait_until_finished()
        self._logger.log_entry(
            dataclasses.asdict(
                SaveStepStatistics(
                    step=step,
                    directory=str(self._directory),
                    synchronous=not self._options.enable_async_checkpointing,
                    wait_for_prev_start_time=waiting_s,
                    wait_for_prev_duration_secs=saving_s - waiting_s,
                    time_between_consecutive_saves_sec=None if self._saved_s is None else begun_s - self._saved_s,
                    checkpointer_blocking_start_time=saving_s,
                    checkpointer_blocking_duration_secs=blocked_s,
                    checkpoint_manager_blocking_start_time=begun_s,
                    checkpoint_manager_blocking_duration_secs=time.time() - begun_s,
                )
            )
        )
        self._saved_s = begun_s
        return True

    def _begin(self, step: int, wanted: Mapping[str, Any], metrics: Any, custom: Any, begun_s: float) -> None:
        """Hand a step over to be written. Whatever fails here leaves the manager as it was."""
        encoded = items_lib.encoded(self._requests.handlers, wanted)
        info = CheckpointInfo(step, dt.datetime.now(dt.UTC), metrics)
        if self._options.best_fn is not None and metrics is not None:
            self._options.best_fn(metrics)  # what is wrong with them is told now
        doomed = self._history.doomed(self._keep_policy, info)
        stored, kind = history.to_metrics(None if self._options.prevent_write_metrics else metrics)
        metadata = record.native(encoded, custom, begun_ns=round(begun_s * 1e9))
        metadata[record.RECORD]["metrics"] = kind
        saver = self._writer()
        saver.due(step)
        tree = {name: item.tree for name, item in encoded.items()}
        try:
            pending = saver.save(step, tree, metrics=stored, metadata=metadata, overwrite=True, behind=True)
        except mp.UnsupportedLeafError as error:
            raise record.UnsupportedTypeError(str(error)) from None
        left, self._left = [each for each in self._left if each != step], []
        undo = self._history.saved(info, doomed)
        self._saving = saving.Saving(info, doomed, left, undo, self._options, self._directory)
        self._saving.begin(pending)

    def _writer(self) -> mp.Checkpointer:
        start = self._history.newest_whole
        if self._saver is not None and start is not None:
            self._saver.close()
            self._saver = None
        if self._saver is None:
            self._saver = self._opened(start)
        return self._saver

    # --- restore

    def restore(
        self,
        step: int | None,
        items: Any = None,
        restore_kwargs: Any = None,
        directory: Any = None,
        args: Any = None,
    ) -> Any:
        """Return what a step holds: the only item, or a Composite. Waits for the save in flight first.

        Args:
            step: None: the latest.
            items, restore_kwargs: deprecated: targets, for the `checkpointers` of the constructor.
            directory: restore from another one.
            args: how to restore; None: as it was saved.

        Raises:
            FileNotFoundError: there is no such step.
            KeyError: it has no such item.
            ValueError: it does not fit what is asked for.
        """
        begun_s = time.time()
        self.wait_until_finished()
        other = None if directory is None else places.absolute(directory)
        stored = self._latest(other) if step is None else self._found(checked(step), other)
        wanted, default = self._requests.to_restore(items, restore_kwargs, args, saved_default=DEFAULT in stored.names)
        reading_s = time.time()
        found = items_lib.restored(self._requests.handlers, stored, wanted)
        self._requests.default = default
        self._logger.log_entry(
            dataclasses.asdict(
                RestoreStepStatistics(
                    step=stored.checkpoint.step,
                    directory=str(self._directory if other is None else other),
                    checkpointer_start_time=reading_s,
                    checkpointer_duration_secs=time.time() - reading_s,
                    checkpoint_manager_start_time=begun_s,
                    checkpoint_manager_duration_secs=time.time() - begun_s,
                )
            )
        )
        return found[DEFAULT] if default else Composite(**found)

    def _step(self, step: int, root: Path | None = None) -> Stored | None:
        return places.step_of(self._directory if root is None else root, step, self._accepts)

    def _latest(self, other: Path | None) -> Stored:
        """Return the latest step; one that somebody else deleted meanwhile is no obstacle."""
        root = self._directory if other is None else other
        there = {*(places.catalog_at(root) or ()), *beside.theirs(root, self._accepts)}
        steps = self._history.steps if other is None else sorted(there)
        found = next((stored for step in reversed(steps) if (stored := self._step(step, root))), None)
        if found is None:
            raise FileNotFoundError(f"No steps found in {root}.")
        return found

    def _found(self, step: int, other: Path | None = None) -> Stored:
        root = self._directory if other is None else other
        stored = self._step(step, root)
        if stored is None:
            raise FileNotFoundError(f"Checkpoint at {root / str(step)} not found.")
        return stored

    # --- what is told

    def item_metadata(self, step: int) -> Any:
        """Describe the items of a step; the only one, when it has no name."""
        if step is None:  # pyright: ignore[reportUnnecessaryComparison] as Orbax says it
            raise ValueError("`step` must be provided: items belong to steps.")
        return self.metadata(step).item_metadata

    def metadata(self, step: int | None = None) -> Any:
        """Describe a step (StepMetadata); or what all share (RootMetadata), when no step is given.

        Raises:
            FileNotFoundError: there is no such step, or it is still being saved.
        """
        if step is None:
            return self._root_metadata()
        stored = self._found(checked(step))
        default = DEFAULT in stored.names if self._requests.default is None else self._requests.default
        told = step_metadata(stored, self._requests.handlers, DEFAULT if default and DEFAULT in stored.names else None)
        types = {name: stored.item(name).handler for name in stored.names}
        metrics = history.metrics_of(stored.checkpoint)
        return dataclasses.replace(told, item_handlers=types, metrics=metrics if isinstance(metrics, dict) else {})

    def _root_metadata(self) -> RootMetadata:
        catalog = self._catalog()
        if catalog is None:
            return RootMetadata(custom_metadata=beside.root_metadata(self._directory) or dict(self._metadata))
        return RootMetadata(custom_metadata=catalog.metadata)

    def metrics(self, step: int) -> Any:
        """Return the metrics of a step; None when it has none, or is not there."""
        stored = self._step(step)
        if stored is None:
            return None
        found = history.metrics_of(stored.checkpoint)
        if found is None and METRIC_ITEM_NAME in stored.names and stored.item(METRIC_ITEM_NAME).kind == "json":
            return stored.item(METRIC_ITEM_NAME).view.load()  # an item of that name
        return found

    # --- ends

    def delete(self, step: int) -> None:
        """Delete a step; one that is still being saved is waited for.

        Raises:
            FileNotFoundError: there is no such step.
        """
        if self._options.read_only:
            _log.info("%s is read only, delete will be skipped", self._directory)
            return
        step = checked(step)
        if step not in self._history.steps:
            raise FileNotFoundError(f"Requested deleting a non-existent step: {step}.")
        self.wait_until_finished()
        catalog = self._catalog()
        if not saving.dropped(catalog, step, self._directory, self._options):
            self._left.append(step)
        self._history.forget(step)

    def wait_until_finished(self) -> None:
        """Wait until the save in flight is durable and old steps are gone; raises what went wrong, once."""
        current = self._saving
        if current is None:
            return
        try:
            current.wait()
        finally:
            if current.over:
                self._saving = None
                self._left += current.left

    def check_for_errors(self) -> None:
        """Raise what went wrong with a save that is over, once."""
        if self._saving is not None and self._saving.over:
            self.wait_until_finished()

    def close(self) -> None:
        """Wait for the save in flight, and give back lock and handlers; raises as `wait_until_finished` does."""
        try:
            self.wait_until_finished()
        finally:
            self._closed = True
            if self._saver is not None:
                self._saver.close()
                self._saver = None
            self._requests.handlers.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Besides, the save in flight failed: {failure}")
