# SPDX-License-Identifier: Apache-2.0
"""Publish, list, read and remove manifests: the only module that makes a checkpoint visible.

A checkpoint exists exactly when its manifest does. One process at a time writes to a root: it holds `writer.lock` and
an epoch, a number that only grows. What an older epoch left unfinished is swept by number, never by a clock.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from milepost.errors import ConflictError, CorruptionError, Damage, FormatError, NotFoundError, StorageError, message
from milepost.model import format as fmt
from milepost.model.format import LeafTable, Manifest, Note, RootRecord, Slot, StepFormat, WriterRecord
from milepost.stores import Claim, Hold, Store


def now() -> str:
    """Return the time in UTC, ISO 8601 with microseconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


@dataclass(slots=True)
class _Writing:
    """What this process holds of one root: the lock, and the epoch once it wrote."""

    pid: int
    hold: Hold
    users: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)
    record: WriterRecord | None = None


# By store URL: handles of one process on one root share the lock and the epoch.
_writing: dict[str, _Writing] = {}
_writing_lock = threading.RLock()


def _forget() -> None:
    # A forked child holds nothing: the lock and the epoch stay with its parent.
    global _writing_lock
    _writing_lock = threading.RLock()
    _writing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@dataclass(frozen=True, slots=True)
class Head:
    """Where the line of checkpoints goes on: what the newest writer declared.

    Attributes:
        epoch: the newest writer's, 0 when nobody wrote.
        slot: the slot it started from.
        superseded: names of slots that are no longer in the line.
    """

    epoch: int = 0
    slot: str | None = None
    superseded: frozenset[str] = frozenset()


