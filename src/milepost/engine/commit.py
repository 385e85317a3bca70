# SPDX-License-Identifier: Apache-2.0
"""Write to a root: the only module that makes a checkpoint visible, and the only one that takes one away.

A checkpoint exists exactly when its manifest does. One process at a time writes to a root: it holds `writer.lock` and
an epoch, a number that only grows. The lock is what makes everything below simple; the epochs are what keeps it true
where there are no locks. There a writer that was overtaken may wake up at any moment, and nothing that it then does
may harm what the newer one has done. `tests/test_schedules.py` tries all orders.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import insort
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final
from weakref import WeakValueDictionary, finalize

from milepost.engine import epochs, noted
from milepost.engine.epochs import Head
from milepost.engine.root import Root, patiently
from milepost.errors import CommitUnknownError, ConflictError, CorruptionError, NotFoundError, StorageError
from milepost.model import format as fmt
from milepost.model.format import Manifest, Slot, WriterRecord
from milepost.stores import Claim, Hold, Store

_log = logging.getLogger("milepost")

# Where there are no locks, the generations of an epoch begin at a multiple of this: no two epochs share a slot's name.
_GENERATIONS = 1_000


@dataclass(slots=True, weakref_slot=True)
class _Writing:
    """What this process holds of one root: the lock, and the epoch once it wrote.

    Attributes:
        guard: held while the fields change.
        turn: held by the one save at a time that writes.
        users: how many `Lock`s are open.
        hold: the store's lock, while there are any.
        record: the epoch.
        slots: those that are there, in their order, once listed; kept as long as a lock keeps other writers away.
        known: slot's name -> what retention has read of its checkpoint.
        noted: the number of the last note that `known` has heard of.
    """

    guard: threading.RLock = field(default_factory=threading.RLock)
    turn: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    hold: Hold | None = None
    record: WriterRecord | None = None
    slots: list[Slot] | None = None
    known: dict[str, Any] = field(default_factory=dict[str, Any])
    noted: int | None = None


# By place: handles of one process on one root share the lock and the epoch, however they spell the path.
_writing: WeakValueDictionary[str, _Writing] = WeakValueDictionary()
_writing_guard = threading.Lock()


def _forget() -> None:
    # A forked child holds nothing: the lock and the epoch stay with its parent.
    _writing.clear()
    _writing_guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_writing_guard.acquire, after_in_parent=_writing_guard.release, after_in_child=_forget)


def _shared(store: Store) -> _Writing:
    """Return what this process holds of a store."""
    path = getattr(store, "path", None)
    place = os.path.realpath(path) if isinstance(path, Path) else store.url
    with _writing_guard:
        mine = _writing.get(place)
        if mine is None:
            mine = _writing[place] = _Writing()
        return mine


@final
class Lock:
    """This process's right to write to a root, shared by all its handles; the epoch is taken by the first save.

    Raises:
        ConflictError: `locked`, another process writes there.
        StorageError: `unsupported`, this is a step that was copied elsewhere.
    """

    def __init__(self, root: Root) -> None:
        if root.record is None:
            raise StorageError(
                f"{root.url} is a copied step, not a root: nothing can be saved or deleted there\n"
                "  Copy `milepost.json` beside the step's folder, or save to a new root.",
                code="unsupported",
            )
        self._root = root
        self._pid = os.getpid()
        self._closed = False
        self._mine = _shared(root.store)
        with self._mine.guard:
            if self._mine.hold is None:
                self._mine.hold = hold = self._acquired()
                # Handles that are dropped without `close` give it back, or this process would lock itself out.
                finalize(self._mine, hold.close).atexit = False
            self._mine.users += 1

    def _acquired(self) -> Hold:
        store = self._root.store
        try:
            return patiently(lambda: store.hold(fmt.LOCK, exclusive=True, create=True))
        except ConflictError as error:
            raise epochs.locked(store) from error

    def epoch(self, resume_from: Slot | Literal["nothing"] | None = None) -> WriterRecord:
        """Return this process's epoch, taken now if it has none; a new one when it goes on from another slot.

        Args:
            resume_from: the slot; `nothing` leaves all that is there behind, whole or damaged.

        Raises:
            ConflictError: `forked`, this is a child of the process that took it; `fenced`, another writer is newer.
            CorruptionError: the latest checkpoint is damaged, so that it is not clear what to go on from.
            NotFoundError: the slot to go on from is not there.
        """
        self._check_process()
        if resume_from is None:
            return self._epoch(None)
        with self.writing():  # not while a save of the epoch before is on its way
            return self._epoch(resume_from)

    def _epoch(self, resume_from: Slot | Literal["nothing"] | None) -> WriterRecord:
        with self._mine.guard:
            if self._mine.record is None or resume_from is not None:
                self._mine.record = self._take(resume_from)
                self._sweep()
                self._mine.slots = None  # what was swept is gone
            return self._mine.record

    def slots(self) -> list[Slot]:
        """Return all slots, committed or not, by step and generation.

        With a lock they are listed once, since nobody else makes any. What was deleted by hand is found out by whoever
        looks for its manifest. Cost: one listing, or none.
        """
        with self._mine.guard:
            known = self._mine.slots
            if known is None:
                known = self._root.slots()
                if self._is_alone():
                    self._mine.slots = known
            return list(known)

    @property
    def known(self) -> dict[str, Any]:
        """What retention remembers of each slot, while it holds `guard`; gone with the slot, and with the lock.

        It is true where there are no locks, too: no two writers use one name for a slot.
        """
        return self._mine.known

    @property
    def guard(self) -> threading.RLock:
        """Held by whoever changes what all handles of this process share."""
        return self._mine.guard

    def noted(self) -> list[str] | None:
        """Return the slots that have got a note since this was last asked, None when it may be any."""
        mine = self._mine
        if mine.noted is None:
            mine.noted = noted.last(self._root.store)
            return None
        mine.noted, names = noted.after(self._root.store, mine.noted)
        return names

    def _forget(self, slot: Slot) -> None:
        self._mine.known.pop(slot.name, None)
        with self._mine.guard:
            if self._mine.slots is not None:
                self._mine.slots = [other for other in self._mine.slots if other != slot]

    def check(self) -> None:
        """Raise ConflictError `fenced` when this process has an epoch, and another writer a newer one."""
        self._check_process()
        if self._mine.record is not None:
            epochs.check(self._root.store, self._mine.record.epoch)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ConflictError(
                f"{self._root.url}: this process was forked from the one that writes there\n"
                "  Save in the parent, or make a Checkpointer on another root here.",
                code="forked",
            )

    def _take(self, resume_from: Slot | Literal["nothing"] | None) -> WriterRecord:
        """Take the next epoch, and declare where the line goes on.

        Without a lock another writer may be at work. Then a first record only keeps it from acknowledging anything
        more: it leaves the line where it is. What was acknowledged before that is there now, so that the second record
        can say where to go on. With a lock, the second is enough.
        """
        root = self._root
        if isinstance(resume_from, Slot) and not root.committed(resume_from):
            raise NotFoundError(f"{root.url} has no {resume_from.name} any more to go on from", code="deleted")
        while True:
            head = root.head()
            if not self._is_alone():
                fence = replace(head, epoch=head.epoch + 1)
                if epochs.create(root.store, fence) is None:
                    continue
                head = fence
            record = epochs.create(root.store, self._declared(head, resume_from))
            if record is not None:
                return record
            epochs.check(root.store, head.epoch)

    def _is_alone(self) -> bool:
        """Return whether a lock keeps other writers away."""
        assert self._mine.hold is not None
        return self._mine.hold.supported

    def _declared(self, head: Head, resume_from: Slot | Literal["nothing"] | None) -> Head:
        """Return the head of this writer's line: the slot to go on from, and what is left behind."""
        root = self._root
        slots = root.slots()
        start = self._end_of_line(slots, head) if resume_from is None else resume_from
        start = None if start == "nothing" else start
        # Of what is not committed nothing is said: it is swept, and its name goes to the next save of that step.
        order = (start.step, start.generation) if start is not None else (-1, 0)
        past = [slot for slot in slots if (slot.step, slot.generation) > order or slot.name in head.superseded]
        superseded = frozenset(slot.name for slot in past if slot != start and root.committed(slot))
        epoch = head.epoch + 1
        return Head(epoch, None if start is None else start.name, superseded, epoch)

    def _end_of_line(self, slots: list[Slot], head: Head) -> Slot | None:
        try:
            latest = self._root.latest(slots, head)
        except CorruptionError as error:
            raise CorruptionError(
                f"{str(error).partition(chr(10))[0]}\n"
                "  It is the latest. Restore that file from a copy, or name an older step to go on from:\n"
                "  Checkpointer(..., resume_from=catalog[step]).",
                damaged=error.damaged,
            ) from error
        return None if latest is None else latest[0]

    def _sweep(self) -> None:
        """Retire what older epochs left unfinished: none of it can be committed any more.

        What is listed before the epoch is found to be the newest was claimed under an older one. Whoever claimed it
        may still publish, but not acknowledge; what a newer writer claims is not touched.
        """
        root = self._root
        slots = root.slots()
        self.check()
        for slot in slots:
            if root.committed(slot):
                continue
            if self._is_ours(slot):
                root.store.retire(f"{slot.name}/")
            else:
                _log.warning("%s/%s is no step of this root, though it is named like one", root.url, slot.name)
        root.store.sweep()

    def _is_ours(self, slot: Slot) -> bool:
        """Return whether there is nothing in an unfinished slot but what a save writes."""
        names = (
            info.key.removeprefix(f"{slot.name}/") for info in self._root.store.list(f"{slot.name}/", delimiter="/")
        )
        return all(name in (fmt.LEAVES, fmt.NOTES) or fmt.is_pack_name(name) for name in names)

    def claim(self, step: int) -> tuple[Slot, Claim]:
        """Claim the slot for a new save of a step: the one after the highest that is listed, or was superseded.

        A superseded slot may be gone meanwhile, but what gets its name would be taken for superseded too. And without
        locks an older writer may be about to retire a slot by its name, so that no epoch uses a name of another one.
        """
        self._check_process()
        record = self._mine.record
        assert record is not None
        old = [slot for name in record.superseded if (slot := self._root.steps.parse(name)) is not None]
        taken = [slot.generation for slot in [*self.slots(), *old] if slot.step == step]
        if not self._is_alone():
            taken.append(_GENERATIONS * (record.epoch - 1))
        generation = max(taken, default=0) + 1
        while True:
            slot = self._root.steps.slot(step, generation)
            try:
                claim = self._root.store.claim(f"{slot.name}/")
            except ConflictError:
                generation += 1
                continue
            with self._mine.guard:
                if self._mine.slots is not None:
                    insort(self._mine.slots, slot, key=lambda each: (each.step, each.generation))
            return slot, claim

    def publish(self, claim: Claim, manifest: Manifest) -> None:
        """Make a checkpoint exist: one create-only put, with the epoch checked before and after.

        The claim lets it land in the very folder that holds the step's files, so that a writer which slept while its
        slot was swept cannot publish in another of that name. The check before spares the newer writer a late
        checkpoint; the check after is the one that counts, since whoever takes over looks for checkpoints after its
        record is there: what it does not see was not acknowledged.

        Raises:
            ConflictError: `fenced`, a newer writer took over; the checkpoint is not acknowledged.
            CommitUnknownError: it is visible, but may not survive a crash, or a newer writer may have taken over.
        """
        epochs.check(self._root.store, manifest.epoch)
        claim.put(fmt.MANIFEST, [fmt.seal(manifest)])
        try:
            epochs.check(self._root.store, manifest.epoch)
        except StorageError as error:
            raise CommitUnknownError(
                f"step {manifest.step} of {self._root.url} is written, but whether another writer took over cannot be"
                f" told: {error}\n  `catalog.recheck(step)` tells whether it is there.",
                errno=error.errno,
            ) from error

    def abandon(self, slot: Slot) -> None:
        """Remove an attempt of this process that was not published."""
        self.check()
        self._root.store.retire(f"{slot.name}/")
        self._forget(slot)

    def retire(self, slot: Slot, *, still: Callable[[], bool] | None = None) -> bool:
        """Remove a checkpoint as a whole; return False when it stays.

        Args:
            slot: the checkpoint's.
            still: asked once no reader and no note can come in between; with a False the checkpoint stays.
        """
        try:
            hold = self._root.store.hold(slot.key(fmt.MANIFEST), exclusive=True)
        except NotFoundError:
            self._forget(slot)
            return True  # somebody else did
        except ConflictError:
            return False  # a reader holds it
        with hold:
            if still is not None and not still():
                return False
            self._root.store.retire(f"{slot.name}/")
        self._forget(slot)
        return True

    @contextmanager
    def writing(self) -> Generator[None]:
        """Let one save of this process at a time write to the root."""
        self._check_process()
        with self._mine.turn:
            yield

    def close(self) -> None:
        """Give the right back; the last handle of the process unlocks the root."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with self._mine.guard:
            self._mine.users -= 1
            if not self._mine.users and self._mine.hold is not None:
                self._mine.record = self._mine.slots = self._mine.noted = None
                self._mine.known = {}
                hold, self._mine.hold = self._mine.hold, None
                hold.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
