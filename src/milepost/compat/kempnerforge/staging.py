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


@final
class PageLocked:
    """Takes device tensors through page-locked host memory, which is allocated once and used by every save."""

    def __init__(self, allocate: Callable[[Any], Any] | None = None) -> None:
        self._torch = torch_module()
        self._allocate = allocate or self._pinned
        self._active = allocate is not None or self._torch.cuda.is_available()
        self._buffers: dict[Any, Any] = {}
        if not self._active:
            _log.warning("async_with_pinned_mem: there is no CUDA device, so saves go through ordinary memory")

    def _pinned(self, tensor: Any) -> Any:
        if tensor.device.type == "cpu":
            return None
        return self._torch.empty_like(tensor, device="cpu", pin_memory=True)

    def staged(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tree with its device tensors in host memory; owners of state are asked for it."""
        if not self._active:
            return dict(tree)
        used: dict[Any, Any] = {}
        result = {
            name: _Staged(self._moved(value.state_dict(), used))
            if hasattr(value, "state_dict")
            else self._moved(value, used)
            for name, value in tree.items()
        }
        self._buffers = used
        if self._torch.cuda.is_available():
            self._torch.cuda.synchronize()
        return result

    def _moved(self, value: Any, used: dict[Any, Any]) -> Any:
        if isinstance(value, Mapping):
            return {key: self._moved(item, used) for key, item in cast("Mapping[Any, Any]", value).items()}
        if type(value) in (list, tuple):
            return type(value)(self._moved(item, used) for item in value)
        if not isinstance(value, self._torch.Tensor):
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in used:  # tied tensors stay tied
            buffer = self._buffers[key] if key in self._buffers else self._allocate(value)
            used[key] = buffer
            if buffer is not None:
                buffer.copy_(value.detach(), non_blocking=True)
        return value if used[key] is None else used[key]


def refuse_many(process_group: Any) -> None:
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size(process_group)
        if size > 1:
            raise mp.StorageError(
                f"{size} processes cannot save one checkpoint together yet\n"
                "  Until then keep the original's manager for runs of several processes.",
                code="unsupported",
            )


@final
class AsyncCheckpointer:
    """Writes state dicts to places of one's own, `.../step_N` or any other folder, one at a time."""

    def __init__(self, mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled) -> None:
        self._mode = AsyncCheckpointMode(mode)
        self._staging = PageLocked() if self._mode == AsyncCheckpointMode.async_pinned else None
        self._saver: mp.Checkpointer | None = None
        self._pending: mp.PendingSave | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a save is still being written."""
        return self._pending is not None and not self._pending.done()

    def save(self, state_dict: Mapping[str, Any], checkpoint_id: str | Path, process_group: Any = None) -> None:
        """Wait for the save before, then write; a place that is taken is replaced when all of the new is there."""
        refuse_many(process_group)
        self.wait()
        place = Path(checkpoint_id)
        named = re.fullmatch(r"step_(\d+)", place.name)
        root, step = (place.parent, int(named[1])) if named else (place, 0)
        tree = dict(state_dict) if self._staging is None else self._staging.staged(state_dict)
        self._saver = mp.Checkpointer(root, save="first", keep="all", step_format=STEPS, shared=True)
        self._pending = self._saver.save(step, tree, overwrite=True, behind=True)
        if self._mode == AsyncCheckpointMode.disabled:
            self.wait()

    def wait(self) -> None:
        """Wait until the save is durable; raises its error once, and is then ready for the next."""
        saver, self._saver = self._saver, None
        if saver is not None:
            saver.close()