@final
@dataclass(frozen=True, slots=True)
class Root:
    """The records of one root.

    Attributes:
        store: where they lie.
        record: the root record; None for a folder of slots without one (a slot copied elsewhere).
        steps: how slots are named.
        single: the only slot, when the store's own folder is one.
        damaged: packs that this process found damaged; they are never linked again.
        concurrency: threads that read at once.
    """

    store: Store
    record: RootRecord | None
    steps: StepFormat
    single: Slot | None = None
    damaged: set[str] = field(default_factory=set[str], compare=False)
    concurrency: int = 2

    @property
    def url(self) -> str:
        return self.store.url

    # --- reading

    def slots(self) -> list[Slot]:
        """Return all slots, committed or not, by step and generation. Cost: one listing."""
        if self.single is not None:
            return [self.single]
        names = (info.key.rstrip("/") for info in self.store.list("", delimiter="/") if info.nbytes is None)
        found = [slot for name in names if (slot := self.steps.parse(name)) is not None]
        return sorted(found, key=lambda slot: (slot.step, slot.generation))

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
        """
        try:
            data = self.store.get(slot.key(fmt.MANIFEST))
        except NotFoundError:
            return None
        manifest = fmt.unseal(data, Manifest, self._where(slot.key(fmt.MANIFEST)))
        if manifest.step != slot.step or not fmt.is_id(manifest.id):
            raise FormatError(f"{self._where(slot.key(fmt.MANIFEST))} is the manifest of step {manifest.step}")
        return manifest

    def table(self, slot: Slot, manifest: Manifest) -> LeafTable:
        """Return the leaf table that a manifest names.

        Raises:
            NotFoundError: `deleted`, the step was retired meanwhile.
            CorruptionError: it is not the one that the manifest names.
        """
        key = slot.key(fmt.LEAVES)
        try:
            data = bytes(self.store.get(key))
        except NotFoundError as error:
            raise self.gone(slot, manifest, key) from error
        if fmt.digest_of(data) != manifest.leaves:
            table = fmt.unseal(data, LeafTable, self._where(key))  # torn or of another format: says so itself
            raise CorruptionError(
                message(
                    f"{self._where(key)} is not the leaf table of this step ({len(table.arrays)} arrays)",
                    expected=f"sha256:{manifest.leaves}",
                    found=f"sha256:{fmt.digest_of(data)}",
                ),
                damaged=(Damage(slot.step, "", key, 0, 0, manifest.leaves, fmt.digest_of(data) or "none"),),
            )
        return fmt.unseal(data, LeafTable, self._where(key))

    def gone(self, slot: Slot, manifest: Manifest, key: str) -> NotFoundError | CorruptionError:
        """Return the error for a file that is not there: the step was retired, or the file was lost."""
        now_there = self.manifest(slot)
        if now_there is None or now_there.id != manifest.id:
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
                    data = self.store.get(info.key)
                except NotFoundError:
                    continue  # the step is being retired
                found.append((int(number), fmt.unseal(data, Note, self._where(info.key))))
        return [note for _, note in sorted(found, key=lambda item: item[0])]

    def head(self) -> Head:
        """Return what the newest writer declared. Cost: one listing and one record."""
        epoch = self.newest_epoch()
        if not epoch:
            return Head()
        key = _writer_key(epoch)
        record = fmt.unseal(self.store.get(key), WriterRecord, self._where(key))
        return Head(epoch, record.resumed_from, frozenset(record.superseded))

    def newest_epoch(self) -> int:
        """Return the newest writer's epoch, 0 when nobody wrote. Cost: one listing."""
        numbers = (info.key.removeprefix(fmt.WRITERS).removesuffix(".json") for info in self.store.list(fmt.WRITERS))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def latest(self, slots: Sequence[Slot] | None = None, head: Head | None = None) -> tuple[Slot, Manifest] | None:
        """Return the newest checkpoint in commit order: writer epoch, then step.

        A slot of an older epoch past the point where the newest writer started is a late commit of a writer that was
        taken over; it is a whole checkpoint, but not the latest. Cost: usually one manifest.

        Raises:
            CorruptionError: its manifest is damaged.
        """
        slots = self.slots() if slots is None else slots
        head = self.head() if head is None else head
        start = self.steps.parse(head.slot) if head.slot is not None else None
        rest: list[tuple[Slot, Manifest]] = []
        for slot in reversed(slots):
            if slot.name in head.superseded:
                continue
            manifest = self.manifest(slot)
            if manifest is None:
                continue
            if manifest.epoch >= head.epoch or (start is not None and slot.step <= start.step):
                return slot, manifest
            rest.append((slot, manifest))
        old = (slot for slot in slots if slot.name in head.superseded)
        rest += [(slot, manifest) for slot in old if (manifest := self.manifest(slot)) is not None]
        return max(rest, key=lambda pair: (pair[1].epoch, pair[0].step, pair[0].generation), default=None)

    def lease(self, slot: Slot, manifest: Manifest) -> Hold:
        """Hold a step against retention until the hold is closed.

        Raises:
            NotFoundError: `deleted`, the step was retired.
        """
        try:
            hold = self.store.hold(slot.key(fmt.MANIFEST), exclusive=False)
        except (NotFoundError, ConflictError) as error:
            raise self.gone(slot, manifest, slot.key(fmt.MANIFEST)) from error
        now_there = self.manifest(slot)
        if now_there is None or now_there.id != manifest.id:  # the name was taken by another checkpoint
            hold.close()
            raise self.gone(slot, manifest, slot.key(fmt.MANIFEST))
        return hold

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}"

    # --- writing

    def locked(self) -> Lock:
        """Take the writer's lock of this root, shared by all handles of this process; close it to give it back.

        Raises:
            ConflictError: `locked`, another process writes there.
        """
        if self.single is not None or self.record is None:
            raise StorageError(
                f"{self.url} is a copied step, not a root: nothing can be saved or deleted there\n"
                "  Copy `milepost.json` beside the step's folder, or save to a new root.",
                code="unsupported",
            )
        return Lock(self)

    def publish(self, claim: Claim, manifest: Manifest) -> None:
        """Make a checkpoint exist: one create-only put, with the epoch checked before and after.

        The claim lets it land in the very folder that holds the step's files, so that a writer which slept while its
        slot was swept cannot publish in another of that name.

        Raises:
            ConflictError: `fenced`, a newer writer took over; the checkpoint is not acknowledged.
            CommitUnknownError: it is visible, but may not survive a crash.
        """
        self.check_epoch(manifest.epoch)
        claim.put(fmt.MANIFEST, [fmt.seal(manifest)])
        self.check_epoch(manifest.epoch)

    def check_epoch(self, epoch: int) -> None:
        """Raise ConflictError `fenced` when there is a newer writer."""
        newest = self.newest_epoch()
        if newest > epoch:
            raise ConflictError(
                f"{self.url}: another writer (epoch {newest}) took over from this one (epoch {epoch})\n"
                f"  Let one job at a time write to a root; {_writer_text(self, newest)}.",
                code="fenced",
            )

    def retire(self, slot: Slot) -> bool:
        """Remove a slot as a whole; False when a reader holds it."""
        try:
            hold = self.store.hold(slot.key(fmt.MANIFEST), exclusive=True)
        except NotFoundError:
            self.store.retire(f"{slot.name}/")
            return True
        except ConflictError:
            return False
        with hold:
            self.store.retire(f"{slot.name}/")
        return True

    def note(self, slot: Slot, manifest: Manifest, note: Note) -> None:
        """Add a note; the number after the last one, whoever else adds."""
        with self.lease(slot, manifest):
            number = len(list(self.store.list(slot.key(fmt.NOTES))))
            while True:
                try:
                    self.store.put(slot.key(f"{fmt.NOTES}{manifest.id}-{number}.json"), [fmt.seal(note)])
                    return
                except ConflictError:
                    number += 1


