# SPDX-License-Identifier: Apache-2.0
"""Bytes by key: the `Store` protocol, `open_store`, and the in-memory store, which is its executable meaning.

A key is text: one or more segments joined by `/`, as `12000/manifest.json`. A folder is named by a prefix that ends
with `/`; the root is the empty prefix. Every store passes the suite `milepost.testing.stores.StoreContract`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, final

from milepost.errors import StorageError, message
from milepost.stores.keys import (
    busy,
    check_limit,
    exists,
    fenced,
    not_found,
    place,
    plain_name,
    prefix_segments,
    range_length,
    segments,
    slot_segments,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
Mode: TypeAlias = Literal["create", "overwrite"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_SCHEMES = {"file": "milepost.stores.local:LocalStore", "memory": "milepost.stores:MemoryStore"}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One line of a listing.

    Attributes:
        key: of the object, or of a folder, which ends with `/`.
        nbytes: size of the object, None for a folder.
    """

    key: str
    nbytes: int | None


@final
@dataclass(frozen=True, slots=True)
class Sized:
    """The bytes of an object, their number known at the start; every buffer stays as it is until the put returns.

    Attributes:
        nbytes: how many there are.
        data: the buffers.
    """

    nbytes: int
    data: Iterable[Buffer]

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self.data)


class Hold(Protocol):
    """A lock on an object, held until `close`, the end of `with`, or the end of the process."""

    @property
    def supported(self) -> bool:
        """Whether the store can lock at all; if not, nothing is held, and the store has said so in the log."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Hold: ...
    def __exit__(self, *error: object) -> None: ...


class Claim(Protocol):
    """A folder that this handle made, and fills.

    Guarantee: what is put lands in that very folder or nowhere. So a writer that was overtaken while it slept cannot
    publish in a folder that was retired, nor in another one that has taken its name.

    Raises (`put` and `link`):
        ConflictError: `fenced` when the folder was retired; else as those of `Store`, which they are.
    """

    def put(self, name: str, data: Iterable[Buffer], *, flush: bool = True) -> None: ...
    def link(self, source_key: str, name: str, *, flush: bool = True) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Claim: ...
    def __exit__(self, *error: object) -> None: ...


class Store(Protocol):
    """Bytes by key. Every method may be called from any thread.

    Guarantee: a reader sees all of an object or nothing of it, and `list` sees the last `put`.

    Raises (all methods):
        FormatError: the key or prefix is none.
        StorageError: the device or service failed. Nothing that was there before has changed.
    """

    @property
    def url(self) -> str:
        """Where it is, as the user wrote it; `open_store(url)` opens it again."""
        ...

    def put(self, key: str, data: Iterable[Buffer], *, mode: Mode = "create", flush: bool = True) -> None:
        """Write an object.

        Guarantee: the object appears whole or not at all, and its bytes are durable when this returns. With `flush`,
        so is its name, and the names that this handle put without `flush` in the same folder and in the folders
        above it. If `data` raises, nothing appears and the exception passes.

        Args:
            key: the object.
            data: its bytes. A buffer is not looked at any more once the next one has been asked for, but those of
                `Sized` may be. With that, a list or a tuple the total is known at the start, and a full disk may be
                found before the first byte.
            mode: `create` fails if the object exists.
            flush: False leaves the name for the next `put` or `link` with `flush`.

        Raises:
            ConflictError: `exists`.
            CommitUnknownError: the object is visible, but may not survive a crash.
        """
        ...

    def get(
        self, key: str, *, start: int = 0, length: int | None = None, out: memoryview | None = None,
        limit: int | None = None,
    ) -> memoryview:  # fmt: skip
        """Read an object or a range of it.

        Args:
            key: the object.
            start: first byte.
            length: number of bytes; None: as many as `out` holds, else all to the end.
            out: writable memory that is filled and returned, instead of new memory.
            limit: an object of more bytes is not read; checked before memory is taken.

        Raises:
            NotFoundError: there is no such object.
            FormatError: it is larger than `limit`.
            CorruptionError: the object ends before the range does.
        """
        ...

    def forget(self, key: str) -> None:
        """Let go of what the machine remembers of an object, so that the next read is of the device, where it can.

        Raises:
            NotFoundError: there is no such object.
        """
        ...

    def map(self, key: str) -> memoryview:
        """Return an object's bytes as memory whose pages are read when touched; changes stay private to the caller.

        Raises:
            NotFoundError: there is no such object.
            StorageError: code `unsupported` where there is no such thing.
        """
        ...

    def list(self, prefix: str, *, delimiter: Literal["/"] | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, sorted by key; with the delimiter, one level: its objects and folders.

        A prefix with nothing below it yields nothing. A claimed folder is shown though it is empty; whether others are
        is left to the store.
        """
        ...

    def link(self, source_key: str, key: str, *, flush: bool = True) -> None:
        """Give an object's bytes a second key, by a hard link or a copy within the store; `flush` as in `put`.

        Raises:
            NotFoundError: there is no source.
            ConflictError: `exists`.
            CommitUnknownError: the object is visible, but may not survive a crash.
        """
        ...

    def retire(self, prefix: str) -> None:
        """Remove everything below a prefix as a whole: first all of it disappears at once, then it is deleted.

        Nothing there is no error. A StorageError that says so means that it is gone but some of it still takes space.
        """
        ...

    def claim(self, prefix: str) -> Claim:
        """Make a folder that is not there yet; of many who try, one succeeds.

        Raises:
            ConflictError: `exists`.
        """
        ...

    def sweep(self) -> None:
        """Delete what a killed process left of retired folders and of objects half written in the root.

        Only the process that holds the writer's lock may call it: nobody else can tell a leftover from work.
        """
        ...

    def hold(self, key: str, *, exclusive: bool, create: bool = False) -> Hold:
        """Lock an object, shared or exclusively, without ever waiting. Locks bind only those who ask for them.

        Args:
            key: the object.
            exclusive: whether to be alone; shared locks are many.
            create: make an empty object first where there is none.

        Raises:
            ConflictError: `busy`.
            NotFoundError: there is no such object; code `deleted` when it was removed at this moment.
        """
        ...


