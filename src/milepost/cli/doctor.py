# SPDX-License-Identifier: Apache-2.0
"""`milepost doctor`: what this machine, this disk and this store can do, and what is easily forgotten."""

from __future__ import annotations

import datetime as dt
import platform
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

import milepost
from milepost.checkpoint import Checkpoint
from milepost.cli.exits import DAMAGED, FAILED, NO_STORE_CODE, OK
from milepost.cli.look import writer_json
from milepost.cli.options import json_option
from milepost.cli.output import cell, counted, emit, say
from milepost.cli.probe import Check, disk_checks, nearest_folder
from milepost.cli.state import position_paths, random_paths
from milepost.cli.target import Place, Target, TargetType, open_target
from milepost.engine.epochs import Writer, writer_of
from milepost.errors import CorruptionError, NotFoundError, folded
from milepost.model.format import FORMAT
from milepost.stores import open_store
from milepost.stores.keys import TEMPORARY, TRASH
from milepost.table import age

_FRAMEWORKS = ("jax", "torch")
_LOOKS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
_ALIAS = (
    "On CPU, JAX may use the memory of a NumPy array instead of a copy (`jax.device_put`). If the program goes on"
    " changing that array while a save is written, the checkpoint holds a mixture: copy it first, or pass"
    ' `Checkpointer(..., copy="always")`.'
)


