# SPDX-License-Identifier: Apache-2.0
"""What a keep policy says of the checkpoints of a root, and the deletion of what it lets go.

Under the writer's lock nobody else takes a checkpoint away or makes one, and a manifest never changes. So it is read
once, and remembered with the lock; a later round reads what is new, and the notes that were added since.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

from milepost.checkpoint import Checkpoint
from milepost.engine.commit import Lock
from milepost.engine.epochs import Head
from milepost.engine.root import Root
from milepost.errors import CorruptionError
from milepost.leafref import Opened
from milepost.model.format import Slot
from milepost.outcomes import Pruning, freed
from milepost.policy import KeepPolicy, Saved

_log = logging.getLogger("milepost")
DAMAGED = "damaged"


@dataclass(slots=True)
class _Fact:
    """What was read of one checkpoint.

    Attributes:
        opened: its records.
        saved: what a policy sees of it.
        head: by which it was found in the line, or out of it.
    """

    opened: Opened
    saved: Saved
    head: Head | None = None


@final
class Retention:
    """One round: the checkpoints of a root as they are now.

    Args:
        root: the root.
        lock: held by the caller; without it everything is read anew, and nothing can be deleted.
    """

    def __init__(self, root: Root, lock: Lock | None = None) -> None:
        self._root, self._lock = root, lock
        self._known: dict[str, _Fact] = {}
        self._current: dict[int, _Fact | None] = {}
        self._slots: dict[int, list[Slot]] = {}
        with nullcontext() if lock is None else lock.guard:
            if lock is not None:
                self._known = lock.known
                self._hear(lock)
            self._head = root.head()
            for slot in root.slots():
                self._slots.setdefault(slot.step, []).append(slot)
            listed = {slot.name for slots in self._slots.values() for slot in slots}
            for name in set(self._known) - listed:  # deleted by hand
                del self._known[name]
            for step, slots in self._slots.items():
                self._look(step, slots)

    def _hear(self, lock: Lock) -> None:
        """Forget those of which something was said since the last round."""
        names = lock.noted()
        for name in list(self._known) if names is None else names:
            self._known.pop(name, None)

    def _look(self, step: int, slots: list[Slot]) -> None:
        """Find a step's checkpoint, as `Catalog.get` does: its highest generation, one in the line if there is any."""
        for slot in reversed(slots):
            try:
                fact = self._fact(slot)
            except CorruptionError as error:
                _log.warning("step %d is left out: %s", step, str(error).partition("\n")[0])
                self._current[step] = None
                return
            if fact is not None and not fact.opened.superseded:
                self._current[step] = fact
                return
            if fact is not None:
                self._current.setdefault(step, fact)

    def _fact(self, slot: Slot) -> _Fact | None:
        """Return what is known of a slot, None when it is not committed."""
        fact = self._known.get(slot.name)
        if fact is None:
            manifest = self._root.manifest(slot)
            if manifest is None:
                return None
            opened = Opened(self._root, slot, manifest)
            checkpoint = Checkpoint(opened)
            saved = Saved(
                slot.step, checkpoint.created.timestamp(), checkpoint.metrics, checkpoint.reason,
                checkpoint.info.pins, checkpoint.metadata,
            )  # fmt: skip
            fact = _Fact(opened, saved)
        if fact.head != self._head:
            fact.opened.superseded = self._root.superseded(slot, fact.opened.manifest, self._head)
            fact.head = self._head
        self._known[slot.name] = fact
        return fact

    # --- what a policy says

    def judged(self, policy: KeepPolicy) -> Pruning:
        """Return what stays and what goes; the latest, pinned and damaged ones always stay."""
        whole = sorted(
            (fact for fact in self._current.values() if fact is not None),
            key=lambda fact: (fact.opened.manifest.epoch, fact.saved.step),
        )
        kept = dict(policy.keep([fact.saved for fact in whole]))
        for fact in whole:
            for pin in fact.saved.pinned:
                kept[fact.saved.step] = " · ".join(filter(None, [kept.get(fact.saved.step), f'pinned "{pin}"']))
        try:
            latest = self._root.latest([slot for slots in self._slots.values() for slot in slots], self._head)
        except CorruptionError:  # what `restore` falls back to stays in its place, whatever the policy says
            kept.update((fact.saved.step, kept.get(fact.saved.step, "latest whole")) for fact in whole[-1:])
        else:
            if latest is not None:
                kept[latest[0].step] = " · ".join(filter(None, ["latest", kept.get(latest[0].step, "")]))
        kept.update((step, DAMAGED) for step, fact in self._current.items() if fact is None)
        files = {fact.saved.step: fact.opened.manifest.files for fact in whole}
        dropped = freed(files, {step for step in files if step not in kept})
        return Pruning({step: kept[step] for step in sorted(kept) if step in self._current}, dropped)

    def pruned(self, policy: KeepPolicy) -> Pruning:
        """Delete what a policy lets go; return what stayed, what went, and what will have to go the next time."""
        pruning = self.judged(policy)
        busy = tuple(step for step in pruning.dropped if not self._let_go(step))
        for step in pruning.kept:  # what an overwrite or a branch put another generation over
            current = self._current[step]
            if current is not None and len(self._slots[step]) > 1:
                generation = current.opened.slot.generation
                all(self._retired(slot) for slot in self._committed(step) if slot.generation < generation)
        dropped = {step: nbytes for step, nbytes in pruning.dropped.items() if step not in busy}
        if dropped:
            _log.info("pruned %d steps of %s: %d bytes", len(dropped), self._root.url, sum(dropped.values()))
        return Pruning(pruning.kept, dropped, busy)

    # --- what goes

    def _let_go(self, step: int) -> bool:
        """Retire a step; False if a reader holds it, or if what the policy was told of it has changed."""
        # The newest generation goes last, so that an older one never shows in its place.
        if all(self._retired(slot, self._current[step]) for slot in self._committed(step)):
            return True
        for slot in self._slots[step]:
            self._known.pop(slot.name, None)
        return False

    def _committed(self, step: int) -> Iterator[Slot]:
        current = self._current[step]
        known = None if current is None else current.opened.slot
        return (slot for slot in self._slots[step] if slot == known or self._root.committed(slot))

    def _retired(self, slot: Slot, judged: _Fact | None = None) -> bool:
        assert self._lock is not None

        def still() -> bool:
            return (judged is None or self._is_unchanged(judged.opened)) and self._is_up_to_date()

        return self._lock.retire(slot, still=still)

    def _is_unchanged(self, opened: Opened) -> bool:
        """Return whether a checkpoint is the one that was judged, with nothing said of it since."""
        try:
            found = self._root.manifest(opened.slot)
            same = found is not None and found.id == opened.manifest.id
            return same and self._root.notes(opened.slot, opened.manifest) == opened.notes
        except CorruptionError:  # damaged since it was read: then it stays, as all that is damaged
            return False

    def _is_up_to_date(self) -> bool:
        """Return whether no writer has begun since the listing, or is beginning: then another line may count."""
        return self._head.decided and self._root.head() == self._head


def prune(root: Root, policy: KeepPolicy) -> Pruning:
    """Delete what a policy lets go, under the writer's lock.

    Raises:
        ConflictError: `locked`, another process writes to the root; `fenced`, it took over from this one.
    """
    with Lock(root) as lock:
        lock.check()
        return Retention(root, lock).pruned(policy)
