# SPDX-License-Identifier: Apache-2.0
"""`milepost prune`, `pin`, `unpin`: what stays and what goes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import click

from milepost.catalog import Pruning
from milepost.cli.exits import BUSY, FAILED, USAGE, Refusal
from milepost.cli.options import json_option, log_hushed, metric_option
from milepost.cli.output import columns, counted, emit, say
from milepost.cli.target import Place, Target, TargetType, open_target
from milepost.policy import KeepPolicy, Saved, keep_policy
from milepost.table import size


@final
@dataclass(frozen=True, slots=True)
class Agreed:
    """Keeps what the policy keeps, and everything that was not in the plan the user has seen."""

    policy: KeepPolicy
    dropped: frozenset[int]

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        kept = self.policy.keep(history)
        return {saved.step: "came later" for saved in history if saved.step not in self.dropped} | kept


@click.command(short_help="Delete the steps that a policy does not keep.")
@click.argument("target", type=TargetType(step="no"), metavar="STORE")
@click.option("--keep", metavar="POLICY", help="What stays. Default: the policy that the last save recorded.")
@click.option("--dry-run", is_flag=True, help="Show the plan and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def prune(ctx: click.Context, target: Target, keep: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete the steps that a policy does not keep. The latest and pinned ones always stay.

    \b
    A policy is one or more of these, separated by commas:
      last 3 · best 2 loss · best 1 acc max · every 1000 steps · every 6 h · within 2 days · on steps 1 2 5 · all
    """
    place = open_target(target)
    policy = _policy(place, keep)
    with log_hushed():
        plan = place.catalog.prune(policy, dry_run=True)
    if not as_json:
        for line in _plan(plan, policy):
            say(line)
    if dry_run or not plan.dropped:
        if as_json:
            _print_json(place, policy, plan, dry_run=dry_run)
        return
    if not yes:
        _ask(plan, as_json=as_json)
    done = place.catalog.prune(Agreed(policy, frozenset(plan.dropped)))
    if as_json:
        _print_json(place, policy, done, dry_run=False)
    else:
        say(f"deleted {counted(len(done.dropped), 'step')}, {size(sum(done.dropped.values()))} freed")
    if done.busy:
        steps = ", ".join(map(str, done.busy))
        raise Refusal(f"{place.store}: being read, so not deleted: {steps}\n  Run the same again later.", BUSY)
    ctx.exit(0)


@click.command(short_help="Keep a step whatever the policies say.")
@click.argument("target", type=TargetType(step="must"), metavar="STORE@STEP")
@click.argument("name")
@metric_option
@json_option
def pin(target: Target, name: str, metric: str | None, as_json: bool) -> None:
    """Keep a step whatever the policies say, under a name by which it can be let go again (`unpin`)."""
    place = open_target(target)
    step = place.checkpoint(target, metric).step
    place.catalog.pin(step, name)
    if as_json:
        emit("pin", store=place.store, step=step, pins=list(place.catalog[step].info.pins))
    else:
        say(f'step {step} of {place.store} is pinned as "{name}"')


@click.command(short_help="Take a pin away.")
@click.argument("target", type=TargetType(step="no"), metavar="STORE")
@click.argument("name")
@json_option
def unpin(target: Target, name: str, as_json: bool) -> None:
    """Take a pin away; the policies decide about the step again."""
    place = open_target(target)
    place.catalog.unpin(name)
    if as_json:
        emit("unpin", store=place.store, pin=name)
    else:
        say(f'the pin "{name}" is gone from {place.store}')


def _policy(place: Place, phrase: str | None) -> KeepPolicy:
    """Return the policy of a phrase, or the one that the last save recorded."""
    if phrase is not None:
        try:
            return keep_policy(phrase)
        except ValueError as error:
            raise Refusal(str(error), USAGE) from error
    latest = place.catalog.latest()
    recorded = latest.info.keep if latest is not None else ""
    try:
        return keep_policy(recorded or "all")
    except ValueError:
        raise Refusal(
            f"{place.store}: the last save kept by {recorded!r}, which no phrase can say\n"
            "  Pass --keep 'last 3, best 1 loss'.",
            USAGE,
        ) from None


def _plan(plan: Pruning, policy: KeepPolicy) -> list[str]:
    steps = sorted([*plan.kept, *plan.dropped], reverse=True)
    rows = [
        [str(step), "keep", plan.kept[step]] if step in plan.kept else [str(step), "drop", size(plan.dropped[step])]
        for step in steps
    ]

    def looks(line: int) -> dict[str, Any]:
        return {"fg": "red"} if steps[line] in plan.dropped else {}

    lines = columns(rows, right=[0], style=looks, indent=" ")
    freed = f"{size(sum(plan.dropped.values()))} to be freed" if plan.dropped else "nothing to delete"
    return [*lines, f"{len(plan.dropped)} of {counted(len(steps), 'step')} go by {str(policy)!r}: {freed}"]


def _ask(plan: Pruning, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise Refusal("nothing was deleted: there is nobody to ask here\n  Pass --yes, or --dry-run to look.", USAGE)
    # Not click.confirm, which takes Ctrl-C for a no.
    click.echo(f"Delete {counted(len(plan.dropped), 'step')}? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refusal("nothing was deleted", FAILED)


def _print_json(place: Place, policy: KeepPolicy, pruning: Pruning, *, dry_run: bool) -> None:
    emit(
        "prune", store=place.store, keep=str(policy), dry_run=dry_run,
        kept=[{"step": step, "because": reason} for step, reason in pruning.kept.items()],
        dropped=[{"step": step, "bytes": nbytes} for step, nbytes in pruning.dropped.items()],
        busy=list(pruning.busy), freed_bytes=sum(pruning.dropped.values()),
    )  # fmt: skip
