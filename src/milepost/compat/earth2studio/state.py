# SPDX-License-Identifier: Apache-2.0
"""The proxy through which a component sees its bound state."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, final

from milepost.compat.earth2studio.codec import name_of

T = TypeVar("T")
_DRAWN_ONCE = "earth2studio.perturbation"
_OWN = frozenset({"_state", "_checkpoint", "_session", "_restored", "_id"})


class Place(Protocol):
    """What a state asks of its checkpoint."""

    @property
    def level(self) -> int: ...
    @property
    def device(self) -> Any: ...
    @property
    def flush_interval(self) -> int | None: ...


class Scope(Protocol):
    """What a state asks of its session."""

    @property
    def write_count(self) -> int: ...
    @property
    def exists(self) -> bool: ...
    @property
    def lead_time(self) -> Any: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def labels(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class PendingCheckpointState:
    """A state bound while no session was active; `reusable`: a session had it, and another may take its place."""

    checkpoint: Any
    state_id: str
    state: Any
    reusable: bool = False


@dataclasses.dataclass(frozen=True)
class LoadedState:
    """A saved state that waits for its bind."""

    path: Path
    manifest: Mapping[str, Any]


def cpu() -> Any:
    """Return the CPU as a device of PyTorch when the program uses that, else its name."""
    torch: Any = sys.modules.get("torch")
    return "cpu" if torch is None else torch.device("cpu")


@final
class CheckpointState(Generic[T]):
    """A bound dataclass: its attributes are the dataclass's own, besides what `checkpoint_*` tells.

    What was restored into it counts as loaded until it is used up: until the first write after the restore, until
    `write_count = 0` begins another work item, or until the component has set every restored field anew.
    """

    def __init__(self, state: T, checkpoint: Any = None, session: Any = None, state_loaded: bool = False) -> None:
        names = [field.name for field in dataclasses.fields(cast("Any", state))]
        object.__setattr__(self, "_state", state)
        object.__setattr__(self, "_id", name_of(type(state)))
        self.checkpoint_attach(checkpoint, session, names if state_loaded else ())

    def checkpoint_attach(
        self, checkpoint: Any, session: Any, restored: Iterable[str] = (), *, state_id: str | None = None
    ) -> None:
        """Tie the state to a checkpoint and a session; those call this."""
        object.__setattr__(self, "_checkpoint", checkpoint)
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_restored", set(restored))
        if state_id is not None:
            object.__setattr__(self, "_id", state_id)

    @property
    def checkpoint_restored(self) -> frozenset[str]:
        """The restored fields that are not used up."""
        return frozenset(self._restored)

    def checkpoint_use_up(self) -> None:
        """Say that what was restored is no longer what the program is at."""
        self.checkpoint_attach(self._checkpoint, self._session)

    # --- the dataclass

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_state"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device" or name.startswith("checkpoint_") or name in _OWN:
            raise AttributeError(f"{name} is read-only")
        setattr(self._state, name, value)
        self._restored.discard(name)

    def __repr__(self) -> str:
        return repr(self._state)

    # --- what is known of it

    @property
    def checkpoint_dataclass(self) -> T:
        """The dataclass itself."""
        return self._state

    @property
    def checkpoint_state_id(self) -> str:
        """Under what the state is saved: the class's name, or the one given at the bind."""
        return self._id

    @property
    def checkpoint_enabled(self) -> bool:
        """Whether it is tied to a checkpoint."""
        return self._checkpoint is not None

    @property
    def checkpoint_level(self) -> int:
        """How much state is asked for; what goes on from item to item is wanted as after the item's draw."""
        level = 0 if self._checkpoint is None else int(self._checkpoint.level)
        return 2 if level and is_item_state(self._state) else level

    @property
    def checkpoint_device(self) -> Any:
        """Where the component should stage what it wants saved."""
        return cpu() if self._checkpoint is None else self._checkpoint.device

    @property
    def device(self) -> Any:
        """Another name of `checkpoint_device`."""
        return self.checkpoint_device

    @property
    def checkpoint_flush_interval(self) -> int | None:
        """Writes between commits."""
        return None if self._checkpoint is None else self._checkpoint.flush_interval

    @property
    def checkpoint_write_count(self) -> int:
        """Writes so far."""
        return 0 if self._session is None else self._session.write_count

    @property
    def checkpoint_is_flush_due(self) -> bool:
        """Whether the next write commits."""
        interval = self.checkpoint_flush_interval
        return self._session is not None and interval is not None and (self._session.write_count + 1) % interval == 0

    @property
    def checkpoint_selected(self) -> bool:
        """Whether the session has a row."""
        return self._session is not None and self._session.exists

    @property
    def checkpoint_state_loaded(self) -> bool:
        """Whether it holds restored values that are not used up."""
        return bool(self._restored)

    @property
    def checkpoint_lead_time(self) -> Any:
        """The lead time of the session's row."""
        return None if self._session is None else self._session.lead_time

    @property
    def checkpoint_metadata(self) -> dict[str, Any]:
        """The metadata of the session's row."""
        return {} if self._session is None else self._session.metadata

    @property
    def checkpoint_labels(self) -> dict[str, Any]:
        """The labels of the session."""
        return {} if self._session is None else self._session.labels


def item_fields(state: Any) -> list[str]:
    """Return the fields that go on from work item to work item, as random states do.

    When an item is run again, or its draw repeated, they must be what they were as the item began; when the next item
    begins, what they were as this one ended. They are the fields that say `metadata={"scope": "item"}`, and the states
    of Earth2Studio's own perturbations, which its workflows call once for each item, in a resumed one again.
    """
    whole = type(state).__module__.startswith(_DRAWN_ONCE)
    return [field.name for field in dataclasses.fields(state) if whole or field.metadata.get("scope") == "item"]


def is_item_state(state: Any) -> bool:
    """Return whether a state holds nothing but what goes on from item to item."""
    names = item_fields(state)
    return bool(names) and len(names) == len(dataclasses.fields(state))


def snapshot(state: Any) -> dict[str, Any]:
    """Return copies of the fields that go on from item to item."""
    return {name: _copied(getattr(state, name)) for name in item_fields(state)}


def _copied(value: Any) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        other = torch.Generator(value.device)
        other.set_state(value.get_state())
        return other
    return copy.deepcopy(value)
