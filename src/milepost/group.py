# SPDX-License-Identifier: Apache-2.0
"""The processes that save together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final

__all__ = ["Group", "Solo", "launched", "rank_and_size"]

# A launcher's variables: this process's rank, and where the number of processes stands.
_LAUNCHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("RANK", ("WORLD_SIZE",)),
    ("LOCAL_RANK", ("WORLD_SIZE",)),
    ("SLURM_PROCID", ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_NPROCS")),
)


class Group(Protocol):
    """Processes with a channel of their own; both verbs are safe off the caller's thread."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def gather(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> list[bytes] | None:
        """Return what every process gave under this tag, by rank, on process 0; None elsewhere. All must call it."""
        ...

    def broadcast(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> bytes:
        """Return what process 0 gave under this tag. Every process must call this."""
        ...


@final
class Solo:
    """A process that saves alone."""

    rank = 0
    size = 1

    def gather(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> list[bytes]:
        return [data]

    def broadcast(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> bytes:
        return data


def launched(variables: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return this process's rank and the number of processes as a launcher's variables say; None: they do not say.

    Raises:
        ValueError: the rank is that on one machine, and there are several.
    """
    for name, sizes in _LAUNCHERS:
        if name not in variables:
            continue
        size = next((int(variables[each]) for each in sizes if each in variables), None)
        if name == "LOCAL_RANK" and size is not None and size != int(variables.get("LOCAL_WORLD_SIZE", size)):
            raise ValueError(
                f"LOCAL_RANK is this process's place on one machine, and the {size} processes run on several\n"
                "  Set RANK too, or give rank and world_size."
            )
        return int(variables[name]), size
    return None, int(variables["WORLD_SIZE"]) if "WORLD_SIZE" in variables else None


def rank_and_size(rank: int | None, size: int | None) -> tuple[int, int]:
    """Return a rank and a number of processes that are both known; (0, 1) when neither is.

    Raises:
        ValueError: one of the two is known and the other is not, or they do not fit each other.
    """
    if rank is None and size in (None, 1):
        return 0, 1
    if rank is None or size is None:
        known, absent = (f"rank {rank}", "world_size") if rank is not None else (f"world_size {size}", "rank")
        raise ValueError(
            f"{known} is known, and {absent} is not: several processes would write to one place\n"
            "  Give both, rank and world_size, or set RANK and WORLD_SIZE."
        )
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size}: a rank is an integer from 0 to world_size - 1")
    return rank, size
