# SPDX-License-Identifier: Apache-2.0
"""The errors of this door, and the proxy through which a component sees its bound state."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, final

import milepost as mp
from milepost.state import name_of

T = TypeVar("T")
_DRAWN_ONCE = "earth2studio.perturbation"


class CheckpointError(RuntimeError):
    """A checkpoint could not be read, written or matched with the program; the native error is the cause."""


class CheckpointStateCollision(CheckpointError):
    """Two states of one session have the same identity."""


class CheckpointSerializationError(CheckpointError):
    """A value cannot be stored."""


class CheckpointStateSchemaError(CheckpointError):
    """What was saved does not fit the state that is bound."""


@contextmanager
def translated() -> Generator[None]:
    """Raise native errors as this door's own; a full or failing disk stays the OSError that it is."""
    try:
        yield
    except mp.UnsupportedLeafError as error:
        raise CheckpointSerializationError(str(error)) from error
    except mp.StructureError as error:
        raise CheckpointStateSchemaError(str(error)) from error
    except mp.StorageError:
        raise
    except mp.CheckpointError as error:
        raise CheckpointError(str(error)) from error


def torch_device(name: Any = "cpu") -> Any:
    """Return a device of PyTorch when the program uses that, else its name."""
    torch: Any = sys.modules.get("torch")
    return name if torch is None else torch.device(name)


def collision(state_id: str) -> CheckpointStateCollision:
    return CheckpointStateCollision(
        f"a {state_id} is bound already\n  Bind the second one with a name: bind_checkpoint_state(state, name=...)."
    )


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


def _of(holder: str, name: str, default: Callable[[], Any]) -> Any:
    """Return a property that asks the checkpoint or the session, and has a default without one."""

    def told(state: Any) -> Any:
        there = getattr(state, holder)
        return default() if there is None else getattr(there, name)

    return property(told)


def _nothing() -> None:
    return None


@final
class CheckpointState(Generic[T]):
    """A bound dataclass: its attributes are the dataclass's own, besides what `checkpoint_*` tells, which is read-only.

    What was restored into it counts as loaded until it is used up: until the first write after the restore, until
    `write_count = 0` begins another work item, or until the component has set every restored field anew.
    """

    def __init__(self, state: T, checkpoint: Any = None, session: Any = None, state_loaded: bool = False) -> None:
        names = [field.name for field in dataclasses.fields(cast("Any", state))]
        self.__dict__["checkpoint_dataclass"] = state
        self.checkpoint_attach(checkpoint, session, names if state_loaded else (), state_id=name_of(type(state)))

    def checkpoint_attach(
        self, checkpoint: Any, session: Any, restored: Iterable[str] = (), *, state_id: str | None = None
    ) -> None:
        """Tie the state to a checkpoint and a session; those call this. `restored` are the fields not used up."""
        own = self.__dict__  # the names of the proxy itself, which `__setattr__` refuses
        own.update(checkpoint_owner=checkpoint, checkpoint_session=session, checkpoint_restored=set(restored))
        own["checkpoint_state_id"] = state_id or own["checkpoint_state_id"]

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "checkpoint_dataclass"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device" or name.startswith("checkpoint_"):
            raise AttributeError(f"{name} is read-only")
        setattr(self.checkpoint_dataclass, name, value)
        self.checkpoint_restored.discard(name)

    def __repr__(self) -> str:
        return repr(self.checkpoint_dataclass)

    checkpoint_device = device = _of("checkpoint_owner", "device", torch_device)
    checkpoint_flush_interval = _of("checkpoint_owner", "flush_interval", _nothing)
    checkpoint_write_count = _of("checkpoint_session", "write_count", int)
    checkpoint_selected = _of("checkpoint_session", "exists", bool)
    checkpoint_lead_time = _of("checkpoint_session", "lead_time", _nothing)
    checkpoint_metadata = _of("checkpoint_session", "metadata", dict)
    checkpoint_labels = _of("checkpoint_session", "labels", dict)

    @property
    def checkpoint_enabled(self) -> bool:
        return self.checkpoint_owner is not None

    @property
    def checkpoint_level(self) -> int:
        """How much state is asked for; what goes on from item to item is wanted as after the item's draw."""
        level = 0 if self.checkpoint_owner is None else int(self.checkpoint_owner.level)
        return 2 if level and is_item_state(self.checkpoint_dataclass) else level

    @property
    def checkpoint_is_flush_due(self) -> bool:
        """Whether the next write commits."""
        session, interval = self.checkpoint_session, self.checkpoint_flush_interval
        return session is not None and interval is not None and (session.write_count + 1) % interval == 0

    @property
    def checkpoint_state_loaded(self) -> bool:
        return bool(self.checkpoint_restored)


def item_fields(state: Any) -> list[str]:
    """Return the fields that go on from work item to work item, as random states do.

    When an item is run again, or its draw repeated, they must be what they were as the item began; when the next item
    begins, what they were as this one ended. They are the fields that say `metadata={"scope": "item"}`, and the states
    of Earth2Studio's own perturbations, which its workflows call once for each item, in a resumed one again.
    """
    whole = type(state).__module__.startswith(_DRAWN_ONCE)
    return [field.name for field in dataclasses.fields(state) if whole or field.metadata.get("scope") == "item"]


def is_item_state(state: Any) -> bool:
    return 0 < len(item_fields(state)) == len(dataclasses.fields(state))


def copied(value: Any) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    return copy.deepcopy(value)


def proxy_of(state: Any, name: str | None = None) -> CheckpointState[Any]:
    """Return the proxy of a dataclass, or the proxy itself."""
    if isinstance(state, CheckpointState):
        return cast("CheckpointState[Any]", state)
    if not dataclasses.is_dataclass(state) or isinstance(state, type):
        raise TypeError(f"a checkpoint state is a dataclass instance, not {state!r}")
    proxy: CheckpointState[Any] = CheckpointState(state)
    proxy.checkpoint_attach(None, None, state_id=name)
    return proxy


@final
class NullCheckpoint:
    """A session and a catalog that do nothing, and are false: the default of every workflow."""

    exists = is_active = False
    commit_id = lead_time = None
    level = 0
    write_count = 0
    device = checkpoint_device = property(lambda _: torch_device())

    def __init__(self) -> None:
        self.__dict__.update(labels={}, metadata={}, catalog=self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Take what a workflow assigns, `write_count` above all, and forget it."""

    def bind(self, state: Any, *, name: str | None = None) -> CheckpointState[Any]:
        return proxy_of(state, name)

    def write(self, **metadata: Any) -> None: ...

    def flush(self, **metadata: Any) -> None: ...

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> NullCheckpoint:
        return self

    def __exit__(self, *_: object) -> None: ...
