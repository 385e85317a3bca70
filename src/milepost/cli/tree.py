# SPDX-License-Identifier: Apache-2.0
"""`milepost tree`: what a step holds, alike parts folded into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union, cast

import click

from milepost.checkpoint import Checkpoint
from milepost.cli.options import json_option, metric_option
from milepost.cli.output import cell, columns, counted, emit, plain, say, shown, spec_json
from milepost.cli.target import Target, TargetType, open_target
from milepost.errors import NotFoundError, folded
from milepost.leafref import LeafRef
from milepost.model import keypath
from milepost.table import age, size

_Nested: TypeAlias = dict[str, Union["_Nested", LeafRef]]


@dataclass(slots=True)
class Node:
    """A node of the tree, or several alike ones.

    Attributes:
        name: its segment, or a glob of the segments of all of them.
        leaf: what is there; None for an inner node.
        children: in the tree's order.
        times: for how many nodes it stands.
        leaves, nbytes: how many leaves all of them have, and the bytes of those.
    """

    name: str
    leaf: LeafRef | None = None
    children: list[Node] = field(default_factory=list["Node"])
    times: int = 1
    leaves: int = 0
    nbytes: int = 0


@click.command(short_help="Show what a step holds: dtypes, shapes, sizes.")
@click.argument("target", type=TargetType(glob=True))
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show N levels; what is below is summed up.")
@metric_option
@json_option
def tree(target: Target, depth: int | None, metric: str | None, as_json: bool) -> None:
    """Show the tree of a step: dtypes, shapes, sizes. Without @STEP the latest."""
    place = open_target(target)
    checkpoint = place.checkpoint(target, metric)
    leaves = chosen_leaves(checkpoint, target)
    nbytes = sum(leaf.nbytes for leaf in leaves.values())
    if as_json:
        emit(
            "tree", store=place.store, step=checkpoint.step, glob=target.glob, bytes=nbytes,
            leaves=[_leaf_json(leaf) for leaf in leaves.values()],
        )  # fmt: skip
        return
    title = click.style(f"{place.store}@{checkpoint.step}", bold=True)
    say(f"{title}   {counted(len(leaves), 'leaf')} · {size(nbytes)} · saved {age(checkpoint.created)} ago")
    for line in columns(list(_lines(folded_tree(leaves), depth or 1 << 30)), right=[2]):
        say(line)


def chosen_leaves(checkpoint: Checkpoint, target: Target) -> Mapping[str, LeafRef]:
    """Return the leaves that a target's glob names, by path.

    Raises:
        NotFoundError: there are none.
    """
    if target.glob is None:
        return dict(checkpoint.leaves)
    matches = keypath.matcher(target.glob)
    found = {path: leaf for path, leaf in checkpoint.leaves.items() if matches(path)}
    if not found and checkpoint.leaves:
        if not set("*?[{") & set(target.glob):
            checkpoint.at(target.glob)  # the error that names what is near
        tops = folded(keypath.top_level(checkpoint.leaves))
        raise NotFoundError(
            f"step {checkpoint.step} of {target.store} has no leaf {target.glob!r}\n  At the top: {tops}."
        )
    return found


def folded_tree(leaves: Mapping[str, LeafRef]) -> Node:
    """Return the tree of the leaves, neighbours that are alike but for a number in their names folded into one."""
    nested: _Nested = {}
    for path, leaf in leaves.items():
        *parents, name = keypath.split(path) or [path]
        inner = nested
        for parent in parents:
            inner = cast("_Nested", inner.setdefault(parent, {}))
        inner[name] = leaf
    return _folded("", nested, {})[0]


def _folded(name: str, what: _Nested | LeafRef, known: dict[object, int]) -> tuple[Node, int]:
    """Return a node and the number of its form: nodes of one form are alike but for their names and contents."""
    if isinstance(what, LeafRef):
        return Node(name, what, leaves=1, nbytes=what.nbytes), known.setdefault(what.spec, len(known))
    alike: dict[tuple[str, int], dict[str, Node]] = {}
    for each, below in what.items():
        child, form = _folded(each, below, known)
        alike.setdefault((keypath.numbered(each)[0], form), {})[each] = child
    node = Node(name)
    forms: list[tuple[str, int]] = []
    for (_, form), group in alike.items():
        for glob, times in keypath.grouped(group):
            first = group[glob] if times == 1 else next(iter(group.values()))
            node.children.append(
                Node(glob, first.leaf, first.children, times, times * first.leaves, times * first.nbytes)
            )
            forms.append((glob, form))
    node.leaves = sum(child.leaves for child in node.children)
    node.nbytes = sum(child.nbytes for child in node.children)
    return node, known.setdefault(tuple(forms), len(known))


def _lines(node: Node, depth: int, level: int = 0, times: int = 1) -> Iterator[list[str]]:
    """Yield name, content and bytes of each node below; numbers are of all nodes that a line stands for."""
    for child in node.children:
        names, bottom, standing = [child.name], child, times * child.times
        while len(bottom.children) == 1:  # a chain is one line
            (bottom,) = bottom.children
            names.append(bottom.name)
            standing *= bottom.times
        label = f"{'  ' * level}{'/'.join(names) or 'the root'}"
        over = standing // bottom.times
        folded = f"  x{standing}" if standing > 1 else ""
        if bottom.leaf is not None:
            what = f"{bottom.leaf.spec}{folded}{_value(bottom.leaf) if standing == 1 else ''}"
            yield [label, what, size(over * bottom.nbytes) if bottom.leaf.spec.kind != "value" else ""]
        else:
            yield [label, counted(over * bottom.leaves, "leaf"), size(over * bottom.nbytes) if bottom.nbytes else ""]
            if level + 1 < depth:
                yield from _lines(bottom, depth, level + 1, standing)


def _value(leaf: LeafRef) -> str:
    return f"  {cell(shown(leaf.read()))}" if leaf.spec.kind == "value" and leaf.spec.dtype != "none" else ""


def _leaf_json(leaf: LeafRef) -> dict[str, Any]:
    document: dict[str, Any] = {"path": leaf.path, **(spec_json(leaf.spec) or {}), "bytes": leaf.nbytes}
    return document | {"value": plain(leaf.read())} if leaf.spec.kind == "value" else document


def folded_paths(paths: Iterable[str]) -> list[str]:
    """Return paths folded to globs, each with how many it stands for."""
    return [f"{glob}  x{times}" if times > 1 else glob for glob, times in keypath.grouped(paths)]
