# SPDX-License-Identifier: Apache-2.0
"""`Checkpointer`: saves the steps of a training loop, and gives them back."""

from __future__ import annotations

import datetime as dt
import operator
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, final

import milepost as mp
from milepost.compat.orbax_v1 import free, items, multihost, places
from milepost.compat.orbax_v1.context import Context, get_context
from milepost.compat.orbax_v1.described import CheckpointMetadata, RootMetadata, StepCheckpointMetadata
from milepost.compat.orbax_v1.errors import InvalidLayoutError
from milepost.compat.orbax_v1.items import STATE
from milepost.compat.orbax_v1.path.step import NameFormat, accepts, standard_name_format, step_format
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.compat.orbax_v1.response import AsyncResponse, started
from milepost.compat.orbax_v1.training import preservation_policies, save_decision_policies
from milepost.compat.orbax_v1.training.errors import StepNotFoundError
from milepost.compat.orbax_v1.training.save_decision_policies import DecisionContext
from milepost.compat.orbax_v1.training.steps import Step, Steps, metrics_of
from milepost.compat.orbax_v1.training.writer import Writer, exists
from milepost.interop.orbax import beside


@final
class Checkpointer:
    """A sequence of checkpoints of one training loop.

    The root is made by the first save, and so is the lock that keeps other processes from saving there; reading needs
    none. Use it in a `with`, or call `close`; a save in flight is finished even when the program just ends.

    Args:
        directory: the root.
        context: options for all calls; an enclosing `with Context()` comes before it.
        save_decision_policy: when to save; by default the first time, then as soon as the last save is written, and
            on preemption.
        preservation_policy: which checkpoints stay; by default all.
        step_name_format: how steps are named; a root keeps the names that it was made with.
        custom_metadata: what JSON can hold, about the whole sequence; kept when the root is made.
        cleanup_tmp_directories: no effect: what was left unfinished is always removed by the next save.
        lightweight_initialize: no effect: a step's record is one small file.
        logger: has `log_entry(dict)`, called after each save and load.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        context: Context | None = None,
        save_decision_policy: save_decision_policies.SaveDecisionPolicy | None = None,
        preservation_policy: preservation_policies.PreservationPolicy | None = None,
        step_name_format: NameFormat[Any] | None = None,
        custom_metadata: Any = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        logger: Any = None,
    ) -> None:
        self._context = Context(context or get_context())
        if self._context.deletion.gcs_deletion_options.todelete_full_path is not None:
            raise NotImplementedError("todelete_full_path: deleted steps are not moved elsewhere\n  Leave it out.")
        self._decide = save_decision_policy or save_decision_policies.AnySavePolicy([
            save_decision_policies.InitialSavePolicy(),
            save_decision_policies.ContinuousCheckpointingPolicy(),
            save_decision_policies.PreemptionCheckpointingPolicy(),
        ])  # fmt: skip
        self._preserve = preservation_policy or preservation_policies.PreserveAll()
        self._custom, self._logger = custom_metadata, logger
        self._root = Path(os.path.abspath(directory))
        # A path of another kind (etils) stays one.
        self._path_class: Any = type(directory) if isinstance(directory, PurePath) else self._context.file.path_class
        self._root.mkdir(parents=True, exist_ok=True)
        named = step_name_format or standard_name_format()
        self._steps = Steps(self._root, lambda name, step: accepts(named, name, step))
        names = step_format(named)
        self._writer = Writer(self._root, self._steps, names, custom_metadata, self._entry)

    # --- what there is

    @property
    def directory(self) -> Path:
        """The root."""
        return self._path_class(self._root)

    @property
    def latest(self) -> StepCheckpointMetadata[None] | None:
        """The checkpoint with the highest step, None when there is none; one that is being saved counts."""
        found = self.checkpoints
        return found[-1] if found else None

    @property
    def checkpoints(self) -> Sequence[StepCheckpointMetadata[None]]:
        """Step, time and metrics of all checkpoints by step, as of the last `reload`, save or deletion here."""
        return [self._steps.info(each) for each in self._steps.all()]

    def reload(self) -> None:
        """List the root anew, with what other processes saved and deleted."""
        self._writer.await_deletion()
        self._steps.look()

    def should_save(self, step: int) -> bool:
        """Return whether `save` would save that step: never at or below the latest, else as the policy says."""
        with self._options() as context:
            return self._due(_number(step), self._steps.all(), context)

    def _due(self, step: int, previous: list[Step], context: Context) -> bool:
        if previous and step <= previous[-1].step:
            return False
        asked = StepCheckpointMetadata(step, self._root, metadata=None, commit_timestamp_nsecs=time.time_ns())
        known = DecisionContext(
            is_saving_in_progress=self.is_saving_in_progress(),
            reached_preemption=multihost.reached_preemption(step),
            multiprocessing_options=context.multiprocessing,
        )
        return bool(self._decide.should_save(asked, [self._steps.info(each) for each in previous], context=known))

    # --- save

    def save(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Any = None,
    ) -> bool:
        """Save a tree as a step, if it is due; return whether it was saved, when it is durable.

        Args:
            step: 0 or above.
            state: dicts, lists, tuples, dataclasses, registered nodes of arrays and values.
            checkpointable_name: the name to save it under.
            force: save whatever the policy says, also behind the latest step.
            overwrite: replace the step when it is there; there is no moment without it.
            metrics: what `BestN` and custom policies look at.
            custom_metadata: what JSON can hold, about this step.

        Raises:
            StepAlreadyExistsError: the step is there, and is not to be replaced.
            ValueError: the state holds nothing, or what cannot be stored.
        """
        return self.save_checkpointables(
            step, {checkpointable_name: state}, force=force, overwrite=overwrite, metrics=metrics,
            custom_metadata=custom_metadata,
        )  # fmt: skip

    def save_checkpointables(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Any = None,
    ) -> bool:
        """Save several named objects as a step, if it is due. Other arguments and result as in `save`."""
        response = self.save_checkpointables_async(
            step, checkpointables, force=force, overwrite=overwrite, metrics=metrics, custom_metadata=custom_metadata
        )
        return False if response is None else response.result()

    def save_async(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Any = None,
    ) -> AsyncResponse[bool] | None:
        """Save a tree in the background; None when it is not due. Arguments as in `save`.

        When this returns, every array may be overwritten or donated. Waits for the save before.
        """
        return self.save_checkpointables_async(
            step, {checkpointable_name: state}, force=force, overwrite=overwrite, metrics=metrics,
            custom_metadata=custom_metadata,
        )  # fmt: skip

    def save_checkpointables_async(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Any = None,
    ) -> AsyncResponse[bool] | None:
        """Save several named objects in the background; None when it is not due. Arguments as in `save`."""
        number = _number(step)
        items.check_saved(checkpointables)
        with self._options() as context:
            self._writer.await_deletion()
            if not overwrite and self._steps.get(number) is not None:
                raise exists(number, self._root)
            previous = [each for each in self._steps.all() if each.step != number]
            if not force and not self._due(number, previous, context):
                return None
            self._writer.settle()
            tree, record = items.to_save(checkpointables, context)
            if metrics is not None and not isinstance(metrics, dict):
                record["metrics"] = metrics
            new = Step(number, dt.datetime.now(dt.UTC), metrics or None, self._writer.names.slot(number).name)
            return self._writer.begin(
                new, tree, items.to_metadata(custom_metadata, record), overwrite=overwrite,
                doomed=self._steps.to_delete(new, self._preserve),
                why="forced" if force else _name_of(self._decide), context=context,
            )  # fmt: skip

    def is_saving_in_progress(self) -> bool:
        """Return whether a save is still being written."""
        return self._writer.saving

    def cancel(self, step: int | CheckpointMetadata[Any] | None = None) -> None:
        """Give up the save in flight and wait until it is over: its step is not there then, and its `result` is False.

        When it is committed already, it stays; with a step, that step is deleted too, if it is there.
        """
        number = None if step is None else _number(step)
        self._writer.cancel(number)
        if number is not None:
            self.delete(number, missing_ok=True)

    # --- load

    def load(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = STATE,
    ) -> Any:
        """Return the tree of a step, every byte checked.

        Args:
            step: by default the latest.
            abstract_state: as in the function `load`.
            checkpointable_name: the name it was saved under.

        Raises:
            StepNotFoundError: there is no such step, or none at all.
            KeyError: the step has nothing of that name.
            ValueError: the abstract tree does not fit.
        """
        return self.load_checkpointables(step, {checkpointable_name: free.abstract_of(abstract_state)})[
            checkpointable_name
        ]

    def load_checkpointables(
        self, step: int | CheckpointMetadata[Any] | None = None, abstract_checkpointables: Any = None
    ) -> dict[str, Any]:
        """Return several named objects of a step, by default all; other arguments as in `load`."""
        with self._options() as context:
            return self._loaded(self._resolved(step), free.abstract_of(abstract_checkpointables), context)

    def load_async(
        self, step: int | CheckpointMetadata[Any] | None = None, abstract_state: Any = None
    ) -> AsyncResponse[Any]:
        """Load a tree in the background. Arguments as in `load`."""
        return self._load_async(step, {STATE: free.abstract_of(abstract_state)}, lambda found: found[STATE])

    def load_checkpointables_async(
        self, step: int | CheckpointMetadata[Any] | None = None, abstract_checkpointables: Any = None
    ) -> AsyncResponse[dict[str, Any]]:
        """Load several named objects in the background. Arguments as in `load_checkpointables`."""
        return self._load_async(step, free.abstract_of(abstract_checkpointables), lambda found: found)

    def _load_async(self, step: Any, abstract: Any, of: Callable[[dict[str, Any]], Any]) -> AsyncResponse[Any]:
        with self._options() as context:
            checkpoint = self._resolved(step)
            hold = checkpoint.lease()  # so that no save deletes it before the thread has begun to read

            def run() -> Any:
                with hold:
                    return of(self._loaded(checkpoint, abstract, context))

            return started(f"the load of step {checkpoint.step}", run)

    def _loaded(self, checkpoint: mp.Checkpoint, abstract: Any, context: Context) -> dict[str, Any]:
        if abstract is not None:
            items.check_names(abstract, "abstract_checkpointables")
        began = time.time()
        try:
            loaded = items.load_items(checkpoint, abstract, context)
        except mp.NotFoundError as error:
            if error.code != "deleted":
                raise
            self._steps.gone(checkpoint.step)
            raise self._not_found(checkpoint.step) from error
        self._entry("restore", checkpoint.step, began)
        return loaded

    def _resolved(self, step: int | CheckpointMetadata[Any] | None) -> mp.Checkpoint:
        """Return a checkpoint; waits for it when it is being saved."""
        self._writer.await_deletion()
        number = None if step is None else _number(step)
        if number is None:
            there = self._steps.all()
            if not there:
                raise StepNotFoundError("Specified `step=None`, but no checkpoints were found.", path=str(self._root))
            number = there[-1].step
        found = self._steps.get(number)
        if found is not None and found.checkpoint is None:
            self._writer.settle()
            found = self._steps.get(number)
        if found is None or found.checkpoint is None:
            raise self._not_found(number)
        return found.checkpoint

    def _not_found(self, step: int) -> StepNotFoundError:
        return StepNotFoundError(f"No checkpoint found at step {step}.", step=step, path=str(self._root))

    # --- what is told

    def metadata(self, step: int | CheckpointMetadata[Any] | None = None) -> StepCheckpointMetadata[Any]:
        """Describe the tree of a step, by default of the latest; no array is read."""
        with self._options():
            checkpoint = self._resolved(step)
            name = items.auto_name(checkpoint)
            return self._described(checkpoint, items.describe_items(checkpoint, [name])[name])

    def checkpointables_metadata(
        self, step: int | CheckpointMetadata[Any] | None = None
    ) -> StepCheckpointMetadata[dict[str, Any]]:
        """Describe everything in a step, by name."""
        with self._options():
            checkpoint = self._resolved(step)
            return self._described(checkpoint, items.describe_items(checkpoint))

    def _described(self, checkpoint: mp.Checkpoint, described: Any) -> StepCheckpointMetadata[Any]:
        return StepCheckpointMetadata(
            checkpoint.step,
            self.directory / checkpoint.info.slot,
            metadata=described,
            init_timestamp_nsecs=items.record_of(checkpoint).get("init_timestamp_nsecs"),
            commit_timestamp_nsecs=items.committed_ns(checkpoint),
            custom_metadata=items.custom_metadata(checkpoint.metadata),
            metrics=metrics_of(checkpoint),
        )

    def root_metadata(self) -> RootMetadata:
        """Return what was said about the whole sequence when its root was made."""
        catalog = self._steps.catalog
        kept = places.custom_root_metadata(beside.root_metadata(self._root) if catalog is None else catalog.metadata)
        return RootMetadata(directory=self.directory, custom_metadata=kept or self._custom or {})

    # --- delete

    def delete(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> bool:
        """Delete a step, or one of its named objects; return whether there was anything to delete.

        Raises:
            StepNotFoundError: there is no such step, unless `missing_ok`.
            FileNotFoundError: the step has nothing of that name, unless `missing_ok`.
            ValueError: it is the last named object.
        """
        return self.delete_async(step, checkpointable_name=checkpointable_name, missing_ok=missing_ok).result()

    def delete_async(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> AsyncResponse[bool]:
        """Delete in the background; the step is hidden at once. Arguments as in `delete`."""
        number = _number(step)
        if checkpointable_name is not None:
            free.check_item_name(checkpointable_name)
        with self._options() as context:
            self.wait()
            if self._steps.get(number) is None:
                self._steps.look()  # perhaps another process saved it
            found = self._steps.get(number)
            if found is None or found.checkpoint is None:
                if not missing_ok:
                    raise self._not_found(number)
                return started(f"the deletion of step {number}", lambda: False)
            if checkpointable_name is None:
                return self._writer.delete(number)
            if found.theirs is not None:
                raise InvalidLayoutError(free.items_of_orbax(found.checkpoint))
            return self._writer.delete_item(found.checkpoint, checkpointable_name, missing_ok, context)

    # --- ends

    def wait(self) -> None:
        """Wait for the save and the deletion in flight; raises their error, if nobody was told yet."""
        self._writer.wait()

    def close(self) -> None:
        """Wait, and give back the right to save; a later save takes it again."""
        self._writer.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Besides, the save in flight failed: {failure}")

    def _options(self) -> Context:
        return get_context(self._context)

    def _entry(self, event: str, step: int, began: float) -> None:
        if self._logger is None:
            return
        took = time.time() - began
        self._logger.log_entry({
            "step": step, "event_type": event, "directory": str(self._root),
            "checkpointer_start_time": began, "checkpointer_duration_secs": took,
        })  # fmt: skip

    # --- older names

    def save_pytree(self, *args: Any, **kwargs: Any) -> Any:
        return _renamed("save_pytree", self.save)(*args, **kwargs)

    def save_pytree_async(self, *args: Any, **kwargs: Any) -> Any:
        return _renamed("save_pytree_async", self.save_async)(*args, **kwargs)

    def load_pytree(self, *args: Any, **kwargs: Any) -> Any:
        return _renamed("load_pytree", self.load)(*args, **kwargs)

    def load_pytree_async(self, *args: Any, **kwargs: Any) -> Any:
        return _renamed("load_pytree_async", self.load_async)(*args, **kwargs)

    def pytree_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return _renamed("pytree_metadata", self.metadata)(*args, **kwargs)


def _renamed(old: str, new: Any) -> Any:
    warnings.warn(f"{old} is deprecated: use {new.__name__}", DeprecationWarning, stacklevel=3)
    return new


def _name_of(policy: object) -> str:
    text = repr(policy)
    return type(policy).__name__ if " object at 0x" in text or len(text) > 100 else text


def _number(step: Any) -> int:
    """Return the number of a step.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 0.
    """
    if isinstance(step, StepCheckpointMetadata):
        return step.step
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise TypeError(f"step {step!r}: a step is an integer")
    number = operator.index(step)
    if number < 0:
        raise ValueError(f"step {number}: a step is 0 or above")
    return number
