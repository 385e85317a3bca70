# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a step that Orbax reads."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milepost.checkpoint import Checkpoint
from milepost.errors import ConflictError, StorageError, storage_error
from milepost.interop.orbax import folders
from milepost.interop.orbax.entries import Refusals
from milepost.interop.orbax.importing import ALONE
from milepost.interop.orbax.outgoing import JSON, Item, items_of, plain, record_of
from milepost.interop.orbax.writing import ItemWriter, write_bytes, write_json
from milepost.model import keypath
from milepost.model.keypath import Globs
from milepost.model.value import decode

_METRICS = "metrics"
_RESERVED = {"", ".", "..", _METRICS}


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the step's folder.
        items: the names of its items.
        leaves: how many leaves.
        nbytes: bytes of their arrays and numbers, before compression.
    """

    path: Path
    items: tuple[str, ...]
    leaves: int
    nbytes: int


def export_checkpoint(
    checkpoint: Checkpoint,
    folder: str | os.PathLike[str],
    *,
    item: str | None = "default",
    exclude: Globs = (),
    memory_bytes: int = 1 << 30,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write a checkpoint as the step of the same number in a directory of Orbax, with its metrics and metadata.

    The step is there when all of it is durable and was read back, or not at all. What Orbax cannot hold is told
    before anything is written. Tuples become lists there, and dataclasses and namedtuples dicts, as with Orbax; an
    array comes back as NumPy's when nobody says how, except for keys and arrays whose shardings are recorded.

    Args:
        checkpoint: what to write; a part of one (`checkpoint.at(...)`) becomes the whole item.
        folder: the directory of the manager; made when it is not there.
        item: the name of the item, where the checkpoint was not saved by items. A v0 CheckpointManager expects
            `default`, a v1 Checkpointer `state`. None: the step's folder is the tree itself, as a StandardCheckpointer
            saves it.
        exclude: paths to leave out (globs).
        memory_bytes: at most this much of the state is in memory.
        progress: called with bytes that were just written, or read back.

    Raises:
        ValueError: the item cannot be called that, or not go without a name.
        UnsupportedLeafError: something that Orbax cannot hold, all of it with its paths.
        ConflictError: `exists`, the step is there already; or the folder is a root of milepost.
        CorruptionError: the checkpoint is damaged; or what was written reads back as something else.
        StorageError: tensorstore is missing, or the disk failed.
    """
    if item is not None and (item in _RESERVED or "/" in item):
        raise ValueError(f"item={item!r} cannot be the name of an item\n  Use `default` or `state`.")
    if memory_bytes < 1:
        raise ValueError(f"memory_bytes={memory_bytes}: more than 0")
    root = folders.local(folder)
    target = root / str(checkpoint.step)
    with checkpoint.lease():
        refusals = Refusals()
        skip = keypath.matcher(exclude)
        items = items_of(checkpoint, item, skip, refusals)
        metrics, metadata = _said(checkpoint, refusals)
        if metrics is not None and any(each.name == _METRICS for each in items):
            refusals.add(_METRICS, "an item of that name, where Orbax has the metrics")
        common = plain(_root_metadata(checkpoint), "the root's metadata", refusals)
        refusals.check(f"step {checkpoint.step}")
        _check_free(root, target)
        root.mkdir(parents=True, exist_ok=True)
        _write_root_metadata(root, common)
        return _written(checkpoint, target, items, metrics, metadata, ItemWriter(memory_bytes, progress))


def _said(checkpoint: Checkpoint, refusals: Refusals) -> tuple[Any, Any]:
    """Return metrics, None when there are none, and metadata as they were given."""
    record = record_of(checkpoint)
    own: Any = checkpoint.metadata
    metrics: Any = checkpoint.metrics or None
    if record is not None:
        del own["orbax"]
        own = record.get("custom_metadata", own)
        kind = record.get("metrics")  # v0 tells of metrics without a name that they are bare; v1 puts them there
        if kind == "bare" and metrics is not None and len(metrics) == 1:
            metrics = next(iter(metrics.values()))
        elif kind not in (None, "named", "bare"):
            metrics = kind
    told = None if metrics is None else plain(metrics, "metrics", refusals)
    return told, plain(own, "metadata", refusals)


def _root_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the root says of the run; empty for a checkpoint alone, or in files of another library."""
    opened = checkpoint._opened  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    record = getattr(opened.root, "record", None)
    told = None if record is None or record.metadata is None else decode(record.metadata)
    return {} if told is None or told == ALONE else told


def _write_root_metadata(root: Path, metadata: dict[str, Any]) -> None:
    """Write what is said of the run, once: what is there stays."""
    file = root / "metadata" / "_ROOT_METADATA"
    if not metadata or file.exists():
        return
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f"{file.name}{folders.TEMPORARY}-{secrets.token_hex(4)}")
    write_json(temporary, {"internal_metadata": {}, "custom_metadata": metadata})
    temporary.rename(file)
    _sync(file.parent)


def _check_free(root: Path, target: Path) -> None:
    if (root / "milepost.json").exists():
        raise ConflictError(
            f"{root} is a root of milepost, whose steps have names like Orbax's\n  Export to another directory."
        )
    if os.path.lexists(target):
        raise ConflictError(f"{target} is there already\n  Export to another directory, or delete it first.")


def _written(
    checkpoint: Checkpoint, target: Path, items: list[Item], metrics: Any, metadata: Any, writer: ItemWriter
) -> Exported:
    # What Orbax knows to be unfinished, and removes when it is asked to; of a name that nobody else writes to.
    temporary = target.with_name(f"{target.name}{folders.TEMPORARY}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        handlers: dict[str, str] = {each.name: each.handler for each in items}
        for each in items:
            for place, write in each.parts:
                _finished(temporary / place, target / place, lambda part, write=write: write(part, writer))
            _commit(temporary / each.name, target / each.name)
        if metrics is not None:
            handlers[_METRICS] = JSON
            _finished(temporary / _METRICS, target / _METRICS, lambda part: write_json(part / _METRICS, metrics))
        alone = handlers.get("")  # a tree that has no name is no item
        write_json(temporary / folders.METADATA, _record(checkpoint, alone or handlers, metadata))
        _commit(temporary, target)
        _publish(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(error, f"writing {target}") from error
        raise
    leaves = sum(each.leaves for each in items)
    return Exported(target, tuple(each.name for each in items if each.name), leaves, writer.nbytes)


def _finished(place: Path, target: Path, write: Callable[[Path], None]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    write(place)
    _commit(place, target)


def _commit(place: Path, target: Path) -> None:
    write_bytes(place / folders.COMMITTED, [f"Checkpoint commit was successful to {target}".encode()])


def _record(checkpoint: Checkpoint, handlers: dict[str, str] | str, metadata: Any) -> dict[str, Any]:
    record = record_of(checkpoint) or {}
    committed = record.get("commit_timestamp_nsecs") or round(checkpoint.created.timestamp() * 1_000_000) * 1_000
    begun = record.get("init_timestamp_nsecs") or committed
    return {
        "item_handlers": handlers, "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": begun,
        "commit_timestamp_nsecs": committed, "custom_metadata": metadata,
    }  # fmt: skip


def _publish(temporary: Path, target: Path) -> None:
    for place, _, _ in os.walk(temporary, topdown=False):
        _sync(Path(place))
    _check_free(target.parent, target)
    temporary.rename(target)
    _sync(target.parent)
    _sync(target.parent.parent)  # where the directory itself may be new


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
