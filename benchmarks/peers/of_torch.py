# SPDX-License-Identifier: Apache-2.0
"""Libraries that take torch tensors: torch.save, safetensors, torch's distributed checkpoints, torchsnapshot."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from benchmarks.peers import CopyThenThread, Peer, State, Wait


def _empty(state: State) -> State:
    return {path: torch.empty_like(value) for path, value in state.items()}


def _one_process() -> None:
    """Begin a process group of one: some libraries want one."""
    if not dist.is_initialized():
        meeting = os.path.join(tempfile.mkdtemp(prefix="bench-"), "group")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)


class _Copied(CopyThenThread):
    framework = "torch"

    def copied(self, value: Any) -> Any:
        return value.clone()


class TorchSave(_Copied):
    """`torch.save`."""

    def save(self, step: int, state: State) -> None:
        torch.save(state, self.path(step))

    def load(self, step: int, state: State) -> State:
        return torch.load(self.path(step), weights_only=True)

    def load_mapped(self, step: int, state: State) -> State:
        return torch.load(self.path(step), mmap=True, weights_only=True)

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        return self.load_mapped(step, state)[path]


class SafetensorsTorch(_Copied):
    """`safetensors.torch`; it maps what it loads."""

    def save(self, step: int, state: State) -> None:
        from safetensors.torch import save_file

        save_file(state, self.path(step))

    def load(self, step: int, state: State) -> State:
        from safetensors.torch import load_file

        return load_file(self.path(step))

    def load_mapped(self, step: int, state: State) -> State:
        from safetensors import safe_open

        with safe_open(self.path(step), "pt") as file:
            return {path: file.get_tensor(path) for path in state}

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        from safetensors import safe_open

        with safe_open(self.path(step), "pt") as file:
            return file.get_tensor(path)


class Dcp(Peer):
    """torch.distributed.checkpoint, one process; its asynchronous save in a thread."""

    framework = "torch"
    syncs = "some"
    kind = AsyncCheckpointerType.THREAD

    def open(self, folder: Path) -> None:
        super().open(folder)
        _one_process()

    def save(self, step: int, state: State) -> None:
        dcp.save(state, checkpoint_id=self.path(step), no_dist=True)

    def start(self, step: int, state: State) -> Wait:
        future: Any = dcp.async_save(state, checkpoint_id=self.path(step), async_checkpointer_type=self.kind)
        return future.result

    def load(self, step: int, state: State) -> State:
        target = _empty(state)
        self.load_into(step, target)
        return target

    def load_into(self, step: int, state: State) -> None:
        dcp.load(state, checkpoint_id=self.path(step), no_dist=True)

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        return self.load(step, {path: state[path]})[path]


class DcpProcess(Dcp):
    """The same, its asynchronous save in a process."""

    kind = AsyncCheckpointerType.PROCESS
    processes = True
    asynchronous_only = True


class Torchsnapshot(Peer):
    """torchsnapshot, one process."""

    framework = "torch"

    def open(self, folder: Path) -> None:
        import torchsnapshot

        super().open(folder)
        self._library: Any = torchsnapshot
        _one_process()

    def _app(self, state: State) -> dict[str, Any]:
        return {"state": self._library.StateDict(**state)}

    def save(self, step: int, state: State) -> None:
        self._library.Snapshot.take(self.path(step), self._app(state))

    def start(self, step: int, state: State) -> Wait:
        return self._library.Snapshot.async_take(self.path(step), self._app(state)).wait

    def load(self, step: int, state: State) -> State:
        app = self._app(_empty(state))
        self._library.Snapshot(self.path(step)).restore(app)
        return dict(app["state"])

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        return self._library.Snapshot(self.path(step)).read_object("0/state/" + path.replace("/", "%2F"))
