# SPDX-License-Identifier: Apache-2.0
"""Save one checkpoint at a path of its own: nothing is seen there before it is whole."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import milepost as mp
from milepost.compat.orbax import places, step
from milepost.compat.orbax.options import AsyncOptions
from milepost.compat.orbax.record import ALONE, UnsupportedTypeError


@final
class Writing:
    """A save in flight, to a path of its own.

    A new checkpoint is written beside the path and takes its name when it is committed. One that replaces another of
    ours is committed in the same folder, so there is no moment without it.
    """

    def __init__(
        self, path: Path, tree: Any, metadata: Mapping[str, Any], *, force: bool, options: AsyncOptions | None = None
    ) -> None:
        self.path = path
        self._callback = None if options is None else options.post_finalization_callback
        self._over = threading.Event()
        self._error: BaseException | None = None
        refuse(path, force=force)
        self._in_place = places.is_alone(path)
        self._target = path if self._in_place else path.with_name(path.name + step.TMP_DIR_SUFFIX)
        if not self._in_place and not places.is_alone(self._target):
            shutil.rmtree(self._target, ignore_errors=True)  # what an attempt of somebody else left behind
        self._saver = mp.Checkpointer(
            self._target, save="first", keep="all", metadata=ALONE,
            limits=None if options is None else mp.Limits(timeout_s=options.timeout_secs),
        )  # fmt: skip
        self._timeout_s = None if options is None else options.timeout_secs
        try:
            self._pending = self._saver.save(0, tree, metadata=metadata, overwrite=True, behind=True)
        except mp.UnsupportedLeafError as error:
            self._give_up()
            raise UnsupportedTypeError(str(error)) from None
        except BaseException:
            self._give_up()
            raise
        self._pending.add_done_callback(self._end)

    def _give_up(self) -> None:
        self._saver.close()
        if not self._in_place:
            shutil.rmtree(self._target, ignore_errors=True)

    def _end(self, pending: mp.PendingSave) -> None:
        try:
            if pending.cancelled:
                self._give_up()
                return
            pending.result(0)
            self._saver.close()
            if not self._in_place:
                _take_place(self._target, self.path)
            if self._callback is not None:
                self._callback()
        except BaseException as error:  # noqa: BLE001 told by `wait`, on the thread of whoever asks
            self._error = error
            self._saver.close()
        finally:
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether it is finished, well or not."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Give it up, if it is not committed yet; `wait` then returns when nothing of it is left."""
        self._pending.cancel()

    def wait(self) -> None:
        """Wait until it is committed, or was given up; raises what went wrong, once."""
        if not self._over.wait(self._timeout_s):
            raise TimeoutError(f"the save to {self.path} is not over after {self._timeout_s:g} s")
        error, self._error = self._error, None
        if error is not None:
            raise error


def refuse(path: Path, *, force: bool) -> None:
    """Refuse a path that is taken.

    Raises:
        ValueError: something is there already, or a manager would take the folder for an unfinished step.
    """
    if path.exists() and not force:
        raise ValueError(f"Destination {path} already exists.")
    if path.name.split("_")[-1].isdigit() and (path.parent / "milepost.json").exists():
        raise ValueError(
            f"{path.parent} holds the steps of a CheckpointManager, which would take {path.name} for one of its own\n"
            "  Save with the manager, or under a name without a number at its end."
        )


def _take_place(source: Path, target: Path) -> None:
    """Give a finished folder its name; what had the name goes away afterwards."""
    old = target.with_name(f"{target.name}.replaced{step.TMP_DIR_SUFFIX}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    _sync(target.parent)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.unlink()


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
