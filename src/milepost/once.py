# SPDX-License-Identifier: Apache-2.0
"""Save a tree once, or load one, in a single call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from milepost.catalog import open_catalog
from milepost.checkpoint import Checkpoint
from milepost.checkpointer import Checkpointer, Where
from milepost.engine.transfer import Limits
from milepost.errors import NotFoundError

_T = TypeVar("_T")
_UNSET: Any = object()


def save(
    where: Where,
    tree: Any,
    *,
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Save a tree once and return its checkpoint when it is durable.

    Args:
        where: the root; made when it is not there.
        tree: what to save.
        step: by default one after the latest, 0 for the first.
        metrics, metadata: as in `Checkpointer.save`.
    """
    # The caller waits, so nothing has to be copied first.
    with Checkpointer(where, save="first", keep="all", limits=Limits(memory_bytes=1)) as saver:
        if step is None:
            latest = saver.catalog.latest()
            step = 0 if latest is None else latest.step + 1
        return saver.save(step, tree, metrics=metrics, metadata=metadata).result()


def load(where: Where, like: _T = _UNSET, *, step: int | None = None) -> _T:
    """Load the latest checkpoint, or one step.

    Raises:
        NotFoundError: there is none.
    """
    catalog = open_catalog(where)
    checkpoint = catalog.latest() if step is None else catalog[step]
    if checkpoint is None:
        raise NotFoundError(f"{catalog!r} has no checkpoint yet")
    return checkpoint.load() if like is _UNSET else checkpoint.load(like=like)
