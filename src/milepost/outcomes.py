# SPDX-License-Identifier: Apache-2.0
"""What `restore` and `prune` give back."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

from milepost.checkpoint import Checkpoint
from milepost.errors import CorruptionError
from milepost.model.format import FileRecord, is_pack_name

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


def freed(files: Mapping[int, Sequence[FileRecord]], going: Container[int]) -> dict[int, int]:
    """Return how many bytes each step that goes frees; a file that several share counts where it goes last.

    Args:
        files: step -> its files, of all steps.
        going: those that go.
    """
    gone = sorted((step for step in files if step in going), reverse=True)
    counted = {file.name for step in files if step not in going for file in files[step]} if gone else set[str]()
    result: dict[int, int] = {}
    for step in gone:
        own = [file for file in files[step] if file.name not in counted or not is_pack_name(file.name)]
        result[step] = sum(file.nbytes for file in own)
        counted.update(file.name for file in own)
    return dict(sorted(result.items()))
