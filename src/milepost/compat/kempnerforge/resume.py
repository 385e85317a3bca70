# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import milepost as mp


def catalog_at(where: Path) -> mp.Catalog | None:
    """Return the checkpoints at a place, None when there are none.

    Raises:
        FormatError: those of the original are there.
    """
    try:
        return mp.open(where)
    except mp.NotFoundError:
        if any(where.glob("step_*/**/.metadata")) or (where / ".metadata").exists():
            raise mp.FormatError(
                f"{where} holds checkpoints of KempnerForge itself, which milepost does not read\n"
                "  Load with the original's manager and save with this one, into a folder of its own."
            ) from None
        return None


def newest_first(catalog: mp.Catalog) -> Iterator[mp.Checkpoint]:
    """Yield the checkpoints in the run's line, from the newest back; one with damaged records is said."""
    for step in sorted(catalog, reverse=True):
        try:
            checkpoint = catalog[step]
        except mp.CorruptionError as error:
            say_skipped(error)
            continue
        if not checkpoint.info.superseded:
            yield checkpoint


def say_skipped(error: mp.CorruptionError) -> None:
    what = str(error).partition("\n")[0]
    warnings.warn(f"{what}; going back to the checkpoint before", RuntimeWarning, stacklevel=3)


def resolve_resume_path(dir: str | Path) -> Path | None:  # noqa: A002 the original's name
    """Return the folder of the newest checkpoint that is complete, None when there is none."""
    catalog = catalog_at(Path(dir))
    newest = None if catalog is None else next(newest_first(catalog), None)
    return None if newest is None else Path(dir) / newest.info.slot
