# SPDX-License-Identifier: Apache-2.0
"""milepost, with arrays of each framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import milepost as mp
from benchmarks.peers import Peer, State, Wait
from benchmarks.states import flattened, nested


class OfNumPy(Peer):
    """One `Checkpointer`, as a program has it; NumPy arrays are copied before `save` returns."""

    syncs = "all"
    rehearses = True
    donated = False

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._saver = mp.Checkpointer(folder / "root", save="first", keep="all", donated=self.donated)

    def close(self) -> None:
        self._saver.close()

    def save(self, step: int, state: State) -> None:
        self._saver.save(step, nested(state)).result()

    def start(self, step: int, state: State) -> Wait:
        return self._saver.save(step, nested(state)).result

    def _checkpoint(self, step: int) -> mp.Checkpoint:
        return mp.open(self.folder / "root")[step]

    def load(self, step: int, state: State) -> State:
        if self.framework == "numpy":
            return flattened(self._checkpoint(step).load())
        return flattened(self._checkpoint(step).load(like=nested(self.abstract(state))))

    def abstract(self, state: State) -> State:
        """Return what says to `load` which arrays are wanted, without their data."""
        return state

    def load_mapped(self, step: int, state: State) -> State:
        like = None if self.framework == "numpy" else nested(self.abstract(state))
        checkpoint = self._checkpoint(step)
        return flattened(checkpoint.load(lazy=True) if like is None else checkpoint.load(like=like, lazy=True))

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        return self._checkpoint(step).leaf(path).read()

    def load_into(self, step: int, state: State) -> None:
        self._checkpoint(step).load_into(nested(state))


class OfTorch(OfNumPy):
    """torch tensors on CPU; copied before `save` returns."""

    framework = "torch"

    def abstract(self, state: State) -> State:
        import torch

        return {path: torch.empty_like(value, device="meta") for path, value in state.items()}


class OfJax(OfNumPy):
    """JAX arrays on CPU; they cannot change, and are held."""

    framework = "jax"
    load_into = None

    def abstract(self, state: State) -> State:
        import jax

        return {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in state.items()}


class OfDonatedJax(OfJax):
    """JAX arrays that the program donates to its next step; copied before `save` returns."""

    donated = True
