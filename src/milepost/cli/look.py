# SPDX-License-Identifier: Apache-2.0
"""`milepost ls`: the steps of a store, and why they are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from milepost.catalog import rows
from milepost.checkpoint import Checkpoint
from milepost.cli.grid import Square, squares, squares_json, squares_text
from milepost.cli.options import json_option, log_hushed, metric_option
from milepost.cli.output import NONE, columns, count, counted, emit, flat_metrics, number, plain, say, stamp
from milepost.cli.target import Place, Target, TargetType, open_target
from milepost.engine.epochs import Writer, writer_of
from milepost.table import Row, age, size

_METRICS = 4
_LOOKS: Mapping[str, Mapping[str, Any]] = {
    "damaged": {"fg": "red", "bold": True},
    "incomplete": {"dim": True},
    "superseded": {"dim": True},
}


@click.command(short_help="List the steps of a store, and why each is kept.")
@click.argument("target", type=TargetType())
@metric_option
@json_option
def ls(target: Target, metric: str | None, as_json: bool) -> None:
    """List the steps of a store: age, size, metrics, why each was saved, and why it is kept.

    NEW is what the step itself wrote; the rest of it are links to earlier files. Of a session, also its work items.
    """
    place = open_target(target)
    only = None if target.step is None else place.checkpoint(target, metric).step
    with log_hushed():
        found = [row for row in rows(place.catalog) if only is None or row.step == only]
    writer = writer_of(place.root.store)
    checkpoints = [each for row in found if row.created is not None and (each := place.catalog.get(row.step))]
    grid = squares(target.store) if only is None else []
    if as_json:
        _print_json(place, found, checkpoints, writer, grid)
        return
    if only is None:
        say(_headline(place, found, checkpoints, writer))
    if found:
        for line in _table(found):
            say(line)
    if grid:
        for line in squares_text(grid):
            say(line)


def stored_nbytes(checkpoints: Iterable[Checkpoint]) -> int:
    """Return the bytes of all files; packs that several steps share by hard links count once."""
    shared: dict[str, int] = {}
    own = 0
    for checkpoint in checkpoints:
        for name, nbytes, _ in checkpoint.info.files:
            if name.endswith(".safetensors"):
                shared[name] = nbytes
            else:
                own += nbytes
    return own + sum(shared.values())


def writer_text(writer: Writer | None) -> str:
    """Return what is known of the writer, for people."""
    if writer is None:
        return "no writer yet"
    if writer.alive is None:
        return "writer unknown"
    if not writer.alive:
        return "no writer"
    return f"writer alive on {writer.record.host}" if writer.record is not None else "writer alive"


def writer_json(writer: Writer | None) -> dict[str, Any] | None:
    """Return what is known of the writer, for JSON."""
    if writer is None:
        return None
    if writer.record is None:
        return {"alive": writer.alive}
    record = writer.record
    return {
        "alive": writer.alive, "epoch": record.epoch, "host": record.host, "pid": record.pid, "user": record.user,
        "started": record.start.replace("+00:00", "Z"),
    }  # fmt: skip


def _headline(place: Place, found: Sequence[Row], checkpoints: Sequence[Checkpoint], writer: Writer | None) -> str:
    steps = [row for row in found if row.state != "incomplete"]
    parts = [counted(len(steps), "step")]
    if checkpoints:
        logical = sum(checkpoint.nbytes for checkpoint in checkpoints)
        parts.append(f"{size(stored_nbytes(checkpoints))} stored ({size(logical)} logical)")
        parts.append(f"newest {age(max(checkpoint.created for checkpoint in checkpoints))} ago")
    parts.append(writer_text(writer))
    return f"{click.style(place.store, bold=True)}   {' · '.join(parts)}"


def _table(found: Sequence[Row]) -> list[str]:
    metrics = [flat_metrics(row.metrics) for row in found]
    names = list(dict.fromkeys(name for each in metrics for name in each))
    head = ["STEP", "AGE", "SIZE", "NEW", *names[:_METRICS], "SAVED BECAUSE", "KEPT BECAUSE"]
    body = [_cells(row, each, names[:_METRICS]) for row, each in zip(found, metrics, strict=True)]

    def looks(line: int) -> Mapping[str, Any]:
        return {"bold": True} if not line else _LOOKS.get(found[line - 1].state, {})

    lines = columns([head, *body], right=range(len(head) - 2), style=looks, indent=" ")
    if names[_METRICS:]:
        lines.append(f" {count(len(names) - _METRICS)} more metrics: --json")
    return lines


def _cells(row: Row, metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    if row.created is None:
        state = "DAMAGED – `milepost verify` says where" if row.state == "damaged" else "incomplete – ignored by resume"
        return [str(row.step), NONE, NONE, NONE, *[NONE] * len(names), NONE, state]
    why = row.kept_because or NONE
    if row.state == "superseded":
        why = f"superseded · {row.kept_because}" if row.kept_because else "superseded"
    values = (number(metrics[name]) if name in metrics else NONE for name in names)
    sizes = (size(row.nbytes), size(row.new_nbytes))
    return [str(row.step), age(row.created), *sizes, *values, row.saved_because or NONE, why]


def _print_json(
    place: Place,
    found: Sequence[Row],
    checkpoints: Sequence[Checkpoint],
    writer: Writer | None,
    grid: Sequence[Square],
) -> None:
    by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    emit(
        "ls",
        store=place.store,
        stored_bytes=stored_nbytes(checkpoints),
        logical_bytes=sum(checkpoint.nbytes for checkpoint in checkpoints),
        writer=writer_json(writer),
        steps=[row_json(row, by_step.get(row.step)) for row in found],
        items=squares_json(grid),
    )


def row_json(row: Row, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return one line of `ls` for JSON; what is not known is null or left out."""
    document: dict[str, Any] = {"step": row.step, "state": row.state}
    if checkpoint is None:
        return document
    return document | checkpoint_json(checkpoint) | {"kept_because": row.kept_because or None}


def checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what is known of a checkpoint without its tree, for JSON."""
    info = checkpoint.info
    return {
        "step": checkpoint.step, "id": info.id, "epoch": info.epoch, "parent": info.parent,
        "created": stamp(checkpoint.created), "bytes": checkpoint.nbytes, "new_bytes": info.new_nbytes,
        "metrics": plain(checkpoint.metrics), "metadata": plain(checkpoint.metadata),
        "saved_because": checkpoint.reason, "pins": list(info.pins),
    }  # fmt: skip
