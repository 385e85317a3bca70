# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that lie in the files of another library, with the face of one of ours; and arrays on their way here.

Whoever knows such files gives the tree, with a `ForeignArray` for each array; loading, `like`, slices and shardings
then work as with a checkpoint of ours. There are no digests, so it cannot be verified.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast, final

from milepost.adapters import Array, Nature, Piece, array_bytes
from milepost.checkpoint import Checkpoint
from milepost.engine.stored import Stored
from milepost.errors import StorageError
from milepost.model import format as fmt
from milepost.model import keypath, tree
from milepost.model.format import LeafTable, Manifest, Slot, StoredArray
from milepost.model.leaf import Box, LeafSpec, data_spec
from milepost.model.value import encode


@final
@dataclass(frozen=True, slots=True, eq=False)
class ForeignArray:
    """An array in files of another library.

    Attributes:
        spec: its kind, dtype and shape.
        origin: the framework whose array was saved, `numpy` or `jax`.
        read: returns a box of its data (of keys: of their words), C-contiguous.
        chunk: the shape in which its data are cut there.
    """

    spec: LeafSpec
    origin: str
    read: Callable[[Box], Array]
    chunk: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What such a checkpoint holds.

    Attributes:
        tree: dicts, lists and tuples of ForeignArrays and values.
        time: when it was committed, ISO 8601.
        metrics, metadata: as of a checkpoint of ours.
    """

    tree: Any
    time: str
    metrics: dict[str, Any]
    metadata: dict[str, Any]


def checkpoint(step: int, folder: str, name: str, contents: Callable[[], Contents]) -> Checkpoint:
    """Return a checkpoint that lies in files of another library.

    Args:
        step: its number.
        folder: where it lies, for messages.
        name: the name of its folder.
        contents: tells what it holds, asked for once, when it is needed.
    """
    return Checkpoint(cast("Any", _Opened(step, folder, name, contents)))


@final
class _Opened:
    """The records of a checkpoint (`leafref.Opened`), made of what its reader tells."""

    rank = 0
    superseded = False

    def __init__(self, step: int, folder: str, name: str, contents: Callable[[], Contents]) -> None:
        self.root = _Root(folder)
        self.slot = Slot(name, step, 1)
        self.where = f"step {step} in {folder}"
        self.notes: list[Any] = []
        self._contents = contents

    @cached_property
    def _told(self) -> Contents:
        return self._contents()

    @cached_property
    def manifest(self) -> Manifest:
        nbytes = sum(array.spec.nbytes for array in self.stored.table.arrays.values())
        return Manifest(
            format=fmt.FORMAT, id="", root="", epoch=0, step=self.slot.step, generation=1, parent=None,
            time=self._told.time, reason="", metrics=encode(self._told.metrics), metadata=encode(self._told.metadata),
            versions={}, world=1, nbytes=nbytes, files=[], leaves="",
        )  # fmt: skip

    @cached_property
    def stored(self) -> Stored:
        flat = tree.flatten(self._told.tree, _Classifier())
        arrays: dict[str, StoredArray] = {}
        reads: dict[str, Callable[[Box], Array]] = {}
        values: dict[str, Any] = {}
        for path, leaf in flat.leaves.items():
            if not isinstance(leaf, ForeignArray):
                values[path] = encode(leaf)
                continue
            data = data_spec(leaf.spec)
            key = leaf.spec.dtype[4:-1] if leaf.spec.kind == "key" else ""
            arrays[path] = StoredArray(data.dtype, data.shape, [], key, "" if leaf.origin == "numpy" else leaf.origin)
            reads[path] = leaf.read
        table = LeafTable(format=fmt.FORMAT, packs=[], arrays=arrays, values=values, tree=flat.structure)
        return Stored(table, cast("Any", _Source(reads)), keypath.ROOT, table.tree, 0, self.where)

    def lease(self) -> _Hold:
        return _Hold()


@final
@dataclass(frozen=True, slots=True)
class _Source:
    """Reads boxes (`engine.transfer.Source`) through the other library's reader."""

    reads: dict[str, Callable[[Box], Array]]

    def read(self, path: str, array: StoredArray, wanted: Box, out: Array | None = None) -> Array:
        data = self.reads[path](wanted)
        if out is None:
            return data
        out[...] = data
        return out

    def is_plain(self, path: str, array: StoredArray) -> bool:
        return False  # nothing is read ahead

    def mapped(self, path: str, array: StoredArray) -> Array:
        return self.read(path, array, Box.whole(array.shape))


@final
@dataclass(frozen=True, slots=True)
class _Root:
    url: str

    @property
    def store(self) -> Any:
        raise StorageError(
            f"{self.url} was not written by milepost: there are no digests to check it with\n"
            "  Import it first (`milepost import`).",
            code="unsupported",
        )


@final
class _Hold:
    """Nothing is held: the other library does not know of leases."""

    supported = False

    def close(self) -> None:
        pass

    def __enter__(self) -> _Hold:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@final
class _Classifier:
    def is_array(self, value: Any) -> bool:
        return isinstance(value, ForeignArray)

    def identity(self, array: Any) -> Hashable | None:
        return None

    def provider(self, value: Any) -> None:
        return None


# Arrays on their way into a store.


@final
class _JaxAdapter:
    """Saves arrays as those of JAX, which need not be loaded."""

    name = "jax"
    immutable = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, OfJax)

    def spec(self, array: OfJax) -> LeafSpec:
        return array.spec

    def identity(self, array: OfJax) -> Hashable | None:
        return None

    def likeness(self, array: OfJax) -> Hashable | None:
        return None

    def pieces(self, array: OfJax) -> Sequence[Piece]:
        return [Piece(Box.whole(array.data.shape), array.data)]

    def start(self, pieces: Sequence[Piece]) -> None:
        pass

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        return array_bytes(piece.handle, out)

    def nature(self, value: Any) -> Nature:
        return "constant"


@final
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class OfJax:
    """An array that came from JAX, its data in host memory, to be saved as such whether JAX is there or not.

    Attributes:
        spec: its kind, dtype and shape.
        data: the data; of keys, their words.
    """

    __milepost_adapter__: ClassVar[_JaxAdapter] = _JaxAdapter()

    spec: LeafSpec
    data: Array
