# SPDX-License-Identifier: Apache-2.0
"""Where a run's checkpoints lie by default, and which of how many processes this is.

The only file below `compat/` that looks at the environment: that Earth2Studio finds its cache and its ranks there is
part of what its users rely on. Everything else here takes the variables as an argument.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A launcher's variables: this process's rank, and where the number of processes stands.
_LAUNCHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("RANK", ("WORLD_SIZE",)),
    ("LOCAL_RANK", ("WORLD_SIZE",)),
    ("SLURM_PROCID", ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_NPROCS")),
)


def environment() -> Mapping[str, str]:
    """Return the environment's variables."""
    return os.environ


def default_checkpoint_path(name: str) -> Path:
    """Return `$EARTH2STUDIO_CACHE/checkpoints/<name>`, or `~/.cache/earth2studio/checkpoints/<name>`."""
    cache = environment().get("EARTH2STUDIO_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "earth2studio") / "checkpoints" / name


def rank_and_size(rank: int | None, world_size: int | None, variables: Mapping[str, str]) -> tuple[int, int]:
    """Return the rank and the number of processes; what is given wins, each for itself.

    Raises:
        ValueError: one of the two is known and the other is not, or they do not fit each other.
    """
    if rank is None or world_size is None:
        found = _of_physicsnemo() or _of_launcher(variables)
        rank = found[0] if rank is None else rank
        world_size = found[1] if world_size is None else world_size
    if world_size is None and rank is None:
        return 0, 1
    if rank is None and world_size == 1:
        return 0, 1
    if rank is None or world_size is None:
        known, absent = (f"rank {rank}", "world_size") if rank is not None else (f"world_size {world_size}", "rank")
        raise ValueError(
            f"{known} is known, and {absent} is not: several processes would write to one place\n"
            "  Pass Checkpoint(..., rank=..., world_size=...), or set RANK and WORLD_SIZE."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: a rank is an integer from 0 to world_size - 1")
    return rank, world_size


def _of_physicsnemo() -> tuple[int, int] | None:
    """Return what PhysicsNeMo says, when the program uses it and has initialised it for several processes."""
    module: Any = sys.modules.get("physicsnemo.distributed")
    manager: Any = getattr(module, "DistributedManager", None)
    if manager is None or not manager.is_initialized():
        return None
    here = manager()
    return (int(here.rank), int(here.world_size)) if here.world_size > 1 or here.distributed else None


def _of_launcher(variables: Mapping[str, str]) -> tuple[int | None, int | None]:
    for name, sizes in _LAUNCHERS:
        if name not in variables:
            continue
        size = next((int(variables[each]) for each in sizes if each in variables), None)
        if name == "LOCAL_RANK" and size is not None and size != int(variables.get("LOCAL_WORLD_SIZE", size)):
            raise ValueError(
                f"LOCAL_RANK is this process's place on one machine, and the {size} processes run on several\n"
                "  Set RANK too, or pass Checkpoint(..., rank=..., world_size=...)."
            )
        return int(variables[name]), size
    return None, int(variables["WORLD_SIZE"]) if "WORLD_SIZE" in variables else None
