# SPDX-License-Identifier: Apache-2.0
"""Array formats that take NumPy arrays: safetensors, np.savez, zarr, and tensorstore's drivers."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers import CopyThenThread, Peer, State, Wait


def _plain(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return bfloat16 as the integers behind it, for formats that know NumPy's own dtypes only."""
    return value.view(np.uint16) if value.dtype.name == "bfloat16" else value


class Savez(CopyThenThread):
    """`numpy.savez`, uncompressed."""

    def save(self, step: int, state: State) -> None:
        np.savez(self.path(step) + ".npz", **{path: _plain(value) for path, value in state.items()})

    def load(self, step: int, state: State) -> State:
        with np.load(self.path(step) + ".npz") as file:
            return {path: file[path] for path in state}

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        with np.load(self.path(step) + ".npz") as file:
            return file[path]


class SafetensorsNumPy(CopyThenThread):
    """`safetensors.numpy`."""

    def save(self, step: int, state: State) -> None:
        from safetensors.numpy import save_file

        save_file({path: _plain(value) for path, value in state.items()}, self.path(step))

    def load(self, step: int, state: State) -> State:
        from safetensors.numpy import load_file

        return load_file(self.path(step))

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        from safetensors import safe_open

        with safe_open(self.path(step), "np") as file:
            return file.get_tensor(path)


class Zarr(CopyThenThread):
    """zarr-python, format 3, one chunk an array, no compression."""

    def save(self, step: int, state: State) -> None:
        import zarr

        group = zarr.open_group(self.path(step), mode="w", zarr_format=3)
        for path, value in state.items():
            plain = _plain(value)
            array = group.create_array(path, shape=plain.shape, dtype=plain.dtype, chunks=plain.shape, compressors=None)
            array[...] = plain

    def load(self, step: int, state: State) -> State:
        import zarr

        group = zarr.open_group(self.path(step), mode="r")
        return {path: group[path][...] for path in state}

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        import zarr

        return zarr.open_group(self.path(step), mode="r")[path][...]


class Zarr3(Peer):
    """tensorstore, its zarr3 driver on files: one chunk an array, no compression."""

    syncs = "some"

    def open(self, folder: Any) -> None:
        import tensorstore

        super().open(folder)
        self._ts: Any = tensorstore
        self._context = tensorstore.Context()

    def _kvstore(self, step: int, path: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.path(step)}/{path}/"}

    def _spec(self, step: int, path: str, value: Any = None) -> dict[str, Any]:
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": self._kvstore(step, path)}
        if value is not None:
            spec["metadata"] = {
                "shape": value.shape,
                "data_type": value.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": value.shape}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            }
        return spec

    def _begun(self, step: int, state: State, transaction: Any = None) -> list[Any]:
        options = {"create": True, "context": self._context, "transaction": transaction}
        opened = [(value, self._ts.open(self._spec(step, path, value), **options)) for path, value in state.items()]
        return [future.result().write(value) for value, future in opened]

    def save(self, step: int, state: State) -> None:
        for write in self._begun(step, state):
            write.result()

    def start(self, step: int, state: State) -> Wait:
        writes = self._begun(step, state)
        for write in writes:
            write.copy.result()  # from here on the arrays may change
        return lambda: [write.result() for write in writes]

    def _read(self, step: int, paths: list[str]) -> State:
        context = self._ts.Context()  # a new one: nothing is cached
        opened = [(path, self._ts.open(self._spec(step, path), open=True, context=context)) for path in paths]
        reads = [(path, future.result().read()) for path, future in opened]
        return {path: read.result() for path, read in reads}

    def load(self, step: int, state: State) -> State:
        return self._read(step, list(state))

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        return self._read(step, [path])[path]


class Ocdbt(Zarr3):
    """tensorstore, zarr3 in one OCDBT database, all arrays in one transaction."""

    def _kvstore(self, step: int, path: str) -> dict[str, Any]:
        return {"driver": "ocdbt", "base": f"file://{self.path(step)}/", "path": path + "/"}

    def save(self, step: int, state: State) -> None:
        self.start(step, state)()

    def start(self, step: int, state: State) -> Wait:
        transaction = self._ts.Transaction(atomic=False)
        for write in self._begun(step, state, transaction):
            write.copy.result()
        return transaction.commit_async().result
