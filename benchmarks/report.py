# SPDX-License-Identifier: Apache-2.0
"""RESULTS.md from the lines of the results file: the last run of each workload, medians with least and most."""

from __future__ import annotations

import datetime as dt
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goals import goals

Row = Mapping[str, Any]
Cell = Callable[["Results", str, str], str]
NONE = "–"


@dataclass(frozen=True, slots=True)
class Results:
    """Lines of the results file: of each workload, its last run.

    Attributes:
        machines: by run, the machine and the versions.
        workloads: by name, the line that describes it.
        rows: all operations.
    """

    machines: dict[str, Row]
    workloads: dict[str, Row]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a results file."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        described = {line["workload"]: line for line in lines if line["operation"] == "workload"}
        last = {(name, line["run"]) for name, line in described.items()}
        used = {run for _, run in last}
        return cls(
            {line["run"]: line for line in lines if line["operation"] == "machine" and line["run"] in used},
            described,
            [line for line in lines if "peer" in line and (line["workload"], line["run"]) in last],
        )

    def of(self, workload: str, peer: str, operation: str, field: str) -> list[float]:
        """Return a figure of an operation in every round."""
        return [
            float(row[field])
            for row in self.rows
            if (row["workload"], row["peer"], row["operation"]) == (workload, peer, operation)
            and isinstance(row.get(field), int | float)
        ]

    def median(self, workload: str, peer: str, operation: str, field: str = "seconds") -> float | None:
        """Return the median of a figure, None when there is none."""
        found = self.of(workload, peer, operation, field)
        return statistics.median(found) if found else None

    def failures(self, workload: str, peer: str) -> dict[str, str]:
        """Return the reasons by operation for which a peer failed."""
        return {
            row["operation"]: row["failed"]
            for row in self.rows
            if row["workload"] == workload and row["peer"] == peer and "failed" in row
        }

    def peers(self, workload: str) -> list[str]:
        """Return who took part, in order."""
        return list(self.workloads[workload]["peers"])

    def page(self) -> str:
        """Return RESULTS.md."""
        parts = ["# Results", _INTRODUCTION, *map(_machine, self.machines.values())]
        parts += ["## Goals", _table(["what", "goal", "figure", ""], goals(self))]
        for name, described in self.workloads.items():
            parts.append(f"## {described['title'][0].upper()}{described['title'][1:]}")
            if "nbytes" in described:
                parts.append(f"{described['leaves']:,} arrays, {described['nbytes']:,} bytes.")
            parts += [_table(["", *columns], self._lines(name, columns)) for columns in COLUMNS[name]]
            parts += self._remarks(name)
        return "\n\n".join(parts) + "\n"

    def _lines(self, workload: str, columns: Mapping[str, Cell]) -> Iterable[Sequence[str]]:
        for peer in self.peers(workload):
            yield [peer, *(cell(self, workload, peer) for cell in columns.values())]

    def _remarks(self, workload: str) -> list[str]:
        failed = [
            f"- {peer} failed, {operation}: {reason}"
            for peer in self.peers(workload)
            for operation, reason in self.failures(workload, peer).items()
        ]
        wrong = [
            f"- {row['peer']}, {row['operation']}: {row['differ']} arrays came back with other bytes"
            for row in self.rows
            if row["workload"] == workload and row.get("differ")
        ]
        load = [row["load"] for row in self.rows if row["workload"] == workload and "load" in row]
        cold = {row.get("cold") for row in self.rows if row["workload"] == workload and row["operation"] == "cold"}
        remarks = [*failed, *dict.fromkeys(wrong)]
        if False in cold:
            remarks.append("- The page cache was not dropped (not root, or `--quick`): cold loads are warm.")
        if load:
            remarks.append(
                f"- Load average before the operations: {statistics.median(load):.1f}, at most {max(load):.1f}."
            )
        return ["\n".join(remarks)] if remarks else []


_INTRODUCTION = """\
Written by `python -m benchmarks report`; [README.md](README.md) says how everything is measured, and what the columns
mean. Medians, with least and most in brackets; n is the number of rounds: a slow peer does fewer, a failed one is told
below the table. `+` marks a durable time that includes a sync of the file system, as the peer syncs nothing or not
everything; `*` an asynchronous save that the library does not have: a copy, then a save in a thread."""


