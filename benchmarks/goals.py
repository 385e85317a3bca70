# SPDX-License-Identifier: Apache-2.0
"""What milepost wants to reach, and what it did, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

_OURS = ("milepost-numpy", "milepost-torch", "milepost-jax")
_LARGE = ("transformer", "many", "big")


class Figures(Protocol):
    """Medians of what was measured."""

    def median(self, workload: str, peer: str, operation: str, field: str = "seconds") -> float | None:
        """Return the median of a figure, None when there is none."""

    def of(self, workload: str, peer: str, operation: str, field: str) -> list[float]:
        """Return a figure of an operation in every round."""

    def peers(self, workload: str) -> list[str]:
        """Return who took part."""

    @property
    def workloads(self) -> dict[str, dict[str, object]]:
        """The workloads that were run."""


Goal = tuple[str, str, str, str]


def goals(results: Figures) -> list[Goal]:
    """Return rows of what, goal, figure, and whether it is met; what was not measured says so."""
    rows: list[Goal] = []
    for make in (_blocked, _next_step, _loading, _tiny):
        rows += make(results)
    return rows


def _row(what: str, goal: str, figure: float | None, text: Callable[[float], str], met: float) -> Goal:
    """Return a row whose figure must not exceed `met`."""
    if figure is None:
        return what, goal, "not measured", ""
    return what, goal, text(figure), "met" if figure <= met else "**not met**"


def _ms(value: float) -> str:
    return f"{1000 * value:.3g} ms"


def _times(value: float) -> str:
    return f"{value:.2f} x"


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _blocked(results: Figures) -> Iterator[Goal]:
    """Blocked time: JAX arrays are held, others copied."""
    for name in _LARGE:
        if name not in results.workloads:
            continue
        count = int(str(results.workloads[name]["leaves"]))
        limit = 0.001 + 15e-6 * count
        yield _row(
            f"blocked, immutable JAX arrays, {name}", f"1 ms + 15 µs an array: {_ms(limit)}",
            results.median(name, "milepost-jax", "asynchronous", "blocked"), _ms, limit,
        )  # fmt: skip
        floor = results.median(name, "floor-direct", "asynchronous", "blocked")
        for peer in ("milepost-numpy", "milepost-torch", "milepost-donated"):
            if peer in results.peers(name):
                yield _row(
                    f"blocked, {peer.removeprefix('milepost-')}, {name}", "1.1 x the copy into warm memory",
                    _ratio(results.median(name, peer, "asynchronous", "blocked"), floor), _times, 1.1,
                )  # fmt: skip


def _next_step(results: Figures) -> Iterator[Goal]:
    """What the program notices of a save, how fast saves are, and what is not written."""
    for peer in _OURS:
        cpu, saved = (results.median("loop", peer, "loop", field) for field in ("saving_cpu", "saved"))
        yield _row(
            f"CPU of saves in a loop, {peer}", "0.25 s per GB, digests included",
            None if cpu is None or not saved else cpu / (saved / 1e9), lambda value: f"{value:.2f} s", 0.25,
        )  # fmt: skip
        if peer != "milepost-jax":
            yield _row(
                f"the step after a save, {peer}", "no slower (1.05 x)",
                results.median("loop", peer, "loop", "next_step"), _times, 1.05,
            )  # fmt: skip
    for name in _LARGE:
        if name not in results.workloads:
            continue
        floor = results.median(name, "floor-direct", "save")
        for peer in (peer for peer in _OURS if peer in results.peers(name)):
            ours = results.median(name, peer, "save")
            yield _row(
                f"durable save, {name}, {peer}", "at most the time of the O_DIRECT floor / 0.9", _ratio(ours, floor),
                _times, 1 / 0.9,
            )  # fmt: skip
        best = _best(results, name, "save", _OURS)
        others = _best(results, name, "save", _others(results, name))
        yield _row(
            f"durable save, {name}, best of milepost", "faster than every peer", _ratio(best, others), _times, 1.0
        )
    for peer in ("milepost-numpy", "milepost-jax"):
        written, changed = (results.of("frozen", peer, "partly", field) for field in ("bytes", "changed"))
        ratios = [a / b for a, b in zip(written, changed, strict=True)]
        yield _row(
            f"2 % of the arrays changed, {peer}", "new bytes at most 1.01 x the changed ones",
            statistics.median(ratios) if ratios else None, lambda value: f"{value:.4f} x", 1.01,
        )  # fmt: skip
    seconds, nbytes = (results.median("frozen", "milepost-jax", "unchanged", field) for field in ("seconds", "bytes"))
    yield _row("nothing changed, milepost-jax: time", "10 ms", seconds, _ms, 0.01)
    yield _row("nothing changed, milepost-jax: new bytes", "20 KB", nbytes, lambda value: f"{value:,.0f}", 20_000)


def _others(results: Figures, workload: str) -> list[str]:
    return [peer for peer in results.peers(workload) if not peer.startswith(("floor-", "milepost-"))]


def _best(results: Figures, workload: str, operation: str, peers: Sequence[str]) -> float | None:
    found = [value for peer in peers if (value := results.median(workload, peer, operation)) is not None]
    return min(found) if found else None


def _loading(results: Figures) -> Iterator[Goal]:
    """Loading: fast, mapped where it is lazy, without a second copy; and the memory that all of it takes."""
    for name in _LARGE:
        if name not in results.workloads:
            continue
        size = float(str(results.workloads[name]["nbytes"]))
        floors = [results.median(name, "floor-direct", operation) for operation in ("cold", "into")]
        for peer in (peer for peer in _OURS if peer in results.peers(name)):
            cold = _ratio(results.median(name, peer, "cold"), floors[0])
            yield _row(f"cold load, verified, {name}, {peer}", "floor / 0.95", cold, _times, 1 / 0.95)
            lazy = _ratio(results.median(name, peer, "lazy", "memory"), size)
            yield _row(f"`lazy=True`, {name}, {peer}: memory", "does not grow (0.02 x)", lazy, _times, 0.02)
            into = _ratio(results.median(name, peer, "into", "memory"), size)
            if into is not None:
                yield _row(f"load_into, {name}, {peer}: memory", "no second copy (0.1 x)", into, _times, 0.1)
            held = [results.median(name, peer, operation, "memory") for operation in ("first", "asynchronous")]
            most = max((value for value in held if value is not None), default=None)
            limit = 0.1 if peer == "milepost-jax" else 1.1
            yield _row(f"memory of a save, {name}, {peer}", f"{limit:g} x the state", _ratio(most, size), _times, limit)
        if name == "many":
            best = _best(results, name, "cold", _OURS)
            yield _row(
                "cold load, many, best of milepost", "faster than every peer",
                _ratio(best, _best(results, name, "cold", _others(results, name))), _times, 1.0,
            )  # fmt: skip
    opening, reading = (results.median("sparse", "milepost-numpy", "leaf", field) for field in ("opening", "reading"))
    yield _row("open and latest, checkpoint of 100 GB", "20 ms", opening, _ms, 0.02)
    yield _row("one leaf of it", "1 ms more", reading, _ms, 0.001)


def _tiny(results: Figures) -> Iterator[Goal]:
    """The cost of the manager."""
    step, floor = (results.median("tiny", peer, "steps", "step") for peer in ("milepost", "floor-protocol"))
    yield _row("a durable save of 1 KiB, with policies and retention", "1.3 x the bare files and syncs",
               _ratio(step, floor), _times, 1.3)  # fmt: skip
    for peer in ("milepost", "milepost-keeping-all"):
        early, late = (results.median("tiny", peer, "steps", field) for field in ("early", "late"))
        steps = results.median("tiny", peer, "steps", "steps")
        yield _row(f"late steps / early steps, {peer}, {steps or 0:.0f} steps", "flat (1.1 x)", _ratio(late, early),
                   _times, 1.1)  # fmt: skip
    for state in ("cold", "warm"):
        yield _row(
            f"opening 5,000 steps, and latest, {state}", "50 ms",
            results.median("open", "milepost", "opening", state), _ms, 0.05,
        )  # fmt: skip
