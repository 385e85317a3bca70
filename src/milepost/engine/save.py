# SPDX-License-Identifier: Apache-2.0
"""Write one step: digest, link what is unchanged, pack the rest, name it all in the leaf table, publish."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from milepost.engine.anatomy import Anatomy
from milepost.engine.commit import Lock
from milepost.engine.epochs import now
from milepost.engine.gate import Gate
from milepost.engine.plan import PackPlan, Source, packs
from milepost.engine.prepare import Base, Captured
from milepost.engine.root import Root
from milepost.engine.transfer import Digest, Limits, Pace, compared, write_pack
from milepost.errors import CheckpointError, CommitUnknownError, NotFoundError, StorageError
from milepost.model import format as fmt
from milepost.model.format import FileRecord, LeafTable, Manifest, PackRecord, Slot, StoredArray, StoredBox
from milepost.model.keypath import KeyPath
from milepost.model.leaf import data_spec
from milepost.stores import Claim

_log = logging.getLogger("milepost")


@dataclass(frozen=True, slots=True)
class Written:
    """A committed step: its slot, its manifest, and what the next save links from."""

    slot: Slot
    manifest: Manifest
    base: Base
    seconds: float


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
    gate: Gate,
    anatomy: Anatomy,
) -> Written:
    """Write and publish one step; on failure nothing of it is visible, and what was written is removed.

    Raises:
        CheckpointError: as the store or the commit says.
        SaveFailedError: `cancelled`, at the gate.
        CommitUnknownError: it is visible, but may not survive a crash.
    """
    start = time.monotonic()
    with lock.writing():
        gate.check()
        epoch = lock.epoch().epoch
        slot, claim = lock.claim(order.step)
        with claim:
            try:
                table, leaves, digest, files = _Attempt(
                    claim, root, captured, buffers, base, limits, gate, anatomy
                ).run()
                manifest = _manifest(root, order, slot, epoch, captured, [*files, leaves], digest)
                gate.enter()
            except BaseException as error:
                _abandon(lock, slot, error)
                if isinstance(error, CommitUnknownError):  # of a file: without the manifest there is no commit
                    raise StorageError(str(error).partition("\n")[0], errno=error.errno) from error
                raise
            packed = time.monotonic()
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
    anatomy.committed_s = time.monotonic() - packed
    base = Base(slot, table, digest, leaves.nbytes, captured.arrays)
    return Written(slot, manifest, base, time.monotonic() - start)


def _abandon(lock: Lock, slot: Slot, error: BaseException) -> None:
    """Remove what was written of a failed save, unless a newer writer is there, which sweeps it."""
    if isinstance(error, CheckpointError) and error.code == "fenced":
        return
    try:
        lock.abandon(slot)
    except CheckpointError as other:
        error.add_note(f"What was written of it is still there: {other}")


def _manifest(
    root: Root, order: Order, slot: Slot, epoch: int, captured: Captured, files: list[FileRecord], leaves: str,
) -> Manifest:  # fmt: skip
    return Manifest(
        format=fmt.FORMAT, id=fmt.new_id(), root=root.record.id if root.record else "", epoch=epoch, step=order.step,
        generation=slot.generation, parent=order.parent, time=now(), reason=order.reason, metrics=order.metrics,
        metadata=order.metadata, versions=versions(), world=1, nbytes=captured.nbytes,
        files=files, leaves=leaves, pins=order.pins, keep=order.keep,
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
    gate: Gate
    anatomy: Anatomy

    def run(self) -> tuple[LeafTable, FileRecord, str, list[FileRecord]]:
        """Return the leaf table, its file and digest, and the packs."""
        sources, same = self.captured.sources, self.captured.same
        digests: list[Digest | None] = [None] * len(sources)
        reusable = self._reusable(sources, digests)
        reused = self._linked(reusable)
        changed = [i for i in range(len(sources)) if i not in reused]
        plans, moved = self._plans(sources, changed, reused)
        stay = {index: entry for index, entry in reused.items() if index not in moved}
        # Oldest first, so that of two tensors of one name the last is the one that counts: who has nothing but a reader
        # of safetensors opens the packs in order.
        old = self.base.table.packs if self.base is not None else []
        linked = {old[number].name for number, _ in stay.values()} | {old[number].name for number in _packs_of(same)}
        records = [pack for pack in old if pack.name in linked]
        numbers = [-1] * len(old)
        for number, record in enumerate(records):
            numbers[old.index(record)] = number
        boxes = {index: _moved(box, numbers) for index, (_, box) in stay.items()}
        self.anatomy.new_nbytes = sum(plan.nbytes for plan in plans)
        pace = Pace(self.limits.bandwidth_bytes_per_s) if self.limits.bandwidth_bytes_per_s else None
        for plan in plans:
            self.gate.check()
            record = self._written(plan, digests, pace)
            for index, offset in zip(plan.members, plan.offsets, strict=True):
                boxes[index] = _box(sources[index], len(records), offset, digests[index])
            records.append(record)
        table = self._table(sources, boxes, records, numbers)
        start = time.monotonic()
        leaves, digest = self._leaves(table)
        self.anatomy.synced_s += time.monotonic() - start
        return table, leaves, digest, [FileRecord(r.name, r.nbytes, r.name in linked) for r in records]

    def _reusable(self, sources: Sequence[Source], digests: list[Digest | None]) -> dict[int, tuple[int, StoredBox]]:
        """Return the boxes whose bytes the base holds already: index -> (number of its pack, box).

        What had to be digested to find out is put into `digests`.
        """
        if self.base is None:
            return {}
        arrays, packs = self.base.table.arrays, self.base.table.packs
        found: dict[int, tuple[int, StoredBox]] = {}
        for index, source in enumerate(sources):
            array = arrays.get(source.path)
            if (
                not source.nbytes
                or array is None
                or array.dtype != source.spec.dtype
                or array.shape != source.spec.shape
            ):
                continue
            for box in array.boxes:
                if (
                    box.nbytes != source.nbytes
                    or box.start != source.start
                    or packs[box.pack].name in self.root.damaged
                ):
                    continue
                digests[index], same = compared(self.buffers[index], box, self.anatomy)
                if same:
                    found[index] = box.pack, box
        return found

    def _linked(self, reusable: dict[int, tuple[int, StoredBox]]) -> dict[int, tuple[int, StoredBox]]:
        """Link the packs that hold what is reused; what cannot be linked is written anew.

        Raises:
            NotFoundError: `deleted`, the pack of an array whose bytes were not captured is gone.
        """
        needed = _packs_of(self.captured.same)
        gone: set[int] = set()
        for number in sorted({number for number, _ in self._alive(reusable).values()} | needed):
            assert self.base is not None
            name = self.base.table.packs[number].name
            try:
                self.claim.link(self.base.slot.key(name), name, flush=False)
            except CheckpointError as error:
                if error.code not in ("not_found", "deleted"):
                    raise
                if number in needed:
                    text = f"step {self.base.slot.step}, from which unchanged arrays are linked, was deleted meanwhile"
                    raise NotFoundError(f"{text}\n  Save again: everything is then written.", code="deleted") from error
                gone.add(number)  # that step was deleted by hand
        return {index: entry for index, entry in reusable.items() if entry[0] not in gone}

    def _alive(self, reusable: dict[int, tuple[int, StoredBox]]) -> dict[int, tuple[int, StoredBox]]:
        """Return what lies in packs at least half of whose bytes are still wanted."""
        if not reusable or self.base is None:
            return {}
        packs = self.base.table.packs
        wanted = [0] * len(packs)
        for stored in self.captured.same.values():
            for box in stored.boxes:
                wanted[box.pack] += box.nbytes
        for number, box in reusable.values():
            wanted[number] += box.nbytes
        alive = [2 * n >= pack.nbytes - pack.header_nbytes for n, pack in zip(wanted, packs, strict=True)]
        return {index: entry for index, entry in reusable.items() if alive[entry[0]]}

    def _plans(
        self, sources: list[Source], changed: list[int], reused: dict[int, tuple[int, StoredBox]]
    ) -> tuple[list[PackPlan], set[int]]:
        """Return the packs to write, and which of the reused boxes move into one of them.

        Boxes of packs under half alive are written anew, apart from those that change, so that they are linked from
        then on.
        """
        moved = set(reused) - set(self._alive(reused))
        return [*self.captured.outline.packs(sources, changed), *packs(sources, sorted(moved))], moved

    def _written(self, plan: PackPlan, digests: list[Digest | None], pace: Pace | None) -> PackRecord:
        name = fmt.pack_name(0, secrets.token_hex(4))
        write_pack(self.claim, name, plan, self.buffers, digests, pace, self.gate.check, self.anatomy)
        return PackRecord(name, plan.nbytes, len(plan.header), xxhash.xxh3_128_hexdigest(plan.header))

    def _table(
        self, sources: Sequence[Source], boxes: Mapping[int, StoredBox], records: list[PackRecord], numbers: list[int]
    ) -> LeafTable:
        by_path: dict[KeyPath, list[StoredBox]] = {}
        for index, source in enumerate(sources):
            by_path.setdefault(source.path, []).append(boxes[index])
        same, origins = self.captured.same, self.captured.origins
        renumbered = numbers != list(range(len(numbers)))
        arrays: dict[str, StoredArray] = {}
        for path, spec in self.captured.specs.items():
            if (stored := same.get(path)) is not None:
                if renumbered:
                    stored = msgspec.structs.replace(stored, boxes=[_moved(box, numbers) for box in stored.boxes])
                arrays[path] = stored
                continue
            data = data_spec(spec)
            key = spec.dtype[4:-1] if spec.kind == "key" else ""
            origin = "" if origins[path] == "numpy" else origins[path]
            arrays[path] = StoredArray(data.dtype, data.shape, by_path.get(path, []), key, origin)
        return LeafTable(
            format=fmt.FORMAT, packs=records, arrays=arrays, values=self.captured.values, tree=self.captured.structure
        )

    def _leaves(self, table: LeafTable) -> tuple[FileRecord, str]:
        if self.base is not None and table == self.base.table:
            try:
                self.claim.link(self.base.slot.key(fmt.LEAVES), fmt.LEAVES)
                return FileRecord(fmt.LEAVES, self.base.nbytes, True), self.base.digest
            except CheckpointError as error:
                if error.code not in ("not_found", "deleted"):
                    raise
        sealed = fmt.seal(table)
        self.claim.put(fmt.LEAVES, [sealed])
        return FileRecord(fmt.LEAVES, len(sealed), False), fmt.digest_of(sealed) or ""


def _packs_of(arrays: Mapping[KeyPath, StoredArray]) -> set[int]:
    return {box.pack for stored in arrays.values() for box in stored.boxes}


def _moved(box: StoredBox, numbers: Sequence[int]) -> StoredBox:
    number = numbers[box.pack]
    return box if number == box.pack else msgspec.structs.replace(box, pack=number)


def _box(source: Source, pack: int, offset: int, digest: Digest | None) -> StoredBox:
    assert digest is not None  # what is written is digested on its way
    start = source.start
    shape = source.box.shape if start is not None else None
    return StoredBox(pack, offset, source.nbytes, digest.whole, digest.chunks, start, shape)
