# SPDX-License-Identifier: Apache-2.0
"""The arrays of one item, through TensorStore: zarr 2 or 3, in an OCDBT database or as plain files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np

from milepost.errors import CorruptionError, StorageError, message
from milepost.foreign import Array
from milepost.interop.orbax import records
from milepost.model.leaf import Box

# Nodes of OCDBT's tree, and chunks of which several readers want a part.
_CACHE_BYTES = 100 << 20


def tensorstore() -> Any:
    """Return the module that reads arrays.

    Raises:
        StorageError: `unsupported`, it is not installed.
    """
    try:
        import tensorstore as module  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
    except ImportError as error:
        raise StorageError(
            "checkpoints of Orbax are read with tensorstore, which is not installed\n"
            "  Install it: pip install 'milepost[orbax]'",
            code="unsupported",
        ) from error
    return module


@lru_cache(maxsize=1)
def _context() -> Any:
    limits = {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}, "file_io_concurrency": {"limit": 16}}
    return tensorstore().Context(limits)


@final
class Arrays:
    """The arrays in the folder of one item.

    Args:
        folder: of the item.
        where: names step and item, for messages.
        zarr3: whether they are zarr 3.
        complete: whether every chunk was written, so that one that is missing is lost, and not full of zeros.
    """

    def __init__(self, folder: Path, where: str, *, zarr3: bool, complete: bool) -> None:
        self._folder, self._where = folder, where
        self._zarr3, self._complete = zarr3, complete
        self._ocdbt = (folder / "manifest.ocdbt").is_file()

    def open(self, names: Sequence[str]) -> dict[str, Any]:
        """Return arrays by name, none of their data read.

        Raises:
            CorruptionError: one is not there, or what describes it is damaged.
        """
        module, context = tensorstore(), _context()
        futures = [module.open(self._spec(name), read=True, open=True, context=context) for name in names]
        found: dict[str, Any] = {}
        for name, future in zip(names, futures, strict=True):
            try:
                found[name] = future.result()
            except (ValueError, OSError, RuntimeError) as error:
                raise self._damaged(name, error) from error
        return found

    def _spec(self, name: str) -> dict[str, Any]:
        files: dict[str, Any] = {"driver": "file", "path": f"{self._folder}/"}
        if self._ocdbt:
            store: dict[str, Any] = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
        else:
            store = {**files, "path": f"{self._folder}/{name}/"}
        spec: dict[str, Any] = {"driver": "zarr3" if self._zarr3 else "zarr", "kvstore": store}
        if self._complete:
            spec["fill_missing_data_reads"] = False
        return spec

    def reader(self, name: str, array: Any) -> Callable[[Box], Array]:
        """Return what reads boxes of an array.

        It raises:
            CorruptionError: the data are damaged, or not there.
        """

        def read(box: Box) -> Array:
            try:
                data = array[box.slices].read().result() if box.start else array.read().result()
            except (ValueError, OSError, RuntimeError) as error:
                raise self._damaged(name, error) from error
            return np.ascontiguousarray(data).reshape(box.shape)

        return read

    def _damaged(self, name: str, error: Exception) -> CorruptionError:
        reason = str(error).partition("[source locations")[0].strip()
        text = message(
            f"{self._where} is damaged at {name}, in {self._folder}: {reason[:500]}",
            remedy="Put back the files from a copy, or leave this step out (`steps=`).",
        )
        return CorruptionError(text)


def key_generators(folder: Path) -> dict[str, str]:
    """Return the generator of each array that holds keys, by name.

    Raises:
        CorruptionError: a file that says so is damaged.
    """
    found: dict[str, str] = {}
    for file in sorted((folder / "array_metadatas").glob("process_*")):
        try:
            entries: list[Any] = records.read_object(file)["array_metadatas"]
            for entry in entries:
                said: dict[str, Any] = entry["array_metadata"]
                extra: dict[str, Any] = said.get("ext_metadata") or {}
                if "random_key_impl" in extra:
                    found[said["param_name"]] = extra["random_key_impl"]
        except (KeyError, TypeError, AttributeError) as error:
            raise records.damaged(file, "what each array is") from error
    return found


def parts(shape: tuple[int, ...], chunk: Sequence[int], itemsize: int, nbytes: int) -> Iterator[Box]:
    """Yield boxes that make up an array, each of whole chunks and at most `nbytes` where chunks are no larger."""
    block = [min(max(1, part), size) for part, size in zip(chunk, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        rest = math.prod(block) // max(1, block[axis]) * itemsize
        times = max(1, nbytes // max(1, rest * block[axis]))
        block[axis] = min(shape[axis], block[axis] * times)
    counts = [-(-size // part) if part else 0 for size, part in zip(shape, block, strict=True)]
    for index in np.ndindex(*counts):
        start = tuple(i * part for i, part in zip(index, block, strict=True))
        stop = tuple(min(a + part, size) for a, part, size in zip(start, block, shape, strict=True))
        yield Box(start, stop)