def open_store(where: str | os.PathLike[str] | Store, *, create: bool = False) -> Store:
    """Return the store at a path or URL; a store is returned as it is. Nothing is read or made yet.

    Args:
        where: a path, `file://…`, `memory://name` (shared by name within the process), or the scheme of a plug-in (an
            entry point of that name in the group `milepost.stores`).
        create: whether writing makes the root where there is none.

    Raises:
        StorageError: code `unsupported`: nobody knows this scheme.
    """
    if not isinstance(where, str | os.PathLike):
        return where
    url = os.fspath(where)
    match = _SCHEME.match(url)
    scheme = match[1] if match else "file"
    if scheme in _SCHEMES:
        module, _, name = _SCHEMES[scheme].partition(":")
        opener = getattr(importlib.import_module(module), name)
        return cast("Store", opener(url, create=create))
    from importlib.metadata import entry_points

    for point in entry_points(group="milepost.stores", name=scheme):
        return cast("Store", point.load()(url, create=create))
    known = ", ".join(f"{name}://" for name in sorted(_SCHEMES))
    text = message(f"{url}: no store for {scheme}:// is installed", remedy=f"Use a path, or one of {known}.")
    raise StorageError(text, code="unsupported")


class _Object:
    """One object's bytes and who holds it: what an inode is to a file. Keys that were linked share it."""

    __slots__ = ("data", "exclusive", "shared")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.shared = 0
        self.exclusive = False


