# SPDX-License-Identifier: Apache-2.0
"""Every state that a crash may leave on the disk, from a recording of one run.

The model is weaker than any file system that is used: bytes are durable once their file was synced, a name once its
folder was; until then each change may be there or not, in any combination, a large write in part. Only a rename within
one folder is one change. Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 3.
"""

from __future__ import annotations

import itertools
import random
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from milepost.testing.faults.subject import Event, events
from milepost.testing.faults.trial import Bench
from milepost.testing.recorder import Call

_ALL = 1_024  # combinations of what is pending, up to which all are tried
_BLOCK = 4_096
_PARTS = 3  # a write is torn into so many parts at most


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One change that is durable or not: names in a folder, or bytes of a file.

    Attributes:
        inode: the folder or file.
        names: that get an inode, or None and are gone.
        offset, data: bytes; without data the file's size becomes `offset`.
        grows: a size that is never made smaller.
    """

    inode: int
    names: tuple[tuple[str, int | None], ...] = ()
    offset: int = 0
    data: bytes | None = field(default=None, repr=False)
    grows: bool = False


@final
@dataclass
class Recording:
    """One run, as changes.

    Attributes:
        top: inode of the folder that holds the root.
        folders: inode -> names in it, before.
        files: inode -> bytes, before.
        made: inodes of folders that were made.
        steps: in order: changes made by one call, the inode that a call synced, or what the program said.
        texts: the calls.
    """

    top: int
    folders: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])
    files: dict[int, bytes] = field(default_factory=dict[int, bytes])
    made: set[int] = field(default_factory=set[int])
    steps: list[tuple[Change, ...] | int | Event] = field(default_factory=list[tuple[Change, ...] | int | Event])
    texts: list[str] = field(default_factory=list[str])

    @property
    def syncs(self) -> list[int]:
        """Where in `steps` the syncs are."""
        return [i for i, step in enumerate(self.steps) if isinstance(step, int)]


def recorded(bench: Bench, *, killed_at: int | None = None) -> Recording:
    """Record one run of a program; or the first part of it, up to a kill, and the program that follows."""
    bench.lay()
    top = bench.root.parent
    recording = Recording(top.lstat().st_ino)
    for path in [top, *top.rglob("*")]:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            recording.folders[found.st_ino] = {child.name: child.lstat().st_ino for child in path.iterdir()}
        else:
            recording.files[found.st_ino] = path.read_bytes()
    names = {inode: dict(entries) for inode, entries in recording.folders.items()}
    numbers: dict[int, int] = {}  # a file system gives the number of a deleted file to the next one
    said = b""
    for call in bench.recorded(killed_at=killed_at):
        if call.name in ("create", "mkdir"):
            numbers[call.inode] = -1 - len(recording.steps)
        call = replace(call, inode=numbers.get(call.inode, call.inode))  # noqa: PLW2901
        if call.path == "journal":
            said += call.data
            step = events(said)[-1]
        elif call.name == "fsync":
            step = call.inode
        else:
            if call.name == "mkdir":
                recording.made.add(call.inode)
                names[call.inode] = {}
            step = tuple(_changes(call, names, recording.top))
        recording.steps.append(step)
        recording.texts.append(str(call))
    return recording


def _changes(call: Call, names: dict[int, dict[str, int]], top: int) -> Iterator[Change]:
    """Yield the changes that a call makes; `names` are the folders as the program sees them, and follow."""
    if call.name == "write":
        size = max(_BLOCK, -(-len(call.data) // _PARTS // _BLOCK) * _BLOCK)
        for start in range(0, len(call.data), size):
            yield Change(call.inode, (), call.offset + start, call.data[start : start + size])
    elif call.name in ("truncate", "allocate"):
        yield Change(call.inode, (), call.offset, grows=call.name == "allocate")
    elif call.name == "copy":
        raise NotImplementedError("what is copied within the kernel cannot be replayed")
    named: dict[str, list[tuple[str, int | None]]] = {
        "create": [(call.path, call.inode)],
        "mkdir": [(call.path, call.inode)],
        "link": [(call.target, call.inode)],
        "unlink": [(call.path, None)],
        "rmdir": [(call.path, None)],
        "rename": [(call.path, None), (call.target, call.inode)],
    }
    by_folder: dict[int, list[tuple[str, int | None]]] = {}
    for path, inode in named.get(call.name, []):
        *above, name = path.rstrip("/").split("/")
        folder = top
        for part in above:
            folder = names[folder][part]
        by_folder.setdefault(folder, []).append((name, inode))
        if inode is None:
            names[folder].pop(name, None)
        else:
            names[folder][name] = inode
    for folder, entries in by_folder.items():
        yield Change(folder, tuple(entries))


@final
class States:
    """The legal states of a recording.

    Args:
        recording: of a run.
        without: places in its steps of syncs that are taken for not made. The program would have done the same.
        samples: random combinations, at each point where there are too many to try all.
        seed: of the randomness.
    """

    def __init__(
        self, recording: Recording, *, without: Collection[int] = (), samples: int = 64, seed: int = 0
    ) -> None:
        self._recording, self._without, self._samples = recording, frozenset(without), samples
        self._random = random.Random(seed)
        self._folders = {*recording.folders, *recording.made}

    def __iter__(self) -> Iterator[tuple[int, list[Change]]]:
        """Yield (how many steps were made, the changes that are there) for every distinct state."""
        changes: list[Change] = []
        durable: set[int] = set()  # by place in `changes`
        before: set[frozenset[int]] = set()
        for place, step in enumerate([*self._recording.steps, None]):
            pending = [i for i in range(len(changes)) if i not in durable]
            seen: set[frozenset[int]] = set()
            for some in self._subsets(pending):
                there = durable.union(some)
                key = frozenset(there)
                if key not in seen:
                    seen.add(key)
                    if key not in before:
                        yield place, [changes[i] for i in sorted(there)]
            before = set() if isinstance(step, Event) else seen  # after a promise the same state may be a broken one
            if isinstance(step, int) and place not in self._without:
                durable.update(i for i in pending if changes[i].inode == step)
            elif isinstance(step, tuple):
                changes += step

    def _subsets(self, pending: Sequence[int]) -> Iterator[tuple[int, ...]]:
        if 1 << len(pending) <= _ALL:
            for size in range(len(pending) + 1):
                yield from itertools.combinations(pending, size)
            return
        yield from (tuple(pending[:n]) for n in range(len(pending) + 1))
        for i, change in enumerate(pending):
            yield (change,)
            yield (*pending[:i], *pending[i + 1 :])
        for _ in range(self._samples):
            yield tuple(change for change in pending if self._random.random() < 0.5)

    def laid(self, changes: Iterable[Change]) -> tuple[dict[str, int], set[str], dict[int, list[Change]]]:
        """Return what lies below the root in a state: files by name, folders, and the changes of each file."""
        folders = {inode: dict(entries) for inode, entries in self._recording.folders.items()}
        written: dict[int, list[Change]] = {}
        for change in changes:
            if not change.names:
                written.setdefault(change.inode, []).append(change)
            for name, inode in change.names:
                entries = folders.setdefault(change.inode, {})
                if inode is None:
                    entries.pop(name, None)
                else:
                    entries[name] = inode
        found: dict[str, int] = {}
        there: set[str] = set()
        todo = [("", inode) for name, inode in folders[self._recording.top].items() if name == "root"]
        while todo:
            prefix, folder = todo.pop()
            there.add(prefix)
            for name, inode in folders.get(folder, {}).items():
                if inode in self._folders:
                    todo.append((f"{prefix}{name}/", inode))
                else:
                    found[prefix + name] = inode
        return found, there, written

    def content(self, inode: int, changes: Iterable[Change]) -> bytes:
        """Return a file's bytes after changes."""
        data = bytearray(self._recording.files.get(inode, b""))
        for change in changes:
            stop = change.offset + len(change.data or b"")
            if len(data) < stop:
                data.extend(bytes(stop - len(data)))
            if change.data is not None:
                data[change.offset : stop] = change.data
            elif not change.grows:
                del data[stop:]
        return bytes(data)
