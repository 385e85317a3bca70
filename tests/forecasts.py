# SPDX-License-Identifier: Apache-2.0
"""Workflows and components as users of Earth2Studio have them, written for these tests.

A workflow opens the checkpoint, writes output first and then `ckpt.write`, goes on at `write_count - 1` at level 2, and
otherwise begins again. A model swallows the initial condition when it was restored. A perturbation draws once for each
batch of members, in a resumed batch again.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from milepost.compat.earth2studio import NullCheckpoint, bind_checkpoint_state

HOURS = np.timedelta64(6, "h")


class Killed(BaseException):
    """Stands for a kill: nothing in the program handles it."""


class Output:
    """The forecast store; the run is killed at its n-th write, before or after it."""

    def __init__(self, kept: dict[Any, Any], kill: int | None = None, *, after: bool = False) -> None:
        self.kept, self.kill, self.after, self.writes = kept, kill, after, 0

    def write(self, key: Any, value: Any) -> None:
        self.writes += 1
        if self.writes == self.kill and not self.after:
            raise Killed
        self.kept[key] = np.array(value)
        if self.writes == self.kill:
            raise Killed


@dataclasses.dataclass
class ModelState:
    x: Any = None
    coord_keys: tuple[str, ...] = ()
    coord_values: tuple[Any, ...] = ()


class Model:
    """A forecast model whose step mixes the field."""

    def __init__(self) -> None:
        self.checkpoint = bind_checkpoint_state(ModelState())

    def _stage(self, x: Any, coords: dict[str, Any]) -> None:
        full = self.checkpoint.checkpoint_level == 2
        self.checkpoint.x = x.copy() if full else None
        self.checkpoint.coord_keys = tuple(coords) if full else ()
        self.checkpoint.coord_values = tuple(coords.values()) if full else ()

    def create_iterator(self, x: Any, coords: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        if self.checkpoint.checkpoint_state_loaded and self.checkpoint.x is not None:
            x = self.checkpoint.x
            coords = dict(zip(self.checkpoint.coord_keys, self.checkpoint.coord_values, strict=True))
        else:
            self._stage(x, coords)
            yield x, coords
        while True:
            x = 0.9 * x + 0.1 * np.roll(x, 1, axis=-1) + np.sin(x)
            coords = {**coords, "lead_time": coords["lead_time"] + HOURS}
            self._stage(x, coords)
            yield x, coords


@dataclasses.dataclass
class NoiseState:
    generator_state: Any = dataclasses.field(default=None, metadata={"scope": "item"})


class Noise:
    """Seeded noise, its random state saved before the draw at level 1, after it at level 2."""

    def __init__(self, state: Any = None, seed: int = 3) -> None:
        self.generator = np.random.default_rng(seed)
        self.checkpoint = bind_checkpoint_state(NoiseState() if state is None else state)

    def __call__(self, x: Any, coords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        state = self.checkpoint
        if state.checkpoint_state_loaded and state.generator_state is not None:
            self.generator.bit_generator.state = state.generator_state
        if state.checkpoint_level == 0:
            state.generator_state = None
        if state.checkpoint_level == 1:
            state.generator_state = self.generator.bit_generator.state
        noise = self.generator.normal(size=x.shape)
        if state.checkpoint_level == 2:
            state.generator_state = self.generator.bit_generator.state
        return x + noise, coords


def initial(time: np.datetime64) -> tuple[Any, dict[str, Any]]:
    x = np.linspace(0.0, 1.0, 5) + float(time.astype("M8[D]").astype(int) % 7)
    return x, {"time": time, "lead_time": np.timedelta64(0, "h")}


def _restart_step(ckpt: Any) -> int | None:
    """Return the step that the row holds, None to begin at lead 0."""
    if not ckpt.exists or ckpt.write_count == 0:
        return None
    if ckpt.catalog.level != 2:
        warnings.warn("level is below 2: the forecast begins again", UserWarning, stacklevel=3)
        ckpt.write_count = 0
        return None
    return ckpt.write_count - 1


def deterministic(time: Any, nsteps: int, prognostic: Any, io: Output, checkpoint: Any = NullCheckpoint()) -> None:  # noqa: B008 as the original has it
    diagnostic(time, nsteps, prognostic, lambda x: x, io, checkpoint)


def diagnostic(
    time: Any,
    nsteps: int,
    prognostic: Any,
    derive: Any,
    io: Output,
    checkpoint: Any = NullCheckpoint(),  # noqa: B008 as the original has it
) -> None:
    with checkpoint as ckpt:
        restart = _restart_step(ckpt)
        if restart is not None and restart >= nsteps:
            return
        x, coords = initial(time)
        first = 0 if restart is None else restart + 1
        for step, (y, where) in enumerate(prognostic.create_iterator(x, coords), first):
            io.write(where["lead_time"], derive(y))
            ckpt.write(lead_time=where["lead_time"])
            if step == nsteps:
                break
        ckpt.flush()


def ensemble(
    time: Any,
    nsteps: int,
    nensemble: int,
    prognostic: Any,
    perturbation: Any,
    io: Output,
    batch_size: int,
    checkpoint: Any = NullCheckpoint(),  # noqa: B008 as the original has it
) -> None:
    with checkpoint as ckpt:
        completed = tuple(ckpt.metadata.get("completed_ensembles", ()))
        inside = ckpt.exists and ckpt.lead_time != nsteps * HOURS
        for start in range(len(completed), nensemble, batch_size):
            members = tuple(range(start, min(start + batch_size, nensemble)))
            restart = _restart_step(ckpt) if inside else None
            inside = False
            if restart is None:
                ckpt.write_count = 0
            x, coords = initial(time)
            x, coords = perturbation(np.stack([x] * len(members)), {"ensemble": members, **coords})
            first = 0 if restart is None else restart + 1
            for step, (y, where) in enumerate(prognostic.create_iterator(x, coords), first):
                for index, member in enumerate(members):
                    io.write((member, where["lead_time"]), y[index])
                completed += members if step == nsteps else ()
                ckpt.write(lead_time=where["lead_time"], completed_ensembles=completed)
                if step == nsteps:
                    break
            ckpt.flush()
