# SPDX-License-Identifier: Apache-2.0
"""The tree of one item: its nodes as Orbax names them, and its leaves."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from milepost.errors import FormatError
from milepost.foreign import ForeignArray
from milepost.interop.orbax import folders, records
from milepost.interop.orbax.arrays import Arrays, key_generators
from milepost.model.leaf import KEY_WORDS, Box, LeafSpec, array_spec, data_spec, dtype_name

Path_ = tuple[str, ...]
_log = logging.getLogger("milepost.interop.orbax")
_SEQUENCE = 1
_EMPTY: dict[str, Callable[[], Any]] = {
    "Dict": dict, "List": list, "Tuple": tuple, "None": lambda: None, "NamedTuple": lambda: None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree in dicts and lists.

    Attributes:
        root: the tree, with a ForeignArray for each array.
        shardings: of arrays over several devices, by path.
        custom_metadata: what was given with the item.
    """

    root: Any
    shardings: dict[Path_, dict[str, Any]] = field(default_factory=dict[Path_, dict[str, Any]])
    custom_metadata: Any = None


@dataclass(frozen=True, slots=True)
class _Leaf:
    path: Path_
    sequence: tuple[bool, ...]
    kind: str
    skipped: bool

    @property
    def name(self) -> str:
        return ".".join(self.path)


def read(folder: Path, where: str) -> Tree:
    """Return the tree in a folder; numbers and texts are read, arrays are not.

    Raises:
        NotFoundError: there is no tree.
        CorruptionError: something of it is damaged.
    """
    file = folder / folders.TREE
    record = records.read_object(file)
    leaves = _leaves(file, record)
    for leaf in leaves:
        if ".." in leaf.name.split("/") or leaf.name.startswith("/"):  # a stored name must not lead anywhere else
            raise records.damaged(file, f"names of leaves, found {leaf.name[:80]!r}")
    _tell_collisions(where, leaves)
    stored = Arrays(
        folder, where, zarr3=bool(record.get("use_zarr3", False)),
        complete=bool(record.get("store_array_data_equal_to_fill_value", False)),
    )  # fmt: skip
    opened = stored.open([leaf.name for leaf in leaves if not leaf.skipped and leaf.kind != "string"])
    generators = key_generators(folder)
    shardings = _shardings(folder)
    placed: dict[Path_, dict[str, Any]] = {}
    texts = records.read_object(folder / "_strings.json") if any(leaf.kind == "string" for leaf in leaves) else {}
    values: list[tuple[_Leaf, Any]] = []
    for leaf in leaves:
        if leaf.skipped:
            values.append((leaf, _empty(leaf, file)))
        elif leaf.kind == "string":
            text = _text(texts, leaf.name)
            if text is None:
                raise records.damaged(folder / "_strings.json", f"the text of {leaf.name}")
            values.append((leaf, text))
        else:
            value = _array(leaf, stored, opened[leaf.name], generators.get(leaf.name), where)
            values.append((leaf, value))
            if isinstance(value, ForeignArray) and leaf.name in shardings:
                placed[leaf.path] = shardings[leaf.name]
    return Tree(_nested(values), placed, record.get("custom_metadata"))


def _text(texts: dict[str, Any], name: str) -> str | None:
    """Return the text of a leaf. Orbax names it by a JSON pointer, so a `/` in a name leads one level down."""
    found: Any = texts
    for part in name.split("/"):
        found = cast("dict[str, Any]", found).get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _leaves(file: Path, record: dict[str, Any]) -> list[_Leaf]:
    try:
        found: list[_Leaf] = []
        entries: dict[str, Any] = record["tree_metadata"]
        for entry in entries.values():
            keys: list[dict[str, Any]] = entry["key_metadata"]
            said: dict[str, Any] = entry["value_metadata"]
            found.append(
                _Leaf(
                    tuple(str(key["key"]) for key in keys), tuple(key["key_type"] == _SEQUENCE for key in keys),
                    str(said["value_type"]), bool(said.get("skip_deserialize", False)),
                )
            )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise records.damaged(file, "the tree of an item") from error
    return found


def _tell_collisions(where: str, leaves: list[_Leaf]) -> None:
    for name, count in Counter(leaf.name for leaf in leaves).items():
        if count > 1:
            _log.warning(
                "%s: Orbax stored %d leaves under the one name %s; they all read as the last", where, count, name
            )


def _empty(leaf: _Leaf, file: Path) -> Any:
    """Return what Orbax stores no data for. `None` stands for None, and for a namedtuple without fields.

    Raises:
        FormatError: it is something that has data, which old versions put into a file of their own.
    """
    if leaf.kind not in _EMPTY:
        raise FormatError(
            f"{file}: the data of {leaf.name}, a {leaf.kind}, lie in an aggregate file of an old Orbax, which is not"
            " read\n  Restore it with Orbax and save it again."
        )
    return _EMPTY[leaf.kind]()


def _array(leaf: _Leaf, stored: Arrays, array: Any, generator: str | None, where: str) -> Any:
    """Return a leaf: an array not yet read, or a number."""
    shape = tuple(int(size) for size in array.shape)
    read = stored.reader(leaf.name, array)
    if leaf.kind == "scalar":
        return read(Box.whole(shape)).item()
    spec = array_spec(dtype_name(np.dtype(array.dtype.numpy_dtype)), shape)
    if generator is not None:
        key = LeafSpec("key", f"key<{generator}>", shape[:-1])
        if generator not in KEY_WORDS or data_spec(key) != spec:
            raise records.damaged(
                f"{where}, {leaf.name}", f"keys of {', '.join(KEY_WORDS)}, found {generator} in {spec}"
            )
        spec = key
    chunk = tuple(int(size) for size in array.chunk_layout.read_chunk.shape or shape)
    return ForeignArray(spec, "jax" if leaf.kind == "jax.Array" else "numpy", read, chunk)


def _nested(values: list[tuple[_Leaf, Any]]) -> Any:
    """Return the leaves as one tree of dicts, and lists in order."""
    if len(values) == 1 and not values[0][0].path:
        return values[0][1]
    root: dict[str, Any] = {}
    lists: set[Path_] = set()
    for leaf, value in values:
        node = root
        for depth, name in enumerate(leaf.path[:-1]):
            if leaf.sequence[depth]:
                lists.add(leaf.path[:depth])
            node = cast("dict[str, Any]", node.setdefault(name, {}))
        if leaf.sequence and leaf.sequence[-1]:
            lists.add(leaf.path[:-1])
        node[leaf.path[-1]] = value
    return _with_lists(root, (), lists)


def _with_lists(node: Any, path: Path_, lists: set[Path_]) -> Any:
    if not isinstance(node, dict):
        return node
    items = cast("dict[str, Any]", node)
    children = {name: _with_lists(child, (*path, name), lists) for name, child in items.items()}
    return [children[name] for name in sorted(children, key=int)] if path in lists else children


def _shardings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the shardings over several devices by the names of arrays, as the front doors record them."""
    found: dict[str, dict[str, Any]] = {}
    for name, text in records.read_advice(folder / "_sharding").items():
        try:
            told: dict[str, Any] = json.loads(text)
            if told["sharding_type"] != "NamedSharding":
                continue
            mesh = np.array(told["device_mesh"]["mesh"], dtype=object)
            if mesh.size == 1:
                continue
            found[base64.b64decode(name).decode()] = {
                "axes": list(told["axis_names"]), "shape": list(mesh.shape),
                "devices": [int(device["id"]) for device in mesh.flat], "spec": list(told["partition_spec"]),
            }  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("%s: the sharding of %s is left out: %r", folder, name, error)
    return found