def open_root(
    store: Store,
    *,
    create: bool = False,
    steps: StepFormat | None = None,
    metadata: Any = None,
    read_only: bool = False,
    shared: bool = False,
) -> Root:
    """Open a root: the records of a store.

    Args:
        store: where it is.
        create: make the root record when there is nothing yet.
        steps: how new slots are named; an existing root keeps its own.
        metadata: for a new root's record, as `value.encode` gives it.
        read_only: never create.
        shared: create it among other things too, as long as none is named like a slot.

    Raises:
        NotFoundError: there is no root, and it is not to be made.
        FormatError: the folder holds something else, or the root names its slots otherwise.
    """
    where = f"{store.url}/{fmt.ROOT}"
    try:
        record = fmt.unseal(store.get(fmt.ROOT), RootRecord, where)
    except NotFoundError:
        return _open_without_record(store, create and not read_only, steps, metadata, shared)
    own = StepFormat(record.prefix, record.width)
    if steps is not None and steps != own:
        raise FormatError(
            message(
                f"{store.url} names its steps otherwise", expected=steps, found=own, remedy="Leave step_format out."
            )
        )
    return Root(store, record, own)


def opened_slot(store: Store) -> Root | None:
    """Open a folder that is itself a slot, copied away from its root; None when it is none."""
    try:
        data = store.get(fmt.MANIFEST)
    except NotFoundError:
        return None
    manifest = fmt.unseal(data, Manifest, f"{store.url}/{fmt.MANIFEST}")
    return Root(store, None, StepFormat(), Slot("", manifest.step, manifest.generation))


