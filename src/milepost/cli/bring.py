# SPDX-License-Identifier: Apache-2.0
"""`milepost import`: checkpoints that another library wrote, as ours."""

from __future__ import annotations

import re
from typing import Any, final

import click

from milepost.cli.exits import NO_STORE, Refusal
from milepost.cli.options import json_option
from milepost.cli.output import counted, emit, say
from milepost.cli.progress import Progress
from milepost.errors import NotFoundError, folded
from milepost.table import size


@final
class _Steps(click.ParamType[Any]):
    """`1000`, `1000,2000`, `1000-5000`: steps and ranges of them, both ends included."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
            if match is None:
                self.fail(f"{part.strip()!r} names no step: write 1000, 1000,2000 or 1000-5000", param, ctx)
            ranges.append((int(match[1]), int(match[2] or match[1])))
        return ranges


@click.command("import", short_help="Copy checkpoints that Orbax wrote into a store.")
@click.argument("source", type=click.Path(), metavar="ORBAX_DIR")
@click.argument("store", type=click.Path(), metavar="STORE")
@click.option("--steps", type=_Steps(), metavar="STEPS", help="Only these: 1000,2000 or 1000-5000. Default: all.")
@click.option("--prefix", metavar="TEXT", help="Only folders named TEXT_<step>; '' for those without a prefix.")
@click.option("--verify/--no-verify", default=True, help="Read back what was written. Default: --verify.")
@json_option
def import_(
    source: str, store: str, steps: list[tuple[int, int]] | None, prefix: str | None, verify: bool, as_json: bool
) -> None:
    """Copy checkpoints that Orbax wrote (v0 or v1) into a store, with metrics, metadata and times.

    ORBAX_DIR is the directory of a CheckpointManager or Checkpointer, or one checkpoint that was saved alone; it is
    only read. Run again, it goes on: steps that are there are skipped.
    """
    from milepost.interop import orbax

    try:
        found = orbax.open(source, prefix=prefix)
    except NotFoundError as error:
        raise Refusal(str(error), NO_STORE) from error
    if not found:
        raise Refusal(f"{found.path} holds no finished checkpoint of Orbax", NO_STORE)
    wanted = None if steps is None else _wanted(steps, found)
    chosen = [step for step in found if wanted is None or step in wanted]
    nbytes = found[chosen[0]].checkpoint.nbytes * len(chosen) if chosen else 0  # the steps of a run are alike
    with Progress("importing", nbytes * (2 if verify else 1)) as progress:
        done = orbax.import_checkpoints(found, store, steps=wanted, verify=verify, progress=progress)
    if as_json:
        emit(
            "import", source=str(found.path), store=store, copied=list(done.copied), skipped=list(done.skipped),
            bytes=done.nbytes, verified=done.verified,
        )  # fmt: skip
        return
    checked = ", read back and verified" if done.verified and done.copied else ""
    say(f"imported {counted(len(done.copied), 'step')} of {found.path}, {size(done.nbytes)}{checked}")
    if done.skipped:
        say(f"there already: {folded(done.skipped)}")


def _wanted(ranges: list[tuple[int, int]], there: Any) -> list[int]:
    """Return the steps that are meant: a single one whether it is there or not, of ranges those that are."""
    found: set[int] = set()
    for first, last in ranges:
        found |= {first} if first == last else {step for step in there if first <= step <= last}
    return sorted(found)
