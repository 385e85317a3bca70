# SPDX-License-Identifier: Apache-2.0
"""`milepost verify`: is what was written still there, byte for byte?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import click

from milepost.catalog import Catalog
from milepost.cli.exits import DAMAGED, INCOMPLETE, NO_STEP, Refusal
from milepost.cli.options import json_option, metric_option
from milepost.cli.output import cell, count, counted, emit, say
from milepost.cli.progress import Progress
from milepost.cli.target import Place, Target, TargetType, open_target
from milepost.engine.transfer import Damage
from milepost.errors import CorruptionError, FormatError, NotFoundError
from milepost.table import size

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found at one step.

    Attributes:
        step: the step.
        state: `deleted` when it went while it was looked at.
        nbytes: bytes that were compared with their digests.
        seconds: how long that took.
        damaged: the damaged places.
    """

    step: int
    state: Literal["ok", "damaged", "deleted"]
    nbytes: int = 0
    seconds: float = 0.0
    damaged: tuple[Damage, ...] = ()


@click.command(short_help="Check steps against their digests, byte for byte.")
@click.argument("target", type=TargetType())
@click.option("--shallow", is_flag=True, help="Look at records and file sizes only; read no array.")
@metric_option
@json_option
@click.pass_context
def verify(ctx: click.Context, target: Target, shallow: bool, metric: str | None, as_json: bool) -> None:
    """Check one step or all of them against their digests. Exit code 4 when something is damaged."""
    place = open_target(target)
    if target.step is None:
        line, superseded = place.steps()
        steps = [*line, *superseded]
        if not steps:
            unfinished = place.unfinished()
            text = f"{place.store} has no checkpoint to verify"
            what = f"\n  Never finished: {', '.join(map(str, unfinished))}." if unfinished else ""
            raise Refusal(text + what, INCOMPLETE if unfinished else NO_STEP)
    else:
        steps = [_step(place.catalog, target) or place.checkpoint(target, metric).step]
    verdicts: list[Verdict] = []
    with Progress("verify", _nbytes(place.catalog, steps)) as progress:
        for step in steps:
            progress.about(f"step {step}")
            verdicts.append(_verdict(place.catalog, step, not shallow, progress))
            if not as_json:
                for text in _lines(verdicts[-1], place, max(len(str(step)) for step in steps), deep=not shallow):
                    progress.line(text)
    damaged = any(verdict.state == "damaged" for verdict in verdicts)
    good = next((verdict.step for verdict in verdicts if verdict.state == "ok"), None)
    if as_json:
        emit(
            "verify", store=place.store, deep=not shallow, whole=not damaged, last_good_step=good,
            steps=[_json(verdict) for verdict in verdicts],
        )  # fmt: skip
    elif damaged:
        last = f"last good step: {good}." if good is not None else "no good step among them."
        say(f"{last if target.step is None else f'step {steps[0]} is damaged.'}  exit {DAMAGED}")
    elif len(steps) > 1:
        say(f"all {counted(len(steps), 'step')} are whole")
    if damaged:
        ctx.exit(DAMAGED)


def _step(catalog: Catalog, target: Target) -> int | None:
    """Return a step that is there by its number, even when its records cannot be read."""
    number = target.step or ""
    return int(number) if number.isdecimal() and int(number) in catalog else None


def _nbytes(catalog: Catalog, steps: Sequence[int]) -> int:
    total = 0
    for step in steps:
        try:
            checkpoint = catalog.get(step)
            total += 0 if checkpoint is None else checkpoint.nbytes
        except (CorruptionError, FormatError):
            continue
    return total


def _verdict(catalog: Catalog, step: int, deep: bool, progress: Progress) -> Verdict:
    try:
        report = catalog[step].verify(deep=deep, progress=progress)
    except CorruptionError as error:
        text = str(error).partition("\n")[0]
        places = [each if each.stop else _record(step, each.file, text) for each in error.damaged]
        return Verdict(step, "damaged", damaged=tuple(places) or (_record(step, "", text),))
    except FormatError as error:
        if error.code == "newer":
            raise
        return Verdict(step, "damaged", damaged=(_record(step, "", str(error).partition("\n")[0]),))
    except NotFoundError:
        return Verdict(step, "deleted")
    return Verdict(step, "ok", report.nbytes, report.seconds)


def _record(step: int, where: str, text: str) -> Damage:
    """Return the damage of a record, of which only the place is known."""
    return Damage(step, "", PurePosixPath(where).name, 0, 0, "a whole record", text)


def _lines(verdict: Verdict, place: Place, width: int, *, deep: bool) -> list[str]:
    step = f"{verdict.step:>{width}}"
    if verdict.state == "deleted":
        return [f"{step}  deleted meanwhile"]
    if verdict.state == "ok":
        ok = click.style("ok", fg="green")
        return [f"{step}  {ok}       {size(verdict.nbytes)} in {verdict.seconds:.1f} s" if deep else f"{step}  {ok}"]
    bad = click.style("DAMAGED", fg="red", bold=True)
    lines = [f"{step}  {bad}  {cell(damage_text(damage, place))}" for damage in verdict.damaged[:_SHOWN]]
    more = len(verdict.damaged) - _SHOWN
    return [*lines, f"{step}  and {counted(more, 'more place')}: --json"] if more > 0 else lines


def damage_text(damage: Damage, place: Place) -> str:
    """Return one damaged place: the leaf, the bytes and the file."""
    if damage.start == damage.stop:
        return damage.found.replace(f"{place.root.url}/", "")
    if not damage.path:
        return f"{damage.file}: {damage.found}, not {damage.expected}"
    return f"{damage.path}, bytes {count(damage.start)}–{count(damage.stop)} of {damage.file}"


def _json(verdict: Verdict) -> dict[str, Any]:
    damaged = [
        {
            "leaf": each.path or None, "file": each.file or None, "start": each.start, "stop": each.stop,
            "expected": each.expected, "found": each.found,
        }
        for each in verdict.damaged
    ]  # fmt: skip
    return {
        "step": verdict.step, "state": verdict.state, "bytes": verdict.nbytes,
        "seconds": round(verdict.seconds, 3), "damaged": damaged,
    }  # fmt: skip