@click.command(short_help="Try out the disk of a store, and look for what is easily forgotten.")
@click.argument("target", type=TargetType(step="no"), metavar="STORE")
@json_option
@click.pass_context
def doctor(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Try out what the disk of a store can do, and look for what is easily forgotten.

    A store that is not there yet is fine: the disk is tried out. Exit code 1 when there is a problem.
    """
    try:
        place = open_target(target)
    except NotFoundError as error:
        if error.code != NO_STORE_CODE:
            raise
        place = None
    writer = None if place is None else writer_of(place.root.store)
    damage, latest = _latest(place)
    checks = [*_here(), *_disk(target, latest)]
    if place is not None:
        checks += [_writer(writer), *_leftovers(place, writer)]
    if damage is not None:
        checks.append(Check("latest step", "problem", damage, "`milepost verify` lists the whole ones."))
    if latest is not None:
        checks += _contents(latest)
    if as_json:
        emit(
            "doctor", store=target.store, exists=place is not None, writer=writer_json(writer),
            checks=[
                {"name": each.name, "status": each.status, "found": each.found, "means": each.means or None}
                for each in checks
            ],
        )  # fmt: skip
    else:
        _print(target, place, checks)
    problem = any(each.status == "problem" for each in checks)
    ctx.exit(DAMAGED if damage is not None else FAILED if problem else OK)


def _latest(place: Place | None) -> tuple[str | None, Checkpoint | None]:
    """Return what is wrong with the latest checkpoint, and the checkpoint."""
    if place is None:
        return None, None
    try:
        latest = place.catalog.latest()
        if latest is not None:
            latest.verify(deep=False)
    except CorruptionError as error:
        return str(error).partition("\n")[0], None
    return None, latest


def _here() -> Iterator[Check]:
    installed = [f"Python {platform.python_version()}", f"NumPy {version('numpy')}"]
    for name in _FRAMEWORKS:  # asked of the installation: importing one would take seconds
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Check("versions", "ok", f"milepost {milepost.__version__}, format {FORMAT}, {', '.join(installed)}")
    if FORMAT.endswith("-dev"):
        yield Check("format", "note", FORMAT, "Later versions need not read it. Format 1 will be kept readable.")
    if platform.system() == "Windows":
        yield Check("system", "warning", "Windows", "Reading works; how durable a save is depends on the file system.")


def _disk(target: Target, latest: Checkpoint | None) -> Iterator[Check]:
    path = getattr(open_store(target.store), "path", None)
    if not isinstance(path, Path):
        yield Check("disk", "note", "not on a disk of this machine", "Nothing to try out.")
        return
    folder = nearest_folder(path)
    if folder != path.absolute():
        yield Check("folder", "note", f"not there yet: the disk of {folder} is tried out")
    yield from disk_checks(folder, 0 if latest is None else latest.nbytes)


def _writer(writer: Writer | None) -> Check:
    if writer is None:
        return Check("writer", "ok", "nobody has saved here yet")
    if writer.record is None:
        return Check("writer", "ok", "a process holds the lock and has not saved yet")
    record = writer.record
    who = f"process {record.pid} on {record.host}, user {record.user}"
    since = f"{age(dt.datetime.fromisoformat(record.start))} ago"
    if writer.alive is None:
        return Check("writer", "warning", f"the last is {who}, {since}", "Whether it is alive cannot be told here.")
    if writer.alive:
        return Check("writer", "ok", f"{who}, writing since {since}", "Only it can prune or save until it ends.")
    return Check("writer", "ok", f"none; the last was {who}, {since}")


def _leftovers(place: Place, writer: Writer | None) -> Iterator[Check]:
    unfinished = place.unfinished()
    if unfinished:
        what = f"step {', '.join(map(str, unfinished))}"
        alive = writer is not None and writer.alive
        means = "Being written now." if alive else "Left by a writer that was killed; the next one removes it."
        yield Check("unfinished", "note", what, f"Resume ignores it. {means}")
    path = getattr(place.root.store, "path", None)
    if isinstance(path, Path):
        rest = [entry.name for entry in path.iterdir() if entry.name.startswith((TEMPORARY, TRASH))]
        if rest:
            found = f"{len(rest)} retired folders or temporary files"
            yield Check("leftovers", "note", found, "They take space until the next save removes them.")


def _contents(latest: Checkpoint) -> Iterator[Check]:
    """Yield what the latest checkpoint lacks that a resumed run would need."""
    specs = {path: leaf.spec for path, leaf in latest.leaves.items()}
    random, data = sorted(random_paths(specs)), sorted(position_paths(specs))
    where = f"step {latest.step}"
    if not random and not data:
        yield Check(
            "what is saved", "warning", f"{where} holds neither random states nor the position in the data",
            "A resumed run would draw other numbers and see other data than an uninterrupted one. Put generators and"
            " iterators into the tree: `saver.save(step, {..., \"rng\": generator, \"data\": loader})`.",
        )  # fmt: skip
    elif not random:
        yield Check(
            "random states", "warning", f"none in {where}",
            "If the program draws random numbers, a resumed run draws others: put its generators into the tree.",
        )  # fmt: skip
    elif not data:
        yield Check(
            "position in the data", "warning", f"none in {where}",
            "If the program reads data in some order, a resumed run begins anew: put the iterator into the tree.",
        )  # fmt: skip
    if random:
        yield Check("random states", "ok", f"{where}: {_nodes(random)}")
    if data:
        yield Check("position in the data", "ok", f"{where}: {_nodes(data)}")
    if "jax" in latest.info.versions:
        yield Check("JAX on CPU", "note", f"{where} was saved with jax {latest.info.versions['jax']}", _ALIAS)


def _nodes(paths: Sequence[str]) -> str:
    """Return the nodes that hold these leaves, no deeper than the second level, none within another."""
    nodes = dict.fromkeys("/".join(path.split("/")[:-1][:2]) or path for path in paths)
    return folded((node for node in nodes if "/" not in node or node.split("/")[0] not in nodes), 4)


def _print(target: Target, place: Place | None, checks: Sequence[Check]) -> None:
    steps = "no store yet" if place is None else counted(len(place.catalog), "step")
    say(f"{click.style(target.store, bold=True)}   {steps}")
    width = max(len(each.name) for each in checks)
    for each in checks:
        status = click.style(f"{each.status:<7}", fg=_LOOKS[each.status])
        say(f" {status}  {each.name:<{width}}  {cell(each.found)}")
        if each.means:
            for line in _wrapped(cell(each.means)):
                say(f" {'':7}  {'':{width}}    {line}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 84, break_long_words=False, break_on_hyphens=False)
