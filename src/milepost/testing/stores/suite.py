# SPDX-License-Identifier: Apache-2.0
"""What all parts of the suite stand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from milepost.errors import CheckpointError
from milepost.stores import Buffer, Store, open_store

MiB = 1 << 20

BAD_KEYS = [
    "",
    "/etc/passwd",
    "a//b",
    "a/",
    "../a",
    "a/../b",
    ".",
    "a/./b",
    "a\\b",
    "a\0b",
    "\ud800",
    ".tmp-1",
    "a/.trash-1",
]
BAD_PREFIXES = ["12000", "/", "/a/", "a//", "../", "a/../", "a\\/", ".trash-1/"]

VERBS: dict[str, Callable[[Store, str], object]] = {
    "put": lambda store, key: store.put(key, [b"x"]),
    "get": lambda store, key: store.get(key),
    "map": lambda store, key: store.map(key),
    "link from": lambda store, key: store.link(key, "good"),
    "link to": lambda store, key: store.link("good", key),
    "hold": lambda store, key: store.hold(key, exclusive=False),
}


class Interrupted(Exception):
    """What `data` raises in these tests."""


def interrupted(*buffers: bytes) -> Iterator[Buffer]:
    """Yield the buffers, then fail."""
    yield from buffers
    raise Interrupted


def keys(store: Store, prefix: str = "") -> list[str]:
    """Return the keys of all objects below a prefix."""
    return [info.key for info in store.list(prefix)]


def outcomes(count: int, work: Callable[[int], object]) -> list[CheckpointError | None]:
    """Return what each of `count` threads, started together, raised."""
    start = threading.Barrier(count)
    raised: list[CheckpointError | None] = [None] * count

    def run(index: int) -> None:
        start.wait()
        try:
            work(index)
        except CheckpointError as error:
            raised[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


class Suite:
    """A part of the suite. What is under test comes from `store`, an empty store, and from `another`."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("give the suite a `store` fixture")

    def another(self, store: Store) -> Store:
        """Return a second handle on the same objects, as another process would have."""
        return open_store(store.url)
