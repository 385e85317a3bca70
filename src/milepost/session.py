# SPDX-License-Identifier: Apache-2.0
"""Restart of rollouts: bound component states and progress, saved at marks.

A mark says that all output so far is durable. When a save is due at a mark, the state of the bound components is
pulled and committed as one row; a row's step is the number of marks before it. A forecast that is started again binds
the same components under the same names, gets their state back once, and goes on after the last saved mark.

An ensemble has work items, told apart by labels. Each is a root of its own below the session's, so that any number of
workers may share them out.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from contextvars import Token
from typing import Any, Literal, TypeVar, final

from milepost.catalog import Catalog, open_catalog
from milepost.checkpoint import Checkpoint
from milepost.checkpointer import Checkpointer
from milepost.component import Level, pulled, restore
from milepost.errors import StructureError
from milepost.items import (
    ItemRow,
    ItemStart,
    done_items,
    item_rows,
    item_start,
    item_where,
    say_begun,
    say_done,
    whole_item_row,
)
from milepost.line import START, Line, level_of
from milepost.null import NullSession, current
from milepost.policy import EveryNSteps, KeepPolicy, Latest, OnSteps, SavePolicy, keep_policy
from milepost.policy.reason import FINAL
from milepost.rows import Which, row_at

_log = logging.getLogger("milepost")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class _Bound:
    state: Any
    level: Level


@final
class Session:
    """A restartable run of a rollout; use it in a `with`.

    Args:
        where: the root; made when it is not there.
        save: when a mark is saved, counted in marks; default every one.
        keep: which rows stay; default the latest alone.
        level: how much component state is saved and asked for.
        resume: the row to go on from, where later ones are then superseded: `latest`; its place as in a list (-2 is
            the one before the newest); some of what its mark said (`{"lead": 6}`); or the row, `catalog[step]`. None
            insists on a new root.
        on_exit: what the end of the `with` does with marks that no row has yet. `commit` saves them when the block
            ends well; after an exception the components may be past the last mark, so they are dropped and the log
            says so. `drop` never saves at the end.
        identity: what tells this model from others (a digest of its configuration or weights); a root with another
            identity is refused, with the difference.

    Raises:
        StructureError: the root belongs to another identity, or has rows although `resume` is None.
        NotFoundError: there is no such row.
        CorruptionError: it is damaged.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        save: SavePolicy | str | None = None,
        keep: KeepPolicy | str | None = None,
        level: Level | int = Level.ROLLOUT,
        resume: Literal["latest"] | Which | None = "latest",
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
        self._main = self._line = self._resumed(resume)
        self._tokens: list[Token[Any]] = []
        self._inherits = True
        self._damaged = False
        self._left: list[str] = []

    def _resumed(self, resume: Literal["latest"] | Which | None) -> Line:
        row = None if resume is None or resume == "latest" else row_at(open_catalog(self._where), resume)
        saver = self._saver(self._where, self._keep, row)
        row = saver.catalog.latest() if row is None else row
        if resume is None and row is not None:
            raise StructureError(
                f"{self._where} has rows already, and resume=None starts anew\n"
                "  Give a root of its own, or resume='latest'."
            )
        line = Line(saver, row, {}, self.level)
        if row is not None and self.level > Level.PROGRESS:
            line.offer(row)
        return line

    def _saver(self, where: str, keep: Any, start: Checkpoint | Literal["nothing"] | None) -> Checkpointer:
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
        if self._line is not self._main and self._line.count == START:
            self._line.commit(self._tree(), overwrite=True, reason="begins")  # the item begins with this component too
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
        return {**self._line.left_over(), **tree} if level > Level.PROGRESS else {}

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
        if not line.mark(progress):
            return False
        # An item that would start again from its beginning needs no state from its middle.
        needed = line is self._main or line.level != Level.ITEM
        line.commit(self._tree() if needed else {})
        return True

    def commit(self, *, reason: str | None = None) -> None:
        """Save the last mark now, if no row has it yet, and wait until it is durable.

        Args:
            reason: stored with the row, such as `policy.EMERGENCY`.
        """
        if self._line.behind:
            self._line.commit(self._tree(), reason=reason)
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
        known, roots = done_items(self._where), [self._root_of(labels) for labels in self._order]
        left: list[dict[str, Any]] = []
        self._damaged = False
        for i, labels in enumerate(self._order):
            if roots[i] in known and (i + 1 == len(roots) or roots[i + 1] in known):
                continue  # the end of the others may be where the next one begins, and is looked at
            row = self._row_of(labels)
            self._damaged = self._damaged or row.damaged
            if not row.done:
                left.append(labels)
        self._left = [self._root_of(labels) for labels in left]
        return left

    def items(self) -> list[ItemRow]:
        """Return all items that were begun, by their labels."""
        return item_rows(self._where)

    def _row_of(self, labels: Mapping[str, Any]) -> ItemRow:
        return whole_item_row(self._root_of(labels)) or ItemRow(dict(labels), False, 0, {})

    def _root_of(self, labels: Mapping[str, Any]) -> str:
        return item_where(self._where, labels)

    def _enter_item(self, labels: Mapping[str, Any], which: Which | None) -> Line:
        if self._line is not self._main:
            raise StructureError(
                f"{dict(labels)} is entered within the item {self._line.labels}\n  Leave that one first."
            )
        self._hear()
        where = self._root_of(labels)
        # Held while the rows are read: what another worker is at, or has just finished, is not begun again.
        with Checkpointer(where, save="first", keep="all", metadata=self._identity) as holder:
            holder.reserve()
            return self._entered(where, labels, item_start(where, labels, which))

    def _entered(self, where: str, labels: Mapping[str, Any], start: ItemStart) -> Line:
        row = start.row
        # An item that was saved half-way with its whole state goes on so: its first row may be gone.
        level = self.level if row is None or row.step == START else max(self.level, level_of(row))
        # Below ROLLOUT an interrupted item starts again from its first row, which therefore stays.
        keep: Any = keep_policy(self._keep)
        keep = keep if level == Level.ROLLOUT else keep | OnSteps([START])
        saver = self._saver(where, keep, None if start.done else "nothing" if start.anew else row)
        line = self._line = Line(saver, row, labels, level, done=start.done)
        try:
            if not start.done:
                line.saver.reserve()
                say_begun(self._where, where)
                self._begin(line)
        except BaseException:
            self._line = self._main
            line.close()
            raise
        return line

    def _begin(self, line: Line) -> None:
        """Give the bound components the state with which an item begins or goes on."""
        if line.row is not None and line.level > Level.PROGRESS:
            line.offer(line.row)
        # With damage, items after this one may be done: then each begins as the one before it ended, not as this did.
        elif (self._inherits or self._damaged) and (before := self._before(line.labels)) is not None:
            line.offer(before, inherited=True)
        self._inherits = False
        for name in list(self._bound):
            self._restore(name)
        if line.row is None:
            line.commit(self._tree(), reason="begins")

    def _hear(self) -> None:
        """Learn of signals that came since the last mark: each item has its own Checkpointer, which hears its own."""
        self._main.saver.due(self._main.count)

    def _before(self, labels: Mapping[str, Any]) -> Checkpoint | None:
        """Return the last row of the finished item before this one, from where one worker's components go on."""
        if self.level == Level.PROGRESS or dict(labels) not in self._order:
            return None
        for earlier in reversed(self._order[: self._order.index(dict(labels))]):
            root = self._root_of(earlier)
            start = ItemStart() if root in self._left else item_start(root, earlier)
            if start.done:
                return start.row
        return None

    def _leave_item(self, *, done: bool) -> bool:
        """Leave the item; return whether it is done. One that was left because the run stops is not."""
        line = self._line
        done = done and not self.stopping and not line.done  # a signal since the last mark made nobody leave
        self._hear()
        try:
            if done:
                line.count += 1
                line.commit(self._tree(), done=True, reason=FINAL)
        finally:
            self._line = self._main
            line.close()
        if done:
            root = self._root_of(line.labels)
            self._left = [other for other in self._left if other != root]
            say_done(self._where, root)
        return done or line.done

    # --- context

    def __enter__(self) -> Session:
        self._tokens.append(current.set(self))
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        current.reset(self._tokens.pop())
        try:
            if self._main.behind and self._on_exit == "commit" and error is None:
                self._main.commit(self._tree(), reason=FINAL)
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
        self._line: Line | None = None
        self._which: Which | None = None
        self.done = session._row_of(labels).done  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    @property
    def progress(self) -> dict[str, Any]:
        """What the last mark of this item said; empty when it starts from its beginning."""
        return self._line.progress if self._line is not None else {}

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The row that was resumed, None for a fresh start."""
        return None if self._line is None else self._line.row

    def from_row(self, which: Which) -> Item:
        """Return the item, to be entered at one of its rows; it is done anew from there, and later rows are superseded.

        Args:
            which: as `resume` of a session; `session.item(...).from_row(0)` is the item's beginning.
        """
        self._which = which
        return self

    def __enter__(self) -> Item:
        self._line = self._session._enter_item(self.labels, self._which)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self.done = self._line.done
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self.done = self._session._leave_item(done=error is None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def bind(name: str, state: _T, *, level: Level | int = Level.ROLLOUT) -> _T:
    """Bind a component's state to the session of the enclosing `with`; without one, return it as it is."""
    session = current.get()
    return state if session is None else session.bind(name, state, level=level)
