# SPDX-License-Identifier: Apache-2.0
"""`milepost watch`: a line for each checkpoint as it appears."""

from __future__ import annotations

import sys

import click

from milepost.checkpoint import Checkpoint
from milepost.cli.look import checkpoint_json
from milepost.cli.options import json_option
from milepost.cli.output import cell, emit, flat_metrics, number, say
from milepost.cli.target import Target, TargetType, open_target
from milepost.table import size


@click.command(short_help="Print a line for each checkpoint as it appears.")
@click.argument("target", type=TargetType(step="no"), metavar="STORE")
@click.option("--after", metavar="STEP", default="-1", help="Only steps above this one; `latest`: only new ones.")
@click.option("--poll", type=click.FloatRange(min=0.01), default=10.0, show_default=True, help="Seconds between looks.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Stop when nothing new has come for so many seconds.")
@json_option
def watch(target: Target, after: str, poll: float, timeout: float | None, as_json: bool) -> None:
    """Print a line for each checkpoint, those that are there first, then each new one. Ctrl-C ends it.

    With --json every line is an object of its own: `milepost watch runs/7 --json | while read -r line; do ...`
    """
    place = open_target(target)
    last = -1
    if after == "latest":
        latest = place.catalog.latest()
        last = -1 if latest is None else latest.step
    elif after.removeprefix("-").isdecimal():
        last = int(after)
    else:
        raise click.BadParameter(f"{after!r} is no step", param_hint="--after")
    for checkpoint in place.catalog.watch(after=last, poll_s=poll, timeout_s=timeout):
        if as_json:
            emit("watch", one_line=True, store=place.store, **checkpoint_json(checkpoint))
        else:
            say(_line(checkpoint))
        sys.stdout.flush()


def _line(checkpoint: Checkpoint) -> str:
    metrics = [f"{name} {number(value)}" for name, value in flat_metrics(checkpoint.metrics).items()]
    parts = [str(checkpoint.step), f"{checkpoint.created:%Y-%m-%d %H:%M:%S}Z", size(checkpoint.nbytes), *metrics]
    return cell("  ".join([*parts, f"({checkpoint.reason})"]))
