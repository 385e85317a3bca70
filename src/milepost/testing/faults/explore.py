# SPDX-License-Identifier: Apache-2.0
"""Look at every state that a crash may leave; then take away each sync in turn, and see whether it is missed."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, final, runtime_checkable

from milepost.testing.faults.states import Change, Recording, States, recorded
from milepost.testing.faults.subject import Event, Subject, Things, wrong
from milepost.testing.faults.trial import Bench, Tally, apart

_ENOUGH = 5  # findings of one program


@runtime_checkable
class InMemory(Protocol):
    """A subject that can read a root from memory, which is some hundred times as fast."""

    def read_files(self, files: Mapping[str, bytes], folders: Collection[str]) -> Things: ...


@dataclass(frozen=True, slots=True)
class Removed:
    """A sync that was taken away.

    Attributes:
        script: the program.
        what: the call.
        missed: the first thing that was then wrong, empty when nothing was.
        states: how many states were looked at.
    """

    script: str
    what: str
    missed: str
    states: int


@final
class _Reader:
    """Reads states, each content once."""

    def __init__(self, bench: Bench, states: States) -> None:
        self._bench, self._states = bench, states
        self._known: dict[frozenset[tuple[str, int, tuple[int, ...]]], Things | str] = {}
        self._scratch = bench.folder / "state"

    def read(self, changes: list[Change]) -> Things | str:
        """Return what is there, or why it cannot be opened."""
        found, folders, written = self._states.laid(changes)
        key = frozenset((name, inode, tuple(map(id, written.get(inode, ())))) for name, inode in found.items()) | {
            (name, 0, ()) for name in folders
        }
        if key not in self._known:
            files = {name: self._states.content(inode, written.get(inode, ())) for name, inode in found.items()}
            self._known[key] = self._read(files, folders)
        return self._known[key]

    def _read(self, files: Mapping[str, bytes], folders: Collection[str]) -> Things | str:
        subject = self._bench.subject
        try:
            if isinstance(subject, InMemory):
                return subject.read_files(files, folders)
            return cast("Things", apart(lambda: dict(self._from_disk(files, folders))))
        except Exception as error:  # noqa: BLE001 what came out is the finding
            return f"it cannot be opened: {type(error).__name__}: {error}"

    def _from_disk(self, files: Mapping[str, bytes], folders: Collection[str]) -> Things:
        shutil.rmtree(self._scratch, ignore_errors=True)
        root = self._scratch / "root"
        for name in folders:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (root / name).write_bytes(data)
        return self._bench.subject.read(root)


def explore(
    subject: Subject,
    folder: str | Path,
    *,
    scripts: tuple[str, ...] = (),
    samples: int = 64,
    share: tuple[int, int] = (0, 1),
    told: Callable[[str], object] = lambda _: None,
) -> Tally:
    """Look at every state that a crash may leave of every program, and of the next one after a kill at every call.

    Args:
        subject: what is put to the test.
        folder: scratch space.
        scripts: the programs; none for all.
        samples: random states at each point at which there are too many.
        share: (i, n): of the kills, only the i-th of n.
        told: is told how far it is, now and then.
    """
    tally = Tally()
    for script in scripts or tuple(subject.scripts):
        bench = Bench(subject, script, Path(folder) / script)
        before = tally.faults
        for killed_at in _kills(bench, share):
            recording = recorded(bench, killed_at=killed_at)
            _looked_at(bench, recording, States(recording, samples=samples), tally)
        told(f"{script}: {tally.faults - before:,} states")
    return tally


def without_each_sync(
    subject: Subject,
    folder: str | Path,
    *,
    scripts: tuple[str, ...] = (),
    samples: int = 16,
    share: tuple[int, int] = (0, 1),
) -> list[Removed]:
    """Take away one sync after the other, and look at every state that a crash may then leave.

    A sync that the program before had already made, had it not been killed, is seen to be missed only when that one was
    killed: so that the same is done after a kill at every call.
    """
    removed: list[Removed] = []
    for script in scripts or tuple(subject.scripts):
        bench = Bench(subject, script, Path(folder) / script)
        missed: set[str] = set()
        for killed_at in _kills(bench, share):
            recording = recorded(bench, killed_at=killed_at)
            for place in recording.syncs:
                what = _described(recording, place)
                if what in missed:
                    continue
                tally = Tally()
                count = _looked_at(bench, recording, States(recording, without=[place], samples=samples), tally, 1)
                wrongs = "; ".join(tally.findings[0].wrong) if tally.findings else ""
                removed.append(Removed(script, what, wrongs, count))
                missed.update([what] if wrongs else [])
    return removed


def _kills(bench: Bench, share: tuple[int, int]) -> list[int | None]:
    calls = bench.baseline()["changing"]
    return [None, *(n for n in range(1, calls + 1) if n % share[1] == share[0])]


def _looked_at(bench: Bench, recording: Recording, states: States, tally: Tally, enough: int = _ENOUGH) -> int:
    reader = _Reader(bench, states)
    count = 0
    last = len(tally.findings) + enough
    for place, changes in states:
        count += 1
        said = [step for step in recording.steps[:place] if isinstance(step, Event)]
        found = reader.read(changes)
        faults = [found] if isinstance(found, str) else wrong(bench.before, said, found)
        tally.add(bench.script, f"crash before call {place}, {recording.texts[place : place + 1]}", Counter(), faults)
        if len(tally.findings) >= last:
            break
    tally.outcomes[f"states of {bench.script}"] += count
    return count


def _described(recording: Recording, place: int) -> str:
    """Return a sync as text: what it makes durable."""
    inode, text = recording.steps[place], recording.texts[place]
    name = text.partition(" ")[2]
    changed = [recording.texts[i] for i in range(place) if _changes(recording.steps[i], inode)]
    after = f" after {changed[-1]}" if changed and name.endswith(("/", ".")) else ""
    renamed = [
        later for later in recording.texts[place:] if later.startswith((f"link {name} -> ", f"rename {name} -> "))
    ]
    if renamed:
        text = f"fsync {renamed[0].partition(' -> ')[2]}"
    return _plain(text + after)


def _changes(step: tuple[Change, ...] | int | Event, inode: object) -> bool:
    return isinstance(step, tuple) and any(change.inode == inode for change in step)


def _plain(text: str) -> str:
    """Return text without numbers that differ from run to run and from step to step."""
    text = re.sub(r"\.(tmp|trash)-[0-9a-f]+", r".\1", text)
    text = re.sub(r"p\d{5}-[0-9a-f]{8}\.safetensors", "PACK", text)
    return re.sub(r"\b\d+(\.g\d+)?(?=/|$|\.json| )|[0-9a-f]{16}-\d+", "N", text)
