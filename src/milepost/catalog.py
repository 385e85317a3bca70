# SPDX-License-Identifier: Apache-2.0
"""Many checkpoints: list, latest, best, annotate, pin, prune, watch."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, final

from milepost.checkpoint import Checkpoint, Opened
from milepost.engine.commit import Head, Root, now, open_root, opened_slot
from milepost.errors import ConflictError, CorruptionError, NotFoundError, folded
from milepost.model import format as fmt
from milepost.model.format import Manifest, Note, Slot
from milepost.model.keypath import Globs
from milepost.model.value import decode, encode
from milepost.policy import KeepPolicy, Metric, Mode, Saved, keep_policy, ranked
from milepost.stores import Store, open_store
from milepost.table import Row, html, text

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
_UNSET: Any = object()
_DAMAGED = "damaged"


@final
@dataclass(frozen=True, slots=True)
class Restored(Generic[_T]):
    """What `restore` gave back.

    Attributes:
        tree: the tree.
        checkpoint: where it came from.
        skipped: newer steps that did not verify, with what was wrong.
    """

    tree: _T
    checkpoint: Checkpoint
    skipped: tuple[tuple[int, CorruptionError], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Pruning:
    """What a keep policy says of a catalog.

    Attributes:
        kept: step -> why it stays.
        dropped: step -> bytes of the files that only it holds, or would hold with the other dropped ones gone.
        busy: steps to be dropped that somebody is reading; they stay until the next time.
    """

    kept: dict[int, str]
    dropped: dict[int, int] = field(default_factory=dict[int, int])
    busy: tuple[int, ...] = ()

    def __str__(self) -> str:
        kept = [f"  keep {step:>12}  {reason}" for step, reason in self.kept.items()]
        dropped = [f"  drop {step:>12}  {nbytes:,} bytes" for step, nbytes in self.dropped.items()]
        return "\n".join([*kept, *dropped])


@final
class Catalog(Mapping[int, Checkpoint]):
    """The checkpoints under one root, by step.

    A mapping over a snapshot: `refresh` lists anew. `latest`, `restore`, `prune` and `watch` always do. Iterating
    includes superseded and damaged checkpoints; what is still being written is never seen.
    """

    def __init__(
        self,
        root: Root,
        *,
        keep: KeepPolicy | None = None,
        rank: int = 0,
        fell_back: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        self._root, self._keep, self._rank, self._fell_back = root, keep, rank, fell_back
        self._slots: dict[int, list[Slot]] = {}
        self._head = Head()
        self._opened: dict[str, Opened | None] = {}
        self.refresh()

    # --- a mapping

    def refresh(self) -> None:
        """List the root anew. Cost: two listings and one record."""
        self._head = self._root.head()
        self._slots = {}
        for slot in self._root.slots():
            self._slots.setdefault(slot.step, []).append(slot)
        self._opened.clear()

    def __getitem__(self, step: int) -> Checkpoint:
        found = self.get(step)
        if found is not None:
            return found
        steps = list(self)
        near = min(steps, key=lambda other: abs(other - step), default=None)
        there = f"There are {folded(steps)}; the nearest is {near}." if steps else "There is none at all."
        raise NotFoundError(f"{self._root.url} has no step {step}\n  {there}")

    def get(self, step: int, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for slot in reversed(self._slots.get(step, [])):
            opened = self._open(slot)
            if opened is not None:
                return Checkpoint(opened)
        return default

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and any(self._root.committed(slot) for slot in self._slots.get(step, []))

    def __iter__(self) -> Iterator[int]:
        return (step for step, slots in self._slots.items() if any(map(self._root.committed, slots)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _open(self, slot: Slot) -> Opened | None:
        if slot.name not in self._opened:
            manifest = self._root.manifest(slot)
            self._opened[slot.name] = None if manifest is None else self._handle(slot, manifest)
        return self._opened[slot.name]

    def _handle(self, slot: Slot, manifest: Manifest) -> Opened:
        start = self._root.steps.parse(self._head.slot) if self._head.slot is not None else None
        late = manifest.epoch < self._head.epoch and slot.step > (start.step if start is not None else -1)
        superseded = slot.name in self._head.superseded or late
        return Opened(self._root, slot, manifest, rank=self._rank, superseded=superseded)

    @property
    def metadata(self) -> dict[str, Any]:
        """What identifies the run: the metadata that the root was made with."""
        record = self._root.record
        return {} if record is None or record.metadata is None else decode(record.metadata)

    # --- which one

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint in commit order, None when there is none. Lists anew; reads one manifest.

        Raises:
            CorruptionError: its manifest is damaged; `restore(on_corrupt="previous")` goes back to a whole one.
        """
        self.refresh()
        found = self._root.latest([slot for slots in self._slots.values() for slot in slots], self._head)
        return None if found is None else Checkpoint(self._handle(*found))

    def best(self, metric: Metric, mode: Mode | None = None) -> Checkpoint | None:
        """Return the checkpoint with the best metric; NaN and missing never count, on a tie the newer wins.

        Args:
            metric: a dotted path (`eval.loss`), or a function of the metrics.
            mode: `min` or `max`; by default `min` for names such as loss and error, else `max`.
        """
        return next(iter(ranked(self._whole(), metric, mode)), None)

    def find(self, **metadata: Any) -> list[Checkpoint]:
        """Return the checkpoints whose metadata has all these values, oldest first."""
        wanted = {name: encode(value) for name, value in metadata.items()}
        return [
            checkpoint
            for checkpoint in self._whole()
            if all(
                name in checkpoint.metadata and encode(checkpoint.metadata[name]) == value
                for name, value in wanted.items()
            )
        ]

    def _whole(self) -> list[Checkpoint]:
        """Return the checkpoints with whole records, in commit order; a damaged one is said in the log."""
        found: list[Checkpoint] = []
        for step in self:
            try:
                checkpoint = self[step]
                checkpoint.metrics  # noqa: B018 the notes are read, so that a damaged one is found here
            except CorruptionError as error:
                _log.warning("step %d is left out: %s", step, str(error).partition("\n")[0])
                continue
            except NotFoundError:
                continue  # retired since it was listed
            found.append(checkpoint)
        return sorted(found, key=lambda checkpoint: (checkpoint.info.epoch, checkpoint.step))

    # --- what is said of one

    def annotate(
        self, step: int, *, metrics: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Add metrics or metadata to a committed step; names given before are replaced. Needs no lock."""
        self._note(step, metrics=encode(dict(metrics or {})), metadata=encode(dict(metadata or {})))

    def pin(self, step: int, name: str) -> None:
        """Keep a step, whatever the keep policies say, until `unpin(name)`."""
        if not name:
            raise ValueError("a pin needs a name, by which it can be taken away again")
        self._note(step, pin=name)

    def unpin(self, name: str) -> None:
        """Take a pin away from all steps that have it.

        Raises:
            NotFoundError: no step has it.
        """
        self.refresh()
        pinned = {checkpoint.step: checkpoint.info.pins for checkpoint in self._whole()}
        steps = [step for step, names in pinned.items() if name in names]
        if not steps:
            names = sorted({each for names in pinned.values() for each in names})
            raise NotFoundError(f"{self._root.url} has no pin {name!r}\n  There are: {folded(names) or 'none'}.")
        for step in steps:
            self._note(step, unpin=name)

    def _note(self, step: int, **content: Any) -> None:
        if step not in self:
            self.refresh()
        self[step]
        opened = next(opened for slot in reversed(self._slots[step]) if (opened := self._open(slot)) is not None)
        note = Note(format=fmt.FORMAT, checkpoint=opened.manifest.id, time=now(), **content)
        self._root.note(opened.slot, opened.manifest, note)
        del self._opened[opened.slot.name]

    # --- restore

    def restore(
        self,
        like: _T = _UNSET,
        *,
        into: _T = _UNSET,
        on_corrupt: Literal["raise", "previous"] = "raise",
        rename: Mapping[str, str] | None = None,
        missing: Literal["error", "keep"] = "error",
        unexpected: Literal["error", "ignore"] = "error",
        dtype: Literal["error", "cast"] = "error",
        only: Globs | None = None,
        exclude: Globs = (),
    ) -> Restored[_T] | None:
        """Load the latest checkpoint; None when there is none.

        With `on_corrupt="previous"`, one that does not verify is left for the one before it, with a warning and in
        `.skipped`; a Checkpointer's next save then goes on from there.

        Args:
            like: as in `Checkpoint.load`; `.tree` is what that returns.
            into: instead of `like`: restored in place as by `Checkpoint.load_into`, and `.tree` itself.
            on_corrupt: what to do when the latest is damaged.
            rename, missing, unexpected, dtype, only, exclude: as in `Checkpoint.load`.

        Raises:
            CorruptionError: the latest is damaged, or with `previous` every one is.
        """
        if like is not _UNSET and into is not _UNSET:
            raise ValueError("restore(): give `like` or `into`, not both")
        options: dict[str, Any] = {
            "rename": rename, "missing": missing, "unexpected": unexpected, "dtype": dtype, "only": only,
            "exclude": exclude,
        }  # fmt: skip
        skipped: list[tuple[int, CorruptionError]] = []
        for slot, checkpoint in self._line(on_corrupt):
            try:
                if isinstance(checkpoint, CorruptionError):
                    raise checkpoint
                if into is not _UNSET:
                    checkpoint.load_into(into, **options)
                    tree = into
                else:
                    tree = checkpoint.load(**options) if like is _UNSET else checkpoint.load(like, **options)
            except CorruptionError as error:
                if on_corrupt == "raise":
                    raise
                skipped.append((slot.step, error))
                what = str(error).partition("\n")[0]
                warnings.warn(f"{what}; going back to the step before", RuntimeWarning, stacklevel=2)
                continue
            if skipped and self._fell_back is not None:
                self._fell_back(checkpoint)
            return Restored(tree, checkpoint, tuple(skipped))
        if skipped:
            raise CorruptionError(
                f"{self._root.url}: none of its {len(skipped)} steps is whole\n"
                "  Restore a step from a copy; `milepost verify` shows what is damaged.",
                damaged=[damage for _, error in skipped for damage in error.damaged],
            )
        return None

    def _line(self, on_corrupt: str) -> Iterator[tuple[Slot, Checkpoint | CorruptionError]]:
        """Yield the checkpoints from the latest backwards, those whose manifest is damaged as the error."""
        if on_corrupt == "raise":
            latest = self.latest()
            if latest is not None:
                yield self._root.steps.slot(latest.step), latest
            return
        self.refresh()
        slots = (slot for slots in self._slots.values() for slot in slots)
        newest: dict[int, Slot] = {slot.step: slot for slot in slots if self._root.committed(slot)}
        line = sorted(newest.values(), key=lambda slot: (slot.name not in self._head.superseded, slot.step))
        for slot in reversed(line):
            try:
                opened = self._open(slot)
            except CorruptionError as error:
                yield slot, error
                continue
            if opened is not None:
                yield slot, Checkpoint(opened)

    # --- what goes

    def prune(self, keep: KeepPolicy | str | None = None, *, dry_run: bool = False) -> Pruning:
        """Delete the checkpoints that no keep policy keeps; the latest and pinned ones always stay.

        Args:
            keep: a policy or a phrase (`"last 3, best 1 loss"`); by default the Checkpointer's.
            dry_run: say what would go, and delete nothing.

        Raises:
            ConflictError: `locked`, another process writes to the root.
        """
        policy = keep_policy(keep if keep is not None else self._keep)
        if dry_run:
            self.refresh()
            return self._judged(policy)
        with self._root.locked():
            self.refresh()
            pruning = self._judged(policy)
            busy = tuple(step for step in pruning.dropped if not self._retire(step))
            for step, reason in pruning.kept.items():  # what an overwrite or a branch put another generation over
                if len(self._slots[step]) > 1 and reason != _DAMAGED:
                    self._retire(step, all_but=1)
        dropped = {step: nbytes for step, nbytes in pruning.dropped.items() if step not in busy}
        if dropped:
            _log.info("pruned %d steps of %s: %d bytes", len(dropped), self._root.url, sum(dropped.values()))
        self.refresh()
        return Pruning(pruning.kept, dropped, busy)

    def _judged(self, policy: KeepPolicy) -> Pruning:
        whole = self._whole()
        history = [Saved(c.step, c.created.timestamp(), c.metrics, c.reason, pinned=c.info.pins) for c in whole]
        kept = dict(policy.keep(history))
        for checkpoint in whole:
            for pin in checkpoint.info.pins:
                _add(kept, checkpoint.step, f'pinned "{pin}"')
        try:
            latest = self._root.latest([slot for slots in self._slots.values() for slot in slots], self._head)
        except CorruptionError:  # what `restore` falls back to stays in its place, whatever the policy says
            kept.update((c.step, kept.get(c.step, "latest whole")) for c in whole[-1:])
        else:
            if latest is not None:
                kept[latest[0].step] = " · ".join(filter(None, ["latest", kept.get(latest[0].step, "")]))
        there = set(self)
        for step in there.difference(checkpoint.step for checkpoint in whole):
            kept[step] = _DAMAGED
        dropped = [checkpoint for checkpoint in whole if checkpoint.step not in kept]
        sizes = _freed(whole, dropped)
        return Pruning({step: kept[step] for step in sorted(kept) if step in there}, sizes)

    def delete(self, step: int) -> None:
        """Delete one step, whatever keeps it.

        Raises:
            NotFoundError: there is no such step.
            ConflictError: `busy`, somebody is reading it; `locked`, another process writes to the root.
        """
        with self._root.locked():
            self.refresh()
            self[step]
            if not self._retire(step):
                raise ConflictError(
                    f"step {step} of {self._root.url} is being read\n  Try again when the reader is done.", code="busy"
                )
        self.refresh()

    def _retire(self, step: int, *, all_but: int = 0) -> bool:
        # The newest generation goes last and only after the others, so that an older one never shows in its place.
        committed = [slot for slot in self._slots[step] if self._root.committed(slot)]
        return all(self._root.retire(slot) for slot in committed[: len(committed) - all_but])

    # --- what comes

    def watch(self, *, after: int = -1, poll_s: float = 10.0, timeout_s: float | None = None) -> Iterator[Checkpoint]:
        """Yield each checkpoint with a step above `after` as it appears, those that are there first.

        Args:
            after: the last step already seen.
            poll_s: seconds between listings.
            timeout_s: stop when nothing new has come for so long; None: never.
        """
        seen: set[str] = set()
        since = time.monotonic()
        while True:
            self.refresh()
            for step in sorted(self._slots):
                checkpoint = self.get(step) if step > after else None
                if checkpoint is not None and checkpoint.info.id not in seen:
                    seen.add(checkpoint.info.id)
                    yield checkpoint
                    since = time.monotonic()
            waited = time.monotonic() - since
            if timeout_s is not None and waited >= timeout_s:
                return
            time.sleep(poll_s if timeout_s is None else max(0.0, min(poll_s, timeout_s - waited)))

    def recheck(self, step: int) -> Checkpoint | None:
        """Return a step whose commit had an unknown outcome, fully verified, or None when it is not there."""
        self.refresh()
        checkpoint = self.get(step)
        if checkpoint is not None:
            checkpoint.verify(deep=True)
        return checkpoint

    def __repr__(self) -> str:
        return f"<Catalog of {self._root.url}, {len(self)} checkpoints>"

    def __str__(self) -> str:
        table = text(rows(self))  # lists anew, so that the line above counts what it shows
        return f"{self!r}\n{table}"

    def _repr_html_(self) -> str:
        return html(rows(self))


def open_catalog(where: str | os.PathLike[str] | Store) -> Catalog:
    """Open the checkpoints under a root for reading; a single step's folder, copied anywhere, opens too.

    Raises:
        NotFoundError: there is nothing there.
        FormatError: what is there is no root of milepost, or of a newer format.
    """
    store = open_store(where)
    return Catalog(opened_slot(store) or open_root(store))


def rows(catalog: Catalog, keep: KeepPolicy | str | None = None) -> list[Row]:
    """Return a row for each step, newest first; `keep` decides the reasons (by default what the last save recorded)."""
    catalog.refresh()
    root, slots = catalog._root, catalog._slots  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    kept = catalog.prune(keep if keep is not None else _recorded(catalog), dry_run=True).kept
    result: list[Row] = []
    for step in sorted(slots, reverse=True):
        slot = slots[step][-1]
        try:
            checkpoint = catalog.get(step)
            if checkpoint is None:
                result.append(Row(step, slot.name, "incomplete"))
                continue
            info = checkpoint.info
            state = "superseded" if info.superseded else "committed"
            result.append(
                Row(step, info.slot, state, checkpoint.created, checkpoint.nbytes, info.new_nbytes,
                    checkpoint.metrics, checkpoint.reason, kept.get(step, ""))
            )  # fmt: skip
        except CorruptionError:
            result.append(Row(step, slot.name, "damaged", kept_because=kept.get(step, "")))
    order = {row.slot: index for index, row in enumerate(result)}
    return sorted(result, key=lambda row: (row.state == "incomplete", order[row.slot])) if root else result


@final
class _Unsayable:
    """Stands for a recorded keep policy that no phrase says: nothing is claimed about what it keeps."""

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {}


def _recorded(catalog: Catalog) -> KeepPolicy | None:
    """Return the keep policy that the latest save was made with, as far as it can be told by a phrase."""
    own = catalog._keep  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if own is not None:
        return own
    try:
        latest = catalog.latest()
        return None if latest is None else keep_policy(latest.info.keep)
    except (ValueError, CorruptionError):
        return _Unsayable()


def _add(kept: dict[int, str], step: int, reason: str) -> None:
    kept[step] = f"{kept[step]} · {reason}" if step in kept else reason


def _freed(whole: Sequence[Checkpoint], dropped: Sequence[Checkpoint]) -> dict[int, int]:
    """Return how many bytes each dropped step frees; a file that several share counts where it goes last."""
    going = {checkpoint.step for checkpoint in dropped}
    staying = {name for checkpoint in whole if checkpoint.step not in going for name, _, _ in checkpoint.info.files}
    freed: dict[int, int] = {}
    counted = set(staying)
    for checkpoint in sorted(dropped, key=lambda checkpoint: -checkpoint.step):
        own = [(name, nbytes) for name, nbytes, _ in checkpoint.info.files if name not in counted or "-" not in name]
        freed[checkpoint.step] = sum(nbytes for _, nbytes in own)
        counted.update(name for name, _ in own)
    return dict(sorted(freed.items()))
