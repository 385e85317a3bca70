# SPDX-License-Identifier: Apache-2.0
"""What a Checkpointer does in the background: one save, with what follows it, and one deletion at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import milepost as mp
from milepost.compat.orbax_v1 import free, items, places
from milepost.compat.orbax_v1.context import Context
from milepost.compat.orbax_v1.response import Response, started
from milepost.compat.orbax_v1.training.errors import StepAlreadyExistsError
from milepost.compat.orbax_v1.training.steps import Step, Steps, step_of
from milepost.interop.orbax import beside

_log = logging.getLogger("milepost")


@final
class Writer:
    """Writes the steps of one root. The root is made by the first save.

    Args:
        root: where.
        steps: what is told of each save and deletion.
        names: how steps are named, when the root is made here.
        custom: the root's metadata, when it is made here.
        entry: called with event, step and start time after each save.
    """

    def __init__(
        self, root: Path, steps: Steps, names: mp.StepFormat, custom: Any, entry: Callable[[str, int, float], None]
    ) -> None:
        self.names = names
        self._root, self._steps, self._custom, self._entry = root, steps, custom, entry
        self._saver: mp.Checkpointer | None = None
        self._saving: Response[bool] | None = None
        self._saving_step: int | None = None
        self._deleting: Response[bool] | None = None
        self._pending: mp.PendingSave | None = None
        self._because = _Because()

    # --- save

    @property
    def saving(self) -> bool:
        """Whether a save is still being written."""
        return self._saving is not None and not self._saving.done()

    def begin(
        self, new: Step, tree: Any, metadata: Any, *, overwrite: bool, doomed: list[int], why: str, context: Context
    ) -> Response[bool]:
        """Begin a save, after which the doomed steps are deleted.

        Raises:
            StepAlreadyExistsError: another process has saved the step.
        """
        saver = self._opened(context)
        self._because.why = why
        saver.due(new.step)  # so that the reason is kept with the step
        metrics = new.metrics if hasattr(new.metrics, "keys") else None
        try:
            pending = saver.save(new.step, tree, metrics=metrics, metadata=metadata, overwrite=overwrite, behind=True)
        except mp.UnsupportedLeafError as error:
            raise items.refused(error) from error
        except mp.ConflictError as error:
            if error.code != "exists":
                raise
            self._steps.look()
            raise exists(new.step, self._root) from error
        response = Response[bool](f"the save of step {new.step} of {self._root}")
        before = self._steps.begun(new, doomed)
        self._saving, self._saving_step, self._pending = response, new.step, pending
        began = time.time()

        def over(done: mp.PendingSave) -> None:
            try:
                checkpoint = done.result()
            except Exception as error:  # noqa: BLE001 raised by `result`, or at the next touch
                self._steps.failed(new.step, before, doomed)
                if done.cancelled:
                    response.finish(False)
                else:
                    response.finish(error=error)
                return
            try:
                if before is not None and before.theirs is not None:
                    beside.delete(before.theirs)  # of what Orbax wrote there is no other way to take its place
                self._committed(checkpoint, doomed, began, context)
                response.finish(True)
            except Exception as error:  # noqa: BLE001 the step is there, but what was asked for after it failed
                response.finish(error=error)

        pending.add_done_callback(over)
        return response

    def _committed(self, checkpoint: mp.Checkpoint, doomed: list[int], began: float, context: Context) -> None:
        """Do what follows a commit."""
        self._steps.ended(step_of(checkpoint))
        for step in doomed:
            try:
                self._steps.delete(step, pinned=False)
            except mp.CheckpointError as error:  # it stays until the next save
                self._steps.stays(step)
                _log.warning("step %d of %s was not deleted: %s", step, self._root, error)
        free.finished(self._root, context)
        self._entry("save", checkpoint.step, began)

    def _opened(self, context: Context) -> mp.Checkpointer:
        """Return what writes the root, which is made now if it is not there."""
        if self._saver is not None:
            return self._saver
        options: dict[str, Any] = {
            "save": self._because, "keep": "all", "limits": places.limits(context), "shared": True,
            "resume_from": self._steps.last_whole,
        }  # fmt: skip
        if self._steps.catalog is None:
            custom = beside.root_metadata(self._root) or places.root_metadata(self._custom)
            try:
                self._saver = mp.Checkpointer(self._steps.home, step_format=self.names, metadata=custom, **options)
            except (mp.StructureError, mp.FormatError):
                self._steps.look()  # another process made the root meanwhile, its own way
                if self._steps.catalog is None:
                    raise
        if self._saver is None:
            self._saver = mp.Checkpointer(self._steps.home, **options)
        self.names = self._saver.catalog.step_format
        return self._saver

    def settle(self) -> None:
        """Wait for the save in flight; raises its error once, unless `result` did."""
        saving, self._saving = self._saving, None
        if saving is not None and not saving.told:
            saving.result()

    def cancel(self, step: int | None) -> None:
        """Give up the save in flight, if it is of that step, and wait until it is over."""
        if self._pending is not None and step in (None, self._saving_step):
            self._pending.cancel()
            self.settle()

    # --- delete

    def delete(self, step: int) -> Response[bool]:
        """Begin to delete a step, which is hidden at once."""
        self._steps.goes(step)

        def run() -> bool:
            try:
                if not self._steps.delete(step):
                    raise mp.ConflictError(
                        f"step {step} of {self._root} is being read\n  Try again when the reader is done.", code="busy"
                    )
            except BaseException:
                self._steps.stays(step)
                raise
            return True

        self._deleting = started(f"the deletion of step {step}", run)
        return self._deleting

    def delete_item(self, checkpoint: mp.Checkpoint, name: str, missing_ok: bool, context: Context) -> Response[bool]:
        """Begin to delete one named object of a step."""
        saver = self._opened(context)

        def run() -> bool:
            there = free.delete_item(saver, checkpoint, name, missing_ok=missing_ok)
            self._steps.look()
            return there

        self._deleting = started(f"the deletion of {name} in step {checkpoint.step}", run)
        return self._deleting

    def await_deletion(self) -> None:
        """Wait for the deletion in flight; raises its error, unless `result` did."""
        deleting, self._deleting = self._deleting, None
        if deleting is not None and not deleting.told:
            deleting.result()

    # --- ends

    def wait(self) -> None:
        """Wait for whatever is in flight."""
        self.await_deletion()
        self.settle()

    def close(self) -> None:
        """Wait, and give the lock back; a later save takes it again."""
        try:
            self.wait()
        finally:
            saver, self._saver = self._saver, None
            if saver is not None:
                saver.close()


@final
class _Because:
    """The native save policy, which only tells why the door decided to save."""

    def __init__(self) -> None:
        self.why = ""

    def due(self, moment: Any) -> str:
        return self.why

    def __str__(self) -> str:
        return "as the program's policy says"


def exists(step: int, root: Path) -> StepAlreadyExistsError:
    """Return the error for a step that is there already."""
    return StepAlreadyExistsError(f"Step {step} already exists.", step=step, path=str(root))
