# SPDX-License-Identifier: Apache-2.0
"""The least that could be done: the bytes alone, in the fastest order, with one sync and no format."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.peers import Peer, State, Wait
from benchmarks.states import as_bytes

PIECE = 8 << 20
THREADS = 4
_BLOCK = 4096
_CHUNK = 4 << 20


def aligned(nbytes: int) -> np.ndarray[Any, Any]:
    """Return memory that begins at a page."""
    memory = mmap.mmap(-1, max(nbytes, _BLOCK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One write: where in the file, how long, and the spans of leaves in it (path, start in leaf, in piece, length)."""

    offset: int
    nbytes: int
    spans: list[tuple[str, int, int, int]]


class _Layout:
    """Where each leaf lies in the file, and the pieces in which it is written."""

    def __init__(self, state: State) -> None:
        self.offsets: dict[str, int] = {}
        end = 0
        for path, value in state.items():
            self.offsets[path] = end
            end += -(-value.nbytes // 64) * 64
        self.nbytes = -(-end // _BLOCK) * _BLOCK
        self.pieces = [_Piece(offset, min(PIECE, self.nbytes - offset), []) for offset in range(0, self.nbytes, PIECE)]
        for path, value in state.items():
            self._spread(path, value.nbytes)

    def _spread(self, path: str, nbytes: int) -> None:
        done = 0
        while done < nbytes:
            number, within = divmod(self.offsets[path] + done, PIECE)
            length = min(nbytes - done, PIECE - within)
            self.pieces[number].spans.append((path, done, within, length))
            done += length


class Direct(Peer):
    """O_DIRECT: 4 threads that copy 8 MiB into a buffer and write it, into a preallocated file; one sync.

    A save in the background first copies everything into memory that is there already: the floor of blocked time.
    """

    syncs = "all"
    rehearses = True
    direct = True

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._layout: _Layout | None = None
        self._pool = ThreadPoolExecutor(THREADS)
        self._buffers = threading.local()
        self._memory = np.empty(0, np.uint8)

    def close(self) -> None:
        self._pool.shutdown()
        del self._memory

    def _of(self, state: State) -> _Layout:
        if self._layout is None:
            self._layout = _Layout(state)
        return self._layout

    def _buffer(self) -> np.ndarray[Any, Any]:
        if not hasattr(self._buffers, "own"):
            self._buffers.own = aligned(PIECE)
        return self._buffers.own

    def _file(self, step: int, flags: int) -> int:
        return os.open(self.path(step), flags | (os.O_DIRECT if self.direct else 0), 0o644)

    def _written(self, step: int, layout: _Layout, source: Callable[[_Piece], Any]) -> None:
        fd = self._file(step, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.posix_fallocate(fd, 0, layout.nbytes)

            def write(piece: _Piece) -> None:
                done = os.pwrite(fd, source(piece), piece.offset)
                assert done == piece.nbytes

            list(self._pool.map(write, layout.pieces))
            os.fsync(fd)
        finally:
            os.close(fd)

    def save(self, step: int, state: State) -> None:
        flat = {path: as_bytes(value) for path, value in state.items()}

        def gathered(piece: _Piece) -> Any:
            buffer = self._buffer()
            for path, start, within, length in piece.spans:
                buffer[within : within + length] = flat[path][start : start + length]
            return buffer[: piece.nbytes]

        self._written(step, self._of(state), gathered)

    def start(self, step: int, state: State) -> Wait:
        layout = self._of(state)
        if self._memory.size < layout.nbytes:
            self._memory = aligned(layout.nbytes)
        flat = {path: as_bytes(value) for path, value in state.items()}

        def copy(piece: _Piece) -> None:
            for path, start, within, length in piece.spans:
                place = piece.offset + within
                self._memory[place : place + length] = flat[path][start : start + length]

        list(self._pool.map(copy, layout.pieces))
        thread = threading.Thread(
            target=self._written,
            args=(step, layout, lambda piece: self._memory[piece.offset : piece.offset + piece.nbytes]),
        )
        thread.start()
        return thread.join

    def load(self, step: int, state: State) -> State:
        layout = self._of(state)
        memory = aligned(layout.nbytes)
        self._read(step, layout, lambda piece: memory[piece.offset : piece.offset + piece.nbytes])
        return self._views(memory, state)

    def load_mapped(self, step: int, state: State) -> State:
        with open(self.path(step), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return self._views(np.frombuffer(mapped, np.uint8), state)

    def load_into(self, step: int, state: State) -> None:
        flat = {path: as_bytes(value) for path, value in state.items()}

        def scatter(piece: _Piece) -> None:
            buffer = self._buffer()
            for path, start, within, length in piece.spans:
                flat[path][start : start + length] = buffer[within : within + length]

        self._read(step, self._of(state), lambda piece: self._buffer()[: piece.nbytes], scatter)

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        start = self._of(state).offsets[path]
        value = state[path]
        first, last = start // _BLOCK * _BLOCK, -(-(start + value.nbytes) // _BLOCK) * _BLOCK
        memory = aligned(last - first)
        fd = self._file(step, os.O_RDONLY)
        try:
            os.preadv(fd, [memory[: last - first]], first)
        finally:
            os.close(fd)
        return memory[start - first : start - first + value.nbytes].view(value.dtype).reshape(value.shape)

    def _read(
        self,
        step: int,
        layout: _Layout,
        target: Callable[[_Piece], Any],
        after: Callable[[_Piece], None] | None = None,
    ) -> None:
        fd = self._file(step, os.O_RDONLY)
        try:

            def read(piece: _Piece) -> None:
                done = os.preadv(fd, [target(piece)], piece.offset)
                assert done == piece.nbytes
                if after is not None:
                    after(piece)

            list(self._pool.map(read, layout.pieces))
        finally:
            os.close(fd)

    def _views(self, memory: np.ndarray[Any, Any], state: State) -> State:
        offsets = self._of(state).offsets
        return {
            path: memory[offsets[path] : offsets[path] + value.nbytes].view(value.dtype).reshape(value.shape)
            for path, value in state.items()
        }


class Buffered(Direct):
    """The same through the page cache."""

    direct = False


class Reuse(Peer):
    """Digest everything, write what is new: the floor of a save in which nearly nothing changed."""

    syncs = "all"
    saves_only = True

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._stored: set[bytes] = set()
        self._pool = ThreadPoolExecutor(2)

    def close(self) -> None:
        self._pool.shutdown()

    def save(self, step: int, state: State) -> None:
        chunks: list[Any] = []
        for value in state.values():
            data = as_bytes(value)
            chunks += [data[start : start + _CHUNK] for start in range(0, data.size, _CHUNK)]
        digests = list(self._pool.map(xxhash.xxh3_128_digest, chunks))
        with open(self.path(step), "xb", buffering=0) as file:
            for digest, chunk in zip(digests, chunks, strict=True):
                if digest not in self._stored:
                    self._stored.add(digest)
                    file.write(chunk)
            file.write(b"".join(digests))
            os.fsync(file.fileno())
