# SPDX-License-Identifier: Apache-2.0
"""Forecast an ensemble into one Zarr store through xarray; kill it, start the same command again: same numbers.

    python ensemble_zarr.py --root runs/ensemble --output runs/ensemble.zarr      # needs xarray and zarr

A mark says that the output so far is written. Zarr leaves it to the operating system when the bytes reach the disk:
that survives a kill; to survive a power cut too, call `os.sync()` before a mark.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import milepost as mp

MEMBERS, LEADS, SIZE = 4, 24, 40


@dataclass
class Model:
    """A field on a circle that is carried along, spreads, and is stirred by noise."""

    x: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(SIZE))
    noise: np.random.Generator = field(default_factory=np.random.default_rng)

    def step(self) -> None:
        self.x = 0.5 * np.roll(self.x, 1) + 0.25 * (self.x + np.roll(self.x, 2)) + self.noise.normal(size=SIZE)


def make_output(path: Path) -> None:
    """Make the whole store at once, of NaN, with a chunk for each member and lead time."""
    sizes = {"member": MEMBERS, "lead_time": LEADS, "x": SIZE}
    field_of_nan = xr.DataArray(np.full(tuple(sizes.values()), np.nan), dims=tuple(sizes))
    lead_time = (1 + np.arange(LEADS)) * np.timedelta64(6, "h").astype("timedelta64[ns]")
    data = xr.Dataset({"field": field_of_nan}, {"member": np.arange(MEMBERS), "lead_time": lead_time})
    data.to_zarr(path, mode="w", consolidated=False, encoding={"field": {"chunks": (1, 1, SIZE)}})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--output", type=Path, required=True, help="the Zarr store")
    args = parser.parse_args()

    with mp.Session(args.root, save="every 6 steps, on preemption") as session:
        model = session.bind("model", Model())
        if not session.items():
            make_output(args.output)
        for labels in session.pending([{"member": member} for member in range(MEMBERS)]):
            with session.item(**labels) as item:
                first = item.progress.get("lead", -1) + 1
                if first == 0:
                    model.x, model.noise = np.zeros(SIZE), np.random.default_rng([6, labels["member"]])
                print(f"member {labels['member']} from lead {first}", flush=True)
                for lead in range(first, LEADS):
                    model.step()
                    part = xr.Dataset({"field": (("member", "lead_time", "x"), model.x[None, None])})
                    place = {
                        "member": slice(labels["member"], labels["member"] + 1),
                        "lead_time": slice(lead, lead + 1),
                    }
                    part.to_zarr(args.output, region={**place, "x": slice(None)}, consolidated=False)
                    session.mark(lead=lead)
                    if session.stopping:
                        return 75
    data = xr.open_zarr(args.output, consolidated=False, chunks=None)
    print("field", hashlib.sha256(data["field"].values.tobytes()).hexdigest(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
