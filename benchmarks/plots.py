# SPDX-License-Identifier: Apache-2.0
"""Bars of the main figures, one picture a workload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Results

_SAVE = (("asynchronous", "blocked", "blocked"), ("save", "seconds", "durable"), ("cold", "seconds", "cold load"))
_BARS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "transformer": _SAVE,
    "many": _SAVE,
    "big": _SAVE,
    "frozen": (("base", "seconds", "first save"), ("partly", "seconds", "2 % changed")),
    "loop": (("loop", "seconds", "20 steps with 4 saves"), ("loop", "saving_cpu", "CPU of the saves")),
    "tiny": (("steps", "early", "a step, early"), ("steps", "late", "a step, late")),
    "open": (("opening", "cold", "cold"), ("opening", "warm", "warm")),
}
_COLOURS = ("#3b6ea5", "#d98c3f", "#7a9e5f")


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Draw each workload that was run as a PNG in a folder; yield where."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for name in _BARS if name in results.workloads):
        peers = list(reversed(results.peers(name)))
        figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(peers)), layout="constrained")
        for place, (operation, field, label) in enumerate(_BARS[name]):
            _bars(axes, results, name, peers, operation, field, label, place, len(_BARS[name]))
        axes.set_yticks(range(len(peers)), peers)
        axes.set_ylim(-0.6, len(peers) - 0.4)
        axes.set_xscale("log")
        axes.set_xlabel("seconds, median, least to most")
        axes.set_title(results.workloads[name]["title"])
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        plt.close(figure)
        yield path


def _bars(
    axes: Any, results: Results, workload: str, peers: list[str], operation: str, field: str, label: str, place: int,
    count: int,
) -> None:  # fmt: skip
    """Draw one figure of all peers."""
    height = 0.8 / count
    named = False
    for row, peer in enumerate(peers):
        found = sorted(results.of(workload, peer, operation, field))
        if not found or found[0] <= 0:
            continue
        middle = results.median(workload, peer, operation, field) or 0.0
        axes.barh(
            row + 0.4 - height * (place + 0.5), middle, height, color=_COLOURS[place],
            xerr=[[middle - found[0]], [found[-1] - middle]], ecolor="#555555",
            label=None if named else label,
        )  # fmt: skip
        named = True
