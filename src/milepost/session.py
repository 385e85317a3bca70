# SPDX-License-Identifier: Apache-2.0
"""Restart of rollouts: bound component states and progress, saved at marks.

A mark says that all output so far is durable. When a save is due at a mark, the state of the bound components is
pulled and committed as one row; a row's step is the number of marks before it. A forecast that is started again binds
the same components under the same names, gets their state back once, and goes on after the last saved mark.

An ensemble has work items, told apart by labels. Each is a root of its own below the session's, so that any number of
workers may share them out.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Literal, TypeVar, final

from milepost.catalog import Catalog, open_catalog
from milepost.checkpoint import Checkpoint
from milepost.checkpointer import Checkpointer
from milepost.component import Level, pulled, restore
from milepost.errors import NotFoundError, StructureError
from milepost.items import ItemRow, item_row, item_rows, item_where
from milepost.model import keypath
from milepost.null import NullSession
from milepost.policy import EveryNSteps, KeepPolicy, Latest, OnSteps, SavePolicy, keep_policy
from milepost.stores import Hold

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
_current: ContextVar[Session | None] = ContextVar("milepost.session", default=None)
_START = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Bound:
    state: Any
    level: Level


@final
class _Line:
    """One root's marks: those of the session itself, or of an item."""

    def __init__(
        self,
        saver: Checkpointer,
        row: Checkpoint | None,
        labels: Mapping[str, Any],
        level: Level,
        *,
        done: bool = False,
    ) -> None:
        self.saver, self.row, self.labels, self.level, self.done = saver, row, dict(labels), level, done
        self.count = 0 if row is None else row.step
        self.progress: dict[str, Any] = {} if row is None else dict(row.metadata["progress"])
        self.unclaimed: dict[str, Checkpoint] = {}
        self.offered = level
        self.inherited = False
        self.hold: Hold | None = None
        self.restored: set[str] = set()
        self.marked = False
        self.behind = 0

    def offer(self, row: Checkpoint, *, inherited: bool = False) -> None:
        """Let the states of a row be claimed by binds, each once; those of another item are not kept if nobody does."""
        self.hold = row.lease()  # retention waits until all of it is claimed
        names = dict.fromkeys(path.split("/")[1] for path in row.leaves if path.startswith("state/"))
        self.unclaimed = {str(keypath.key(name)): row.at(f"state/{name}") for name in names}
        self.offered, self.inherited = _level_of(row), inherited
        if not self.unclaimed:
            self.release()

    def claimed(self, name: str) -> None:
        """Offer the state under a name no longer: it was restored."""
        del self.unclaimed[name]
        self.restored.add(name)
        if not self.unclaimed:
            self.release()

    def release(self) -> None:
        """Let retention have the row that states were offered from."""
        if self.hold is not None:
            self.hold.close()
            self.hold = None

    def close(self, *error: Any) -> None:
        """End the line; waits for its last save."""
        self.release()
        self.saver.__exit__(*error or (None, None, None))

    def commit(self, tree: Mapping[str, Any], *, done: bool = False, overwrite: bool = False) -> None:
        metadata = {"progress": self.progress, "done": done, "labels": self.labels, "level": int(self.level)}
        self.saver.save(self.count, {"state": dict(tree)}, metadata=metadata, overwrite=overwrite)
        self.behind, self.done = 0, done


def _level_of(row: Checkpoint) -> Level:
    """Return the level at which a row was saved, which may not be the one of this session."""
    return Level(row.metadata["level"])


