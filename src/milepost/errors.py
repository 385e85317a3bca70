# SPDX-License-Identifier: Apache-2.0
"""The exception tree: one class per reaction, each with a stable `code`.

```
CheckpointError
├── NotFoundError        (LookupError) look elsewhere            not_found, deleted
├── ConflictError                      another writer was first  locked, exists, behind, fenced, busy, forked, closed,
│                                                                read_only
├── StructureError       (ValueError)  the tree does not fit     structure, metadata
├── UnsupportedLeafError (TypeError)   cannot be stored          unsupported_leaf
├── CorruptionError                    bytes are not as written  corrupt
├── FormatError                        not a record of ours      format, newer
├── StorageError         (OSError)     the disk or store failed  storage, exhausted, unsupported, denied, timeout
│   └── CommitUnknownError             ask `catalog.recheck`     commit_unknown
└── SaveFailedError                    nothing was published     save_failed, cancelled
```
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def message(what: str, *, expected: object = None, found: object = None, remedy: str = "") -> str:
    """Return one message: what failed and where, expected and found, and on a line of its own what to do."""
    text = what
    if expected is not None:
        text += f": expected {expected}, found {found}"
    return f"{text}\n  {remedy}" if remedy else text


def folded(items: Iterable[object], limit: int = 8) -> str:
    """Return the items joined by commas, the middle left out when there are more than `limit`."""
    texts = [str(item) for item in items]
    if len(texts) > limit:
        texts = [*texts[: limit - 1], f"… {len(texts) - limit} more …", texts[-1]]
    return ", ".join(texts)


class CheckpointError(Exception):
    """Base of everything that milepost raises on purpose.

    Attributes:
        code: a short stable word for programs; the message is for people and may change.
    """

    code = "error"

    def __init__(self, text: str = "", *, code: str | None = None) -> None:
        super().__init__(text)
        if code is not None:
            self.code = code


class NotFoundError(CheckpointError, LookupError):
    """There is no such store, step, leaf or pin; code `deleted` when a step was retired while it was being read."""

    code = "not_found"


class ConflictError(CheckpointError):
    """Somebody else was first, or may: the code says who (see the table above)."""

    code = "exists"


class StructureError(CheckpointError, ValueError):
    """The saved tree and the wanted one differ.

    Attributes:
        mismatches: one entry per leaf (`milepost.model.match.Mismatch`); only the message folds.
    """

    code = "structure"

    def __init__(self, text: str = "", *, mismatches: Sequence[Any] = (), code: str | None = None) -> None:
        super().__init__(text, code=code)
        self.mismatches = tuple(mismatches)


class UnsupportedLeafError(CheckpointError, TypeError):
    """A value cannot be stored; raised at save, never at load."""

    code = "unsupported_leaf"


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged place.

    Attributes:
        step: the step it was found in, None for a record of the root.
        path: the leaf, empty when a file is damaged as a whole.
        file: the pack or record.
        start, stop: byte range in the file; both 0 when it is the whole file.
        expected, found: digests, or what was wrong.
    """

    step: int | None
    path: str
    file: str
    start: int
    stop: int
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"{self.path}, " if self.path else ""
        where = f" bytes {self.start:,}–{self.stop:,}" if self.stop else ""
        return f"{place}{self.file}{where}: expected {self.expected}, found {self.found}"


class CorruptionError(CheckpointError):
    """Stored bytes are not the bytes that were written.

    Attributes:
        damaged: every damaged place that was found.
    """

    code = "corrupt"

    def __init__(self, text: str = "", *, damaged: Sequence[Damage] = (), code: str | None = None) -> None:
        super().__init__(text, code=code)
        self.damaged = tuple(damaged)


class FormatError(CheckpointError):
    """A record is not one of ours, or of a newer format (code `newer`)."""

    code = "format"


class StorageError(CheckpointError, OSError):
    """The disk or the store failed; what was committed before is untouched.

    Attributes:
        transient: whether trying again may help.
        errno: the system's number, when there is one.
    """

    code = "storage"

    def __init__(
        self, text: str = "", *, code: str | None = None, transient: bool = False, errno: int | None = None
    ) -> None:
        super().__init__(text, code=code)
        self.transient = transient
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CommitUnknownError(StorageError):
    """The last step of a commit failed: the checkpoint may not survive a crash; `catalog.recheck(step)` looks again."""

    code = "commit_unknown"


class SaveFailedError(CheckpointError):
    """A save was given up and nothing of it is visible; `__cause__` holds the failures, by process, if it has any."""

    code = "save_failed"


_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY}
_REMEDY = {
    errno.ENOSPC: "Free space on that file system, or keep fewer checkpoints (`milepost prune`).",
    errno.EDQUOT: "The disk quota is used up: free space, or keep fewer checkpoints (`milepost prune`).",
    errno.ENOMEM: "Not enough memory.",
    errno.EMFILE: "Too many open files: raise `ulimit -n`.",
    errno.EFBIG: "The file size limit (`ulimit -f`) or the file system's own was reached.",
    errno.EROFS: "The file system is mounted read-only: choose another root.",
    errno.EACCES: "No permission there: check the owner and mode of the folder.",
    errno.EPERM: "Not permitted there: check the owner, the mode and the mount options of the folder.",
    errno.EIO: "The device reported an error: check the disk (`dmesg`); the older checkpoints were not touched.",
}


def storage_error(error: OSError, what: str) -> StorageError:
    """Return the StorageError for a system error; `what` says which operation on which place failed."""
    number = error.errno
    code = "exhausted" if number in _EXHAUSTED else "denied" if number in _DENIED else None
    reason = error.strerror or str(error) or type(error).__name__
    text = message(f"{what}: {reason}", remedy=_REMEDY.get(number or 0, ""))
    return StorageError(text, code=code, transient=number in _TRANSIENT, errno=number)


@contextmanager
def failing(what: str) -> Generator[None]:
    """Turn a system error into the StorageError that says `what` went wrong."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise storage_error(error, what) from error
