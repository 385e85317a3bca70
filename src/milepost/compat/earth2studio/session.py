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
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, final

import numpy as np

import milepost as mp
from milepost.compat.earth2studio.codec import (
    Decoder,
    Encoder,
    enums_of,
    has_default,
    name_of,
    schema_hash,
    schema_of,
    setter,
)
from milepost.compat.earth2studio.entry import CheckpointEntry
from milepost.compat.earth2studio.errors import (
    CheckpointStateCollision,
    CheckpointStateSchemaError,
    translated,
)
from milepost.compat.earth2studio.rows import Commit, Row, Rows, record_of
from milepost.compat.earth2studio.state import (
    CheckpointState,
    LoadedState,
    PendingCheckpointState,
    item_fields,
    snapshot,
)

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
current_session: ContextVar[CheckpointSession | None] = ContextVar("milepost.earth2studio.session", default=None)


class Owner(Protocol):
    """What a session asks of its checkpoint."""

    name: str
    level: Any
    flush_interval: int | None
    on_schema: Literal["strict", "lenient"]
    rows: Rows
    pending: dict[str, PendingCheckpointState]

    @property
    def device(self) -> Any: ...
    @property
    def rank_path(self) -> Path: ...


@final
class CheckpointSession:
    """One run: begins anew, or goes on from a row of the catalog. Use it in a `with`.

    Args:
        catalog: the checkpoint that it writes to.
        entry: the row to go on from.
    """

    def __init__(self, catalog: Any, entry: CheckpointEntry | None = None) -> None:
        self.catalog: Any = catalog
        self._owner: Owner = catalog
        self._entry = entry
        self.labels: dict[str, Any] = {} if entry is None else dict(entry.labels)
        self.bound_states: dict[str, CheckpointState[Any]] = {}
        self._count = 0 if entry is None else entry.write_count
        self._pending: dict[str, Any] = {}
        self._dirty = False
        self._written = False
        self._tokens: list[Token[CheckpointSession | None]] = []
        self._row: mp.Checkpoint | None = None
        self._loaded: dict[str, LoadedState] = {}
        self._adopted: dict[str, LoadedState | None] = {}
        self._finished = False
        self._begun: dict[str, dict[str, Any]] = {}
        self._completed: Any = None if entry is None else entry.metadata.get(_COMPLETED)
        if entry is not None and self._owner.level:
            self._offer(self._row_of(entry))

    def _row_of(self, entry: CheckpointEntry) -> Row:
        for found, row in self._owner.rows.read():
            if found.commit_id == entry.commit_id:
                return found, row
        raise IndexError(f"{entry.commit_id} is not in the catalog of {self._owner.rank_path} any more")

    def _offer(self, found: Row) -> None:
        """Read what the row holds, the arrays not yet; it stays until they are read, too."""
        _, self._row = found
        with translated():
            hold = self._row.lease()
        self._release = weakref.finalize(self, hold.close)  # at the first commit, or with the session
        record = record_of(self._row)
        self._finished = record["finished"]
        folder = self._owner.rank_path / self._row.info.slot
        states: dict[str, Any] = record["states"]
        self._loaded = {name: LoadedState(folder, {"state_id": name, **data}) for name, data in states.items()}

    # --- what it is

    @property
    def exists(self) -> bool:
        """Whether there is a row that this session goes on from, or made."""
        return self._entry is not None

    def __bool__(self) -> bool:
        return self.exists

    @property
    def is_active(self) -> bool:
        """Whether it is the session of the enclosing `with`."""
        return current_session.get() is self

    @property
    def commit_id(self) -> str | None:
        """The name of its row."""
        return None if self._entry is None else self._entry.commit_id

    @property
    def lead_time(self) -> Any:
        """The lead time of its row."""
        return self.metadata.get("lead_time")

    @property
    def device(self) -> Any:
        """Where components stage what they want saved."""
        return self._owner.device

    @property
    def metadata(self) -> dict[str, Any]:
        """What the workflow wrote in its row, with its types; empty without one."""
        return {} if self._entry is None else dict(self._entry.metadata)

    @property
    def artifacts(self) -> dict[str, Any]:
        """Another name of `metadata`."""
        return self.metadata

    def metadata_value(self, name: str) -> Any:
        """Return one value of the metadata.

        Raises:
            KeyError: there is none of that name.
        """
        return self.metadata[name]

    def artifact(self, name: str) -> Any:
        """Return one value of the metadata, as `metadata_value` does."""
        return self.metadata_value(name)

    @property
    def write_count(self) -> int:
        """How many writes there were, those before a restart included; 0, when set, begins another work item."""
        return self._count

    @write_count.setter
    def write_count(self, value: int) -> None:
        self._count = value
        if value != 0:
            return
        completed = self._pending.get(_COMPLETED)
        self._completed = self.metadata.get(_COMPLETED) if completed is None else completed
        for state_id, proxy in self.bound_states.items():
            self._begun[state_id] = snapshot(proxy.checkpoint_dataclass)
            names = set(item_fields(proxy.checkpoint_dataclass))
            if self._written or len(names) < len(dataclasses.fields(proxy.checkpoint_dataclass)):
                proxy.checkpoint_use_up()

    # --- states

    def bind(self, state: Any, *, name: str | None = None) -> CheckpointState[Any]:
        """Bind a component's state, and restore it if the row has it.

        Args:
            state: a dataclass, which is restored in place, or a proxy of one.
            name: saves the state under this name instead of its class's: two of one class need it.

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
        if there is not None:
            self._replace(state_id)
        self._owner.pending.pop(state_id, None)
        restored = self._restored(state_id, proxy.checkpoint_dataclass)
        self.bound_states[state_id] = proxy
        proxy.checkpoint_attach(self._owner, self, restored, state_id=state_id)
        self._begun[state_id] = snapshot(proxy.checkpoint_dataclass)
        return proxy

    def _replace(self, state_id: str) -> None:
        """Let a state that an earlier `with` left behind give its place, and what was restored, to another one."""
        if state_id not in self._adopted:
            raise CheckpointStateCollision(
                f"a {state_id} is bound already\n"
                "  Bind the second one with a name: bind_checkpoint_state(state, name=...)."
            )
        given = self._adopted.pop(state_id)
        if given is not None and not self._written:
            self._loaded[state_id] = given

    def _restored(self, state_id: str, state: Any) -> list[str]:
        """Put the saved state into a dataclass, once; return the fields that were restored."""
        loaded = self._loaded.get(state_id)
        if loaded is None or self._row is None:
            return []
        manifest, schema = loaded.manifest, schema_of(state)
        if manifest["schema_hash"] != schema_hash(schema):
            self._check_schema(state_id, state, manifest["schema"])
        with translated():
            view = self._row.at(f"states/{manifest['key']}")
            stored = view.load(frameworks="saved")
            trees = stored["fields"] if self._finished else {**stored["fields"], **stored["begun"]}
            objects = view.at("objects") if stored["objects"] else None
            decoder = Decoder(objects, enums_of(state))
            values = {name: decoder.value(tree, getattr(state, name)) for name, tree in trees.items() if name in schema}
            for change in decoder.changes:
                change()
        for name, value in values.items():
            setter(state, name, value)()
        del self._loaded[state_id]
        if self._written:
            warnings.warn(
                f"{state_id} is bound after writes of this run: what was saved of it is older than they are\n"
                "  Bind every state before the first write.",
                RuntimeWarning,
                stacklevel=3,
            )
            return []
        return list(values)

    def _check_schema(self, state_id: str, state: Any, saved: Mapping[str, str]) -> None:
        schema = schema_of(state)
        added = [field.name for field in dataclasses.fields(state) if field.name not in saved]
        lines = [f"{name}: saved {text}, here {schema.get(name, 'nothing')}" for name, text in saved.items()]
        wrong = [line for line, name in zip(lines, saved, strict=True) if schema.get(name) != saved[name]]
        bare = [field.name for field in dataclasses.fields(state) if field.name in added and not has_default(field)]
        if not wrong and not added:
            return  # the same fields in another order
        if not wrong and not bare and self._owner.on_schema == "lenient":
            what = f"{state_id}: {', '.join(added)} was not saved, and stays as it is"
            warnings.warn(what, RuntimeWarning, stacklevel=4)
            return
        wrong += [f"{name}: not saved" for name in added]
        raise CheckpointStateSchemaError(
            f"{state_id} has other fields than what was saved\n  " + "\n  ".join(wrong) + "\n"
            '  Checkpoint(..., on_schema="lenient") takes added fields that have a default; for more, load the row with'
            " `milepost.open` and bind a state of your making."
        )

    # --- writes

    def write(self, **metadata: Any) -> CheckpointEntry | None:
        """Count one write of the workflow, and commit when the interval is full.

        Args:
            **metadata: what the workflow needs to go on; it stays for the rows to come.

        Returns:
            The row, durable; None when none is due.
        """
        before = self._count, self._pending, self._dirty
        self._pending = {**self._pending, **_plain(metadata)}
        self._count += 1
        self._dirty = self._written = True
        completed = self._pending.get(_COMPLETED)
        if completed is not None and _same(self._completed, completed):
            self._completed = completed
        for proxy in self.bound_states.values():
            proxy.checkpoint_use_up()
        interval = self._owner.flush_interval
        if interval is None or self._count % interval:
            return None
        try:
            return self.flush()
        except BaseException:
            self._count, self._pending, self._dirty = before
            raise

    def flush(self, **metadata: Any) -> CheckpointEntry | None:
        """Commit what was written since the last row; None when there is nothing."""
        if not self._dirty and not metadata:
            return None
        pending = {**self._pending, **_plain(metadata)}
        commit_id = f"commit_{self._count:08d}_{secrets.token_hex(6)}"
        states, records = self._states()
        finished = not _same(self._completed, pending.get(_COMPLETED))
        commit = Commit(commit_id, self.labels, pending, self._count, states, records, finished, self.commit_id)
        self._entry, row = self._owner.rows.commit(commit)
        self._pending, self._dirty = pending, False
        if self._row is not None:
            self._row = row  # it holds what is not bound yet, too: the older one may go
        return self._entry

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states as stored trees by key, and what identifies them; saved ones that nobody bound as well."""
        states: dict[str, Any] = {}
        records: dict[str, Any] = {}
        if not self._owner.level:
            return states, records
        for state_id, loaded in self._loaded.items():
            assert self._row is not None
            key = loaded.manifest["key"]
            with translated():
                states[key] = self._row.at(f"states/{key}").load(frameworks="saved")
            records[state_id] = {name: loaded.manifest[name] for name in ("key", "schema", "schema_hash")}
        if self._row is not None:
            self._release()  # all that is needed of the older row was read
        for state_id, proxy in self.bound_states.items():
            state = proxy.checkpoint_dataclass
            encoder = Encoder(enums_of(state))
            fields = {name: getattr(state, name) for name in schema_of(state)}
            key, schema = hashlib.sha256(state_id.encode()).hexdigest()[:24], schema_of(state)
            states[key] = {
                "fields": {name: encoder.tree(value, f"{state_id}.{name}") for name, value in fields.items()},
                "begun": {name: encoder.tree(value, name) for name, value in self._begun[state_id].items()},
                "objects": encoder.objects,
            }
            records[state_id] = {"key": key, "schema": schema, "schema_hash": schema_hash(schema)}
        return states, records

    # --- context

    def __enter__(self) -> CheckpointSession:
        if not self._tokens:
            self._adopt()
        self._owner.rows.enter()
        self._tokens.append(current_session.set(self))
        return self

    def _adopt(self) -> None:
        for state_id, pending in list(self._owner.pending.items()):
            loaded = self._loaded.get(state_id)
            if loaded is not None and not pending.reusable:
                warnings.warn(
                    f"{state_id} was bound before its saved state was known, and is restored now: what its component's"
                    " constructor made of it stays as it is\n  Make components inside the `with` of the checkpoint.",
                    UserWarning,
                    stacklevel=4,
                )
            proxy = self.bind(pending.state, name=state_id)
            proxy.checkpoint_attach(self._owner, self, proxy.checkpoint_restored)
            self._owner.pending.pop(state_id, None)
            if pending.reusable:
                self._adopted[state_id] = loaded

    def __exit__(self, *_: object) -> None:
        current_session.reset(self._tokens.pop())
        if not self._tokens:
            if self._dirty:
                _log.warning("%s: writes since the last row are in none; flush() commits them", self._owner.name)
            for state_id, proxy in self.bound_states.items():
                proxy.checkpoint_attach(self._owner, None)
                self._owner.pending[state_id] = PendingCheckpointState(self._owner, state_id, proxy, reusable=True)
        self._owner.rows.leave()


