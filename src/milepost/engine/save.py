# SPDX-License-Identifier: Apache-2.0
"""Write one step: digest, link what is unchanged, pack the rest, name it all in the leaf table, publish."""

from __future__ import annotations

import gc
import logging
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from milepost.adapters import Classifier, Piece, adapter_of
from milepost.engine.capture import Held
from milepost.engine.commit import Lock
from milepost.engine.epochs import now
from milepost.engine.plan import PackPlan, Source, owned, packs
from milepost.engine.root import Root
from milepost.engine.transfer import Digest, Limits, Pace, digest, write_pack
from milepost.errors import CheckpointError, CommitUnknownError, StorageError, UnsupportedLeafError
from milepost.model import format as fmt
from milepost.model import tree
from milepost.model.format import FileRecord, LeafTable, Manifest, PackRecord, Slot, StoredArray, StoredBox
from milepost.model.keypath import KeyPath
from milepost.model.leaf import Box, LeafSpec, data_spec, dtype_info
from milepost.model.value import encode
from milepost.stores import Claim

_log = logging.getLogger("milepost")


@dataclass(frozen=True, slots=True)
class Captured:
    """A tree ready to be written: nothing in it belongs to the caller any more, once `buffers` is there.

    Attributes:
        sources: the boxes that this process writes.
        held: the frameworks' objects that hold them; let go of once they are captured.
        specs: the arrays' specs by path, in the tree's order.
        origins: the framework of each array.
        values: all other leaves, as tagged JSON.
        structure: the tree as data.
    """

    sources: list[Source]
    held: list[Held]
    specs: dict[KeyPath, LeafSpec]
    origins: dict[KeyPath, str]
    values: dict[KeyPath, Any]
    structure: Any


@dataclass(frozen=True, slots=True)
class Base:
    """The step that unchanged leaves are linked from: the newest one that this writer knows to be whole.

    Attributes:
        slot: where its files lie.
        table: its leaf table.
    """

    slot: Slot
    table: LeafTable


@dataclass(frozen=True, slots=True)
class Written:
    """A committed step: its slot, its manifest, and what the next save links from."""

    slot: Slot
    manifest: Manifest
    base: Base
    seconds: float


def prepare(value: Any, *, rank: int = 0) -> Captured:
    """Return the leaves of a tree, sorted into arrays and values.

    Raises:
        UnsupportedLeafError: something cannot be stored, with its path.
    """
    # Of many objects that all stay alive the collector frees nothing, and takes as long as everything else here.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _prepared(value, rank)
    finally:
        if collecting:
            gc.enable()


def _prepared(value: Any, rank: int) -> Captured:
    flat = tree.flatten(value, Classifier(), rank=rank)
    sources: list[Source] = []
    held: list[Held] = []
    specs: dict[KeyPath, LeafSpec] = {}
    origins: dict[KeyPath, str] = {}
    values: dict[KeyPath, Any] = {}
    for path, leaf in flat.leaves.items():
        adapter = adapter_of(leaf)
        try:
            if adapter is None:
                values[path] = encode(leaf)
                continue
            if adapter.abstract(leaf):
                raise UnsupportedLeafError("an abstract array has no data\n  Save the array itself.")
            specs[path] = spec = adapter.spec(leaf)
            origins[path] = adapter.name
            data = data_spec(spec)
            pieces = adapter.pieces(leaf)
            _check_covered(data, pieces)
            itemsize = dtype_info(data.dtype).itemsize
            for piece in pieces:
                source = Source(path, data, piece.box, piece.box.size * itemsize, rank, piece.replica)
                sources.append(source)
                held.append(Held(source, piece, adapter))
        except UnsupportedLeafError as error:
            raise UnsupportedLeafError(f"{path or 'the root'}: {error}") from None
    mine = owned(sources, rank)
    return Captured([sources[i] for i in mine], [held[i] for i in mine], specs, origins, values, flat.structure)


