# SPDX-License-Identifier: Apache-2.0
"""`milepost diff`: what moved between two steps, and which leaves moved most."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import click

from milepost.checkpoint import Checkpoint
from milepost.cli.exits import DIFFERS
from milepost.cli.options import json_option, metric_option
from milepost.cli.output import cell, columns, counted, emit, plain, say, short_dtype, shown, spec_json
from milepost.cli.progress import Progress
from milepost.cli.state import is_float, random_paths
from milepost.cli.target import Place, Target, TargetType, open_target
from milepost.cli.tree import chosen_leaves, folded_paths
from milepost.diff import Change, Diff, LeafDiff, Stats
from milepost.errors import NotFoundError
from milepost.model import keypath
from milepost.model.leaf import LeafSpec

# A leaf stands out when it moved so many times as far as the median leaf of its part, and lies beyond the upper fence
# (Tukey, Exploratory Data Analysis, 1977, 2C) of their logarithms: of weights next to moments, neither half stands out.
_OUTLIER, _FENCE = 4.0, 1.5
_SHOWN = 8
_WORDS: dict[Change, str] = {
    "changed": "changed", "same": "same", "added": "added", "removed": "removed", "respecified": "of another kind",
}  # fmt: skip


@dataclass(slots=True)
class Moved:
    """A leaf that is not the same, and how far it went or what it was and is.

    Attributes:
        hidden: it is a random state, of which nobody wants to see the numbers.
    """

    leaf: LeafDiff
    hidden: bool = False
    stats: Stats | None = None
    values: tuple[Any, Any] | None = None

    @property
    def path(self) -> str:
        return self.leaf.path


@dataclass(slots=True)
class Part:
    """The leaves under one top-level key."""

    name: str
    leaves: list[LeafDiff] = field(default_factory=list[LeafDiff])
    moved: list[Moved] = field(default_factory=list[Moved])

    @property
    def relative(self) -> float | None:
        """|d| / |w| over all its float leaves that changed; None when there are none."""
        stats = [each.stats for each in self.moved if each.stats is not None]
        if not stats:
            return None
        whole = Stats(math.hypot(*(s.difference for s in stats)), math.hypot(*(s.norm for s in stats)), 0.0)
        return whole.relative


@click.command(short_help="Show what moved between two steps, and how far.")
@click.argument("before", type=TargetType(glob=True))
@click.argument("after", type=TargetType(glob=True, store=False))
@click.option("--no-stats", is_flag=True, help="Compare digests only; read no array.")
@click.option("--all", "show_all", is_flag=True, help="Show every leaf that changed, not only those that stand out.")
@click.option("--exit-code", is_flag=True, help=f"Exit with {DIFFERS} when they differ.")
@metric_option
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    before: Target,
    after: Target,
    no_stats: bool,
    show_all: bool,
    exit_code: bool,
    metric: str | None,
    as_json: bool,
) -> None:
    """Compare two steps: `milepost diff runs/gpt@12000 @12500`. Digests tell what changed; only that is read.

    |d|/|w| is the norm of the change over the norm of what was there, of all changed floats of a part together.
    """
    old, new = _opened(before, after, metric)
    paths = _paths(old, new)
    found = old.checkpoint.diff(new.checkpoint)
    leaves = [leaf for leaf in found.leaves if paths is None or leaf.path in paths]
    parts = _parts(leaves)
    random = random_paths({leaf.path: leaf.before for leaf in found.leaves if leaf.before is not None})
    with old.checkpoint.lease(), new.checkpoint.lease(), Progress("read", _to_read(leaves)) as progress:
        for part in parts:
            part.moved = [
                _moved(found, leaf, random, progress, read=not no_stats)
                for leaf in part.leaves
                if leaf.change != "same"
            ]
    differs = any(part.moved for part in parts)
    if as_json:
        _print_json(old, new, leaves, parts)
    elif not differs:
        say(f"no difference in {counted(len(leaves), 'leaf')}")
    else:
        for line in _text(parts, show_all=show_all):
            say(line)
    if differs and exit_code:
        ctx.exit(DIFFERS)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    place: Place
    target: Target
    checkpoint: Checkpoint


def _opened(before: Target, after: Target, metric: str | None) -> tuple[Side, Side]:
    place = open_target(before)
    if not after.store:
        after = Target(before.store, after.step, after.glob)
    other = place if after.store == before.store else open_target(after)
    return (
        Side(place, before, place.checkpoint(before, metric)),
        Side(other, after, other.checkpoint(after, metric)),
    )


def _paths(old: Side, new: Side) -> set[str] | None:
    """Return the paths that the globs choose on either side, None for all.

    Raises:
        NotFoundError: neither side has any.
    """
    globs = {side.target.glob for side in (old, new)} - {None}
    if not globs:
        return None
    chosen: set[str] = set()
    missing: NotFoundError | None = None
    for side in (old, new):
        for glob in globs:
            try:
                chosen |= chosen_leaves(side.checkpoint, Target(side.place.store, None, glob)).keys()
            except NotFoundError as error:
                missing = error
    if not chosen and missing is not None:
        raise missing
    return chosen


def _parts(leaves: Sequence[LeafDiff]) -> list[Part]:
    parts: dict[str, Part] = {}
    for leaf in leaves:
        name = keypath.split(leaf.path)[0] if leaf.path else ""
        parts.setdefault(name, Part(name or "the root")).leaves.append(leaf)
    return list(parts.values())


def _is_one(spec: LeafSpec) -> bool:
    return spec.kind == "value" or (spec.kind == "array" and math.prod(spec.shape) == 1)


def _measured(leaf: LeafDiff) -> bool:
    """Return whether the leaf is an array whose way can be told by numbers."""
    spec = leaf.before
    return leaf.change == "changed" and spec is not None and is_float(spec) and not _is_one(spec)


def _to_read(leaves: Sequence[LeafDiff]) -> int:
    return 2 * sum(leaf.before.nbytes for leaf in leaves if leaf.before is not None and _measured(leaf))


def _moved(found: Diff, leaf: LeafDiff, random: Set[str], progress: Progress, *, read: bool) -> Moved:
    if leaf.change != "changed" or leaf.before is None:
        return Moved(leaf)
    if leaf.path in random:
        return Moved(leaf, hidden=True)
    if _is_one(leaf.before) and (read or leaf.before.kind == "value"):
        old, new = found.values(leaf.path)
        return Moved(leaf, values=(_item(old), _item(new)))
    if not read or not _measured(leaf):
        return Moved(leaf)
    stats = found.stats(leaf.path)
    progress(2 * leaf.before.nbytes)
    return Moved(leaf, stats=stats)


def _item(value: Any) -> Any:
    """Return an array of one element as what it holds."""
    item = getattr(value, "item", None)
    return value if item is None else item()


def _text(parts: Sequence[Part], *, show_all: bool) -> Iterator[str]:
    """Yield one line for each part, and below it what stands out."""
    details = [_details(part, show_all=show_all) for part in parts]
    heads = [_head(part, detail) for part, detail in zip(parts, details, strict=True)]
    counts = iter(columns([head for head in heads if len(head) > 1]))
    rests = [next(counts) if len(head) > 1 else head[0] for head in heads]
    names = [[part.name, rest] for part, rest in zip(parts, rests, strict=True)]
    for part, head, detail in zip(parts, columns(names), details, strict=True):
        yield click.style(head, bold=True) if part.moved else click.style(head, dim=True)
        if not _is_leaf(part) and not _fits_in_head(part, detail):
            yield from columns(detail, indent="  ")


def _is_leaf(part: Part) -> bool:
    return len(part.leaves) == 1 and "/" not in part.leaves[0].path


def _fits_in_head(part: Part, detail: Sequence[Sequence[str]]) -> bool:
    """Return whether one value is all there is to tell."""
    told = [each for each in part.moved if not each.hidden]
    return len(detail) == 1 and len(told) == 1 and told[0].values is not None


def _head(part: Part, detail: Sequence[Sequence[str]]) -> list[str]:
    """Return the cells after a part's name; a single one is text that no column belongs to."""
    if not part.moved:
        return [counted(len(part.leaves), "leaf"), "same"]
    if _is_leaf(part):
        return ["  ".join(filter(None, (text.strip() for text in detail[0]))) if detail else "changed"]
    if _fits_in_head(part, detail):
        return [" ".join(detail[0]).strip()]
    if all(each.hidden for each in part.moved):
        return ["changed"]
    counts = ((_WORDS[change], sum(leaf.change == change for leaf in part.leaves)) for change in _WORDS)
    texts = [f"{number} {word}" for word, number in counts if number]
    relative = [] if part.relative is None else [f"|d|/|w|  {part.relative:#.3g}"]
    return [counted(len(part.leaves), "leaf"), "   ".join(texts), *relative]


