# SPDX-License-Identifier: Apache-2.0
"""`milepost demo`: everything that milepost promises, before your eyes."""

from __future__ import annotations

import contextlib
import sys
import time

import click

from milepost.cli.options import json_option
from milepost.cli.output import emit


@click.command(short_help="See all of it happen, in about a minute.")
@click.option(
    "--framework", type=click.Choice(["numpy", "torch", "jax"]), default="numpy", show_default=True,
    help="What the model is written in; it must be installed.",
)  # fmt: skip
@click.option("--keep", metavar="DIR", type=click.Path(), help="Leave the runs in this new folder, to play on.")
@json_option
@click.pass_context
def demo(ctx: click.Context, framework: str, keep: str | None, as_json: bool) -> None:
    """Train, be killed, resume bit for bit, get past a damaged file, forecast. Takes about a minute."""
    from milepost.demo import run

    if not as_json:
        ctx.exit(run(framework, keep))
    start = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # the story is for people; standard output is the object alone
        code = run(framework, keep)
    emit("demo", framework=framework, kept=keep, as_promised=code == 0, seconds=round(time.monotonic() - start, 3))
    ctx.exit(code)
