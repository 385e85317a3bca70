# SPDX-License-Identifier: Apache-2.0
"""A run of a workflow: its bound states, its writes, and the row that it goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import secrets
import warnings
import weakref
from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any, final

import numpy as np

import milepost as mp
from milepost.compat.earth2studio.rows import CheckpointEntry, plain, record_of
from milepost.compat.earth2studio.states import (
    CheckpointState,
    CheckpointStateSchemaError,
    LoadedState,
    PendingCheckpointState,
    collision,
    copied,
    is_item_state,
    item_fields,
    proxy_of,
    translated,
)
from milepost.state import fields_of, restore_fields, schema_digest, schema_of, stored

_log = logging.getLogger("milepost")
_COMPLETED = "completed_ensembles"
current_session: ContextVar[CheckpointSession | None] = ContextVar("milepost.earth2studio.session", default=None)
open_sessions: list[CheckpointSession] = []


@final
class CheckpointSession:
    """One run: begins anew, or goes on from a row of the catalog. Use it in a `with`.

    Attributes:
        catalog: the checkpoint that it writes to.
        labels: which work item the rows to come belong to; rows are kept by label.
        bound_states: the bound states, by name.
    """

    def __init__(self, catalog: Any, entry: CheckpointEntry | None = None) -> None:
        self.catalog: Any = catalog
        self.labels: dict[str, Any] = {} if entry is None else dict(entry.labels)
        self.bound_states: dict[str, CheckpointState[Any]] = {}
        self._entry = entry
        self._count = 0 if entry is None else entry.write_count
        self._pending: dict[str, Any] = {}
        self._dirty = self._written = self._finished = False
        self._tokens: list[tuple[Token[CheckpointSession | None], Any]] = []
        self._row: mp.Checkpoint | None = None
        self._loaded: dict[str, LoadedState] = {}
        self._adopted: dict[str, LoadedState | None] = {}
        self._begun: dict[str, dict[str, Any]] = {}
        self._position: Any = None if entry is None else entry.lead_time
        self._completed: Any = None if entry is None else entry.metadata.get(_COMPLETED)
        if entry is not None and self.catalog.level:
            self._offer(entry.commit_id)

    def _offer(self, commit_id: str) -> None:
        """Read what the row holds, the arrays not yet; it stays until they are read, too."""
        self._row = next((row for entry, row in self.catalog.rows.read() if entry.commit_id == commit_id), None)
        if self._row is None:
            raise IndexError(f"{commit_id} is not in the catalog of {self.catalog.rank_path} any more")
        with translated():
            self._release = weakref.finalize(self, self._row.lease().close)  # at the first commit, or with the session
        record, folder = record_of(self._row), self.catalog.rank_path / self._row.info.slot
        self._finished = record["finished"]
        saved: dict[str, Any] = record["states"]
        self._loaded = {name: LoadedState(folder, {"state_id": name, **data}) for name, data in saved.items()}

    @property
    def exists(self) -> bool:
        """Whether there is a row that this session goes on from, or made."""
        return self._entry is not None

    __bool__ = exists.fget  # type: ignore[assignment]

    @property
    def is_active(self) -> bool:
        return current_session.get() is self

    @property
    def commit_id(self) -> str | None:
        return None if self._entry is None else self._entry.commit_id

    @property
    def lead_time(self) -> Any:
        return self.metadata.get("lead_time")

    @property
    def device(self) -> Any:
        return self.catalog.device

    @property
    def metadata(self) -> dict[str, Any]:
        """What the workflow wrote in its row, with its types; empty without one."""
        return {} if self._entry is None else dict(self._entry.metadata)

    artifacts = metadata

    def metadata_value(self, name: str) -> Any:
        """Return one value of the metadata; KeyError when there is none of that name."""
        return self.metadata[name]

    artifact = metadata_value

    @property
    def write_count(self) -> int:
        """How many writes there were, those before a restart included; 0, when set, begins another work item.

        In a workflow that says the lead time, writes without it, or with the same once more, are none: workflows take
        the count for the place to go on from.
        """
        return self._count

    @write_count.setter
    def write_count(self, value: int) -> None:
        self._count = value
        if value != 0:
            return
        self._position = None
        completed = self._pending.get(_COMPLETED)
        self._completed = self.metadata.get(_COMPLETED) if completed is None else completed
        for state_id, proxy in self.bound_states.items():
            self._begin(state_id, proxy)
            if self._written or not is_item_state(proxy.checkpoint_dataclass):
                proxy.checkpoint_attach(self.catalog, self)

    def _begin(self, state_id: str, proxy: CheckpointState[Any]) -> None:
        state = proxy.checkpoint_dataclass
        self._begun[state_id] = {name: copied(getattr(state, name)) for name in item_fields(state)}

    def bind(self, state: Any, *, name: str | None = None) -> CheckpointState[Any]:
        """Bind a component's state, and restore it if the row has it; arguments as in `bind_checkpoint_state`.

        Raises:
            TypeError: it is no dataclass instance.
            CheckpointStateCollision: another state has the same name.
            CheckpointStateSchemaError: what was saved has other fields.
        """
        proxy = proxy_of(state, name)
        state_id = proxy.checkpoint_state_id
        there = self.bound_states.get(state_id)
        if there is not None and there.checkpoint_dataclass is proxy.checkpoint_dataclass:
            return there
        if there is not None:  # one that an earlier `with` left behind gives its place, and what was restored
            if state_id not in self._adopted:
                raise collision(state_id)
            given = self._adopted.pop(state_id)
            if given is not None and not self._written:
                self._loaded[state_id] = given
        self.catalog.pending.pop(state_id, None)
        restored = self._restored(state_id, proxy.checkpoint_dataclass)
        self.bound_states[state_id] = proxy
        proxy.checkpoint_attach(self.catalog, self, restored, state_id=state_id)
        self._begin(state_id, proxy)
        return proxy

    def _restored(self, state_id: str, state: Any) -> list[str]:
        """Put the saved state into a dataclass, once; return the fields that were restored."""
        loaded = self._loaded.get(state_id)
        if loaded is None or self._row is None:
            return []
        saved = loaded.manifest["schema"]
        if loaded.manifest["schema_hash"] != schema_digest(schema_of(state)):
            self._check_schema(state_id, state, saved)
        with translated():
            view = self._row.at(f"states/{loaded.manifest['key']}")
            restore_fields(state, view.at("fields"), saved)
            if not self._finished:
                begun = view.at("begun")
                restore_fields(state, begun, list(begun.tree))
        del self._loaded[state_id]
        if not self._written:
            return list(saved)
        warnings.warn(
            f"{state_id} is bound after writes of this run: what was saved of it is older than they are\n"
            "  Bind every state before the first write.", RuntimeWarning, stacklevel=3,
        )  # fmt: skip
        return []

    def _check_schema(self, state_id: str, state: Any, saved: Mapping[str, str]) -> None:
        schema, fields = schema_of(state), {field.name: field for field in dataclasses.fields(state)}
        wrong = [
            f"{name}: saved {text}, here {schema.get(name, 'nothing')}"
            for name, text in saved.items() if schema.get(name) != text
        ]  # fmt: skip
        added = [name for name in schema if name not in saved]
        missing = dataclasses.MISSING
        bare = [name for name in added if fields[name].default is missing and fields[name].default_factory is missing]
        if wrong or (added and (bare or self.catalog.on_schema != "lenient")):
            raise CheckpointStateSchemaError(
                f"{state_id} has other fields than what was saved\n  "
                + "\n  ".join([*wrong, *(f"{name}: not saved" for name in added)])
                + '\n  Checkpoint(..., on_schema="lenient") takes added fields that have a default; for more, load the'
                " row with `milepost.open` and bind a state of your making."
            )
        if added:
            what = f"{state_id}: {', '.join(added)} was not saved, and stays as it is"
            warnings.warn(what, RuntimeWarning, stacklevel=5)

    def write(self, **metadata: Any) -> CheckpointEntry | None:
        """Count one write of the workflow, and commit when the interval is full; return the row, None when none is due.

        Args:
            **metadata: what the workflow needs to go on; it stays for the rows to come.
        """
        before = self._count, self._pending, self._dirty, self._position
        self._pending = {**self._pending, **plain(metadata)}
        lead_time = metadata.get("lead_time")
        if self._position is None or (lead_time is not None and not np.array_equal(lead_time, self._position)):
            self._count += 1
        self._position = self._position if lead_time is None else lead_time
        self._dirty = self._written = True
        completed = self._pending.get(_COMPLETED)
        if completed is not None and _same(self._completed, completed):
            self._completed = completed
        for proxy in self.bound_states.values():
            proxy.checkpoint_attach(self.catalog, self)
        interval = self.catalog.flush_interval
        if interval is None or self._count % interval:
            return None
        try:
            return self.flush()
        except BaseException:
            self._count, self._pending, self._dirty, self._position = before
            raise

    def flush(self, **metadata: Any) -> CheckpointEntry | None:
        """Commit what was written since the last row; None when there is nothing."""
        if not self._dirty and not metadata:
            return None
        pending = {**self._pending, **plain(metadata)}
        states, records = self._states() if self.catalog.level else ({}, {})
        record = {
            "commit_id": f"commit_{self._count:08d}_{secrets.token_hex(6)}", "labels": dict(self.labels),
            "write_count": self._count, "states": records, "parent": self.commit_id,
            "finished": not _same(self._completed, pending.get(_COMPLETED)),
        }  # fmt: skip
        self._entry, row = self.catalog.rows.commit(record, pending, states)
        self._pending, self._dirty = pending, False
        if self._row is not None:
            self._row = row  # it holds what is not bound yet, too: the older one may go
        return self._entry

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states as stored trees by key, and what identifies them; saved ones that nobody bound as well."""
        states: dict[str, Any] = {}
        records: dict[str, Any] = {}
        with translated():
            for state_id, loaded in self._loaded.items():
                assert self._row is not None
                key = loaded.manifest["key"]
                records[state_id] = {name: loaded.manifest[name] for name in ("key", "schema", "schema_hash")}
                states[key] = self._row.at(f"states/{key}").load(frameworks="saved")
            if self._row is not None:
                self._release()  # all that is needed of the older row was read
            for state_id, proxy in self.bound_states.items():
                state = proxy.checkpoint_dataclass
                schema, key = schema_of(state), hashlib.sha256(state_id.encode()).hexdigest()[:24]
                begun = {name: stored(value, name) for name, value in self._begun[state_id].items()}
                states[key] = {"fields": fields_of(state), "begun": begun}
                records[state_id] = {"key": key, "schema": schema, "schema_hash": schema_digest(schema)}
        return states, records

    def __enter__(self) -> CheckpointSession:
        if not self._tokens:
            self._adopt()
        writing = self.catalog.rows.writing()
        writing.__enter__()
        if not self._tokens:
            open_sessions.append(self)
        self._tokens.append((current_session.set(self), writing))
        return self

    def _adopt(self) -> None:
        for state_id, pending in list(self.catalog.pending.items()):
            loaded = self._loaded.get(state_id)
            if loaded is not None and not pending.reusable:
                warnings.warn(
                    f"{state_id} was bound before its saved state was known, and is restored now: what its component's"
                    " constructor made of it stays as it is\n  Make components inside the `with` of the checkpoint.",
                    UserWarning, stacklevel=4,
                )  # fmt: skip
            self.bind(pending.state, name=state_id)
            if pending.reusable:
                self._adopted[state_id] = loaded

    def __exit__(self, *_: object) -> None:
        token, writing = self._tokens.pop()
        current_session.reset(token)
        if not self._tokens:
            open_sessions.remove(self)
            if self._dirty:
                _log.warning("%s: writes since the last row are in none; flush() commits them", self.catalog.name)
            for state_id, proxy in self.bound_states.items():
                proxy.checkpoint_attach(self.catalog, None)
                self.catalog.pending[state_id] = PendingCheckpointState(self.catalog, state_id, proxy, reusable=True)
        writing.__exit__(None, None, None)


def _same(before: Any, now: Any) -> bool:
    """Return whether a workflow's account of finished items is what it was as the item began."""
    if before is None or now is None:
        return now is None or (np.ndim(now) == 0 and now == 0) or np.size(now) == 0
    return np.array_equal(np.asarray(before), np.asarray(now))
