# SPDX-License-Identifier: Apache-2.0
"""Write the folder of one item as Orbax does: arrays through TensorStore, a few at a time, and read back."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import xxhash

from milepost.adapters import Array
from milepost.engine.stored import Stored
from milepost.errors import CorruptionError, StorageError, message, storage_error
from milepost.interop.orbax import folders
from milepost.interop.orbax.arrays import parts, tensorstore
from milepost.interop.orbax.entries import Entry
from milepost.model.format import StoredArray
from milepost.model.leaf import Box, dtype_info

# Orbax's own settings of its database (values up to this size lie within the nodes), and its compression of zarr 2.
_DATABASE = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}
_COMPRESSOR = {"id": "zstd", "level": 1}
# Of arrays with fewer than 8 bits an element, the rest of the byte says nothing.
_NARROW = {"int2", "int4"}


@dataclass(frozen=True, slots=True)
class _Written:
    """One part of an array that was written."""

    name: str
    box: Box
    digest: bytes


@final
class ItemWriter:
    """Writes trees into folders, which are there and empty.

    At most `memory_bytes` of the state are in memory, if no element row is larger.

    Args:
        memory_bytes: the limit.
        progress: called with the bytes that were just written, and with those that were just read back.
    """

    def __init__(self, memory_bytes: int, progress: Callable[[int], None] | None = None) -> None:
        # What is held until the database takes it, the same encoded, the part that is being read, and a cache.
        self._batch = max(1, memory_bytes // 4)
        self._progress = progress or _silent
        self.nbytes = 0
        """Bytes of arrays and numbers that were written."""

    def tree(self, folder: Path, stored: Stored, entries: list[Entry], custom_metadata: Any = None) -> None:
        """Write one tree, and read its arrays back.

        Raises:
            StorageError: TensorStore or the disk failed.
            CorruptionError: what is read back is not what was written; or the checkpoint itself is damaged.
        """
        shapes = {entry.name: self._chunks(stored, entry) for entry in entries if entry.has_data}
        try:
            written = self._arrays(folder, stored, entries, {name: chunk for name, (_, chunk) in shapes.items()})
            self._check(folder, written)
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(error, StorageError):
                raise
            reason = str(error).partition("[source locations")[0].strip()
            raise StorageError(f"{folder}: TensorStore failed: {reason}") from error
        _describe(folder, entries, shapes, custom_metadata)

    def _chunks(self, stored: Stored, entry: Entry) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape in which an array was saved, and that of its chunks."""
        if entry.stored is None:
            return (), ()
        array = stored.table.arrays[entry.stored]
        saved = _saved_shape(array)
        chunk, itemsize = list(saved), dtype_info(array.dtype).itemsize
        for axis in range(len(chunk)):
            row = math.prod(chunk) // chunk[axis] * itemsize
            if row * chunk[axis] > self._batch:
                chunk[axis] = _divided(chunk[axis], max(1, self._batch // row))
        return saved, tuple(chunk)

    def _arrays(
        self, folder: Path, stored: Stored, entries: list[Entry], chunks: Mapping[str, tuple[int, ...]]
    ) -> list[_Written]:
        database, module = _database(folder, self._batch), tensorstore()
        written: list[_Written] = []
        transaction, held = module.Transaction(), 0
        for entry in entries:
            if not entry.has_data:
                continue
            array, chunk = None, chunks[entry.name]
            for box, data in self._parts(stored, entry, chunk):
                if held and held + data.nbytes > self._batch:
                    transaction.commit_async().result()
                    transaction, held, array = module.Transaction(), 0, None
                if array is None:
                    create = not written or written[-1].name != entry.name
                    array = _array(
                        database, entry.name, transaction, data.dtype if create else None, _shape(stored, entry), chunk
                    )
                array[box.slices].write(data).result()
                held += data.nbytes
                self.nbytes += data.nbytes
                written.append(_Written(entry.name, box, _digest(data)))
                self._progress(data.nbytes)
        transaction.commit_async().result()
        return written

    def _parts(self, stored: Stored, entry: Entry, chunk: tuple[int, ...]) -> Iterator[tuple[Box, Array]]:
        """Yield an array's data, checked, in parts of whole chunks."""
        if entry.stored is None:
            yield Box.whole(()), entry.value
            return
        array = stored.table.arrays[entry.stored]
        itemsize = dtype_info(array.dtype).itemsize
        for box in parts(array.shape, chunk, itemsize, self._batch):
            data = stored.source.read(entry.stored, array, box)
            yield box, data.astype(data.dtype.newbyteorder("="), copy=False)

    def _check(self, folder: Path, written: list[_Written]) -> None:
        database = _database(folder, self._batch)
        name, array = "", None
        for part in written:
            if array is None or part.name != name:
                name, array = part.name, _array(database, part.name, None)
            data = array[part.box.slices].read().result()
            if _digest(data) != part.digest:
                raise CorruptionError(
                    message(
                        f"{folder}, {name} {part.box}: what was written reads back as something else",
                        remedy="Check the disk, and export again.",
                    )
                )
            self._progress(data.nbytes)


def _silent(_: int) -> None:
    pass


def _shape(stored: Stored, entry: Entry) -> tuple[int, ...]:
    return () if entry.stored is None else stored.table.arrays[entry.stored].shape


def _saved_shape(array: StoredArray) -> tuple[int, ...]:
    """Return the shape of the shards that an array was saved in, where they are a grid, else its own."""
    shapes = {tuple(box.shape) for box in array.boxes if box.shape is not None}
    if len(shapes) != 1:
        return array.shape
    shape = shapes.pop()
    starts = (box.start or () for box in array.boxes)
    on_grid = all(a % size == 0 for start in starts for a, size in zip(start, shape, strict=True) if size)
    return shape if on_grid and all(shape) else array.shape


def _divided(size: int, limit: int) -> int:
    """Return the largest divisor of a size that is within a limit, or the limit when there is none near."""
    count = -(-size // limit)
    return next((size // n for n in range(count, min(4 * count, size) + 1) if size % n == 0), limit)


def _database(folder: Path, cache_bytes: int) -> Any:
    module = tensorstore()
    # A context of its own: what is read back was not kept from the writing.
    context = module.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "config": _DATABASE}
    return module.KvStore.open(spec, context=context).result()


def _array(
    database: Any,
    name: str,
    transaction: Any,
    dtype: np.dtype[Any] | None = None,
    shape: tuple[int, ...] = (),
    chunk: tuple[int, ...] = (),
) -> Any:
    """Open an array; with a dtype, make it."""
    module = tensorstore()
    spec: dict[str, Any] = {"driver": "zarr", "fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
    # A tree that is one array has no name, and its files lie at the top.
    options: dict[str, Any] = {"kvstore": database / f"{name}/" if name else database, "open": True}
    if transaction is not None:
        options["transaction"] = transaction
    if dtype is not None:
        spec["metadata"] = {"compressor": _COMPRESSOR, "chunks": list(chunk)}
        options |= {"create": True, "open": False, "dtype": module.dtype(dtype), "shape": shape}
    return module.open(spec, **options).result()


def _digest(data: Any) -> bytes:
    array = np.ascontiguousarray(data)
    if array.dtype.name in _NARROW:
        array = array.astype(np.int8)
    return xxhash.xxh3_128_digest(array.reshape(-1).view(np.uint8).data)


def _describe(
    folder: Path,
    entries: list[Entry],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    custom_metadata: Any,
) -> None:
    """Write what Orbax reads of a tree before its arrays."""
    arrays = [entry for entry in entries if entry.kind in ("jax.Array", "np.ndarray")]
    write_json(
        folder / folders.TREE,
        {
            "tree_metadata": dict(entry.record(shapes.get(entry.name, ((), ()))[0]) for entry in entries),
            "use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True,
            "custom_metadata": custom_metadata,
        },
    )  # fmt: skip
    texts = nested_texts(entries)
    if texts:
        write_json(folder / "_strings.json", texts)
    if arrays:
        (folder / "array_metadatas").mkdir()
        described = [_described(entry, *shapes[entry.name]) for entry in arrays]
        write_json(folder / "array_metadatas" / "process_0", {"array_metadatas": described})
    shardings = {
        base64.b64encode(entry.name.encode()).decode(): json.dumps(_sharding(entry.sharding))
        for entry in arrays
        if entry.kind == "jax.Array"
    }
    if shardings:
        write_json(folder / "_sharding", shardings)


def _described(entry: Entry, saved: tuple[int, ...], chunk: tuple[int, ...]) -> dict[str, Any]:
    extra = {"random_key_impl": entry.generator} if entry.generator else None
    return {
        "array_metadata": {
            "param_name": entry.name, "write_shape": list(saved), "chunk_shape": list(chunk), "ext_metadata": extra,
        }
    }  # fmt: skip


def nested_texts(entries: list[Entry]) -> dict[str, Any]:
    """Return texts by name. Orbax names them by JSON pointers, so a `/` in a name leads one level down."""
    root: dict[str, Any] = {}
    for entry in entries:
        if entry.kind == "string":
            *above, last = entry.name.split("/")
            node = root
            for name in above:
                node = node.setdefault(name, {})
            node[last] = entry.value
    return root


def _sharding(recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a sharding as Orbax describes it; without one, that of the first CPU device."""
    if recorded is None:
        return {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
    axes: list[str] = recorded["axes"]
    devices = np.array(recorded["devices"]).reshape(recorded["shape"]).tolist()
    return {
        "sharding_type": "NamedSharding", "shape": recorded["shape"], "axis_names": axes,
        "axis_types": ["AxisType.Auto"] * len(axes), "partition_spec": recorded["spec"],
        "device_mesh": {"mesh": _numbered(devices)},
    }  # fmt: skip


def _numbered(devices: Any) -> Any:
    if not isinstance(devices, list):
        return {"id": devices}
    return [_numbered(each) for each in cast("list[Any]", devices)]


def write_json(file: Path, data: Any) -> None:
    """Write a JSON file, durable except for its name."""
    write_bytes(file, [json.dumps(data).encode()])


def write_bytes(file: Path, pieces: Iterator[bytes] | list[bytes]) -> None:
    """Write a file, durable except for its name."""
    try:
        with file.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise storage_error(error, f"writing {file}") from error
