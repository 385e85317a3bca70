# SPDX-License-Identifier: Apache-2.0
"""A store whose whole content is one value: it can be kept, compared, and gone back to.

`MemoryStore` says what the verbs mean, and the contract suite holds both to it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, final

from milepost.stores import Buffer, Claim, Hold, Mode, ObjectInfo
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

Verb = Literal["put", "get", "list", "link", "retire", "claim", "sweep", "hold", "let go", "sleep"]


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store, with all that it depends on.

    Attributes:
        verb: which; `sleep` is none of a store's, and changes nothing.
        key: the object or folder.
        data: the bytes to put.
        source: the key to link from.
        claim: the claimed folder that it must land in, by number.
        overwrite, exclusive, create, start, length, delimiter: as the verb has them.
        grip: the lock to let go.
    """

    verb: Verb
    key: str = ""
    data: bytes = field(default=b"", repr=False)
    source: str = ""
    claim: tuple[str, int] | None = None
    overwrite: bool = False
    exclusive: bool = False
    create: bool = False
    start: int = 0
    length: int | None = None
    delimiter: bool = False
    grip: Grip | None = None

    def __str__(self) -> str:
        key = f"{self.source} -> {self.key}" if self.source else self.key or "."
        return f"{self.verb} {key}{', alone' if self.exclusive else ''}"


@final
@dataclass(frozen=True, slots=True)
class Grip:
    """A lock that is held: by whom, on which file, and its number."""

    owner: str
    file: int
    exclusive: bool
    number: int


