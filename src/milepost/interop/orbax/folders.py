# SPDX-License-Identifier: Apache-2.0
"""Which folders are checkpoints of Orbax, finished ones, and what step each is."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from milepost.errors import CheckpointError, ConflictError, NotFoundError, StorageError
from milepost.interop.orbax import records

METADATA = "_CHECKPOINT_METADATA"
TREE = "_METADATA"
TEMPORARY = ".orbax-checkpoint-tmp"
COMMITTED = "commit_success.txt"

_STEP = re.compile(r"(?:(?P<prefix>.*)_)?(?P<digits>\d+)")
# What tells a source apart from another of the same names, beside the sizes of all files.
_TELLING = {METADATA, TREE, "_strings.json", "metrics", "metadata", "manifest.ocdbt", "data.json"}


def local(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a directory.

    Raises:
        StorageError: `unsupported`, it is the address of an object store.
    """
    text = os.fspath(path)
    if "://" in text:
        raise StorageError(
            f"{text}: checkpoints of Orbax are read from local directories only\n  Copy the directory first.",
            code="unsupported",
        )
    return Path(os.path.abspath(text))


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a finished checkpoint of Orbax. An empty folder is none, whatever its name."""
    if TEMPORARY in folder.name or not folder.is_dir() or (folder / "manifest.json").exists():
        return False
    names = os.listdir(folder)
    if any(TEMPORARY in name for name in names):
        return False
    if COMMITTED in names:
        return METADATA in names or TREE in names or any((folder / name).is_dir() for name in names)
    if METADATA in names:
        try:
            record = records.read_object(folder / METADATA)
        except CheckpointError:
            return True  # damaged is not unfinished: whoever reads it is told
        return record.get("commit_timestamp_nsecs") is not None
    # Older versions wrote neither: a finished step is one whose items are there, and an item has no such record.
    return TREE in names or any(
        (folder / name / TREE).is_file() and not (folder / name / METADATA).exists() for name in names
    )


def step_of(name: str) -> tuple[str, int, int] | None:
    """Return prefix, step and number of digits that a folder's name says; None when it says none."""
    match = _STEP.fullmatch(name)
    if match is None:
        return None
    return match["prefix"] or "", int(match["digits"]), len(match["digits"])


def steps(directory: Path, prefix: str | None) -> dict[int, Path]:
    """Return the finished checkpoints under a directory by step.

    Args:
        directory: of a manager; or a single checkpoint, which is the step that its name says, else 0.
        prefix: only folders named with it; `""`: with a number alone; None: any.

    Raises:
        NotFoundError: there is no such directory.
        ConflictError: two folders are the same step.
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is not there")
    if is_checkpoint(directory):
        said = step_of(directory.name)
        return {said[1] if said is not None else 0: directory}
    found: dict[int, Path] = {}
    for folder in sorted(directory.iterdir()):
        said = step_of(folder.name)
        if said is None or (prefix is not None and said[0] != prefix) or not is_checkpoint(folder):
            continue
        if said[1] in found:
            raise ConflictError(
                f"{directory}: {found[said[1]].name} and {folder.name} are both step {said[1]}\n"
                "  Say by `prefix` which names are meant."
            )
        found[said[1]] = folder
    return dict(sorted(found.items()))


def fingerprint(folder: Path) -> str:
    """Return what is equal for copies of one checkpoint: of names, sizes and the small records of its files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == COMMITTED:
            continue
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        if file.name in _TELLING:
            digest.update(file.read_bytes())
    return digest.hexdigest()
