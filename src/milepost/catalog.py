# SPDX-License-Identifier: Apache-2.0
"""Many checkpoints: list, latest, best, annotate, pin, prune, watch."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, final

from milepost.checkpoint import Checkpoint, Opened
from milepost.engine.commit import Lock
from milepost.engine.epochs import Head, now
from milepost.engine.opening import open_root, opened_slot
from milepost.engine.root import Root
from milepost.errors import ConflictError, CorruptionError, NotFoundError, folded
from milepost.model import format as fmt
from milepost.model.format import Manifest, Note, Slot, StepFormat
from milepost.model.keypath import Globs
from milepost.model.value import decode, encode
from milepost.outcomes import Pruning, Restored
from milepost.policy import KeepPolicy, Metric, Mode, Saved, keep_policy, ranked
from milepost.retention import Retention, prune
from milepost.stores import Store, open_store
from milepost.table import Row, html, text
from milepost.watching import watched

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
_UNSET: Any = object()


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
        self._listed: dict[int, list[Slot]] | None = None
        self._head = Head()
        self._opened: dict[str, Opened] = {}
        self._damaged: set[int] = set()
        self.refresh()

    # --- a mapping

    def refresh(self) -> None:
        """List the root anew. Cost: two listings and one record."""
        self._head = self._root.head()
        listed: dict[int, list[Slot]] = {}
        for slot in self._root.slots():
            listed.setdefault(slot.step, []).append(slot)
        self._listed = listed
        self._opened.clear()

    def _expire(self) -> None:
        """List anew when somebody looks: its Checkpointer has saved."""
        self._listed = None

    @property
    def _slots(self) -> dict[int, list[Slot]]:
        if self._listed is None:
            self.refresh()
            assert self._listed is not None
        return self._listed

    def __getitem__(self, step: int) -> Checkpoint:
        opened = self._current(step)
        if opened is None:
            raise self._no_step(step)
        return Checkpoint(opened)

    def _no_step(self, step: int) -> NotFoundError:
        steps = list(self)
        near = min(steps, key=lambda other: abs(other - step), default=None)
        there = f"Its steps: {folded(steps)}; the nearest is {near}." if steps else "There is none at all."
        return NotFoundError(f"{self._root.url} has no step {step}\n  {there}")

    def get(self, step: int, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        opened = self._current(step)
        return default if opened is None else Checkpoint(opened)

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self._has(step)

    def __iter__(self) -> Iterator[int]:
        return (step for step in list(self._slots) if self._has(step))

    def __reversed__(self) -> Iterator[int]:
        return (step for step in reversed(list(self._slots)) if self._has(step))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _has(self, step: int) -> bool:
        while not any(map(self._root.committed, self._slots.get(step, []))):
            if not self._listed_anew(step):
                return False
        return True

    def _current(self, step: int) -> Opened | None:
        """Return a step's checkpoint: its highest generation, of those in the line if there are any."""
        while True:
            newest = None
            for slot in reversed(self._slots.get(step, [])):
                opened = self._open(slot)
                if opened is not None and not opened.superseded:
                    return opened
                newest = newest or opened
            if newest is not None or not self._listed_anew(step):
                return newest

    def _listed_anew(self, step: int) -> bool:
        """List the generations of a step again; return whether they differ: it may have been overwritten meanwhile."""
        before = self._slots.get(step, [])
        if before:
            self._slots[step] = [slot for slot in self._root.slots() if slot.step == step]
        return self._slots.get(step, []) != before

    def _open(self, slot: Slot) -> Opened | None:
        if slot.name not in self._opened:
            manifest = self._root.manifest(slot)
            if manifest is None:
                return None
            self._opened[slot.name] = self._handle(slot, manifest)
        return self._opened[slot.name]

    def _handle(self, slot: Slot, manifest: Manifest) -> Opened:
        superseded = self._root.superseded(slot, manifest, self._head)
        return Opened(self._root, slot, manifest, rank=self._rank, superseded=superseded)

    @property
    def metadata(self) -> dict[str, Any]:
        """What identifies the run: the metadata that the root was made with."""
        record = self._root.record
        return {} if record is None or record.metadata is None else decode(record.metadata)

    @property
    def step_format(self) -> StepFormat:
        """How the slots of this root are named."""
        return self._root.steps

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
        opened = self._current(step)
        if opened is None:
            raise self._no_step(step)
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
        require: Mapping[str, Any] | None = None,
    ) -> Restored[_T] | None:
        """Load the latest checkpoint; None when there is none.

        With `on_corrupt="previous"`, one that does not verify is left for the one before it, with a warning and in
        `.skipped`; a Checkpointer's next save then goes on from there.

        Args:
            like: as in `Checkpoint.load`; `.tree` is what that returns.
            into: instead of `like`: restored in place as by `Checkpoint.load_into`, and `.tree` itself.
            on_corrupt: what to do when the latest is damaged.
            rename, missing, unexpected, dtype, only, exclude, require: as in `Checkpoint.load`.

        Raises:
            CorruptionError: the latest is damaged, or with `previous` every one is.
        """
        if like is not _UNSET and into is not _UNSET:
            raise ValueError("restore(): give `like` or `into`, not both")
        options: dict[str, Any] = {
            "rename": rename, "missing": missing, "unexpected": unexpected, "dtype": dtype, "only": only,
            "exclude": exclude, "require": require,
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
        slots = sorted(
            [slot for slots in self._slots.values() for slot in slots],
            key=lambda slot: (slot.name not in self._head.superseded, slot.step, slot.generation),
            reverse=True,
        )
        out_of_line: list[tuple[Slot, Checkpoint]] = []
        for slot in slots:
            try:
                opened = self._open(slot)
            except CorruptionError as error:
                yield slot, error
                continue
            if opened is not None and opened.superseded:
                out_of_line.append((slot, Checkpoint(opened)))
            elif opened is not None:
                yield slot, Checkpoint(opened)
        yield from out_of_line

    # --- what goes

    def prune(self, keep: KeepPolicy | str | None = None, *, dry_run: bool = False) -> Pruning:
        """Delete the checkpoints that no keep policy keeps; the latest and pinned ones always stay.

        Args:
            keep: a policy or a phrase (`"last 3, best 1 loss"`); by default the Checkpointer's.
            dry_run: say what would go, and delete nothing.

        Raises:
            ConflictError: `locked`, another process writes to the root; `fenced`, it took over from this one.
        """
        policy = keep_policy(keep if keep is not None else self._keep)
        pruning = Retention(self._root).judged(policy) if dry_run else prune(self._root, policy)
        self.refresh()
        return pruning

    def delete(self, step: int) -> None:
        """Delete one step, whatever keeps it.

        Raises:
            NotFoundError: there is no such step.
            ConflictError: `busy`, somebody is reading it; `locked`, another process writes to the root.
        """
        with Lock(self._root) as lock:
            lock.check()
            self.refresh()
            self[step]
            # The newest generation goes last, so that an older one never shows in its place.
            if not all(lock.retire(slot) for slot in self._slots[step] if self._root.committed(slot)):
                raise ConflictError(
                    f"step {step} of {self._root.url} is being read\n  Try again when the reader is done.", code="busy"
                )
        self.refresh()

    # --- what comes

    def watch(
        self,
        *,
        which: Literal["all", "newest"] = "all",
        after: int = -1,
        poll_s: float = 10.0,
        timeout_s: float | None = None,
    ) -> Generator[Checkpoint, None, None]:
        """Yield each checkpoint with a step above `after` as it appears, those that are there first.

        Guarantee: retention passes over a checkpoint that was yielded until the next one is asked for, or the iterator
        is closed; where the store has no locks, nothing is held.

        Args:
            which: `newest` passes over all but the newest, whenever it looks.
            after: the last step already seen.
            poll_s: seconds between listings.
            timeout_s: stop when nothing new has come for so long; None: never.
        """
        if which not in ("all", "newest"):
            raise ValueError(f"which={which!r}: expected 'all' or 'newest'")
        look = self._newest if which == "newest" else self._all
        return watched(lambda: look(after), poll_s=poll_s, timeout_s=timeout_s)

    def _all(self, after: int) -> Iterator[Checkpoint]:
        self.refresh()
        for step in sorted(step for step in self._slots if step > after):
            try:
                checkpoint = self.get(step)
            except CorruptionError as error:
                self._warn_damaged(step, error)
                continue
            if checkpoint is not None:
                yield checkpoint

    def _newest(self, after: int) -> Iterator[Checkpoint]:
        for slot, checkpoint in self._line("previous"):
            if isinstance(checkpoint, CorruptionError):
                self._warn_damaged(slot.step, checkpoint)
                continue
            if slot.step > after:
                yield checkpoint
            return

    def _warn_damaged(self, step: int, error: CorruptionError) -> None:
        if step not in self._damaged:
            self._damaged.add(step)
            _log.warning("step %d is passed over: %s", step, str(error).partition("\n")[0])

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
