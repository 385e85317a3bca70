# SPDX-License-Identifier: Apache-2.0
"""Copy the steps of Orbax into a store, a step at a time, in bounded memory, and check what was written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import numpy as np

import milepost as mp
from milepost.errors import ConflictError, NotFoundError, folded
from milepost.foreign import Array, ForeignArray, OfJax
from milepost.interop.orbax import folders
from milepost.interop.orbax.arrays import parts
from milepost.interop.orbax.directory import OrbaxDirectory, OrbaxStep, open_directory
from milepost.model.leaf import Box, data_spec, dtype_info

ALONE = {"orbax": "checkpoint"}
"""The metadata of a root that holds one checkpoint, as the front doors mark it."""

MEMORY_BYTES = 1 << 30
_PART_BYTES = 64 << 20
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        copied: the steps that were copied, oldest first.
        skipped: those that were there already, from the same source.
        nbytes: bytes of the arrays that were copied.
        verified: whether everything that was copied was read back and compared with its digests.
    """

    copied: tuple[int, ...]
    skipped: tuple[int, ...]
    nbytes: int
    verified: bool


def import_checkpoints(
    source: str | os.PathLike[str] | OrbaxDirectory,
    store: str | os.PathLike[str],
    *,
    steps: Iterable[int] | None = None,
    prefix: str | None = None,
    verify: bool = True,
    memory_bytes: int = MEMORY_BYTES,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Copy steps that Orbax wrote into a store, with metrics, metadata and times. The source is only read.

    One step after the other; each is there, or not, as with any save. Done again, it goes on: steps that are there
    already, from the same source, are skipped.

    Args:
        source: a directory of Orbax, or one checkpoint that was saved alone.
        store: the root; made when it is not there, with the names of steps that the source has.
        steps: by default all.
        prefix: only steps named with it; `""`: named by a number alone; None: any.
        verify: read back what was written and compare it with digests of what was read from the source.
        memory_bytes: a step with larger arrays passes through a scratch file.
        scratch: where that file lies; by default beside the store.
        progress: called with bytes that were just copied or read back.

    Raises:
        NotFoundError: there is no such directory, no checkpoint in it, or not one of `steps`.
        CorruptionError: a step of the source is damaged; earlier ones are copied.
        ConflictError: `exists`, the store has a step of that number from elsewhere; or it changed meanwhile.
    """
    found = source if isinstance(source, OrbaxDirectory) else open_directory(source, prefix=prefix)
    chosen = _chosen(found, steps)
    work = _Import(found, Path(os.path.abspath(store)), verify, memory_bytes, scratch, progress or _silent)
    return work.run(chosen)


def _chosen(found: OrbaxDirectory, steps: Iterable[int] | None) -> list[OrbaxStep]:
    if not found:
        raise NotFoundError(f"{found.path} holds no finished checkpoint of Orbax")
    wanted = sorted(found) if steps is None else sorted(set(steps))
    if missing := [step for step in wanted if step not in found]:
        raise NotFoundError(f"{found.path} has no step {folded(missing)}\n  There are {folded(found)}.")
    return [found[step] for step in wanted]


def _silent(_: int) -> None:
    pass


@final
class _Reason:
    """The save policy of an import: it says why each step is there."""

    def due(self, moment: Any, /) -> str | None:
        return "imported from Orbax"

    def __str__(self) -> str:
        return "an import"


@final
@dataclass(slots=True)
class _Import:
    source: OrbaxDirectory
    store: Path
    verify: bool
    memory_bytes: int
    scratch: str | os.PathLike[str] | None
    progress: Progress

    def run(self, chosen: list[OrbaxStep]) -> Imported:
        copied: list[int] = []
        skipped: list[int] = []
        nbytes = 0
        # Nothing is copied in memory, and each save is over when it returns: the arrays lie in memory of this module.
        limits = mp.Limits(memory_bytes=1)
        with mp.Checkpointer(
            self.store, save=cast("Any", _Reason()), keep="all", limits=limits, metadata=self._identity(),
            step_format=_step_format(chosen),
        ) as saver:  # fmt: skip
            for step in chosen:
                there = saver.catalog.get(step.step)
                fingerprint = step.fingerprint
                if there is not None:
                    _check_same(there, step, fingerprint)
                    skipped.append(step.step)
                    continue
                nbytes += self._copy(saver, step, fingerprint)
                copied.append(step.step)
        return Imported(tuple(copied), tuple(skipped), nbytes, self.verify)

    def _identity(self) -> dict[str, Any] | None:
        if self.source.alone:
            return ALONE
        told: Any = self.source.metadata
        if not told:
            return None
        return cast("dict[str, Any]", told) if isinstance(told, dict) else {"custom_metadata": told}

    def _copy(self, saver: mp.Checkpointer, step: OrbaxStep, fingerprint: str) -> int:
        step.metrics  # noqa: B018 an import without them would not be whole
        view = step.checkpoint
        metadata = view.metadata
        metadata["orbax"]["source"] = {"path": str(step.path), "fingerprint": fingerprint}
        contents = step.contents
        with self._memory(view) as memory:
            tree = _mapped(contents.tree, lambda array: self._read(array, memory))
            if step.fingerprint != fingerprint:
                raise ConflictError(f"{step.path} changed while it was read\n  Import it again when nothing writes it.")
            saver.due(step.step)
            saved = saver.save(step.step, tree, metrics=view.metrics, metadata=metadata, behind=True).result()
        if self.verify:
            saved.verify(progress=self.progress)
        return saved.nbytes

    def _read(self, array: ForeignArray, memory: _Memory) -> Any:
        spec = data_spec(array.spec)
        itemsize = dtype_info(spec.dtype).itemsize
        data = memory.array(spec.shape, dtype_info(spec.dtype).numpy)
        for box in parts(spec.shape, array.chunk, itemsize, _PART_BYTES):
            data[box.slices] = array.read(box)
            self.progress(box.size * itemsize)
        return OfJax(array.spec, data) if array.origin == "jax" else data

    @contextmanager
    def _memory(self, view: mp.Checkpoint) -> Generator[_Memory]:
        if view.nbytes <= self.memory_bytes:
            yield _Memory(None)
            return
        where = self.store.parent if self.scratch is None else self.scratch
        with tempfile.TemporaryFile(prefix=".milepost-import-", dir=where) as file:
            total = sum(_aligned(leaf.nbytes) for leaf in view.leaves.values())
            yield _Memory(np.memmap(file, np.uint8, "w+", shape=(total,)))


@final
class _Memory:
    """Memory for the arrays of a step: of the process, or of a scratch file, whose pages may leave memory again."""

    def __init__(self, scratch: Array | None) -> None:
        self._scratch, self._used = scratch, 0

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        nbytes = Box.whole(shape).size * dtype.itemsize
        if self._scratch is None or not nbytes:
            return np.empty(shape, dtype)
        start = self._used
        self._used += _aligned(nbytes)
        return self._scratch[start : start + nbytes].view(dtype).reshape(shape)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _mapped(tree: Any, of: Callable[[ForeignArray], Any]) -> Any:
    if isinstance(tree, ForeignArray):
        return of(tree)
    if isinstance(tree, dict):
        return {name: _mapped(child, of) for name, child in cast("dict[str, Any]", tree).items()}
    if isinstance(tree, list | tuple):
        items = [_mapped(child, of) for child in cast("list[Any]", tree)]
        return tuple(items) if isinstance(tree, tuple) else items
    return tree


def _check_same(there: mp.Checkpoint, step: OrbaxStep, fingerprint: str) -> None:
    record: Any = there.metadata.get("orbax")
    said: Any = record.get("source") if isinstance(record, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(said, dict) or cast("dict[str, Any]", said).get("fingerprint") != fingerprint:
        raise ConflictError(
            f"{there!r} is there already, and is not a copy of {step.path}\n"
            "  Import into another store, or leave the step out (`steps=`)."
        )


def _step_format(chosen: list[OrbaxStep]) -> mp.StepFormat | None:
    """Return the names of new steps: as those of the source are, where a store can name them so."""
    told = [said for step in chosen if (said := folders.step_of(step.path.name)) is not None]
    if len(told) != len(chosen):
        return None
    prefixes = {prefix for prefix, _, _ in told}
    padded = {digits for _, step, digits in told if digits > len(str(step))}
    if len(prefixes) > 1 or len(padded) > 1:
        return None
    prefix = prefixes.pop()
    try:
        return mp.StepFormat(f"{prefix}_" if prefix else "", padded.pop() if padded else 0)
    except ValueError:
        return None  # a prefix that no store of ours can have
