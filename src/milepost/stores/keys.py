# SPDX-License-Identifier: Apache-2.0
"""Keys and prefixes of a store, and the errors that all stores raise alike."""

from __future__ import annotations

import re

from milepost.errors import ConflictError, CorruptionError, FormatError, NotFoundError, message

# Names of files on their way in, and of folders on their way out: no key may use them, no listing shows them.
TEMPORARY = ".tmp-"
TRASH = ".trash-"
_NO_TEXT = re.compile("[\\\\\x00\ud800-\udfff]")


def segments(key: str) -> tuple[str, ...]:
    """Return the segments of a key.

    Raises:
        FormatError: it is none.
    """
    parts = tuple(key.split("/"))
    if key.startswith("/"):
        why = "it is absolute"
    elif ".." in parts or "." in parts:
        why = "`.` and `..` are no names"
    elif "" in parts:
        why = "a segment is empty"
    elif _NO_TEXT.search(key):
        why = "it holds a backslash, a NUL or half a character"
    elif any(part.startswith((TEMPORARY, TRASH)) for part in parts):
        why = f"names that begin with {TEMPORARY} or {TRASH} are reserved"
    else:
        return parts
    raise FormatError(f"{key[:200]!r} is no key of a store: {why}")


def prefix_segments(prefix: str) -> tuple[str, ...]:
    """Return the segments of a prefix, none for the root.

    Raises:
        FormatError: it is none.
    """
    if prefix and not prefix.endswith("/"):
        raise FormatError(f"{prefix[:200]!r} is no prefix of a store: it must be empty or end with /")
    return segments(prefix[:-1]) if prefix else ()


def slot_segments(prefix: str) -> tuple[str, ...]:
    """Return the segments of a prefix that may be retired, which the root may not."""
    if not prefix:
        raise FormatError("the root of a store cannot be retired, only folders in it")
    return prefix_segments(prefix)


def plain_name(name: str) -> str:
    """Return a name within a claimed folder, which must be a key of one segment."""
    if len(segments(name)) > 1:
        raise FormatError(f"{name[:200]!r} is no name within a folder: it holds a /")
    return name


def place(url: str, key: str) -> str:
    """Return how messages name an object."""
    return f"{url}{key}" if url.endswith("/") else f"{url}/{key}"


def not_found(where: str) -> NotFoundError:
    """Return the error for an object that is not there."""
    return NotFoundError(f"{where} does not exist")


def exists(where: str) -> ConflictError:
    """Return the error for a create-only put of a key that is taken."""
    return ConflictError(f"{where} exists already: another writer was first", code="exists")


def busy(where: str) -> ConflictError:
    """Return the error for a lock that somebody else holds."""
    return ConflictError(f"{where} is held by another process or handle", code="busy")


def fenced(where: str) -> ConflictError:
    """Return the error for a write into a claimed folder that was retired."""
    text = f"{where} was not written: its folder was retired, or replaced, while this process filled it"
    return ConflictError(message(text, remedy="Another writer took over, or the folder was removed."), code="fenced")


def too_short(where: str, expected: int, found: int) -> CorruptionError:
    """Return the error for an object that ends before the range that is read."""
    return CorruptionError(message(f"{where} is too short", expected=f"at least {expected} bytes", found=found))


def check_limit(where: str, nbytes: int, limit: int | None) -> None:
    """Refuse to read an object of more bytes than the caller accepts."""
    if limit is not None and nbytes > limit:
        text = message(f"{where} is too large for a record", expected=f"at most {limit:,} bytes", found=f"{nbytes:,}")
        raise FormatError(text)


def range_length(where: str, nbytes: int, start: int, length: int | None, out: memoryview | None) -> int:
    """Return how many bytes a `get` reads of an object of `nbytes`.

    Raises:
        CorruptionError: the object ends before.
        ValueError: the arguments contradict each other.
    """
    if length is None:
        length = max(nbytes - start, 0) if out is None else out.nbytes
    if start < 0 or length < 0 or (out is not None and out.nbytes != length):
        raise ValueError(f"{where}: start={start}, length={length}, out of {out and out.nbytes} bytes")
    if start + length > nbytes:
        raise too_short(where, start + length, nbytes)
    return length