def _check_covered(spec: LeafSpec, pieces: Sequence[Piece]) -> None:
    """Refuse an array of which this process holds a part only."""
    if len(pieces) == 1 and pieces[0].box is Box.whole(spec.shape):
        return
    there, whole = sum(box.size for box in {piece.box for piece in pieces}), Box.whole(spec.shape).size
    if there != whole:
        raise UnsupportedLeafError(
            f"this process holds {there:,} of its {whole:,} elements\n"
            "  Gather it to one process, or save from all processes that hold it."
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What one save is to write, beside the tree.

    Attributes:
        step: the step.
        reason: why it is saved.
        metrics, metadata: tagged JSON.
        pins: names that keep it.
        keep: the keep policy's phrase.
        parent: the slot that this writer went on from.
        replaces: generations of the same step that are retired once this one is there.
    """

    step: int
    reason: str
    metrics: Any
    metadata: Any
    pins: list[str]
    keep: str
    parent: str | None
    replaces: list[Slot]


def write(
    root: Root,
    lock: Lock,
    order: Order,
    captured: Captured,
    buffers: list[memoryview],
    *,
    base: Base | None,
    limits: Limits,
) -> Written:
    """Write and publish one step; on failure nothing of it is visible, and what was written is removed.

    Raises:
        CheckpointError: as the store or the commit says.
        CommitUnknownError: it is visible, but may not survive a crash.
    """
    start = time.monotonic()
    with lock.writing():
        epoch = lock.epoch().epoch
        slot, claim = lock.claim(order.step)
        with claim:
            try:
                table, sealed, files = _Attempt(claim, root, captured, buffers, base, limits).run()
                manifest = _manifest(root, order, slot, epoch, captured, files, sealed)
            except BaseException as error:
                _abandon(lock, slot, error)
                if isinstance(error, CommitUnknownError):  # of a file: without the manifest there is no commit
                    raise StorageError(str(error).partition("\n")[0], errno=error.errno) from error
                raise
            try:
                lock.publish(claim, manifest)
            except CheckpointError as error:
                if error.code not in ("commit_unknown", "exists"):
                    _abandon(lock, slot, error)
                raise
        for old in order.replaces:
            try:
                lock.retire(old)
            except CheckpointError as error:  # the step is there: a failed deletion must not say otherwise
                _log.warning("step %d is saved, but %s could not be removed: %s", order.step, old.name, error)
    return Written(slot, manifest, Base(slot, table), time.monotonic() - start)


def _abandon(lock: Lock, slot: Slot, error: BaseException) -> None:
    """Remove what was written of a failed save, unless a newer writer is there, which sweeps it."""
    if isinstance(error, CheckpointError) and error.code == "fenced":
        return
    try:
        lock.abandon(slot)
    except CheckpointError as other:
        error.add_note(f"What was written of it is still there: {other}")


def _manifest(
    root: Root, order: Order, slot: Slot, epoch: int, captured: Captured, files: list[FileRecord], sealed: bytes,
) -> Manifest:  # fmt: skip
    nbytes = sum(spec.nbytes for spec in captured.specs.values())
    return Manifest(
        format=fmt.FORMAT, id=fmt.new_id(), root=root.record.id if root.record else "", epoch=epoch, step=order.step,
        generation=slot.generation, parent=order.parent, time=now(), reason=order.reason, metrics=order.metrics,
        metadata=order.metadata, versions=versions(), world=1, nbytes=nbytes,
        files=files, leaves=fmt.digest_of(sealed) or "", pins=order.pins, keep=order.keep,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python, milepost and the frameworks that are loaded."""
    found = {"python": sys.version.partition(" ")[0]}
    for name in ("milepost", "numpy", "jax", "torch"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


@dataclass(slots=True)
class _Attempt:
    """One slot being filled."""

    claim: Claim
    root: Root
    captured: Captured
    buffers: list[memoryview]
    base: Base | None
    limits: Limits

    def run(self) -> tuple[LeafTable, bytes, list[FileRecord]]:
        sources = self.captured.sources
        digests = [digest(buffer) for buffer in self.buffers]
        reused = self._linked(self._reusable(sources, digests))
        changed = [i for i in range(len(sources)) if i not in reused]
        plans, moved = self._plans(sources, changed, reused)
        linked_packs = {name for index, (name, _) in reused.items() if index not in moved}
        # Oldest first, so that of two tensors of one name the last is the one that counts: who has nothing but a reader
        # of safetensors opens the packs in order.
        old = self.base.table.packs if self.base is not None else []
        records = [pack for pack in old if pack.name in linked_packs]
        numbers = {pack.name: number for number, pack in enumerate(records)}
        boxes = {
            index: msgspec.structs.replace(box, pack=numbers[name])
            for index, (name, box) in reused.items()
            if index not in moved
        }
        pace = Pace(self.limits.bandwidth_bytes_per_s) if self.limits.bandwidth_bytes_per_s else None
        for plan in plans:
            record = self._written(plan, pace)
            for index, offset in zip(plan.members, plan.offsets, strict=True):
                boxes[index] = _box(sources[index], len(records), offset, digests[index])
            records.append(record)
        table = self._table(sources, boxes, records)
        sealed, linked = self._leaves(table)
        files = [FileRecord(record.name, record.nbytes, record.name in linked_packs) for record in records]
        files.append(FileRecord(fmt.LEAVES, len(sealed), linked))
        return table, sealed, files

    def _reusable(self, sources: Sequence[Source], digests: Sequence[Digest]) -> dict[int, tuple[str, StoredBox]]:
        """Return the boxes whose bytes the base holds already: index -> (pack, box)."""
        if self.base is None:
            return {}
        arrays, records = self.base.table.arrays, self.base.table.packs
        found: dict[int, tuple[str, StoredBox]] = {}
        for index, (source, new) in enumerate(zip(sources, digests, strict=True)):
            array = arrays.get(source.path)
            if not source.nbytes or array is None or array.data_spec != source.spec:
                continue
            for box in array.boxes:
                same = box.digest == new.whole and box.chunks == new.chunks and box.nbytes == source.nbytes
                if same and box.start == source.start and records[box.pack].name not in self.root.damaged:
                    found[index] = records[box.pack].name, box
        return found

    def _linked(self, reusable: dict[int, tuple[str, StoredBox]]) -> dict[int, tuple[str, StoredBox]]:
        """Link the packs that hold reusable boxes; what cannot be linked is written anew."""
        gone: set[str] = set()
        for name in sorted({name for name, _ in self._alive(reusable).values()}):
            assert self.base is not None
            try:
                self.claim.link(self.base.slot.key(name), name, flush=False)
            except CheckpointError as error:
                if error.code not in ("not_found", "deleted"):
                    raise
                gone.add(name)  # that step was deleted by hand
        return {index: entry for index, entry in reusable.items() if entry[0] not in gone}

    def _alive(self, reusable: dict[int, tuple[str, StoredBox]]) -> dict[int, tuple[str, StoredBox]]:
        """Return what lies in packs at least half of whose bytes are still wanted."""
        wanted: dict[str, int] = {}
        for name, box in reusable.values():
            wanted[name] = wanted.get(name, 0) + box.nbytes
        sizes = {pack.name: pack.nbytes - pack.header_nbytes for pack in self.base.table.packs} if self.base else {}
        return {index: entry for index, entry in reusable.items() if 2 * wanted[entry[0]] >= sizes[entry[0]]}

    def _plans(
        self, sources: Sequence[Source], changed: list[int], reused: dict[int, tuple[str, StoredBox]]
    ) -> tuple[list[PackPlan], set[int]]:
        """Return the packs to write, and which of the reused boxes move into one of them.

        Boxes of packs under half alive are written anew, apart from those that change, so that they are linked from
        then on.
        """
        moved = set(reused) - set(self._alive(reused))
        return [*packs(sources, changed), *packs(sources, sorted(moved))], moved

    def _written(self, plan: PackPlan, pace: Pace | None) -> PackRecord:
        name = fmt.pack_name(0, secrets.token_hex(4))
        write_pack(self.claim, name, plan, self.buffers, pace)
        return PackRecord(name, plan.nbytes, len(plan.header), xxhash.xxh3_128_hexdigest(plan.header))

    def _table(self, sources: Sequence[Source], boxes: Mapping[int, StoredBox], records: list[PackRecord]) -> LeafTable:
        by_path: dict[KeyPath, list[StoredBox]] = {path: [] for path in self.captured.specs}
        for index, source in enumerate(sources):
            by_path[source.path].append(boxes[index])
        arrays: dict[str, StoredArray] = {}
        for path, spec in self.captured.specs.items():
            data = data_spec(spec)
            key = spec.dtype[4:-1] if spec.kind == "key" else ""
            origin = self.captured.origins[path]
            arrays[path] = StoredArray(data.dtype, data.shape, by_path[path], key, "" if origin == "numpy" else origin)
        return LeafTable(
            format=fmt.FORMAT, packs=records, arrays=arrays, values=self.captured.values, tree=self.captured.structure
        )

    def _leaves(self, table: LeafTable) -> tuple[bytes, bool]:
        sealed = fmt.seal(table)
        if self.base is not None and table == self.base.table:
            try:
                self.claim.link(self.base.slot.key(fmt.LEAVES), fmt.LEAVES)
                return sealed, True
            except CheckpointError as error:
                if error.code not in ("not_found", "deleted"):
                    raise
        self.claim.put(fmt.LEAVES, [sealed])
        return sealed, False


def _box(source: Source, pack: int, offset: int, new: Digest) -> StoredBox:
    start = source.start
    shape = source.box.shape if start is not None else None
    return StoredBox(pack, offset, source.nbytes, new.whole, new.chunks, start, shape)
