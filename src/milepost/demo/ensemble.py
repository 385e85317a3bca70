# SPDX-License-Identifier: Apache-2.0
"""The forecast of the demo: 16 members of 24 months. It is started, and goes on with the member and month it is at.

`python -m milepost.demo.ensemble ROOT OUTPUT` forecasts; each member is a file of OUTPUT, and an item of the session.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import milepost as mp
from milepost.demo import elnino
from milepost.demo.digits import Array

MEMBERS, MONTHS = 16, 24


@dataclass(slots=True)
class Member:
    """All that changes in the forecast of a member."""

    strengths: Array | None = None
    random: np.random.Generator = field(default_factory=np.random.default_rng)


def forecast(
    root: Path, output: Path, *, members: int = MEMBERS, months: int = MONTHS, worker: int = 0, workers: int = 1,
    level: mp.Level = mp.Level.ROLLOUT, save: str = "every 6 steps",
) -> Generator[tuple[int, int, float]]:  # fmt: skip
    """Forecast what is left to do; yield member, lead in months and temperature, each once its mark was made."""
    model = elnino.InverseModel.fitted(elnino.load())
    output.mkdir(parents=True, exist_ok=True)
    items = [{"member": member} for member in range(members)]
    with mp.Session(root, save=save, level=level, identity={"patterns": len(model.start)}) as session:
        state = session.bind("state", Member())
        for labels in session.pending(items[worker::workers]):
            member = labels["member"]
            with session.item(**labels) as item:
                done = item.progress.get("lead", 0)
                if done == 0:
                    state.strengths, state.random = model.start, np.random.default_rng([elnino.FIRST_YEAR, member])
                table = _table(output / f"member-{member:02}.npy", months, new=done == 0)
                for lead in range(done + 1, months + 1):
                    assert state.strengths is not None
                    state.strengths = model.advanced(state.strengths, state.random)
                    table[lead - 1] = model.temperature(state.strengths, lead)
                    table.flush()  # it is in its file: a safe place to go on from
                    session.mark(lead=lead)
                    yield member, lead, float(table[lead - 1])


def _table(path: Path, months: int, *, new: bool) -> np.memmap[Any, Any]:
    """Return a member's temperatures, which are its file; those not yet known are NaN."""
    if not new:
        return np.lib.format.open_memmap(path, mode="r+")
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(months,))
    table[:] = np.nan
    return table


def temperatures(output: Path) -> Array:
    """Return what was forecast, `(member, month)`."""
    return np.stack([np.load(path) for path in sorted(output.glob("member-*.npy"))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m milepost.demo.ensemble")
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    begun: set[int] = set()
    for member, lead, temperature in forecast(args.root, args.output):
        if member not in begun and lead > 1:
            print(f"member {member:2}   goes on with month {lead}", flush=True)
        begun.add(member)
        if lead == MONTHS:
            print(f"member {member:2}   {temperature:.2f} °C in month {lead}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