def _open_without_record(store: Store, create: bool, steps: StepFormat | None, metadata: Any, shared: bool) -> Root:
    names = [info.key for info in store.list("", delimiter="/")]
    copied = [slot for name in names if (slot := _any_slot(name.rstrip("/"))) is not None]
    committed = next((pair for pair in copied if Root(store, None, pair[0]).committed(pair[1])), None)
    if committed is not None and not create:
        return Root(store, None, committed[0])
    if not create:
        what = "is empty" if not names else f"holds no checkpoints (but {len(names)} other entries)"
        raise NotFoundError(
            f"{store.url} {what if _exists(store, names) else 'does not exist'}\n"
            "  Check the path; a root holds `milepost.json`. `Checkpointer` and `Session` create one."
        )
    others = [name for name in names if not name.startswith((fmt.WRITERS, fmt.LOCK)) and not name.startswith(".")]
    if shared:  # but a folder named like a slot would be swept as an unfinished one
        others = [name for name in others if (steps or StepFormat()).parse(name.rstrip("/")) is not None]
    if others and committed is None:
        raise FormatError(
            message(
                f"{store.url} is not empty and not a root of milepost",
                expected=f"{fmt.ROOT}, or nothing",
                found=", ".join(others[:5]),
                remedy="Give a folder of its own, such as `runs/7/checkpoints`.",
            )
        )
    steps = committed[0] if committed is not None else steps or StepFormat()
    record = RootRecord(
        format=fmt.FORMAT, id=fmt.new_id(), created=now(), prefix=steps.prefix, width=steps.width, metadata=metadata
    )
    try:
        store.put(fmt.ROOT, [fmt.seal(record)])
    except ConflictError:  # another process was first
        return open_root(store)
    return Root(store, record, steps)


def _exists(store: Store, names: list[str]) -> bool:
    path = getattr(store, "path", None)
    return bool(names) or (isinstance(path, Path) and path.exists())


def _any_slot(name: str) -> tuple[StepFormat, Slot] | None:
    """Guess the step format from a slot's name, for slots copied away from their root record."""
    digits = name.partition(".g")[0]
    number = digits[len(digits.rstrip("0123456789")) :]
    prefix = digits[: len(digits) - len(number)]
    if not number:
        return None
    try:
        steps = StepFormat(prefix, len(number) if number.startswith("0") and number != "0" else 0)
    except ValueError:
        return None
    slot = steps.parse(name)
    return None if slot is None else (steps, slot)


def _writer_key(epoch: int) -> str:
    return f"{fmt.WRITERS}{epoch}.json"


@dataclass(frozen=True, slots=True)
class Writer:
    """The newest writer of a root.

    Attributes:
        record: who it is, and since when; None when it holds the lock but has not saved yet.
        alive: whether a process holds the writer's lock now; None where the store cannot tell.
    """

    record: WriterRecord | None
    alive: bool | None


def writer_of(root: Root) -> Writer | None:
    """Return the newest writer of a root, None when nobody ever wrote. Holds the lock for an instant, if it is free."""
    epoch = root.newest_epoch()
    try:
        with root.store.hold(fmt.LOCK, exclusive=False) as hold:
            alive = False if hold.supported else None
    except ConflictError:
        alive = True
    except NotFoundError:
        alive = False
    except StorageError:  # not for us to open
        alive = None
    if not epoch:
        return Writer(None, alive) if alive else None
    key = _writer_key(epoch)
    return Writer(fmt.unseal(root.store.get(key), WriterRecord, f"{root.url}/{key}"), alive)


def _writer_text(root: Root, epoch: int) -> str:
    try:
        record = fmt.unseal(root.store.get(_writer_key(epoch)), WriterRecord, _writer_key(epoch))
    except (NotFoundError, CorruptionError, FormatError):
        return "the other writer's record cannot be read"
    age = (dt.datetime.now(dt.UTC) - fmt.time_of(record.start)).total_seconds()
    return f"the other is process {record.pid} on {record.host}, user {record.user}, started {max(0, age):.0f} s ago"


