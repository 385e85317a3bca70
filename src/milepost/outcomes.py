# SPDX-License-Identifier: Apache-2.0
"""What `restore` and `prune` give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

from milepost.checkpoint import Checkpoint
from milepost.errors import CorruptionError

_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Restored(Generic[_T]):
    """What `restore` gave back.

    Attributes:
        tree: the tree.
        checkpoint: where it came from.
        skipped: newer steps that did not verify, with what was wrong.
    """

    tree: _T
    checkpoint: Checkpoint
    skipped: tuple[tuple[int, CorruptionError], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Pruning:
    """What a keep policy says of a catalog.

    Attributes:
        kept: step -> why it stays.
        dropped: step -> bytes of the files that only it holds, or would hold with the other dropped ones gone.
        busy: steps to be dropped that somebody is reading, or has just said something of: they stay until next time.
    """

    kept: dict[int, str]
    dropped: dict[int, int] = field(default_factory=dict[int, int])
    busy: tuple[int, ...] = ()

    def __str__(self) -> str:
        kept = [f"  keep {step:>12}  {reason}" for step, reason in self.kept.items()]
        dropped = [f"  drop {step:>12}  {nbytes:,} bytes" for step, nbytes in self.dropped.items()]
        return "\n".join([*kept, *dropped])


def freed(whole: Sequence[Checkpoint], dropped: Sequence[Checkpoint]) -> dict[int, int]:
    """Return how many bytes each dropped step frees; a file that several share counts where it goes last."""
    going = {checkpoint.step for checkpoint in dropped}
    staying = {name for checkpoint in whole if checkpoint.step not in going for name, _, _ in checkpoint.info.files}
    result: dict[int, int] = {}
    counted = set(staying)
    for checkpoint in sorted(dropped, key=lambda checkpoint: -checkpoint.step):
        own = [(name, nbytes) for name, nbytes, _ in checkpoint.info.files if name not in counted or "-" not in name]
        result[checkpoint.step] = sum(nbytes for _, nbytes in own)
        counted.update(name for name, _ in own)
    return dict(sorted(result.items()))
