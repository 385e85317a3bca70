# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of a run that saves nothing: the default of every workflow."""

from __future__ import annotations

from typing import Any, final

from milepost.compat.earth2studio.session import proxy_of
from milepost.compat.earth2studio.state import CheckpointState, cpu


@final
class NullCheckpoint:
    """A session and a catalog that do nothing, and are false."""

    exists = False
    is_active = False
    commit_id = None
    lead_time = None
    level = 0
    labels: dict[str, Any]
    metadata: dict[str, Any]

    def __init__(self) -> None:
        self.labels, self.metadata = {}, {}

    @property
    def device(self) -> Any:
        """The CPU."""
        return cpu()

    @property
    def checkpoint_device(self) -> Any:
        """Another name of `device`."""
        return self.device

    @property
    def catalog(self) -> NullCheckpoint:
        """Itself."""
        return self

    @property
    def write_count(self) -> int:
        """0, whatever is assigned."""
        return 0

    @write_count.setter
    def write_count(self, value: int) -> None:
        pass

    def bind(self, state: Any, *, name: str | None = None) -> CheckpointState[Any]:
        """Return a proxy that belongs to no checkpoint."""
        return proxy_of(state, name)

    def write(self, **metadata: Any) -> None:
        """Do nothing."""

    def flush(self, **metadata: Any) -> None:
        """Do nothing."""

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> NullCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        pass
