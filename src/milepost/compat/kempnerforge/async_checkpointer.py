# SPDX-License-Identifier: Apache-2.0
"""Write state dicts in the background, through page-locked memory where that is asked for."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, final

import milepost as mp
from milepost.compat.kempnerforge.config import AsyncCheckpointMode
from milepost.compat.kempnerforge.train_state import torch_module

_log = logging.getLogger("milepost")
STEPS = mp.StepFormat(prefix="step_")


@final
class _Staged:
    """A state that was taken already, which is saved as its owner would be."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> Any:
        return self._state

    def load_state_dict(self, state: Any) -> None:
        raise TypeError("a staged state is only saved")


def page_locked(tensor: Any) -> Any:
    """Return a device tensor in page-locked memory, which PyTorch keeps for the next one; one on the CPU as it is."""
    if tensor.device.type == "cpu":
        return tensor
    moved = torch_module().empty_like(tensor, device="cpu", pin_memory=True)
    return moved.copy_(tensor.detach(), non_blocking=True)


def staged(tree: Any, move: Callable[[Any], Any] = page_locked) -> Any:
    """Return a tree with its tensors moved, tied ones together; owners of state are asked for it."""
    torch, moved = torch_module(), dict[Any, Any]()

    def stage(value: Any) -> Any:
        if mp.is_stateful(value):
            return _Staged(stage(value.state_dict()))
        if isinstance(value, Mapping):
            return {key: stage(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        if type(value) in (list, tuple):
            return type(value)(map(stage, value))
        if not isinstance(value, torch.Tensor):
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in moved:
            moved[key] = move(value)
        return moved[key]

    result = stage(tree)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def check_alone(process_group: Any) -> None:
    """Refuse a group of several processes."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size(process_group)
        if size > 1:
            raise mp.StorageError(
                f"{size} processes cannot save one checkpoint together yet\n"
                "  Until then keep the original's manager for runs of several processes.",
                code="unsupported",
            )


def checked_mode(mode: Any) -> AsyncCheckpointMode:
    """Return the mode; says in the log when there is no device to take tensors from."""
    if mode == AsyncCheckpointMode.async_pinned and not torch_module().cuda.is_available():
        _log.warning("async_with_pinned_mem: there is no CUDA device, so saves go through ordinary memory")
    return AsyncCheckpointMode(mode)


@final
class AsyncCheckpointer:
    """Writes state dicts to places of one's own, `.../step_N` or any other folder, one at a time."""

    def __init__(self, mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled) -> None:
        self.mode = checked_mode(mode)
        self._saver: mp.Checkpointer | None = None
        self._pending: mp.PendingSave | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a save is still being written."""
        return self._pending is not None and not self._pending.done()

    def save(self, state_dict: Mapping[str, Any], checkpoint_id: str | Path, process_group: Any = None) -> None:
        """Wait for the save before, then write; a place that is taken is replaced when all of the new is there."""
        check_alone(process_group)
        self.wait()
        place = Path(checkpoint_id)
        named = re.fullmatch(r"step_(\d+)", place.name)
        root, step = (place.parent, int(named[1])) if named else (place, 0)
        tree = staged(state_dict) if self.mode == AsyncCheckpointMode.async_pinned else dict(state_dict)
        self._saver = mp.Checkpointer(root, save="first", keep="all", step_format=STEPS, shared=True)
        self._pending = self._saver.save(step, tree, overwrite=True, behind=True)
        if self.mode == AsyncCheckpointMode.disabled:
            self.wait()

    def wait(self) -> None:
        """Wait until the save is durable; raises its error once, and is then ready for the next."""
        saver, self._saver = self._saver, None
        if saver is not None:
            saver.close()
