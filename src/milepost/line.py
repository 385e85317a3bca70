# SPDX-License-Identifier: Apache-2.0
"""One root's marks: those of a session itself, or of one of its items."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

from milepost.checkpoint import Checkpoint
from milepost.checkpointer import Checkpointer
from milepost.component import Level
from milepost.model import keypath
from milepost.stores import Hold

START = 0


def level_of(row: Checkpoint) -> Level:
    """Return the level at which a row was saved, which may not be the one of this session."""
    return Level(row.metadata["level"])


@final
class Line:
    """One root's marks, the row that they go on from, and the states in it that wait for their bind."""

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
        self.count = START if row is None else row.step
        self.progress: dict[str, Any] = {} if row is None else dict(row.metadata["progress"])
        self.unclaimed: dict[str, Checkpoint] = {}
        self.offered = level
        self.inherited = False
        self.hold: Hold | None = None
        self.restored: set[str] = set()
        self.marked = False
        self.behind = 0

    # --- states

    def offer(self, row: Checkpoint, *, inherited: bool = False) -> None:
        """Let the states of a row be claimed by binds, each once; those of another item are not kept if nobody does."""
        self.hold = row.lease()  # retention waits until all of it is claimed
        names = dict.fromkeys(path.split("/")[1] for path in row.leaves if path.startswith("state/"))
        self.unclaimed = {str(keypath.key(name)): row.at(f"state/{name}") for name in names}
        self.offered, self.inherited = level_of(row), inherited
        if not self.unclaimed:
            self.release()

    def claimed(self, name: str) -> None:
        """Offer the state under a name no longer: it was restored."""
        del self.unclaimed[name]
        self.restored.add(name)
        if not self.unclaimed:
            self.release()

    def left_over(self) -> dict[str, Any]:
        """Return what was saved and not bound again; that of another item belongs there alone."""
        if self.inherited:
            return {}
        return {name: view.load(frameworks="saved") for name, view in self.unclaimed.items()}

    def release(self) -> None:
        """Let retention have the row that states were offered from."""
        if self.hold is not None:
            self.hold.close()
            self.hold = None

    # --- marks

    def mark(self, progress: Mapping[str, Any]) -> bool:
        """Count a mark; return whether it is to be saved."""
        self.marked = True
        self.count += 1
        self.behind += 1
        self.progress = copy.deepcopy(dict(progress))  # the row that says it may be saved later
        return self.saver.due(self.count) is not None

    def commit(
        self, tree: Mapping[str, Any], *, done: bool = False, overwrite: bool = False, reason: str | None = None
    ) -> None:
        """Save the last mark, with the components' states."""
        metadata = {"progress": self.progress, "done": done, "labels": self.labels, "level": int(self.level)}
        self.saver.save(self.count, {"state": dict(tree)}, metadata=metadata, overwrite=overwrite, reason=reason)
        self.behind, self.done = 0, done

    def close(self, *error: Any) -> None:
        """End the line; waits for its last save."""
        self.release()
        self.saver.__exit__(*error or (None, None, None))