def _opaque(moved: Moved) -> bool:
    """Return whether there is nothing to tell but that it changed."""
    return moved.leaf.change == "changed" and moved.stats is None and moved.values is None


def _details(part: Part, *, show_all: bool) -> list[list[str]]:
    values = [(each.path, " -> ".join(map(shown, each.values))) for each in part.moved if each.values is not None]
    rows = _folded_rows(values, show_all=show_all)
    rows += _measured_rows(part, show_all=show_all)
    if show_all:
        opaque = [(each.path, f"{each.leaf.before}  changed") for each in part.moved if _opaque(each)]
        rows += _folded_rows(opaque, show_all=True)
    for change, sign in (("added", "+ "), ("removed", "- "), ("respecified", "! ")):
        leaves = [each.leaf for each in part.moved if each.leaf.change == change]
        specs = [(leaf.path, " -> ".join(str(spec) for spec in (leaf.before, leaf.after) if spec)) for leaf in leaves]
        rows += _folded_rows(specs, sign, show_all=show_all)
    return rows


def _measured_rows(part: Part, *, show_all: bool) -> list[list[str]]:
    """Return the leaves that stand out, the farthest first, or all of them when they are few."""
    measured = [(each, each.stats) for each in part.moved if each.stats is not None]
    finite = [stats.relative for _, stats in measured if math.isfinite(stats.relative)]
    median = statistics.median(finite) if finite else 0.0
    least = max(_OUTLIER * median, _fence(finite))
    measured.sort(key=lambda pair: -pair[1].relative if math.isfinite(pair[1].relative) else -math.inf)
    few = show_all or len(measured) <= 3
    rows: list[list[str]] = []
    for each, stats in measured:
        remark = _remark(stats, median, least)
        if not (few or remark) or (len(rows) == _SHOWN and not show_all):
            continue
        assert each.leaf.before is not None
        spec = each.leaf.before
        rows.append([
            _below(each.path), str(list(spec.shape)), short_dtype(spec.dtype), f"max|d| {stats.largest:.1e}",
            f"rel {stats.relative:#.3g}", remark,
        ])  # fmt: skip
    return rows


