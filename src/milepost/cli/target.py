# SPDX-License-Identifier: Apache-2.0
"""`TARGET = STORE[@STEP][:GLOB]`: what it says, what it opens, and what the shell may complete."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, final

import click
from click.shell_completion import CompletionItem

from milepost.catalog import Catalog
from milepost.checkpoint import Checkpoint
from milepost.cli.exits import INCOMPLETE, NO_STORE_CODE, USAGE, Refusal
from milepost.cli.output import flat_metrics, number
from milepost.engine.opening import open_root, opened_slot
from milepost.engine.root import Root
from milepost.errors import CheckpointError, CorruptionError, FormatError, NotFoundError, folded
from milepost.model import format as fmt
from milepost.model import keypath
from milepost.policy import Best, keep_policy
from milepost.stores import open_store
from milepost.table import age

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://|[A-Za-z]:[\\/]")
_STEP = re.compile(r"latest|best|-[1-9][0-9]*|[0-9]+")
_OFFERED = 50


@dataclass(frozen=True, slots=True)
class Target:
    """What the user named.

    Attributes:
        store: a path or URL.
        step: `latest`, `best`, `-2`, `12000`, or None.
        glob: of key paths, or None.
    """

    store: str
    step: str | None = None
    glob: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `STORE[@STEP][:GLOB]`. A path that exists as it is written is a store, whatever is in its name.

        Raises:
            ValueError: the step is none.
        """
        if os.path.exists(text):
            return cls(text)
        # Key paths escape `@`, so the last one belongs to the step, unless it is part of a folder's name.
        store, at, rest = text.rpartition("@")
        step, colon, glob = rest.partition(":")
        if at and "/" not in step:
            if not _STEP.fullmatch(step):
                raise ValueError(f"@{step} names no step: write @latest, @best, @-2 or @12000")
            return cls(store, step, glob if colon else None)
        scheme = _SCHEME.match(text)
        start = scheme.end() if scheme else 0
        store, colon, glob = text[start:].partition(":")
        return cls(text[:start] + store, None, glob if colon else None)

    def __str__(self) -> str:
        step = "" if self.step is None else f"@{self.step}"
        return f"{self.store}{step}{'' if self.glob is None else f':{self.glob}'}"