@final
class Session:
    """A restartable run of a rollout; use it in a `with`.

    Args:
        where: the root; made when it is not there.
        save: when a mark is saved, counted in marks; default every one.
        keep: which rows stay; default the latest alone.
        level: how much component state is saved and asked for.
        resume: the row to go on from: `latest`, a checkpoint (later rows are then superseded), or None for a new root.
        on_exit: what the end of the `with` does with marks that no row has yet. `commit` saves them when the block
            ends well; after an exception the components may be past the last mark, so they are dropped and the log
            says so. `drop` never saves at the end.
        identity: what tells this model from others (a digest of its configuration or weights); a root with another
            identity is refused, with the difference.

    Raises:
        StructureError: the root belongs to another identity.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        save: SavePolicy | str | None = None,
        keep: KeepPolicy | str | None = None,
        level: Level | int = Level.ROLLOUT,
        resume: Literal["latest"] | Checkpoint | None = "latest",
        on_exit: Literal["commit", "drop"] = "commit",
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if on_exit not in ("commit", "drop"):
            raise ValueError(f"on_exit={on_exit!r}: expected 'commit' or 'drop'")
        self.level = Level(level)
        self._where, self._on_exit, self._identity = os.fspath(where), on_exit, identity
        self._save: SavePolicy | str = EveryNSteps(1) if save is None else save
        self._keep: KeepPolicy | str = Latest(1) if keep is None else keep
        self._bound: dict[str, _Bound] = {}
        self._order: list[dict[str, Any]] = []
        saver = self._saver(self._where, self._keep, resume if isinstance(resume, Checkpoint) else None)
        row = resume if isinstance(resume, Checkpoint) else saver.catalog.latest()
        if resume is None and row is not None:
            raise StructureError(
                f"{self._where} has rows already, and resume=None starts anew\n"
                "  Give a root of its own, or resume='latest'."
            )
        self._main = self._line = _Line(saver, row, {}, self.level)
        if row is not None and self.level > Level.PROGRESS:
            self._main.offer(row)
        self._tokens: list[Token[Session | None]] = []
        self._inherits = True

    def _saver(self, where: str, keep: Any, start: Checkpoint | None) -> Checkpointer:
        return Checkpointer(where, save=self._save, keep=keep, metadata=self._identity, resume_from=start)

    # --- what it is

    @staticmethod
    def null() -> Session:
        """Return a session that saves nothing, for programs that may run without one."""
        return NullSession()  # pyright: ignore[reportReturnType] the same verbs, which do nothing

    @property
    def catalog(self) -> Catalog:
        """The rows of this session, or of the item it is in."""
        return self._line.saver.catalog

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The row that was resumed, None for a fresh start."""
        return self._line.row

    @property
    def progress(self) -> dict[str, Any]:
        """What the last mark said; after a restart, what the last saved mark said."""
        return self._line.progress

    @property
    def marks(self) -> int:
        """How many marks there were, those before the restart included."""
        return self._line.count

    def __bool__(self) -> bool:
        return True

    # --- components

    def bind(self, name: str, state: _T, *, level: Level | int = Level.ROLLOUT) -> _T:
        """Bind a component's state under a name, and restore it if there is something to restore.

        Args:
            name: unlike every other name; two components of one class are fine.
            state: an object with state, a dataclass (frozen ones too) or a dict. Fields of a dataclass may have
                `metadata={"level": Level.ITEM}`.
            level: the lowest session level at which it is saved.

        Returns:
            The same object.

        Raises:
            StructureError: the name is taken, or what was saved does not fit.
        """
        if name in self._bound and self._bound[name].state is not state:
            raise StructureError(f"a component named {name!r} is bound already\n  Bind it under a name of its own.")
        self._bound[name] = _Bound(state, Level(level))
        try:
            self._restore(name)
        except BaseException:
            del self._bound[name]  # what was saved under this name is still offered, and not lost
            raise
        if self._line is not self._main and self._line.count == _START:
            self._line.commit(self._tree(), overwrite=True)  # the item begins with this component too
        return state

    def restored(self, name: str) -> bool:
        """Return whether this component got a saved state here: in the item, when within one."""
        return name in self._line.restored

    def _restore(self, name: str) -> None:
        view = self._line.unclaimed.get(name)
        if view is None:
            return
        if self._line.marked:
            warnings.warn(
                f"{name!r} is bound after marks of this run: its saved state is that of mark {view.step}, and what was"
                " done since then was done without it\n  Bind every component before the first mark.",
                RuntimeWarning,
                stacklevel=3,
            )
        restore(self._bound[name].state, view, self._line.offered)
        self._line.claimed(name)

    def _tree(self) -> dict[str, Any]:
        """Pull the components' states as far as the level asks for them."""
        level = self._line.level
        tree = {name: pulled(bound.state, level) for name, bound in self._bound.items() if bound.level <= level}
        if not self._line.inherited:
            for name, view in self._line.unclaimed.items():  # saved, and not bound again: not lost
                tree.setdefault(name, view.load(frameworks="saved"))
        return tree if level > Level.PROGRESS else {}

    # --- marks

    def mark(self, **progress: Any) -> bool:
        """Say that the output so far is durable: a safe place to restart.

        Args:
            **progress: what the program needs to go on from here; comes back as `session.progress`, types and all.

        Returns:
            Whether this mark is saved.

        Raises:
            StructureError: within an item that is done.
        """
        line = self._line
        if line.done:
            raise StructureError(
                f"the item {line.labels} is done\n  Look at `item.done` before its work is done again."
            )
        line.marked = True
        line.count += 1
        line.behind += 1
        line.progress = copy.deepcopy(progress)  # the row that says it may be saved later
        if line.saver.due(line.count) is None:
            return False
        # An item that would start again from its beginning needs no state from its middle.
        needed = line is self._main or line.level != Level.ITEM
        line.commit(self._tree() if needed else {})
        return True

    def commit(self) -> None:
        """Save the last mark now, if no row has it yet, and wait until it is durable."""
        if self._line.behind:
            self._line.commit(self._tree())
        self._line.saver.wait()

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop; see `Checkpointer.stopping`. An item that is left then is not done."""
        return self._line.saver.stopping or self._main.saver.stopping

    # --- items

    def item(self, **labels: Any) -> Item:
        """Return a work item, to be entered with `with`; what is marked within belongs to it."""
        return Item(self, labels)

    def pending(self, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the labels of the items that are not done, in their order; a worker may take any part of them."""
        self._order = [dict(labels) for labels in items]
        return [labels for labels in self._order if not self._row_of(labels).done]

    def items(self) -> list[ItemRow]:
        """Return all items that were begun, by their labels."""
        return item_rows(self._where)

    def _row_of(self, labels: Mapping[str, Any]) -> ItemRow:
        return item_row(self._root_of(labels)) or ItemRow(dict(labels), False, 0, {})

    def _root_of(self, labels: Mapping[str, Any]) -> str:
        return item_where(self._where, labels)

    def _enter_item(self, labels: Mapping[str, Any]) -> _Line:
        if self._line is not self._main:
            raise StructureError(
                f"{dict(labels)} is entered within the item {self._line.labels}\n  Leave that one first."
            )
        self._hear()
        where = self._root_of(labels)
        # Held while the rows are read: what another worker is at, or has just finished, is not begun again.
        with Checkpointer(where, save="first", keep="all", metadata=self._identity) as holder:
            holder.reserve()
            return self._entered(where, labels)

    def _entered(self, where: str, labels: Mapping[str, Any]) -> _Line:
        row, done = self._start_of(where, labels)
        # An item that was saved half-way with its whole state goes on so: its first row may be gone.
        level = self.level if row is None or row.step == _START else max(self.level, _level_of(row))
        # Below ROLLOUT an interrupted item starts again from its first row, which therefore stays.
        keep: Any = keep_policy(self._keep)
        keep = keep if level == Level.ROLLOUT else keep | OnSteps([_START])
        line = self._line = _Line(self._saver(where, keep, None if done else row), row, labels, level, done=done)
        try:
            if not done:
                line.saver.reserve()
                self._begin(line)
        except BaseException:
            self._line = self._main
            line.close()
            raise
        return line

    def _begin(self, line: _Line) -> None:
        """Give the bound components the state with which an item begins or goes on."""
        if line.row is not None and line.level > Level.PROGRESS:
            line.offer(line.row)
        elif self._inherits and (before := self._before(line.labels)) is not None:
            line.offer(before, inherited=True)
        self._inherits = False
        for name in list(self._bound):
            self._restore(name)
        if line.row is None:
            line.commit(self._tree())

    def _hear(self) -> None:
        """Learn of signals that came since the last mark: each item has its own Checkpointer, which hears its own."""
        self._main.saver.due(self._main.count)

    def _start_of(self, where: str, labels: Mapping[str, Any]) -> tuple[Checkpoint | None, bool]:
        """Return the row that an item goes on from, and whether it is done."""
        try:
            catalog = open_catalog(where)
        except NotFoundError:
            return None, False
        latest = catalog.latest()
        if latest is None:
            return None, False
        if latest.metadata["labels"] != dict(labels):
            raise StructureError(
                f"{where} belongs to the item {latest.metadata['labels']}, not {dict(labels)}\n"
                "  Give each label one type: 3 and '3' have the same folder."
            )
        if latest.metadata["done"]:
            return latest, True
        return (latest if _level_of(latest) == Level.ROLLOUT else catalog.get(_START, latest)), False

    def _before(self, labels: Mapping[str, Any]) -> Checkpoint | None:
        """Return the last row of the finished item before this one, from where one worker's components go on."""
        if self.level == Level.PROGRESS or dict(labels) not in self._order:
            return None
        for earlier in reversed(self._order[: self._order.index(dict(labels))]):
            row, done = self._start_of(self._root_of(earlier), earlier)
            if done:
                return row
        return None

    def _leave_item(self, *, done: bool) -> bool:
        """Leave the item; return whether it is done. One that was left because the run stops is not."""
        line = self._line
        done = done and not self.stopping and not line.done  # a signal since the last mark made nobody leave
        self._hear()
        try:
            if done:
                line.count += 1
                line.commit(self._tree(), done=True)
        finally:
            self._line = self._main
            line.close()
        return done or line.done

    # --- context

    def __enter__(self) -> Session:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        _current.reset(self._tokens.pop())
        try:
            if self._main.behind and self._on_exit == "commit" and error is None:
                self._main.commit(self._tree())
            elif self._main.behind:
                _log.warning("%s: the last %d marks are in no row", self._where, self._main.behind)
        finally:
            self._main.close(kind, error, None)


@final
class Item:
    """A work item of a session. `done` tells whether there is anything left to do for it."""

    def __init__(self, session: Session, labels: Mapping[str, Any]) -> None:
        self._session = session
        self.labels = dict(labels)
        self._line: _Line | None = None
        self.done = session._row_of(labels).done  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    @property
    def progress(self) -> dict[str, Any]:
        """What the last mark of this item said; empty when it starts from its beginning."""
        return self._line.progress if self._line is not None else {}

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The row that was resumed, None for a fresh start."""
        return None if self._line is None else self._line.row

    def __enter__(self) -> Item:
        self._line = self._session._enter_item(self.labels)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self.done = self._line.done
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self.done = self._session._leave_item(done=error is None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def bind(name: str, state: _T, *, level: Level | int = Level.ROLLOUT) -> _T:
    """Bind a component's state to the session of the enclosing `with`; without one, return it as it is."""
    session = _current.get()
    return state if session is None else session.bind(name, state, level=level)
