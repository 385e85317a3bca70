# SPDX-License-Identifier: Apache-2.0
"""The records of one root: list the slots, read manifests, follow the line of `latest`, hold a step against retention.

Everything here may run beside a writer, and needs no lock of it. What is listed may be gone a moment later: then a
newer checkpoint is there, or the step was deleted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, final

from milepost.engine import epochs, noted
from milepost.engine.epochs import Head
from milepost.errors import (
    CommitUnknownError,
    ConflictError,
    CorruptionError,
    Damage,
    FormatError,
    NotFoundError,
    StorageError,
    message,
)
from milepost.model import format as fmt
from milepost.model.format import LeafTable, Manifest, Note, RootRecord, Slot, StepFormat
from milepost.model.keypath import KeyPath
from milepost.stores import Hold, Store

# How long to wait for a lock that nobody holds for long: `writer_of` asks for the writer's, retention for a lease.
_INSTANT = (0.01, 0.05)
_RETENTION = (0.01, 0.05, 0.2, 0.5)


@final
@dataclass(frozen=True, slots=True)
class Root:
    """The records of one root.

    Attributes:
        store: where they lie.
        record: the root record; None for a slot, or a folder of slots, that was copied elsewhere.
        steps: how slots are named.
        single: the only slot, when the store's own folder is one.
        damaged: packs that this process found damaged; they are never linked again.
        concurrency: threads that read at once.
        loaded: by the digest of a leaf table (names of slots are used again), the immutable arrays that were loaded
            from it, so that the next save knows them again.
        heads: what writers declared, as far as it was read; it never changes.
    """

    store: Store
    record: RootRecord | None
    steps: StepFormat
    single: Slot | None = None
    damaged: set[str] = field(default_factory=set[str], compare=False)
    concurrency: int = 4
    loaded: dict[str, dict[KeyPath, weakref.ref[Any]]] = field(
        default_factory=dict[str, dict[KeyPath, "weakref.ref[Any]"]], compare=False
    )
    heads: dict[int, Head | None] = field(default_factory=dict[int, "Head | None"], compare=False)

    @property
    def url(self) -> str:
        return self.store.url

    # --- reading

    def slots(self) -> list[Slot]:
        """Return all slots, committed or not, by step and generation. Cost: one listing."""
        if self.single is not None:
            return [self.single]
        names = (info.key.rstrip("/") for info in self.store.list("", delimiter="/") if info.nbytes is None)
        slot_of = self._copied if self.record is None else self.steps.parse
        found = [slot for name in names if (slot := slot_of(name)) is not None]
        return sorted(found, key=lambda slot: (slot.step, slot.generation))

    def _copied(self, name: str) -> Slot | None:
        """Return the slot in a folder that may have been copied under any name: its manifest says which it is."""
        named = self.steps.parse(name)
        try:
            data = bytes(self.store.get(f"{name}/{fmt.MANIFEST}", limit=fmt.MAX_RECORD))
        except NotFoundError:
            return None
        if fmt.digest_of(data) is None:  # another program's file, or a damaged one of ours
            return named
        try:
            manifest = fmt.unseal(data, Manifest, self._where(f"{name}/{fmt.MANIFEST}"))
        except CorruptionError:
            if named is None:
                raise
            return named
        return copied_slot(name, manifest, self._where(name))

    def committed(self, slot: Slot) -> bool:
        """Return whether a slot has a manifest; it is not read."""
        try:
            self.store.get(slot.key(fmt.MANIFEST), length=0)
        except NotFoundError:
            return False
        return True

    def manifest(self, slot: Slot) -> Manifest | None:
        """Return a slot's manifest, None when it is not committed.

        Raises:
            CorruptionError: it is torn or altered.
            FormatError: the folder was renamed to another step.
        """
        where = self._where(slot.key(fmt.MANIFEST))
        try:
            data = self.store.get(slot.key(fmt.MANIFEST), limit=fmt.MAX_RECORD)
        except NotFoundError:
            return None
        manifest = fmt.unseal(data, Manifest, where)
        if (manifest.step, manifest.generation) != (slot.step, slot.generation) or not fmt.is_id(manifest.id):
            raise FormatError(
                f"{where} is the manifest of step {manifest.step}"
                f"{f', generation {manifest.generation}' if manifest.generation != 1 else ''}\n"
                "  If its folder was renamed, give it its name again."
            )
        return manifest

    def table(self, slot: Slot, manifest: Manifest) -> LeafTable:
        """Return the leaf table that a manifest names.

        Raises:
            NotFoundError: `deleted`, the step was retired meanwhile.
            CorruptionError: it is not the one that the manifest names.
        """
        key = slot.key(fmt.LEAVES)
        try:
            data = bytes(self.store.get(key, limit=fmt.MAX_LEAVES))
        except NotFoundError as error:
            raise self._gone(slot, manifest, key) from error
        if fmt.digest_of(data) != manifest.leaves:
            if not self._is_there(slot, manifest):  # another checkpoint has got the slot's name
                raise self._gone(slot, manifest, key)
            table = fmt.unseal(data, LeafTable, self._where(key))  # torn or of another format: says so itself
            raise CorruptionError(
                message(
                    f"{self._where(key)} is not the leaf table of this step ({len(table.arrays)} arrays)",
                    expected=manifest.leaves,
                    found=fmt.digest_of(data),
                ),
                damaged=(Damage(slot.step, "", key, 0, 0, manifest.leaves, fmt.digest_of(data) or "none"),),
            )
        return fmt.unseal(data, LeafTable, self._where(key))

    def _is_there(self, slot: Slot, manifest: Manifest) -> bool:
        found = self.manifest(slot)
        return found is not None and found.id == manifest.id

    def _gone(self, slot: Slot, manifest: Manifest, key: str) -> NotFoundError | CorruptionError:
        """Return the error for a file that is not there: the step was retired, or the file was lost."""
        if not self._is_there(slot, manifest):
            return NotFoundError(
                f"step {slot.step} of {self.url} was deleted while it was read\n"
                "  Load another step, or pin a step before you read it.",
                code="deleted",
            )
        return CorruptionError(
            f"{self._where(key)} is missing although the manifest names it\n"
            "  Restore it from a copy, or load another step (`milepost verify` lists the whole ones).",
            damaged=(Damage(slot.step, "", key, 0, 0, "the file", "no such file"),),
        )

    def notes(self, slot: Slot, manifest: Manifest) -> list[Note]:
        """Return what was said about a checkpoint after its commit, oldest first."""
        prefix = slot.key(f"{fmt.NOTES}{manifest.id}-")
        found: list[tuple[int, Note]] = []
        for info in self.store.list(slot.key(fmt.NOTES)):
            number = info.key.removeprefix(prefix).removesuffix(".json")
            if info.key.startswith(prefix) and number.isdecimal():
                try:
                    data = self.store.get(info.key, limit=fmt.MAX_RECORD)
                except NotFoundError:
                    continue  # the step is being retired
                found.append((int(number), fmt.unseal(data, Note, self._where(info.key))))
        return [note for _, note in sorted(found, key=lambda item: item[0])]

    def head(self) -> Head:
        """Return what the newest writer declared. Cost: one listing and one record."""
        return epochs.newest_head(self.store)

    def is_in_line(self, slot: Slot, head: Head) -> bool:
        """Return whether a slot holds a checkpoint of the line that `latest` follows; a damaged one counts."""
        if slot.name in head.superseded:
            return False
        try:
            manifest = self.manifest(slot)
        except CorruptionError:
            return True
        return manifest is not None and not self.superseded(slot, manifest, head)

    def superseded(self, slot: Slot, manifest: Manifest, head: Head) -> bool:
        """Return whether a checkpoint is out of the line that `latest` follows.

        A branch left it behind; or it came late, from a writer that had been taken over. Cost: nothing in the usual
        case, else one record for each epoch between the two, the first time.
        """
        if slot.name in head.superseded:
            return True
        if slot.name == head.slot:
            return False
        if self._is_late(slot, manifest, head):
            return True
        between = map(self._declared, range(manifest.epoch + 1, head.line))  # epochs have no gaps
        return any(self._is_late(slot, manifest, each) for each in between if each is not None)

    def _declared(self, epoch: int) -> Head | None:
        """Return what one writer declared, None when its record was deleted by hand."""
        if epoch not in self.heads:
            try:
                self.heads[epoch] = epochs.read_head(self.store, epoch)
            except NotFoundError:
                self.heads[epoch] = None
        return self.heads[epoch]

    def _is_late(self, slot: Slot, manifest: Manifest, head: Head) -> bool:
        """Return whether a checkpoint is older than a line, and lies past the slot from which that goes on."""
        if manifest.epoch >= head.line:
            return False
        start = None if head.slot is None else self.steps.parse(head.slot)
        return start is None or (slot.step, slot.generation) > (start.step, start.generation)

    def latest(self, slots: Sequence[Slot] | None = None, head: Head | None = None) -> tuple[Slot, Manifest] | None:
        """Return the newest checkpoint in commit order: writer epoch, then step.

        Args:
            slots, head: a listing made a moment ago. It is made anew when a slot turns out to have no manifest: that is
                an attempt, or a step that was retired since, for which a newer one is there.

        Raises:
            CorruptionError: its manifest is damaged.
        """
        while True:
            head = self.head() if head is None else head
            slots = self.slots() if slots is None else slots
            found, all_there = self._newest(slots, head)
            if all_there:
                return found
            again = self.slots()
            if again == list(slots):
                return found
            slots, head = again, None

    def _newest(self, slots: Sequence[Slot], head: Head) -> tuple[tuple[Slot, Manifest] | None, bool]:
        """Return the newest of the listed slots, and whether all that were looked at had a manifest.

        When nothing is left of the line, the newest of what is out of it.
        """
        in_line = [slot for slot in slots if slot.name not in head.superseded]
        left_behind = [slot for slot in slots if slot.name in head.superseded]
        rest: list[tuple[Slot, Manifest]] = []
        all_there = True
        for slot in [*reversed(in_line), *left_behind]:
            manifest = self.manifest(slot)
            if manifest is None:
                all_there = False
            elif not self.superseded(slot, manifest, head):
                return (slot, manifest), all_there
            else:
                rest.append((slot, manifest))
        newest = max(rest, key=lambda pair: (pair[1].epoch, pair[0].step, pair[0].generation), default=None)
        return newest, all_there

    def lease(self, slot: Slot, manifest: Manifest) -> Hold:
        """Hold a step against retention until the hold is closed.

        Raises:
            NotFoundError: `deleted`, the step was retired.
            ConflictError: `busy`, retention has had its hand on the step for longer than it should.
        """
        key = slot.key(fmt.MANIFEST)
        try:
            hold = patiently(lambda: self.store.hold(key, exclusive=False), _RETENTION)
        except NotFoundError as error:
            raise self._gone(slot, manifest, key) from error
        except ConflictError as error:
            if not self._is_there(slot, manifest):
                raise self._gone(slot, manifest, key) from error
            raise ConflictError(
                f"step {slot.step} of {self.url} is about to be deleted, or was spared at this moment\n  Try again.",
                code="busy",
            ) from error
        if not self._is_there(slot, manifest):  # the name was taken by another checkpoint
            hold.close()
            raise self._gone(slot, manifest, key)
        return hold

    def note(self, slot: Slot, manifest: Manifest, note: Note) -> None:
        """Add a note; the number after the last one, whoever else adds.

        Raises:
            NotFoundError: `deleted`, the step was retired.
        """
        with self.lease(slot, manifest) as hold:
            number = len(list(self.store.list(slot.key(fmt.NOTES))))
            while True:
                key = slot.key(f"{fmt.NOTES}{manifest.id}-{number}.json")
                try:
                    self.store.put(key, [fmt.seal(note)])
                    break
                except ConflictError:
                    number += 1
            if not hold.supported and not self._is_there(slot, manifest):
                raise self._gone(slot, manifest, key)
            if self.record is not None:
                self._tell_writer(slot, manifest)

    def _tell_writer(self, slot: Slot, manifest: Manifest) -> None:
        try:
            noted.say(self.store, slot, manifest.id)
        except StorageError as error:  # the note is there, so that this must not read as if nothing were
            raise CommitUnknownError(
                f"what was said of step {slot.step} of {self.url} is written, but a writer at work may not hear of it:"
                f" {error}",
                errno=error.errno,
            ) from error

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}"


def copied_slot(name: str, manifest: Manifest, where: str) -> Slot:
    """Return the slot of a folder that has any name, as its manifest says.

    Raises:
        FormatError: there is no such step.
    """
    if not 0 <= manifest.step <= fmt.MAX_STEP or manifest.generation < 1:
        raise FormatError(f"{where} is step {manifest.step}, generation {manifest.generation}, which cannot be")
    return Slot(name, manifest.step, manifest.generation)


def patiently(take: Callable[[], Hold], waits_s: Sequence[float] = _INSTANT) -> Hold:
    """Take a lock that others hold for an instant only, if they do."""
    for wait_s in waits_s:
        with suppress(ConflictError):
            return take()
        time.sleep(wait_s)
    return take()
