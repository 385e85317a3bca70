# SPDX-License-Identifier: Apache-2.0
"""The workflows of Earth2Studio itself on the front door, killed at every write and resumed; run where it is installed.

Its perturbation binds to the door, as the door stands in the place of `earth2studio.utils.checkpoint`; the model is a
tiny one of the same protocol, whose field moves at each step, so that a wrong state shows.
"""

from __future__ import annotations

import contextvars
import itertools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import milepost.compat.earth2studio as door

sys.modules["earth2studio.utils.checkpoint"] = door

from earth2studio import run  # noqa: E402  # pyright: ignore[reportMissingImports]
from earth2studio.data import Random  # noqa: E402  # pyright: ignore[reportMissingImports]
from earth2studio.perturbation import Gaussian  # noqa: E402  # pyright: ignore[reportMissingImports]

GRID = OrderedDict(lat=np.linspace(90, -90, 4), lon=np.linspace(0, 360, 6, endpoint=False))
HOURS = np.timedelta64(6, "h")
STEPS, MEMBERS = 2, 3
Coords = Any


class Killed(BaseException):
    """Stands for a kill: nothing in the program handles it."""


class Output:
    """An output backend that keeps each field by its coordinates; the run is killed after its n-th write."""

    def __init__(self, kept: dict[Any, Any], kill: int | None = None) -> None:
        self.kept, self.kill, self.writes = kept, kill, 0

    def add_array(self, *_: Any, **__: Any) -> None: ...

    def write(self, fields: Any, coords: Coords, names: Any) -> None:
        self.writes += 1
        axes = [name for name in coords if name in ("ensemble", "time", "lead_time")]
        for field, name in zip(fields, names, strict=True):
            for place in itertools.product(*(range(len(coords[axis])) for axis in axes)):
                at = tuple(place[axes.index(axis)] if axis in axes else slice(None) for axis in coords)
                key = (str(name), *(str(coords[axis][i]) for axis, i in zip(axes, place, strict=True)))
                self.kept[key] = field.numpy()[at].copy()
        if self.writes == self.kill:
            raise Killed


class Data(Random):
    """Their random data, the same each time."""

    def __call__(self, time: Any, variable: Any) -> Any:
        found = super().__call__(time, variable)
        found.values[...] = np.random.default_rng(7).normal(size=found.shape)
        return found


@dataclass
class State:
    x: Any = None
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()


class Mover(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.checkpoint = door.bind_checkpoint_state(State())

    def input_coords(self) -> Coords:
        own = {"lead_time": np.array([0 * HOURS]), "variable": np.array(["t2m"])}
        return OrderedDict(batch=np.empty(0), time=np.empty(0), **own, **GRID)

    def output_coords(self, coords: Coords) -> Coords:
        return OrderedDict({**coords, "lead_time": coords["lead_time"][-1:] + HOURS})

    def _staged(self, x: Any, coords: Coords) -> tuple[Any, Coords]:
        full = self.checkpoint.checkpoint_level == 2
        self.checkpoint.x = x.clone() if full else None
        self.checkpoint.names, self.checkpoint.values = (tuple(coords), tuple(coords.values())) if full else ((), ())
        return x, coords

    def create_iterator(self, x: Any, coords: Coords) -> Iterator[tuple[Any, Coords]]:
        if self.checkpoint.checkpoint_state_loaded and self.checkpoint.x is not None:
            x = self.checkpoint.x
            coords = OrderedDict(zip(self.checkpoint.names, self.checkpoint.values, strict=True))
        else:
            yield self._staged(x, coords)
        while True:
            x, coords = 0.9 * x + 0.1 * torch.roll(x, 1, -1) + torch.sin(x), self.output_coords(coords)
            yield self._staged(x, coords)


class Twice(torch.nn.Module):
    def input_coords(self) -> Coords:
        own = {"lead_time": np.empty(0), "variable": np.array(["t2m"])}
        return OrderedDict(batch=np.empty(0), time=np.empty(0), **own, **GRID)

    def output_coords(self, coords: Coords) -> Coords:
        return OrderedDict({**coords, "variable": np.array(["twice"])})

    def __call__(self, x: Any, coords: Coords) -> tuple[Any, Coords]:
        return 2 * x, self.output_coords(coords)


def forecast(workflow: str, root: Path, level: Any, output: Output) -> None:
    """Run a workflow as a new process would."""

    def body() -> None:
        checkpoint = door.Checkpoint("forecast", root, level=level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a level below 2 begins again
            with checkpoint as session:
                more: dict[str, Any] = {"device": "cpu", "verbose": False, "checkpoint": session}
                times, model, data = ["2026-01-01"], Mover(), Data(GRID)
                if workflow == "deterministic":
                    run.deterministic(times, STEPS, model, data, output, **more)
                elif workflow == "diagnostic":
                    run.diagnostic(times, STEPS, model, Twice(), data, output, **more)
                else:
                    noise = Gaussian(noise_amplitude=0.5, seed=3)
                    run.ensemble(times, STEPS, MEMBERS, model, data, output, noise, batch_size=2, **more)

    contextvars.Context().run(body)


def main(folder: Path) -> None:
    for workflow, level in itertools.product(("deterministic", "diagnostic", "ensemble"), (1, 2)):
        whole = Output({})
        forecast(workflow, folder / f"{workflow}{level}", level, whole)
        for kill in range(1, whole.writes + 1):
            kept: dict[Any, Any] = {}
            root = folder / f"{workflow}{level}-{kill}"
            try:
                forecast(workflow, root, level, Output(kept, kill))
                raise AssertionError("it was not killed")
            except Killed:
                forecast(workflow, root, level, Output(kept))
            assert kept.keys() == whole.kept.keys(), (workflow, level, kill)
            assert all(np.array_equal(kept[key], whole.kept[key]) for key in kept), (workflow, level, kill)
        print(f"{workflow}, level {level}, killed at each of {whole.writes} writes: the same {len(whole.kept)} fields")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
