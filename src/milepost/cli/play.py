# SPDX-License-Identifier: Apache-2.0
"""`milepost demo`: everything that milepost promises, before your eyes."""

from __future__ import annotations

import click

from milepost.cli.options import debug_option


@click.command(short_help="See all of it happen, in about a minute.")
@click.option(
    "--framework", type=click.Choice(["numpy", "torch", "jax"]), default="numpy", show_default=True,
    help="What the model is written in; it must be installed.",
)  # fmt: skip
@click.option("--keep", metavar="DIR", type=click.Path(), help="Leave the runs in this new folder, to play on.")
@debug_option
@click.pass_context
def demo(ctx: click.Context, framework: str, keep: str | None) -> None:
    """Train, be killed, resume bit for bit, get past a damaged file, forecast. Takes about a minute."""
    from milepost.demo import run

    ctx.exit(run(framework, keep))
