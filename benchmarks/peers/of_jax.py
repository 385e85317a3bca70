# SPDX-License-Identifier: Apache-2.0
"""Orbax: the manager of its v0 API, and the Checkpointer of v1."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as v0
from orbax.checkpoint.experimental import v1

from benchmarks.peers import Peer, State, Wait
from benchmarks.states import flattened, nested


def _abstract(state: State) -> Any:
    return jax.tree.map(v0.utils.to_shape_dtype_struct, nested(state))


class OrbaxV0(Peer):
    """`CheckpointManager`, one synchronous and one asynchronous."""

    framework = "jax"
    syncs = "some"

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._managers: dict[bool, Any] = {}
        for asynchronous in (False, True):
            options = v0.CheckpointManagerOptions(enable_async_checkpointing=asynchronous, create=True)
            self._managers[asynchronous] = v0.CheckpointManager(folder, options=options)

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()

    def save(self, step: int, state: State) -> None:
        self._managers[False].save(step, args=v0.args.StandardSave(nested(state)))

    def start(self, step: int, state: State) -> Wait:
        self._managers[True].save(step, args=v0.args.StandardSave(nested(state)))
        return self._managers[True].wait_until_finished

    def load(self, step: int, state: State) -> State:
        restored = self._managers[False].restore(step, args=v0.args.StandardRestore(_abstract(state)))
        return flattened(jax.block_until_ready(restored))

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        item = _abstract({path: state[path]})
        arguments = v0.args.PyTreeRestore(
            item, restore_args=v0.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        with v0.PyTreeCheckpointer() as reader:
            return flattened(reader.restore(os.path.join(self.path(step), "default"), args=arguments))[path]


class OrbaxV1(Peer):
    """`training.Checkpointer`."""

    framework = "jax"
    syncs = "some"

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._saver = v1.training.Checkpointer(folder)

    def close(self) -> None:
        self._saver.close()

    def save(self, step: int, state: State) -> None:
        self._saver.save(step, nested(state))

    def start(self, step: int, state: State) -> Wait:
        return self._saver.save_async(step, nested(state)).result

    def load(self, step: int, state: State) -> State:
        return flattened(jax.block_until_ready(self._saver.load(step, _abstract(state))))

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        context = v1.Context()
        context.pytree.loading.partial_load = True
        with context:
            return flattened(v1.load(self.path(step), _abstract({path: state[path]})))[path]