def _machine(line: Row) -> str:
    when = dt.datetime.strptime(line["run"], "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    small = " **Small states (`--quick`): these figures mean nothing.**" if line["quick"] else ""
    return (
        f"{when:%Y-%m-%d %H:%M} UTC: {line['cpus']} CPUs ({line['processor']}), {line['memory'] / 2**30:.0f} GiB,"
        f" {line['system']}, Python {line['python']}, {versions}.{small}"
    )


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [list(heads), ["---"] * len(heads), *map(list, lines)]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in row)} |" for row in rows)


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return `median (least–most)`."""
    if not values:
        return NONE
    middle, least, most = (scale * value for value in (statistics.median(values), min(values), max(values)))
    if len(values) == 1:
        return _short(middle)
    return f"{_short(middle)} ({_short(least)}–{_short(most)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _figure(operation: str, field: str = "seconds", scale: float = 1.0) -> Cell:
    def cell(results: Results, workload: str, peer: str) -> str:
        return spread(results.of(workload, peer, operation, field), scale)

    return cell


def _durable(operation: str) -> Cell:
    def cell(results: Results, workload: str, peer: str) -> str:
        text = spread(results.of(workload, peer, operation, "seconds"))
        added = any(
            row.get("syncs", "all") != "all"
            for row in results.rows
            if (row["workload"], row["peer"], row["operation"]) == (workload, peer, operation)
        )
        return f"{text} +" if added and text != NONE else text

    return cell


def _blocked(results: Results, workload: str, peer: str) -> str:
    text = spread(results.of(workload, peer, "asynchronous", "blocked"))
    borrowed = any(
        row.get("own") is False for row in results.rows if (row["workload"], row["peer"]) == (workload, peer)
    )
    return f"{text} *" if borrowed and text != NONE else text


def _memory(*operations: str) -> Cell:
    """The most of these operations, as a multiple of the state."""

    def cell(results: Results, workload: str, peer: str) -> str:
        found = [value for each in operations for value in results.of(workload, peer, each, "memory")]
        return f"{max(found) / results.workloads[workload]['nbytes']:.2f}x" if found else NONE

    return cell


def _whole(operation: str, field: str) -> Cell:
    def cell(results: Results, workload: str, peer: str) -> str:
        found = results.median(workload, peer, operation, field)
        return NONE if found is None else f"{found:,.0f}"

    return cell


def _rounds(results: Results, workload: str, peer: str) -> str:
    rounds = {row["round"] for row in results.rows if (row["workload"], row["peer"]) == (workload, peer)}
    failed = " (failed)" if results.failures(workload, peer) else ""
    return f"{len(rounds)}{failed}"


def _ratio(field: str, other: str, operation: str) -> Cell:
    def cell(results: Results, workload: str, peer: str) -> str:
        above, below = (results.of(workload, peer, operation, name) for name in (field, other))
        return spread([a / b for a, b in zip(above, below, strict=True)])

    return cell


_SAVES: dict[str, Cell] = {
    "async: blocked, s": _blocked,
    "async: durable, s": _durable("asynchronous"),
    "durable save, s": _durable("save"),
    "first save, s": _durable("first"),
    "CPU, s": _figure("save", "cpu"),
    "CPU of all, s": _figure("save", "machine_cpu"),
    "memory": _memory("first", "save"),
    "memory, async": _memory("first", "asynchronous"),
    "bytes": _whole("save", "bytes"),
    "files": _whole("save", "files"),
    "n": _rounds,
}
_LOADS: dict[str, Cell] = {
    "cold load, s": _figure("cold"),
    "warm load, s": _figure("warm"),
    "mapped, warm, s": _figure("mapped"),
    "into arrays, cold, s": _figure("into"),
    "one leaf, cold, ms": _figure("leaf", scale=1000),
    "CPU of a cold load, s": _figure("cold", "cpu"),
    "memory, cold": _memory("cold"),
    "memory, mapped": _memory("lazy"),
    "memory, into": _memory("into"),
}
COLUMNS: dict[str, Sequence[Mapping[str, Cell]]] = {
    "transformer": (_SAVES, _LOADS),
    "many": (_SAVES, _LOADS),
    "big": (_SAVES, {name: cell for name, cell in _LOADS.items() if "leaf" not in name and "into" not in name}),
    "frozen": (
        {
            "first save, s": _durable("base"),
            "2 % changed, s": _durable("partly"),
            "CPU, s": _figure("partly", "cpu"),
            "new bytes / changed bytes": _ratio("bytes", "changed", "partly"),
            "nothing changed, ms": _figure("unchanged", scale=1000),
            "new bytes then": _whole("unchanged", "bytes"),
            "n": _rounds,
        },
    ),
    "loop": (
        {
            "without saves, s": _figure("loop", "alone"),
            "with 4 saves, durable, s": _durable("loop"),
            "blocked, s": _figure("loop", "blocked"),
            "CPU of the saves, s": _figure("loop", "saving_cpu"),
            "next step / other steps": _figure("loop", "next_step"),
            "n": _rounds,
        },
    ),
    "tiny": (
        {
            "steps": _whole("steps", "steps"),
            "a step, ms": _figure("steps", "step", 1000),
            "steps 10 to 110, ms": _figure("steps", "early", 1000),
            "the last 100, ms": _figure("steps", "late", 1000),
            "slowest, ms": _figure("steps", "slowest", 1000),
            "CPU, s": _figure("steps", "cpu"),
        },
    ),
    "open": (
        {
            "steps": _whole("opening", "steps"),
            "cold, ms": _figure("opening", "cold", 1000),
            "warm, ms": _figure("opening", "warm", 1000),
            "n": _rounds,
        },
    ),
    "sparse": (
        {
            "bytes": _whole("leaf", "nbytes"),
            "cold, all, ms": _figure("leaf", "cold", 1000),
            "warm: open and latest, ms": _figure("leaf", "opening", 1000),
            "warm: the leaf, ms": _figure("leaf", "reading", 1000),
            "memory, bytes": _whole("leaf", "memory"),
            "n": _rounds,
        },
    ),
}