@final
class TargetType(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] generic since click 8.4 only
    """A target on the command line.

    Args:
        step: whether the verb takes `@STEP`: `no`, `may` or `must`.
        glob: whether it takes `:GLOB`.
        store: whether the store may be left out (`@12000`: the one named before).
    """

    name = "target"

    def __init__(self, *, step: str = "may", glob: bool = False, store: bool = True) -> None:
        self._step, self._glob, self._store = step, glob, store

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        if isinstance(value, Target):
            return value
        try:
            target = Target.parse(value)
            if target.glob is not None:
                keypath.matcher(target.glob)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self._store and not target.store:
            self.fail(f"{value!r} names no store", param, ctx)
        if target.step is not None and self._step == "no":
            self.fail(f"this command takes a whole store: {target.store}", param, ctx)
        if target.step is None and self._step == "must":
            self.fail(f"which step? For example {target.store}@latest", param, ctx)
        if target.glob is not None and not self._glob:
            self.fail(f"this command takes no :GLOB: {Target(target.store, target.step)}", param, ctx)
        return target

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer what is there now: folders, steps after `@`, key paths after `:`."""
        try:
            return self._offered(incomplete)
        except (CheckpointError, ValueError):
            return []

    def _offered(self, incomplete: str) -> list[CompletionItem]:
        store, at, rest = incomplete.rpartition("@")
        step, colon, typed = rest.partition(":")
        if at and colon:
            return _offered_paths(Target(store, step), typed) if self._glob else []
        if self._step == "no":
            return [CompletionItem(incomplete, type="dir")]
        if not at:
            if not os.path.isfile(os.path.join(incomplete, fmt.ROOT)) or incomplete.endswith("/"):
                return [CompletionItem(incomplete, type="dir")]
            store = incomplete
        return _offered_steps(store, step if at else "")


def _offered_steps(store: str, typed: str) -> list[CompletionItem]:
    catalog = open_target(Target(store)).catalog
    items = [CompletionItem(f"{store}@latest", help="the newest in the line")]
    for step in sorted(catalog, reverse=True)[:_OFFERED]:
        try:
            checkpoint = catalog[step]
            metrics = [f"{name} {number(value)}" for name, value in flat_metrics(checkpoint.metrics).items()]
            text = ", ".join([f"{age(checkpoint.created)} old", *metrics[:3]])
        except CorruptionError:
            text = "damaged"
        items.append(CompletionItem(f"{store}@{step}", help=text))
    return [item for item in items if item.value.startswith(f"{store}@{typed}")]


def _offered_paths(target: Target, typed: str) -> list[CompletionItem]:
    """Offer the nodes of one level, as a shell does with folders."""
    leaves = open_target(target).checkpoint(target).leaves
    depth = typed.count("/") + 1
    nodes = dict.fromkeys("/".join(keypath.split(path)[:depth]) for path in leaves if path.startswith(typed))
    return [CompletionItem(f"{target}:{node}", help="" if node in leaves else "…") for node in nodes]


@final
@dataclass(frozen=True, slots=True)
class Place:
    """An opened store."""

    store: str
    root: Root
    catalog: Catalog

    def unfinished(self) -> list[int]:
        """Return the steps of which there is an attempt, but no checkpoint."""
        slots = self.root.slots()
        committed = {slot.step for slot in slots if self.root.committed(slot)}
        return sorted({slot.step for slot in slots} - committed)

    def checkpoint(self, target: Target, metric: str | None = None) -> Checkpoint:
        """Return the checkpoint that a target names; without a step the latest.

        Raises:
            NotFoundError: there is no such step.
            Refusal: the step was never finished, or it cannot be told which is the best.
        """
        step = target.step or "latest"
        if step == "best":
            return self._best(metric)
        if step == "latest":
            return self._latest()
        if step.startswith("-"):
            return self._from_the_end(int(step[1:]))
        if int(step) in self.unfinished():
            raise Refusal(
                f"step {step} of {self.store} was never finished: an attempt to save it, ignored by resume\n"
                "  The next writer removes it.",
                INCOMPLETE,
            )
        return self.catalog[int(step)]

    def _latest(self) -> Checkpoint:
        latest = self.catalog.latest()
        if latest is None:
            raise NotFoundError(f"{self.store} has no checkpoint yet")
        return latest

    def _from_the_end(self, place: int) -> Checkpoint:
        line, _ = self.steps()
        if place > len(line):
            raise NotFoundError(f"{self.store} has no @-{place}: there are {len(line)} checkpoints in its line")
        return self.catalog[line[place - 1]]

    def steps(self) -> tuple[list[int], list[int]]:
        """Return the steps in the line of the latest, newest first, and those that were superseded."""
        line: list[int] = []
        superseded: list[int] = []
        for step in sorted(self.catalog, reverse=True):
            try:
                checkpoint = self.catalog.get(step)
            except (CorruptionError, FormatError):
                line.append(step)  # whoever asks for it is told
                continue
            if checkpoint is not None:
                (superseded if checkpoint.info.superseded else line).append(step)
        return line, superseded

    def _best(self, metric: str | None) -> Checkpoint:
        """Return the best by the metric that is given, or by the one that the last save's keep policy names."""
        mode = None
        if metric is None:
            keep = self._latest().info.keep
            try:
                policy = keep_policy(keep)
            except ValueError:
                policy = None
            parts = getattr(policy, "policies", (policy,))
            best = next((part for part in parts if isinstance(part, Best)), None)
            if best is None:
                raise Refusal(
                    f"{self.store}@best: by which metric? The keep policy ({keep or 'none'}) names none\n"
                    f"  Pass --metric NAME; there are: {folded(self._metrics()) or 'none'}.",
                    USAGE,
                )
            metric, mode = str(best.metric), best.mode
        found = self.catalog.best(metric, mode)
        if found is None:
            raise NotFoundError(
                f"{self.store} has no step with the metric {metric!r}\n"
                f"  There are: {folded(self._metrics()) or 'none'}."
            )
        return found

    def _metrics(self) -> list[str]:
        return list(flat_metrics(self._latest().metrics))


def open_target(target: Target) -> Place:
    """Open a target's store.

    Raises:
        NotFoundError: code `no_store`: there is none.
    """
    store = open_store(target.store)
    try:
        root = opened_slot(store) or open_root(store)
    except NotFoundError as error:
        raise NotFoundError(str(error), code=NO_STORE_CODE) from error
    return Place(target.store, root, Catalog(root))
