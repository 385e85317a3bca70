# SPDX-License-Identifier: Apache-2.0
"""A manager's save in flight: what happens when it is committed, and what is told when it fails."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import milepost as mp
from milepost.compat.orbax import manager_options
from milepost.compat.orbax import step as steps
from milepost.compat.orbax.history import CheckpointInfo
from milepost.compat.orbax.manager_options import CheckpointManagerOptions
from milepost.interop.orbax import beside

_log = logging.getLogger("milepost.compat.orbax")


@final
class Saving:
    """One save of a manager.

    Old steps go when the new one is committed, on the thread that wrote it, so that nothing is lost when the program
    ends or fails in between.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        doomed: Sequence[int],
        left: Sequence[int],
        undo: Callable[[], None],
        options: CheckpointManagerOptions,
        directory: Path,
    ) -> None:
        self.info, self.doomed, self._undo = info, list(doomed), undo
        self.left = [*doomed, *left]
        """Steps that are to go, and are still there: somebody reads them, or a deletion failed."""
        self._options, self._directory = options, directory
        self._over = threading.Event()
        self._error: BaseException | None = None

    def begin(self, pending: mp.PendingSave) -> None:
        """Go on when the save is over; not on the thread that began it, which does not wait for callbacks."""
        beginner = threading.current_thread()

        def over(pending: mp.PendingSave) -> None:
            if threading.current_thread() is beginner:  # it was over already
                threading.Thread(target=self._end, args=(pending,), name="milepost-orbax-end").start()
            else:
                self._end(pending)

        pending.add_done_callback(over)

    def _end(self, pending: mp.PendingSave) -> None:
        try:
            self._finish(pending.result(0))
        except BaseException as error:  # noqa: BLE001 told by `wait`, on the thread of whoever asks
            self._error = error
            if pending.failed:
                self._undo()
                self.left = [step for step in self.left if step not in self.doomed]
        finally:
            self._over.set()

    def _finish(self, checkpoint: mp.Checkpoint) -> None:
        mode = self._options.file_options.path_permission_mode
        if mode is not None:
            (beside.home(self._directory) / checkpoint.info.slot).chmod(mode)
        background = self._options.async_options
        if background is not None and background.post_finalization_callback is not None:
            background.post_finalization_callback()
        if self.left:
            catalog = mp.open(beside.home(self._directory))
            for step in list(self.left):
                if dropped(catalog, step, self._directory, self._options):
                    self.left.remove(step)

    @property
    def over(self) -> bool:
        """Whether it is finished, well or not."""
        return self._over.is_set()

    def wait(self) -> None:
        """Wait until it is finished; raises what went wrong, once.

        Raises:
            TimeoutError: it is not over after `async_options.timeout_secs`.
        """
        options = self._options.async_options
        timeout_s = None if options is None else options.timeout_secs
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"the save of step {self.info.step} is not over after {timeout_s:g} s")
        error, self._error = self._error, None
        if error is not None:
            raise error


def dropped(catalog: mp.Catalog | None, step: int, directory: Path, options: CheckpointManagerOptions) -> bool:
    """Delete a step, or put it into `todelete_subdir`; False when somebody is reading it.

    Steps that Orbax wrote go the same way: a keep policy is about the run, whoever wrote its steps.
    """
    aside = None if options.todelete_subdir is None else directory / options.todelete_subdir
    try:
        if catalog is None or step not in catalog:
            named = manager_options.names(options)
            theirs = beside.theirs(directory, lambda name, number: steps.accepts(named, name, number)).get(step)
            if theirs is not None:
                beside.delete(theirs, aside)
            return True
        if aside is not None:
            _put_aside(catalog[step], beside.home(directory), aside)
        catalog.delete(step)
    except mp.NotFoundError:
        return True  # somebody else was first
    except mp.ConflictError as error:
        if error.code != "busy":
            raise
        _log.info("step %d of %s stays for now: %s", step, directory, error)
        return False
    return True


def _put_aside(checkpoint: mp.Checkpoint, directory: Path, folder: Path) -> None:
    """Make a second name for every file of a step in another folder; where links are refused, a copy."""
    slot = checkpoint.info.slot
    target = folder / slot.partition(".g")[0]
    with checkpoint.lease():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(directory / slot, target, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