class _Space:
    """The objects of all handles of one name."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[str, _Object] = {}
        self.claims: dict[str, object] = {}


_spaces: dict[str, _Space] = {}
_unnamed = itertools.count(1)


@final
class MemoryStore:
    """Objects in this process's memory: for tests, and for what need not outlive the process.

    Args:
        url: `memory://name`; handles of one name see the same objects. Without a name, a new one is taken.
        create: of no meaning here: the root is always there.
    """

    def __init__(self, url: str = "memory://", *, create: bool = True) -> None:
        self.url = url if url.removeprefix("memory://") else f"memory://unnamed-{next(_unnamed)}"
        self._space = _spaces.setdefault(self.url, _Space())

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    def put(self, key: str, data: Iterable[Buffer], *, mode: Mode = "create", flush: bool = True) -> None:
        self._enter(key, _gathered(key, data), mode)

    def get(
        self, key: str, *, start: int = 0, length: int | None = None, out: memoryview | None = None,
        limit: int | None = None,
    ) -> memoryview:  # fmt: skip
        data = self._object(key).data
        check_limit(place(self.url, key), len(data), limit)
        length = range_length(place(self.url, key), len(data), start, length, out)
        view = memoryview(bytearray(length)) if out is None else out
        if length:
            view.cast("B")[:] = memoryview(data)[start : start + length]
        return view

    def forget(self, key: str) -> None:
        self._object(key)

    def map(self, key: str) -> memoryview:
        return self.get(key)

    def list(self, prefix: str, *, delimiter: Literal["/"] | None = None) -> Iterator[ObjectInfo]:
        prefix_segments(prefix)
        found: dict[str, int | None] = {}
        with self._space.lock:
            sizes = {key: len(item.data) for key, item in self._space.objects.items() if key.startswith(prefix)}
            if delimiter:
                sizes |= {key: 0 for key in self._space.claims if key.startswith(prefix) and key != prefix}
        for key, nbytes in sizes.items():
            name, folder, _ = key[len(prefix) :].partition("/")
            found |= {f"{prefix}{name}/": None} if delimiter and folder else {key: nbytes}
        return (ObjectInfo(key, nbytes) for key, nbytes in sorted(found.items()))

    def link(self, source_key: str, key: str, *, flush: bool = True) -> None:
        segments(key)
        self._enter(key, self._object(source_key), "create")

    def retire(self, prefix: str) -> None:
        slot_segments(prefix)
        with self._space.lock:
            for known in (self._space.objects, self._space.claims):
                for key in [key for key in known if key.startswith(prefix)]:
                    del known[key]

    def claim(self, prefix: str) -> Claim:
        slot_segments(prefix)
        with self._space.lock:
            if prefix in self._space.claims or any(key.startswith(prefix) for key in self._space.objects):
                raise exists(place(self.url, prefix))
            self._space.claims[prefix] = token = object()
        return _MemoryClaim(self, self._space, prefix, token)

    def sweep(self) -> None:
        """Do nothing: nothing is ever left over."""

    def hold(self, key: str, *, exclusive: bool, create: bool = False) -> Hold:
        segments(key)
        with self._space.lock:
            if create:
                self._space.objects.setdefault(key, _Object(b""))
            item = self._object(key)
            if item.exclusive or (exclusive and item.shared):
                raise busy(place(self.url, key))
            if exclusive:
                item.exclusive = True
            else:
                item.shared += 1
        return _MemoryHold(self._space, item, exclusive)

    def _object(self, key: str) -> _Object:
        segments(key)
        with self._space.lock:
            item = self._space.objects.get(key)
        if item is None:
            raise not_found(place(self.url, key))
        return item

    def _enter(self, key: str, item: _Object, mode: Mode) -> None:
        with self._space.lock:
            if mode == "create" and key in self._space.objects:
                raise exists(place(self.url, key))
            self._space.objects[key] = item


def _gathered(key: str, data: Iterable[Buffer]) -> _Object:
    segments(key)
    return _Object(b"".join([bytes(buffer) for buffer in data]))


@final
class _MemoryClaim:
    def __init__(self, store: MemoryStore, space: _Space, prefix: str, token: object) -> None:
        self._store, self._space, self._prefix, self._token = store, space, prefix, token

    def put(self, name: str, data: Iterable[Buffer], *, flush: bool = True) -> None:
        gathered = list(map(bytes, data))
        with self._claimed(name) as key:
            self._store.put(key, gathered)

    def link(self, source_key: str, name: str, *, flush: bool = True) -> None:
        with self._claimed(name) as key:
            self._store.link(source_key, key)

    @contextmanager
    def _claimed(self, name: str) -> Generator[str]:
        with self._space.lock:
            key = self._prefix + plain_name(name)
            if self._space.claims.get(self._prefix) is not self._token:
                raise fenced(place(self._store.url, key))
            yield key

    def close(self) -> None:
        self._token = object()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@final
class _MemoryHold:
    supported = True

    def __init__(self, space: _Space, item: _Object, exclusive: bool) -> None:
        self._space, self._exclusive = space, exclusive
        self._item: _Object | None = item

    def close(self) -> None:
        with self._space.lock:
            item, self._item = self._item, None
            if item is None:
                return
            if self._exclusive:
                item.exclusive = False
            else:
                item.shared -= 1

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
