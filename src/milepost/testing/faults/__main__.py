# SPDX-License-Identifier: Apache-2.0
"""`python -m milepost.testing.faults`: run the harnesses from the shell."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from typing import Any, cast

import click

from milepost.testing.faults import cuts, disks, explore, ptrace, sweep
from milepost.testing.faults.subject import Subject
from milepost.testing.faults.trial import Tally

_OURS = "milepost.testing.faults.scripts:Milepost"


class _Share(click.ParamType[tuple[int, int]]):
    name = "i/n"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return cast("tuple[int, int]", value)
        i, _, n = str(value).partition("/")
        if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
            self.fail(f"{value!r} is no share: 0/10 is the first tenth")
        return int(i), int(n)


def _subject(name: str) -> Subject:
    module, _, attribute = name.partition(":")
    return cast("Subject", getattr(importlib.import_module(module), attribute)())


def _tmpfs() -> str | None:
    """Return where a cut is quick, when there is such a place; else None for the usual temporary folder."""
    return "/dev/shm" if os.path.ismount("/dev/shm") else None  # noqa: S108


def _finished(tally: Tally, start: float) -> None:
    click.echo(f"{tally}\n{time.monotonic() - start:.1f} s")
    if tally.findings:
        sys.exit(1)


@click.group()
def main() -> None:
    """Let faults strike programs that save, and tell what was lost. Exit code 1: a promise was broken."""
    if reason := ptrace.why_not():
        raise click.ClickException(reason)


@main.command("sweep")
@click.argument("kind", type=click.Choice(["kill", "errors", "short"]))
@click.argument("scripts", nargs=-1)
@click.option("--share", type=_Share(), default="0/1", help="Only the i-th of n faults, such as 0/10.")
@click.option("--subject", default=_OURS, show_default=True, help="module:class of what is put to the test.")
@click.option("--folder", type=click.Path(), default=None, help="Scratch space; by default a temporary folder.")
def sweep_command(
    kind: sweep.Kind, scripts: tuple[str, ...], share: tuple[int, int], subject: str, folder: str
) -> None:
    """Kill at, or fail, or cut short, every system call."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _finished(sweep.sweep(_subject(subject), kind, scratch, scripts=scripts, share=share, told=click.echo), start)


@main.command("cut")
@click.argument("file_system", type=click.Choice(["ext4", "xfs"]))
@click.argument("scripts", nargs=-1)
@click.option("--share", type=_Share(), default="0/1", help="Only the i-th of n cuts, such as 0/10.")
@click.option("--options", default="", help="For mount, such as data=writeback.")
@click.option("--subject", default=_OURS, show_default=True, help="module:class of what is put to the test.")
@click.option("--folder", type=click.Path(), default=None, help="Scratch space, best on a tmpfs.")
def cut_command(
    file_system: disks.FileSystem,
    scripts: tuple[str, ...],
    share: tuple[int, int],
    options: str,
    subject: str,
    folder: str | None,
) -> None:
    """Cut the power of a file system before every system call; root only."""
    if reason := disks.why_not(file_system):
        raise click.ClickException(reason)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder or _tmpfs()) as scratch:
        found = cuts.cut(
            _subject(subject), file_system, scratch, scripts=scripts, share=share, options=options, told=click.echo
        )
        _finished(found, start)


@main.command("states")
@click.argument("scripts", nargs=-1)
@click.option("--samples", default=64, show_default=True, help="Random states where there are too many to try all.")
@click.option("--share", type=_Share(), default="0/1", help="Of the kills that go before, only the i-th of n.")
@click.option("--subject", default=_OURS, show_default=True, help="module:class of what is put to the test.")
@click.option("--folder", type=click.Path(), default=None, help="Scratch space; by default a temporary folder.")
def states_command(scripts: tuple[str, ...], samples: int, share: tuple[int, int], subject: str, folder: str) -> None:
    """Look at every state that a crash may leave on the disk."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = explore.explore(
            _subject(subject), scratch, scripts=scripts, samples=samples, share=share, told=click.echo
        )
        _finished(found, start)


@main.command("syncs")
@click.argument("scripts", nargs=-1)
@click.option("--samples", default=16, show_default=True, help="Random states where there are too many to try all.")
@click.option("--share", type=_Share(), default="0/1", help="Of the kills that go before, only the i-th of n.")
@click.option("--subject", default=_OURS, show_default=True, help="module:class of what is put to the test.")
@click.option("--folder", type=click.Path(), default=None, help="Scratch space; by default a temporary folder.")
def syncs_command(scripts: tuple[str, ...], samples: int, share: tuple[int, int], subject: str, folder: str) -> None:
    """Take away each sync in turn, and tell what is then lost. Exit code 1: one is not missed anywhere."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = explore.without_each_sync(_subject(subject), scratch, scripts=scripts, samples=samples, share=share)
    kinds: dict[str, list[explore.Removed]] = {}
    for one in found:
        kinds.setdefault(one.what, []).append(one)
    for what, all_of in sorted(kinds.items()):
        missed = next((one for one in all_of if one.missed), None)
        states = sum(one.states for one in all_of)
        text = f"{missed.script}: {missed.missed.partition(chr(10))[0][:90]}" if missed else "nothing is lost"
        click.echo(f"{what:60} {text} ({states:,} states)")
    idle = [what for what, all_of in kinds.items() if not any(one.missed for one in all_of)]
    click.echo(f"{len(kinds)} kinds of sync, {len(kinds) - len(idle)} missed when taken away")
    sys.exit(1 if idle else 0)


if __name__ == "__main__":
    main()