def _fence(numbers: Sequence[float]) -> float:
    """Return the number above which one is far from all others."""
    logs = [math.log(number) for number in numbers if number > 0]
    if len(logs) < 2:
        return math.inf
    low, _, high = statistics.quantiles(logs, n=4, method="inclusive")
    return math.exp(high + _FENCE * (high - low))


def _remark(stats: Stats, median: float, least: float) -> str:
    if math.isnan(stats.difference):
        return "<- not a number"
    if not math.isfinite(stats.relative):
        return "<- was all zero" if not stats.norm else "<- infinite"
    return f"<- {stats.relative / median:.1f}x the median" if median and stats.relative >= least else ""


def _folded_rows(items: Sequence[tuple[str, str]], sign: str = "", *, show_all: bool) -> list[list[str]]:
    """Return a row for each path and what there is to say of it; paths of which the same is said on one line."""
    alike: dict[str, list[str]] = {}
    for path, what in items:
        alike.setdefault(what, []).append(_below(path))
    rows = [[f"{sign}{path}", what] for what, paths in alike.items() for path in folded_paths(paths)]
    if show_all or len(rows) <= _SHOWN:
        return rows
    return [*rows[:_SHOWN], [f"{sign}… {len(rows) - _SHOWN} more: --all"]]


def _below(path: str) -> str:
    return cell(path.partition("/")[2])


def _print_json(old: Side, new: Side, leaves: Sequence[LeafDiff], parts: Sequence[Part]) -> None:
    moved = [each for part in parts for each in part.moved]
    emit(
        "diff",
        before={"store": old.place.store, "step": old.checkpoint.step},
        after={"store": new.place.store, "step": new.checkpoint.step},
        same=not moved,
        counts={change: sum(leaf.change == change for leaf in leaves) for change in _WORDS},
        leaves=[_leaf_json(each) for each in moved],
    )


def _leaf_json(moved: Moved) -> dict[str, Any]:
    leaf = moved.leaf
    document: dict[str, Any] = {
        "path": leaf.path, "change": leaf.change, "before": spec_json(leaf.before), "after": spec_json(leaf.after),
    }  # fmt: skip
    if moved.stats is not None:
        stats = moved.stats
        document |= {
            "difference": plain(stats.difference), "norm": plain(stats.norm), "largest": plain(stats.largest),
            "relative": plain(stats.relative),
        }  # fmt: skip
    if moved.values is not None:
        document |= {"value_before": plain(moved.values[0]), "value_after": plain(moved.values[1])}
    return document