@final
@dataclass(frozen=True)
class Content:
    """All that a store holds.

    Attributes:
        files: key -> (number of the call that made the file, bytes); keys that were linked share it.
        folders: claimed folder -> number of the call.
        grips: locks.
    """

    files: Mapping[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    folders: Mapping[str, int] = field(default_factory=dict[str, int])
    grips: frozenset[Grip] = frozenset()

    @cached_property
    def digest(self) -> int:
        """A number that is the same for the same content."""
        files = frozenset((key, number) for key, (number, _) in self.files.items())
        return hash((files, frozenset(self.folders.items()), self.grips))

    @cached_property
    def listings(self) -> dict[tuple[str, bool], tuple[ObjectInfo, ...]]:
        """The listings that were asked for."""
        return {}


def performed(content: Content, call: Call, number: int, owner: str, *, locks: bool = True) -> tuple[Content, Any]:
    """Return the content after a call, and the answer.

    Args:
        content: before.
        call: what is asked for.
        number: of this call: the identity of what it makes.
        owner: who asks.
        locks: whether the store can lock.

    Raises:
        CheckpointError: what the store answers.
    """
    match call.verb:
        case "get":
            _, data = _file(content, call.key)
            length = range_length(call.key, len(data), call.start, call.length, None)
            return content, data[call.start : call.start + length]
        case "list":
            asked = call.key, call.delimiter
            if asked not in content.listings:
                content.listings[asked] = _listed(content, call.key, one_level=call.delimiter)
            return content, content.listings[asked]
        case "put" | "link":
            if call.claim is not None and content.folders.get(call.claim[0]) != call.claim[1]:
                raise fenced(call.key)
            file = _file(content, call.source) if call.verb == "link" else (number, call.data)
            if not call.overwrite and call.key in content.files:
                raise exists(call.key)
            return replace(content, files={**content.files, call.key: file}), None
        case "retire":
            files = {key: file for key, file in content.files.items() if not key.startswith(call.key)}
            folders = {key: made for key, made in content.folders.items() if not key.startswith(call.key)}
            return replace(content, files=files, folders=folders), None
        case "claim":
            if call.key in content.folders or any(key.startswith(call.key) for key in content.files):
                raise exists(call.key)
            return replace(content, folders={**content.folders, call.key: number}), (call.key, number)
        case "hold":
            return _held(content, call, number, owner, locks)
        case "let go":
            return replace(content, grips=content.grips - {call.grip}), None
        case "sweep" | "sleep":
            return content, None


def _file(content: Content, key: str) -> tuple[int, bytes]:
    try:
        return content.files[key]
    except KeyError:
        raise not_found(key) from None


def _listed(content: Content, prefix: str, *, one_level: bool) -> tuple[ObjectInfo, ...]:
    found: dict[str, int | None] = {}
    for key, (_, data) in content.files.items():
        if key.startswith(prefix):
            name, folder, _ = key[len(prefix) :].partition("/")
            found |= {f"{prefix}{name}/": None} if one_level and folder else {key: len(data)}
    if one_level:
        for key in content.folders:
            if key.startswith(prefix) and key != prefix:
                found[prefix + key[len(prefix) :].partition("/")[0] + "/"] = None
    return tuple(ObjectInfo(key, nbytes) for key, nbytes in sorted(found.items()))


def _held(content: Content, call: Call, number: int, owner: str, locks: bool) -> tuple[Content, Grip | None]:
    if call.create and call.key not in content.files:
        content = replace(content, files={**content.files, call.key: (number, b"")})
    made, _ = _file(content, call.key)
    if not locks:
        return content, None
    if any(grip.file == made and (grip.exclusive or call.exclusive) for grip in content.grips):
        raise busy(call.key)
    grip = Grip(owner, made, call.exclusive, number)
    return replace(content, grips=content.grips | {grip}), grip


@final
class Disk:
    """A content that changes, for `ModelStore` handles that share it."""

    def __init__(self, content: Content | None = None) -> None:
        self.content = content or Content()
        self._lock = threading.Lock()
        self._numbers = itertools.count(-1, -1)  # apart from those that an exploration gives

    def perform(self, call: Call) -> Any:
        """Make a call at once."""
        with self._lock:
            self.content, answer = performed(self.content, call, next(self._numbers), "")
        return answer


@final
class ModelStore:
    """A store that passes every call on to whoever performs it.

    Args:
        perform: makes a call, and returns the answer or raises it.
        url: of the store.
    """

    def __init__(self, perform: Callable[[Call], Any], url: str = "model://") -> None:
        self._perform, self.url = perform, url

    def put(self, key: str, data: Iterable[Buffer], *, mode: Mode = "create", flush: bool = True) -> None:
        segments(key)
        self._perform(Call("put", key, _gathered(data), overwrite=mode == "overwrite"))

    def get(
        self, key: str, *, start: int = 0, length: int | None = None, out: memoryview | None = None,
        limit: int | None = None,
    ) -> memoryview:  # fmt: skip
        segments(key)
        if out is not None and length is not None and out.nbytes != length:
            raise ValueError(f"{place(self.url, key)}: length={length}, out of {out.nbytes} bytes")
        data = self._perform(Call("get", key, start=start, length=out.nbytes if out is not None else length))
        check_limit(place(self.url, key), start + len(data), limit)
        if out is None:
            return memoryview(bytearray(data))
        out.cast("B")[:] = data
        return out

    def forget(self, key: str) -> None:
        self.get(key, length=0)

    def map(self, key: str) -> memoryview:
        return self.get(key)

    def list(self, prefix: str, *, delimiter: Literal["/"] | None = None) -> Iterator[ObjectInfo]:
        prefix_segments(prefix)
        return iter(self._perform(Call("list", prefix, delimiter=delimiter is not None)))

    def link(self, source_key: str, key: str, *, flush: bool = True) -> None:
        segments(source_key)
        segments(key)
        self._perform(Call("link", key, source=source_key))

    def retire(self, prefix: str) -> None:
        slot_segments(prefix)
        self._perform(Call("retire", prefix))

    def claim(self, prefix: str) -> Claim:
        slot_segments(prefix)
        return _Claimed(self._perform, self._perform(Call("claim", prefix)))

    def sweep(self) -> None:
        self._perform(Call("sweep"))

    def hold(self, key: str, *, exclusive: bool, create: bool = False) -> Hold:
        segments(key)
        return _Held(self._perform, key, self._perform(Call("hold", key, exclusive=exclusive, create=create)))


def _gathered(data: Iterable[Buffer]) -> bytes:
    return b"".join([bytes(buffer) for buffer in data])


@final
class _Claimed:
    def __init__(self, perform: Callable[[Call], Any], claim: tuple[str, int]) -> None:
        self._perform, self._claim = perform, claim

    def put(self, name: str, data: Iterable[Buffer], *, flush: bool = True) -> None:
        key = self._claim[0] + plain_name(name)
        self._perform(Call("put", key, _gathered(data), claim=self._claim))

    def link(self, source_key: str, name: str, *, flush: bool = True) -> None:
        segments(source_key)
        self._perform(Call("link", self._claim[0] + plain_name(name), source=source_key, claim=self._claim))

    def close(self) -> None: ...

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None: ...


@final
class _Held:
    def __init__(self, perform: Callable[[Call], Any], key: str, grip: Grip | None) -> None:
        self._perform, self._key, self._grip = perform, key, grip
        self.supported = grip is not None

    def close(self) -> None:
        grip, self._grip = self._grip, None
        if grip is not None:
            self._perform(Call("let go", self._key, grip=grip))

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