_COMPLETED = "completed_ensembles"


def _same(before: Any, now: Any) -> bool:
    """Return whether a workflow's account of finished items is what it was as the item began."""
    if before is None or now is None:
        return now is None or (np.ndim(now) == 0 and now == 0) or np.size(now) == 0
    return np.array_equal(np.asarray(before), np.asarray(now))


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with arrays of one element as that element."""
    return {name: _scalar(value) for name, value in metadata.items()}


def _scalar(value: Any) -> Any:
    kind = cast("type[object]", type(value))
    if isinstance(value, np.ndarray):
        return value.reshape(-1)[0] if value.size == 1 else value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if kind.__module__.split(".")[0] in ("torch", "jax", "jaxlib") and getattr(value, "size", None) is not None:
        count = value.numel() if hasattr(value, "numel") else value.size
        return value.item() if count == 1 else value
    return value


def proxy_of(state: Any, name: str | None = None) -> CheckpointState[Any]:
    """Return the proxy of a dataclass, or the proxy itself.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(state, CheckpointState):
        return cast("CheckpointState[Any]", state)
    if not dataclasses.is_dataclass(state) or isinstance(state, type):
        raise TypeError(f"a checkpoint state is a dataclass instance, not {state!r}")
    proxy: CheckpointState[Any] = CheckpointState(state)
    proxy.checkpoint_attach(None, None, state_id=name or name_of(type(state)))
    return proxy
