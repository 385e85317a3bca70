# SPDX-License-Identifier: Apache-2.0
"""Read one checkpoint: load, load_into, leaf, at, verify, diff."""

from __future__ import annotations

import datetime as dt
import difflib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, final

import xxhash

from milepost.diff import Diff, compared
from milepost.engine.identity import check_metadata
from milepost.engine.root import Root
from milepost.engine.stored import Stored
from milepost.errors import CheckpointError, CorruptionError, Damage, FormatError, NotFoundError, folded, message
from milepost.leafref import LeafRef, Leaves, Opened
from milepost.model import format as fmt
from milepost.model import keypath, structure
from milepost.model.format import Slot
from milepost.model.keypath import Globs, KeyPath
from milepost.model.value import decode
from milepost.stores import Hold

if TYPE_CHECKING:
    from milepost.engine.fit import Comparison

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
_UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` looked at, all of it whole.

    Attributes:
        step: the step.
        leaves: how many leaves.
        nbytes: bytes read and compared with their digests; 0 when not deep.
        files: how many files.
        deep: whether every byte was read.
        seconds: how long it took.
    """

    step: int
    leaves: int
    nbytes: int
    files: int
    deep: bool
    seconds: float


@final
class Checkpoint:
    """One committed checkpoint: an immutable handle without open files.

    `at(path)` gives a view of a part of it, with the same methods.
    """

    def __init__(self, opened: Opened, *, path: KeyPath = keypath.ROOT) -> None:
        self._opened = opened
        self._path = path

    # --- what it is

    @property
    def step(self) -> int:
        """The integer that orders the checkpoints of a run."""
        return self._opened.slot.step

    @property
    def created(self) -> dt.datetime:
        """When it was committed, UTC by the writer's clock."""
        return fmt.time_of(self._opened.manifest.time)

    @property
    def reason(self) -> str:
        """Why it was saved."""
        return self._opened.manifest.reason

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics given at the save and by later `annotate` calls; later ones win."""
        return _merged(self._opened.manifest.metrics, [note.metrics for note in self._opened.notes])

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata given at the save and by later `annotate` calls; later ones win."""
        return _merged(self._opened.manifest.metadata, [note.metadata for note in self._opened.notes])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, however many of them are shared with other steps on disk."""
        if self._path:
            return sum(ref.nbytes for ref in self.leaves.values())
        return self._opened.manifest.nbytes

    @property
    def info(self) -> Info:
        """Names and numbers for tools: the slot, epoch, parent, pins, files."""
        opened, manifest = self._opened, self._opened.manifest
        pins = dict.fromkeys(manifest.pins)
        for note in opened.notes:
            if note.pin is not None:
                pins[note.pin] = None
            if note.unpin is not None:
                pins.pop(note.unpin, None)
        new = sum(file.nbytes for file in manifest.files if not file.linked)
        files = tuple((file.name, file.nbytes, file.linked) for file in manifest.files)
        return Info(
            manifest.id, opened.slot.name, manifest.epoch, manifest.parent, tuple(pins), opened.superseded, new,
            dict(manifest.versions), manifest.world, manifest.keep, files,
        )  # fmt: skip

    @cached_property
    def leaves(self) -> Mapping[str, LeafRef]:
        """The leaves by key path, in the tree's order, not yet read."""
        return Leaves(self._opened, self._stored.entries(None))

    @property
    def tree(self) -> Any:
        """The saved tree in builtin containers, as `load()` gives it, with a `LeafRef` for each leaf."""
        stored = self._stored

        def leaf(path: KeyPath, there: KeyPath) -> LeafRef:
            return LeafRef(self._opened, path, there)

        return structure.rebuild(stored.table.tree, leaf, node=stored.node, stored=stored.path)

    @cached_property
    def _stored(self) -> Stored:
        stored = self._opened.stored
        if not self._path:
            return stored
        try:
            node, there = structure.subtree(stored.table.tree, self._path, stored.rank)
        except KeyError:
            raise self._no_leaf(self._path, keypath.ROOT) from None
        return Stored(
            stored.table, stored.source, there, node, stored.rank, f"{stored.where}, {self._path}", stored.loaded
        )

    # --- reading

    def leaf(self, path: str) -> LeafRef:
        """Return one leaf by its key path.

        Raises:
            NotFoundError: there is none; the message names the nearest.
        """
        found = self.leaves.get(path) or Leaves(self._opened, self._stored.entries(self._opened.rank)).get(path)
        if found is None:
            raise self._no_leaf(path, self._path)
        return found

    def at(self, path: str) -> Checkpoint:
        """Return a view of the part of the tree at a key path.

        Raises:
            NotFoundError: there is no such node.
        """
        view = Checkpoint(self._opened, path=keypath.join(self._path, path) if path else self._path)
        view._stored  # noqa: B018 a wrong path is told here, where it was written
        return view

    def load(
        self,
        like: _T = _UNSET,
        *,
        rename: Mapping[str, str] | None = None,
        missing: Literal["error", "keep"] = "error",
        unexpected: Literal["error", "ignore"] = "error",
        dtype: Literal["error", "cast"] = "error",
        only: Globs | None = None,
        exclude: Globs = (),
        require: Mapping[str, Any] | None = None,
        lazy: bool = False,
        frameworks: Literal["numpy", "saved"] = "numpy",
    ) -> _T:
        """Return the saved tree, every byte checked.

        Args:
            like: a tree of arrays or of specs (`jax.ShapeDtypeStruct`, meta tensors, `LeafSpec`), or `mp.SKIP` where
                nothing is to be read. Its containers and frameworks decide what comes back; shardings in it reshard.
                Without it: builtin containers and NumPy arrays.
            rename: saved path -> path in `like`; globs, the wildcards of which keep what they matched.
            missing: `keep` leaves in `like` what was not saved.
            unexpected: `ignore` leaves unread what `like` does not have.
            dtype: `cast` converts numbers to the dtypes of `like`.
            only: read these paths of `like` alone (globs); the rest of `like` stays as it is.
            exclude: leave these paths as they are in `like`.
            require: metadata that the checkpoint must have; of these names alone, and with these very values.
            lazy: map files instead of reading them: no copy, nothing checked until `verify`. Local roots only.
            frameworks: without `like`, `saved` gives arrays back in the frameworks that they were saved from, as far
                as the program has loaded these.

        Raises:
            StructureError: the trees differ; all differences at once, before a byte is read. Code `metadata`: what is
                required was not said of the checkpoint, or otherwise.
            CorruptionError: bytes are not those that were written.
            NotFoundError: `deleted`, the step was retired meanwhile.
        """
        from milepost.engine.fit import Options  # not before it is needed: importing milepost is quick
        from milepost.engine.place import load_like, load_plain

        options = Options(rename or {}, missing, unexpected, dtype, only, exclude, lazy, frameworks)
        with self._reading("loaded"):
            self._check(require)
            if like is _UNSET:
                return load_plain(self._stored, options)
            return load_like(self._stored, like, options)

    def load_into(
        self,
        target: Any,
        *,
        rename: Mapping[str, str] | None = None,
        missing: Literal["error", "keep"] = "error",
        unexpected: Literal["error", "ignore"] = "error",
        dtype: Literal["error", "cast"] = "error",
        only: Globs | None = None,
        exclude: Globs = (),
        require: Mapping[str, Any] | None = None,
    ) -> None:
        """Restore a tree in place: arrays are overwritten, objects with state take it, other leaves are replaced.

        Arguments as in `load`. Everything is compared before anything changes; when a read fails then, a note on the
        error names what was already changed.

        Raises:
            StructureError: the trees differ, or a leaf stands where it cannot be replaced (a tuple).
            CorruptionError: bytes are not those that were written.
        """
        from milepost.engine.fit import Options
        from milepost.engine.place import load_into

        options = Options(rename or {}, missing, unexpected, dtype, only, exclude)
        with self._reading("loaded"):
            self._check(require)
            load_into(self._stored, target, options)

    def compare(
        self,
        like: Any = _UNSET,
        *,
        into: Any = _UNSET,
        rename: Mapping[str, str] | None = None,
        missing: Literal["error", "keep"] = "error",
        unexpected: Literal["error", "ignore"] = "error",
        dtype: Literal["error", "cast"] = "error",
        only: Globs | None = None,
        exclude: Globs = (),
        require: Mapping[str, Any] | None = None,
    ) -> Comparison:
        """Find out what a load would do, or refuse, without reading an array and without changing anything.

        So a program can free its own state once it knows that the saved one fits. Arguments as in `load`.

        Args:
            like: compare as `load(like)` would.
            into: compare as `load_into(into)` would.

        Raises:
            StructureError: the very one that the load would raise.
        """
        from milepost.engine.fit import Options
        from milepost.engine.place import fit_into, fit_like

        if (like is _UNSET) == (into is _UNSET):
            raise ValueError("compare(): give `like` or `into`, one of them")
        options = Options(rename or {}, missing, unexpected, dtype, only, exclude)
        with self._opened.lease():
            self._check(require)
            fit = fit_like(self._stored, like, options) if into is _UNSET else fit_into(self._stored, into, options)[0]
        return fit.comparison

    def _check(self, require: Mapping[str, Any] | None) -> None:
        if require:
            said = {name: value for name, value in self.metadata.items() if name in require}
            remedy = "Load another checkpoint, or leave out `require`."
            check_metadata(f"{self._opened.where} does not have the metadata that is required", said, require, remedy)

    def lease(self) -> Hold:
        """Keep retention away from this step while the returned hold is open (`with ckpt.lease(): ...`)."""
        return self._opened.lease()

    def diff(self, other: Checkpoint) -> Diff:
        """Compare with another checkpoint, by digests: no array is read. `Diff.stats(path)` reads two."""
        return compared(self._stored, other._stored)

    def verify(self, *, deep: bool = True, progress: Callable[[int], None] | None = None) -> Report:
        """Check records, sizes and, when deep, every byte and every pack header against their digests.

        Args:
            deep: read everything.
            progress: called with the bytes that were just checked, a few MiB at a time; `nbytes` in all.

        Raises:
            CorruptionError: with everything that is damaged in `.damaged`.
        """
        start = time.monotonic()
        with self._opened.lease():
            damaged, nbytes = _damage(self, deep, progress)
        if damaged:
            raise CorruptionError(
                message(
                    f"{self._opened.where} is damaged in {len(damaged)} place{'s' * (len(damaged) > 1)}",
                    remedy="\n  ".join(
                        [*map(str, damaged[:20]), "Load another step, or restore the file from a copy."]
                    ),
                ),
                damaged=damaged,
            )
        manifest = self._opened.manifest
        seconds = time.monotonic() - start
        return Report(self.step, len(self.leaves), nbytes, len(manifest.files) + 1, deep, seconds)

    def _reading(self, verb: str) -> _Reading:
        return _Reading(self._opened, verb, self)

    def _no_leaf(self, path: str, below: KeyPath) -> NotFoundError:
        stored = self._opened.stored
        names = [keypath.relative(name, below) for name in dict(structure.visible(stored.table.tree, None))]
        last = keypath.split(path)[-1] if path else ""
        near = difflib.get_close_matches(path, names, 3, 0.4) or [name for name in names if last in name][:3]
        tops = dict.fromkeys(name.partition("/")[0] for name in names)
        return NotFoundError(
            f"{stored.where} has no {path!r}\n"
            f"  {'Near it: ' + ', '.join(near) + '. ' if near else ''}At the top: {folded(tops)}."
        )

    def __repr__(self) -> str:
        part = f", at {self._path!r}" if self._path else ""
        return f"<Checkpoint step {self.step} of {self._opened.root.url}{part}, {self.nbytes:,} bytes>"


@dataclass(frozen=True, slots=True)
class Info:
    """Names and numbers of a checkpoint, for tools.

    Attributes:
        id: unlike the step, never used twice.
        slot: the name of its folder.
        epoch: the writer's.
        parent: the slot that its writer went on from.
        pins: names that keep it.
        superseded: a newer writer went on from before this step, so it is no longer in the line of `latest`.
        new_nbytes: bytes of files that this save wrote; the other files are hard links.
        versions: of milepost, Python and the frameworks at the save.
        world: how many processes saved it.
        keep: the keep policy's phrase at the save.
        files: name, bytes and whether an earlier save wrote it.
    """

    id: str
    slot: str
    epoch: int
    parent: str | None
    pins: tuple[str, ...]
    superseded: bool
    new_nbytes: int
    versions: dict[str, str]
    world: int
    keep: str
    files: tuple[tuple[str, int, bool], ...]


@final
class _Reading:
    """A lease for the time of a read, and one line in the log."""

    def __init__(self, opened: Opened, verb: str, checkpoint: Checkpoint) -> None:
        self._opened, self._verb, self._checkpoint = opened, verb, checkpoint

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self._hold = self._opened.lease()

    def __exit__(self, kind: object, error: object, _: object) -> None:
        self._hold.close()
        if error is None:
            seconds = time.monotonic() - self._start
            _log.info("%s %s: %d bytes in %.3f s", self._verb, self._opened.where, self._checkpoint.nbytes, seconds)


def _merged(first: Any, later: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for data in [first, *later]:
        if data:
            said = decode(data)
            if not isinstance(said, dict):
                raise FormatError(f"{str(data)[:80]} in a record is no object of metrics or metadata")
            result.update(cast("dict[str, Any]", said))
    return result


def _damage(checkpoint: Checkpoint, deep: bool, progress: Callable[[int], None] | None) -> tuple[list[Damage], int]:
    opened = checkpoint._opened  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    root, slot, step = opened.root, opened.slot, opened.slot.step
    damaged: list[Damage] = []
    try:
        stored = opened.stored
        opened.notes  # noqa: B018 read and checked
    except (CorruptionError, FormatError, NotFoundError) as error:
        if isinstance(error, NotFoundError) and error.code == "deleted":
            raise
        return [Damage(step, "", "records", 0, 0, "whole records", str(error).partition("\n")[0])], 0
    sizes = {info.key: info.nbytes for info in root.store.list(slot.key(""))}
    for file in opened.manifest.files:
        found = sizes.get(slot.key(file.name))
        if found != file.nbytes:
            what = "no file" if found is None else f"{found:,} bytes"
            damaged.append(Damage(step, "", file.name, 0, file.nbytes, f"{file.nbytes:,} bytes", what))
    if not deep:
        return damaged, 0
    missing = {damage.file for damage in damaged if damage.found == "no file"}
    for pack in stored.table.packs:
        if pack.name not in missing:  # what the page cache holds is not what the disk holds, after a failed write
            root.store.forget(slot.key(pack.name))
    nbytes = 0
    for pack in stored.table.packs:
        if pack.name not in missing:
            damaged += _header_damage(root, slot, pack)
    for path, array in stored.table.arrays.items():
        if wrong := stored.source.flaw(array):
            damaged.append(Damage(step, path, fmt.LEAVES, 0, 0, "boxes that make up the leaf", wrong))
            continue
        for box in array.boxes:
            if stored.table.packs[box.pack].name not in missing:
                damaged += stored.source.check_box(path, box, progress)
                nbytes += box.nbytes
    return damaged, nbytes


def _header_damage(root: Root, slot: Slot, pack: fmt.PackRecord) -> list[Damage]:
    try:
        data = root.store.get(slot.key(pack.name), length=pack.header_nbytes)
        found = xxhash.xxh3_128_hexdigest(data)
    except CheckpointError as error:
        found = str(error).partition("\n")[0]
    if found == pack.header_digest:
        return []
    expected = f"xxh3-128 {pack.header_digest}"
    return [Damage(slot.step, "the pack's header", pack.name, 0, pack.header_nbytes, expected, found)]
