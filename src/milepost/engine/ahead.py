# SPDX-License-Identifier: Apache-2.0
"""Read leaves ahead of their use, on threads: large ones by chunks, small ones that lie together in one go.

A leaf that lies among small ones shares its memory with them, at most `_RUN` bytes: 20,000 small leaves are then a few
reads and no copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from milepost.adapters import Array
from milepost.engine.transfer import Source
from milepost.errors import CheckpointError
from milepost.model.format import CHUNK, StoredArray, StoredBox
from milepost.model.leaf import Box

_WINDOW = 256 << 20  # so much is read before it is asked for
_RUN = 16 << 20
_GAP = 64 << 10  # reading over what is not wanted costs less than another read
_WORTH_IT = 1 << 20  # less than this is read before threads have started


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """A whole leaf that is going to be read.

    Attributes:
        path: as stored.
        array: as the leaf table has it.
        out: the memory that it is to be read into, in its own dtype; None: new memory.
    """

    path: str
    array: StoredArray
    out: Array | None = None


@final
class Ahead:
    """Stands in for a `Source` while a tree is loaded."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._windows: list[list[Wanted]] = []
        self._window_of: dict[str, int] = {}
        self._started = 0
        self._maps: dict[int, memoryview] = {}
        self._reads: dict[str, _Read] = {}
        self._pool: ThreadPoolExecutor | None = None
        self.begun: set[str] = set()
        """Stored paths that are being read, or were, into the memory that they were wanted in."""

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, wanted: Iterable[Wanted]) -> None:
        """Start to read leaves, in the order in which they will be asked for."""
        window: list[Wanted] = []
        size = total = 0
        first: dict[str, Wanted] = {}
        for want in wanted:
            if want.path not in first and self._source.is_plain(want.path, want.array):
                first[want.path] = want
        for want in _apart(list(first.values())):
            nbytes = want.array.boxes[0].nbytes
            if size + nbytes > _WINDOW and window:
                self._windows.append(window)
                window, size = [], 0
            window.append(want)
            self._window_of[want.path] = len(self._windows)
            size, total = size + nbytes, total + nbytes
        self._windows.append(window)
        if total < _WORTH_IT:
            self._window_of.clear()
            return
        self._pool = ThreadPoolExecutor(self._source.concurrency, "milepost-read")
        self._start(2)

    def _start(self, count: int) -> None:
        assert self._pool is not None
        for window in self._windows[self._started : count]:
            for unit in _units(window):
                self._submit(self._pool, unit)
        self._started = max(self._started, min(count, len(self._windows)))

    def _submit(self, pool: ThreadPoolExecutor, unit: list[Wanted]) -> None:
        first = unit[0]
        self.begun |= {want.path for want in unit if want.out is not None}
        if len(unit) == 1 and (first.out is not None or first.array.boxes[0].nbytes > CHUNK):
            target = self._source.empty(first.path, first.array) if first.out is None else first.out
            futures = [
                pool.submit(self._source.fill_chunk, first.path, first.array.boxes[0], index, target)
                for index in range(-(-first.array.boxes[0].nbytes // CHUNK))
            ]
            self._reads[first.path] = _Read(futures, target, target.size)
            return
        run = _Run(pool.submit(self._source.together, [(want.path, want.array) for want in unit]))
        for place, want in enumerate(unit):
            self._reads[want.path] = _Read(run, want.out, math.prod(want.array.shape), place)

    # --- what a Source does

    def read(self, path: str, array: StoredArray, wanted: Box, out: Array | None = None) -> Array:
        """Do as `Source.read`."""
        window = self._window_of.get(path)
        if window is None:
            return self._source.read(path, array, wanted, out)
        if self._started < window + 2:
            self._start(window + 2)
        read = self._reads[path]
        data = read.result()
        whole = wanted.shape == array.shape
        read.left -= read.left if whole else wanted.size
        if not read.left:  # its memory is the caller's now
            del self._reads[path], self._window_of[path]
        if not whole:
            data = np.ascontiguousarray(data[wanted.slices])
        if out is None:
            return data
        if out.__array_interface__["data"][0] != data.__array_interface__["data"][0]:
            out[...] = data
        return out

    def mapped(self, path: str, array: StoredArray) -> Array:
        """Do as `Source.mapped`."""
        return self._source.mapped(path, array, self._maps)


@final
class _Run:
    """Small leaves that are read in one go."""

    __slots__ = ("_found", "_future")

    def __init__(self, future: Future[list[Array | CheckpointError]]) -> None:
        self._future: Future[list[Array | CheckpointError]] | None = future
        self._found: list[Array | CheckpointError] = []

    def result(self) -> list[Array | CheckpointError]:
        if self._future is not None:
            self._found, self._future = self._future.result(), None
        return self._found


@final
@dataclass(slots=True)
class _Read:
    """A leaf on its way: what has to be over, where it then is, and how many elements are still to be asked for."""

    run: _Run | list[Future[None]]
    target: Array | None
    left: int
    place: int = 0

    def result(self) -> Array:
        if isinstance(self.run, list):
            for future in self.run:
                future.result()
            assert self.target is not None
            return self.target
        found = self.run.result()[self.place]
        if isinstance(found, CheckpointError):
            raise found
        if self.target is None:
            return found
        np.copyto(self.target, found)
        return self.target


def _apart(wanted: list[Wanted]) -> list[Wanted]:
    """Return the leaves, those whose memory is in part another's without it: threads would write over each other."""
    outs = [(want.out, number) for number, want in enumerate(wanted) if want.out is not None]
    spans = sorted((out.__array_interface__["data"][0], out.nbytes, number) for out, number in outs)
    shared: set[int] = set()
    end = last = -1
    for start, nbytes, number in spans:
        if start < end:
            shared |= {last, number}
        if start + nbytes > end:
            end, last = start + nbytes, number
    return [replace(want, out=None) if number in shared else want for number, want in enumerate(wanted)]


def _units(window: Sequence[Wanted]) -> list[list[Wanted]]:
    """Return the leaves of a window in the order in which they lie, those together that are read in one go."""
    units: list[list[Wanted]] = []
    end = start = -1
    for want in sorted(window, key=_place):
        box = want.array.boxes[0]
        alone = box.nbytes > CHUNK or (want.out is not None and box.nbytes > _GAP)
        joins = units and not alone and units[-1][-1].array.boxes[0].pack == box.pack
        if joins and end >= 0 and 0 <= box.offset - end <= _GAP and box.offset + box.nbytes - start <= _RUN:
            units[-1].append(want)
        else:
            units.append([want])
            start = box.offset
        end = -1 if alone else box.offset + box.nbytes
    return units


def _place(want: Wanted) -> tuple[int, int]:
    box: StoredBox = want.array.boxes[0]
    return box.pack, box.offset
