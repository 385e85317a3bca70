# SPDX-License-Identifier: Apache-2.0
"""Move bytes between memory and store; every byte is digested on its way out and checked on its way in."""

from __future__ import annotations

import base64
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import xxhash

from milepost.engine.anatomy import Anatomy
from milepost.engine.plan import PackPlan, Part, flaw, parts
from milepost.errors import CheckpointError, CorruptionError, Damage, FormatError, NotFoundError, StorageError, message
from milepost.model.format import ALIGNMENT, CHUNK, MANIFEST, Slot, StoredArray, StoredBox, is_pack_name
from milepost.model.leaf import Box, DtypeInfo, dtype_info
from milepost.stores import Claim, Sized, Store

Array = np.ndarray[Any, Any]

# Rows of a leaf are read together up to this size when only some columns are wanted.
_SPAN = 64 << 20
# Ranges of fewer chunks are read by one thread: starting others would take longer.
_SHARED = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The only tuning there is.

    Attributes:
        memory_bytes: at most this much memory for copies of the state. A save that would need more writes before it
            returns, and copies nothing. None: no limit.
        concurrency: threads that read at once.
        timeout_s: how long a save waits for the one before it, and for other processes. None: without end.
        bandwidth_bytes_per_s: writes go no faster, on average over a second. None: no limit.
        background: the threads of a save run only when nothing else wants the processor (nice 19) or the disk (idle
            class, where the system's I/O scheduler has one); on Linux, without effect elsewhere.
    """

    memory_bytes: int | None = None
    concurrency: int = 4
    timeout_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    background: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"Limits(concurrency={self.concurrency}): at least 1")
        for name in ("memory_bytes", "timeout_s", "bandwidth_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"Limits({name}={value}): more than 0, or None for no limit")


def give_way() -> None:
    """Let everything else go before this thread, and the threads that it starts."""
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a sandbox forbids it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    ioprio_set = {"x86_64": 251, "aarch64": 30}.get(
        os.uname().machine
    )  # asm/unistd.h; the C library has no name for it
    if ioprio_set is not None:
        this_thread, idle = 1, 3 << 13  # linux/ioprio.h
        ctypes.CDLL(None).syscall(ioprio_set, this_thread, 0, idle)


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a box and, when it has more than one chunk, of each 4 MiB chunk."""

    whole: str
    chunks: str = ""


def digest(data: memoryview) -> Digest:
    """Return the digest of a box's bytes: a tree of one level, so that ranges check alone and chunks hash apart."""
    if len(data) <= CHUNK:
        return Digest(xxhash.xxh3_128_hexdigest(data))
    chunks = b"".join(xxhash.xxh3_128_digest(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK))
    return Digest(xxhash.xxh3_128_hexdigest(chunks), base64.b64encode(chunks).decode())


def compared(data: memoryview, box: StoredBox, anatomy: Anatomy) -> tuple[Digest | None, bool]:
    """Return the digest of a box's bytes as far as it is known, and whether they are those of a stored box.

    The first chunk that differs tells: most of what has changed is not read to its end here.
    """
    if len(data) <= CHUNK:
        began = time.monotonic()
        found = digest(data)
        anatomy.hashed(len(data), began)
        return found, found.whole == box.digest and not box.chunks
    stored = base64.b64decode(box.chunks)
    if len(stored) != 16 * -(-len(data) // CHUNK):
        return None, False
    for number, start in enumerate(range(0, len(data), CHUNK)):
        began, chunk = time.monotonic(), data[start : start + CHUNK]
        found = xxhash.xxh3_128_digest(chunk)
        anatomy.hashed(len(chunk), began)
        if found != stored[16 * number : 16 * number + 16]:
            return None, False
    # The chunks' own digest is checked too: what is linked now is read with it later.
    return Digest(box.digest, box.chunks), xxhash.xxh3_128_hexdigest(stored) == box.digest


def write_pack(
    claim: Claim,
    name: str,
    plan: PackPlan,
    buffers: Sequence[memoryview],
    digests: list[Digest | None],
    pace: Pace | None,
    check: Callable[[], None],
    anatomy: Anatomy,
) -> None:
    """Write one pack: its header, then its members' bytes in file order; its name is not flushed yet.

    Args:
        claim, name: where to.
        plan: the pack.
        buffers: the bytes of all sources, by index.
        digests: their digests; those that are not there yet are taken on the way, while the bytes are in the cache.
        pace: holds the writing back to a bandwidth.
        check: raises when the save is not wanted any more.
        anatomy: where the time goes.
    """
    start = handed_over = time.monotonic()

    def pieces() -> Iterator[memoryview]:
        nonlocal handed_over
        yield memoryview(plan.header)
        for index in plan.members:
            data = buffers[index]
            if len(data) <= CHUNK:
                if digests[index] is None:
                    began = time.monotonic()
                    digests[index] = digest(data)
                    anatomy.hashed(len(data), began)
                yield data
                anatomy.written_nbytes += len(data)
                continue
            check()
            known, chunks = digests[index], bytearray()
            for start in range(0, len(data), CHUNK):
                chunk = data[start : start + CHUNK]
                if known is None:
                    began = time.monotonic()
                    chunks += xxhash.xxh3_128_digest(chunk)
                    anatomy.hashed(len(chunk), began)
                yield chunk
                anatomy.written_nbytes += len(chunk)
            digests[index] = known or Digest(xxhash.xxh3_128_hexdigest(chunks), base64.b64encode(chunks).decode())
        handed_over = time.monotonic()

    paced = pieces() if pace is None else (part for piece in pieces() for part in pace.paced(piece))
    claim.put(name, Sized(plan.nbytes, paced), flush=False)
    anatomy.written_s += handed_over - start
    anatomy.synced_s += time.monotonic() - handed_over


@final
class Pace:
    """Holds a stream of buffers back to a bandwidth."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._start = clock()
        self._sent = 0

    def paced(self, data: memoryview) -> Iterator[memoryview]:
        """Yield the data in pieces, each no earlier than the bandwidth allows."""
        piece = max(1 << 16, min(len(data), int(self._rate / 10)))
        for offset in range(0, len(data), piece):
            ahead = self._sent / self._rate - (self._clock() - self._start)
            if ahead > 0:
                self._sleep(ahead)
            self._sent += len(data[offset : offset + piece])
            yield data[offset : offset + piece]


def _empty(path: str, box: Box, dtype: np.dtype[Any]) -> Array:
    try:
        return np.empty(box.shape, dtype)
    except MemoryError as error:
        text = message(
            f"not enough memory to read {path}: {box.size * dtype.itemsize:,} bytes",
            remedy="Read a part of it, or map it with `lazy=True`.",
        )
        raise StorageError(text, code="exhausted") from error


def _aligned(path: str, offset: int, nbytes: int) -> Array:
    """Return memory that lies in its page as the bytes lie in their file, so that they are read without a copy."""
    memory = _empty(path, Box.whole((nbytes + ALIGNMENT,)), np.dtype(np.uint8))
    first = (offset - memory.ctypes.data) % ALIGNMENT
    return memory[first : first + nbytes]


@final
class Source:
    """The stored bytes of one step's leaves.

    Args:
        store: where they lie.
        slot: the step's folder.
        packs: names of the packs, as the leaf table numbers them.
        damaged: where the names of packs that turn out damaged are put.
        concurrency: threads that read a large leaf at once.
    """

    def __init__(self, store: Store, slot: Slot, packs: list[str], damaged: set[str], concurrency: int) -> None:
        for name in packs:
            if not is_pack_name(name):
                raise FormatError(f"step {slot.step}: {name[:80]!r} is no name of a pack")
        self._store, self._slot, self._packs, self._damaged_packs = store, slot, packs, damaged
        self.concurrency = concurrency
        self._sound: set[str] = set()

    def read(self, path: str, array: StoredArray, wanted: Box, out: Array | None = None) -> Array:
        """Return a box of a leaf in its own dtype, C-contiguous; in `out` when given.

        Raises:
            CorruptionError: bytes differ from their digest.
            FormatError: what the leaf table says of the leaf cannot be.
            StorageError: `exhausted`, there is not enough memory.
        """
        info = self._info(path, array)
        stored = info.numpy.newbyteorder("<") if info.swapped else info.numpy
        result = _empty(path, wanted, stored) if out is None or info.swapped else out
        only = array.boxes[0] if len(array.boxes) == 1 else None
        if only is not None and only.start is None and wanted.shape == array.shape:
            if only.nbytes:  # nearly every leaf there is
                self._span(path, only, 0, result)
        elif wanted.size:
            for part in parts(array.boxes, array.shape, wanted):
                place = part.wanted.within(wanted)
                self._read_part(path, part, result if place.shape == wanted.shape else result[place.slices])
        if not info.swapped:
            return result
        if out is None:
            return result.astype(info.numpy)
        out[...] = result
        return out

    def mapped(self, path: str, array: StoredArray, maps: dict[int, memoryview] | None = None) -> Array:
        """Return a whole leaf as a view of the mapped file, unchecked; a copy when it is stored in several boxes.

        Args:
            path, array: the leaf.
            maps: the packs that are mapped already, as each mapping takes a file descriptor.
        """
        maps = {} if maps is None else maps
        info = self._info(path, array)
        box = array.boxes[0] if len(array.boxes) == 1 else None
        if box is None or box.start is not None or info.swapped or not box.nbytes:
            return self.read(path, array, Box.whole(array.shape))
        if box.pack not in maps:
            maps[box.pack] = self._store.map(self._key(box))
        data = maps[box.pack][box.offset : box.offset + box.nbytes]
        if len(data) != box.nbytes:
            raise self._damaged(path, box, 0, box.nbytes, f"{box.nbytes} bytes", f"{len(data)} bytes")
        return np.frombuffer(data, info.numpy).reshape(array.shape)

    def flaw(self, array: StoredArray) -> str:
        """Return what is wrong with where the leaf table says that an array lies; empty when nothing is."""
        return flaw(array, dtype_info(array.dtype).itemsize, len(self._packs))

    def is_plain(self, path: str, array: StoredArray) -> bool:
        """Return whether a leaf lies in one piece, in the form in which it is given out."""
        only = array.boxes[0] if len(array.boxes) == 1 else None
        return only is not None and only.start is None and only.nbytes > 0 and not self._info(path, array).swapped

    def empty(self, path: str, array: StoredArray) -> Array:
        """Return new memory for a leaf.

        Raises:
            StorageError: `exhausted`, there is not enough.
        """
        box, dtype = array.boxes[0], self._info(path, array).numpy
        return _aligned(path, box.offset, box.nbytes).view(dtype).reshape(array.shape)

    def fill_chunk(self, path: str, box: StoredBox, index: int, out: Array) -> None:
        """Read one chunk of a leaf that lies in one piece into its place in `out`, checked."""
        data = memoryview(out.reshape(-1).view(np.uint8).data)
        self._chunk(path, box, index, data[index * CHUNK : (index + 1) * CHUNK])

    def together(self, leaves: Sequence[tuple[str, StoredArray]]) -> list[Array | CheckpointError]:
        """Read leaves of one chunk at most, which lie side by side in one pack, in one go; each one is checked.

        Returns: for each of them the array, over common memory, or what is wrong with it.
        """
        boxes = [array.boxes[0] for _, array in leaves]
        start, stop = boxes[0].offset, boxes[-1].offset + boxes[-1].nbytes
        run = memoryview(_aligned(leaves[0][0], start, stop - start).data)
        try:
            self._store.get(self._key(boxes[0]), start=start, length=stop - start, out=run)
        except CheckpointError:  # one that is damaged must not take the others along
            return [self._alone(path, array) for path, array in leaves]
        found: list[Array | CheckpointError] = []
        for (path, array), box in zip(leaves, boxes, strict=True):
            data = run[box.offset - start : box.offset - start + box.nbytes]
            if (digest := xxhash.xxh3_128_hexdigest(data)) == box.digest:
                found.append(np.frombuffer(data, self._info(path, array).numpy).reshape(array.shape))
            else:
                found.append(self._damaged(path, box, 0, box.nbytes, f"xxh3-128 {box.digest}", digest))
        return found

    def _alone(self, path: str, array: StoredArray) -> Array | CheckpointError:
        try:
            return self.read(path, array, Box.whole(array.shape))
        except CheckpointError as error:
            return error

    def _info(self, path: str, array: StoredArray) -> DtypeInfo:
        info = dtype_info(array.dtype)
        if path not in self._sound:
            if wrong := self.flaw(array):
                raise FormatError(f"step {self._slot.step}, {path or 'the root'}: the leaf table is malformed: {wrong}")
            self._sound.add(path)
        return info

    def check_box(self, path: str, box: StoredBox, progress: Callable[[int], None] | None = None) -> list[Damage]:
        """Return what is damaged in a stored box, reading all of it; `progress` is told the bytes of each chunk."""
        damaged: list[Damage] = []
        for start in range(0, box.nbytes, CHUNK) if box.nbytes else ():
            try:
                self._chunk(path, box, start // CHUNK, None)
            except CorruptionError as error:
                damaged += error.damaged
            if progress is not None:
                progress(min(CHUNK, box.nbytes - start))
        return damaged

    def _key(self, box: StoredBox) -> str:
        if not 0 <= box.pack < len(self._packs):
            raise CorruptionError(
                f"step {self._slot.step}: the leaf table names pack {box.pack}, which it does not have"
            )
        return self._slot.key(self._packs[box.pack])

    def _read_part(self, path: str, part: Part, out: Array) -> None:
        wanted = part.wanted.within(part.held)
        self._gather(path, part.stored, part.held.shape, wanted, 0, out)

    def _gather(self, path: str, box: StoredBox, shape: tuple[int, ...], wanted: Box, base: int, out: Array) -> None:
        """Read `wanted` of the C-ordered block of `shape` that begins `base` bytes into the stored box."""
        itemsize = out.itemsize
        row = int(np.prod(shape[1:], dtype=np.int64)) * itemsize if shape else itemsize
        if not shape or wanted.shape[1:] == shape[1:]:
            start = base + (wanted.start[0] * row if shape else 0)
            self._span(path, box, start, out)
            return
        rest = Box(wanted.start[1:], wanted.stop[1:])
        if row > _SPAN:
            for i in range(wanted.shape[0]):
                self._gather(path, box, shape[1:], rest, base + (wanted.start[0] + i) * row, out[i])
            return
        rows = max(1, _SPAN // row)
        for i in range(0, wanted.shape[0], rows):
            count = min(rows, wanted.shape[0] - i)
            block = np.empty((count, *shape[1:]), out.dtype)
            self._span(path, box, base + (wanted.start[0] + i) * row, block)
            out[i : i + count] = block[(slice(None), *rest.slices)]

    def _span(self, path: str, box: StoredBox, start: int, out: Array) -> None:
        """Fill `out` with the bytes of the stored box from `start` on."""
        if not out.flags.c_contiguous:
            block = np.empty(out.shape, out.dtype)
            self._span(path, box, start, block)
            out[...] = block
            return
        data = memoryview(out.reshape(-1).view(np.uint8).data)
        stop = start + len(data)
        if not 0 <= start <= stop <= box.nbytes:
            raise CorruptionError(f"step {self._slot.step}, {path}: {box.nbytes} bytes stored where {stop} are needed")
        indices = range(start // CHUNK, -(-stop // CHUNK))

        def fill(index: int) -> None:
            low, high = index * CHUNK, min((index + 1) * CHUNK, box.nbytes)
            if start <= low and high <= stop:
                self._chunk(path, box, index, data[low - start : high - start])
            else:
                chunk = self._chunk(path, box, index, None)
                a, b = max(low, start), min(high, stop)
                data[a - start : b - start] = chunk[a - low : b - low]

        if self.concurrency == 1 or len(indices) < _SHARED:
            for index in indices:
                fill(index)
            return
        with ThreadPoolExecutor(self.concurrency) as pool:
            for _ in pool.map(fill, indices):
                pass

    def _chunk(self, path: str, box: StoredBox, index: int, out: memoryview | None) -> memoryview:
        """Return a chunk of the stored box, checked; in `out` when given."""
        low, high = index * CHUNK, min((index + 1) * CHUNK, box.nbytes)
        data = self._get(path, box, low, high, out)
        expected = self._expected(path, box, index)
        found = xxhash.xxh3_128_hexdigest(data)
        if found != expected:
            raise self._damaged(path, box, low, high, f"xxh3-128 {expected}", found)
        return data

    def _expected(self, path: str, box: StoredBox, index: int) -> str:
        if box.nbytes <= CHUNK:
            return box.digest
        chunks = base64.b64decode(box.chunks)
        if len(chunks) != 16 * -(-box.nbytes // CHUNK) or xxhash.xxh3_128_hexdigest(chunks) != box.digest:
            raise CorruptionError(f"step {self._slot.step}, {path}: the digests in the leaf table do not agree")
        return chunks[16 * index : 16 * index + 16].hex()

    def _get(self, path: str, box: StoredBox, start: int, stop: int, out: memoryview | None) -> memoryview:
        try:
            return self._store.get(self._key(box), start=box.offset + start, length=stop - start, out=out)
        except CorruptionError as error:  # the file is shorter than the leaf table says
            raise self._damaged(path, box, start, stop, f"{stop - start} bytes", "a shorter file") from error
        except NotFoundError as error:
            if not self._exists():
                text = f"step {self._slot.step} was deleted while it was read\n  Load another step, or pin it first."
                raise NotFoundError(text, code="deleted") from error
            raise self._damaged(path, box, start, stop, f"{stop - start} bytes", "no such file") from error

    def _exists(self) -> bool:
        try:
            self._store.get(self._slot.key(MANIFEST), length=0)
        except NotFoundError:
            return False
        return True

    def _damaged(self, path: str, box: StoredBox, start: int, stop: int, expected: str, found: str) -> CorruptionError:
        name = self._packs[box.pack]
        self._damaged_packs.add(name)
        damage = Damage(self._slot.step, path, name, box.offset + start, box.offset + stop, expected, found)
        text = message(
            f"step {self._slot.step} is damaged at {path}: {name}, bytes {damage.start:,} to {damage.stop:,}",
            expected=expected,
            found=found,
            remedy="Load another step (`milepost verify` lists the whole ones), or leave this leaf out with `exclude`.",
        )
        return CorruptionError(text, damaged=(damage,))