@final
class Lock:
    """This process's right to write to a root; the epoch is taken by the first save."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._url = root.store.url
        self._pid = os.getpid()
        self._closed = False
        with _writing_lock:
            mine = _writing.get(self._url)
            if mine is None:
                mine = _writing[self._url] = _Writing(self._pid, self._acquire())
            mine.users += 1

    def _acquire(self) -> Hold:
        for wait_s in (0.01, 0.05):  # somebody may only be asking whether a writer is there (`writer_of`)
            with suppress(ConflictError):
                return self._root.store.hold(fmt.LOCK, exclusive=True, create=True)
            time.sleep(wait_s)
        try:
            return self._root.store.hold(fmt.LOCK, exclusive=True, create=True)
        except ConflictError as error:
            raise ConflictError(
                f"{self._url} is locked: another process writes there\n"
                f"  Wait for it or stop it ({_writer_text(self._root, self._root.newest_epoch())}); reading needs no"
                " lock.",
                code="locked",
            ) from error

    def epoch(self, resume_from: Slot | None = None) -> WriterRecord:
        """Return this process's epoch, taken now if it has none; a new one when it goes on from another slot.

        Raises:
            ConflictError: `forked`, this is a child of the process that took it.
        """
        with _writing_lock:
            mine = self._mine()
            if mine.record is None or resume_from is not None:
                mine.record = self._take(resume_from)
                self.sweep()
            return mine.record

    def _mine(self) -> _Writing:
        mine = _writing.get(self._url)
        if mine is None or mine.pid != os.getpid() or self._pid != os.getpid():
            raise ConflictError(
                f"{self._url}: this process was forked from the one that writes there\n"
                "  Save in the parent, or make a Checkpointer on another root here.",
                code="forked",
            )
        return mine

    def _take(self, resume_from: Slot | None) -> WriterRecord:
        root = self._root
        slots, head = root.slots(), root.head()
        if resume_from is None:
            latest = root.latest(slots, head)
            resume_from = latest[0] if latest is not None else None
        start = resume_from.step if resume_from is not None else -1
        # Of what is not committed nothing is said: it is swept, and its name goes to the next save of that step.
        superseded = [
            slot.name for slot in slots if (slot.step > start or slot.name in head.superseded) and root.committed(slot)
        ]
        epoch = head.epoch
        while True:
            epoch += 1
            record = WriterRecord(
                format=fmt.FORMAT, epoch=epoch, id=fmt.new_id(), user=_user(), host=socket.gethostname(),
                pid=os.getpid(), boot=_boot_id(), start=now(),
                resumed_from=resume_from.name if resume_from is not None else None,
                superseded=[name for name in superseded if resume_from is None or name != resume_from.name],
            )  # fmt: skip
            try:
                root.store.put(_writer_key(epoch), [fmt.seal(record)])
                return record
            except ConflictError:
                continue

    def sweep(self) -> None:
        """Retire what older epochs left unfinished: none of it can be committed any more."""
        for slot in self._root.slots():
            if not self._root.committed(slot):
                self._root.store.retire(f"{slot.name}/")
        self._root.store.sweep()

    def claim(self, step: int) -> tuple[Slot, Claim]:
        """Claim the slot for a new save of a step: the one after the highest that is listed, or was superseded.

        A superseded slot may be gone meanwhile, but what gets its name would be taken for superseded too.
        """
        with _writing_lock:
            record = self._mine().record
        old = [] if record is None else map(self._root.steps.parse, record.superseded)
        taken = [slot.generation for slot in [*self._root.slots(), *old] if slot is not None and slot.step == step]
        generation = max(taken, default=0) + 1
        while True:
            slot = self._root.steps.slot(step, generation)
            try:
                return slot, self._root.store.claim(f"{slot.name}/")
            except ConflictError:
                generation += 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let one save of this process at a time write to the root."""
        with _writing_lock:
            turn = self._mine().turn
        with turn:
            yield

    def close(self) -> None:
        """Give the right back; the last handle of the process unlocks the root."""
        with _writing_lock:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            mine = _writing.get(self._url)
            if mine is None:
                return
            mine.users -= 1
            if not mine.users:
                del _writing[self._url]
                mine.hold.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
