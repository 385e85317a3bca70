# SPDX-License-Identifier: Apache-2.0
"""`milepost export`: a step in the format of another library."""

from __future__ import annotations

from pathlib import Path

import click

from milepost.cli.exits import USAGE, Refusal
from milepost.cli.options import json_option, metric_option
from milepost.cli.output import counted, emit, say
from milepost.cli.progress import Progress
from milepost.cli.target import Target, TargetType, open_target
from milepost.interop.orbax.export import export_checkpoint
from milepost.table import size


@click.command(short_help="Write a step for another library to read.")
@click.argument("target", type=TargetType(step="must"), metavar="STORE@STEP")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIRECTORY")
@click.option(
    "--format", "form", type=click.Choice(["orbax"]), required=True,
    help="orbax: a step that Orbax's CheckpointManager and Checkpointer read.",
)  # fmt: skip
@click.option(
    "--item", default="default", show_default=True, metavar="NAME",
    help="Name of the item, unless the step was saved by items; Orbax's v1 Checkpointer expects state.",
)  # fmt: skip
@click.option("--alone", is_flag=True, help="No item: a tree for StandardCheckpointer, or v1's load, to restore.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out these key paths; may be given again.")
@metric_option
@json_option
def export(
    target: Target,
    folder: Path,
    form: str,
    item: str,
    alone: bool,
    exclude: tuple[str, ...],
    metric: str | None,
    as_json: bool,
) -> None:
    """Write a step into DIRECTORY, under its number, for another library to read. What was written is read back."""
    checkpoint = open_target(target).checkpoint(target, metric)
    with Progress("export", 2 * checkpoint.nbytes) as progress:
        try:
            name = None if alone else item
            done = export_checkpoint(checkpoint, folder, item=name, exclude=exclude, progress=progress)
        except ValueError as error:
            raise Refusal(str(error), USAGE) from error
    if as_json:
        emit(
            "export", store=target.store, step=checkpoint.step, format=form, path=str(done.path),
            items=list(done.items), leaves=done.leaves, bytes=done.nbytes,
        )  # fmt: skip
    else:
        say(f"step {checkpoint.step} is in {done.path}: {counted(done.leaves, 'leaf')}, {size(done.nbytes)}, read back")
