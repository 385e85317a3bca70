# SPDX-License-Identifier: Apache-2.0
"""The items of one step: trees, arrays, keys, JSON, and whatever other handlers wrote, as the files that it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from milepost.errors import NotFoundError
from milepost.foreign import Array, ForeignArray
from milepost.interop.orbax import folders, records, trees
from milepost.model.leaf import KEY_WORDS, Box, LeafSpec, array_spec

DEFAULT = "default"
"""The name of the only item of a step, where it has none of its own."""

_JSON = ("metadata", "data.json")
_JAX_KEY, _NUMPY_KEY = "jax_random_key", "np_random_key"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a step.

    Attributes:
        kind: `tree`; `json`; `value`, a state of NumPy's generator; `files`, of a handler that is not known here.
        tree: what it holds; of `files`, their bytes by name.
        handler: the type of the handler that wrote it, as text.
        custom_metadata: what was given with it.
        shardings: of its arrays over several devices, by path.
    """

    kind: str
    tree: Any
    handler: str
    custom_metadata: Any = None
    shardings: dict[trees.Path_, dict[str, Any]] = field(default_factory=dict[trees.Path_, dict[str, Any]])


def found(folder: Path, handlers: Any) -> dict[str, tuple[Path, str]]:
    """Return folder and handler of each item of a step, by name; its metrics are none.

    Args:
        folder: of the step.
        handlers: what its record says of them: by name, or one for the only item, which then lies in the step's folder.

    Raises:
        NotFoundError: an item is not there.
        CorruptionError: a name of one cannot be.
    """
    if isinstance(handlers, str) or (folder / folders.TREE).is_file():
        return {DEFAULT: (folder, handlers if isinstance(handlers, str) else "")}
    told: dict[str, Any] = cast("dict[str, Any]", handlers) if isinstance(handlers, dict) else {}
    names = [*told, *sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name not in told)]
    items = {name: (folder / name, str(told.get(name) or "")) for name in names if not _is_metrics(folder / name)}
    for name, (place, _) in items.items():
        if place.parent != folder or name == "..":  # a stored name must not lead anywhere else
            raise records.damaged(folder / folders.METADATA, f"names of items, found {name[:80]!r}")
        if not place.is_dir():
            raise NotFoundError(f"{folder} has lost its item {name!r}: {place} is not there")
    return items


def _is_metrics(folder: Path) -> bool:
    return folder.name == "metrics" and not (folder / folders.TREE).exists()


def read(folder: Path, handler: str, where: str) -> Item:
    """Return an item, its arrays not yet read.

    Raises:
        CorruptionError: something of it is damaged.
        NotFoundError: a part of it is not there.
    """
    kind = handler.rpartition(".")[2]
    if (folder / folders.TREE).is_file():
        tree = trees.read(folder, where)
        if kind == "ArrayCheckpointHandler" and isinstance(tree.root, dict):
            return _alone(tree, handler)
        return Item("tree", tree.root, handler, tree.custom_metadata, tree.shardings)
    if (folder / _JAX_KEY / folders.TREE).is_file():
        return _jax_key(folder, handler, where)
    if (folder / _NUMPY_KEY / folders.TREE).is_file():
        return _numpy_key(folder, handler, where)
    files = [file.name for file in sorted(folder.iterdir()) if file.name != folders.COMMITTED]
    if (not kind or "Json" in kind) and len(files) == 1 and files[0] in _JSON:
        return Item("json", records.read(folder / files[0]), handler)
    return Item("files", dict(_files(folder)), handler)


def _alone(tree: trees.Tree, handler: str) -> Item:
    """Return the array that is all of an item, which Orbax stores under a name of its own."""
    root = cast("dict[str, Any]", tree.root)
    if len(root) != 1:
        return Item("tree", root, handler, tree.custom_metadata, tree.shardings)
    shardings = {path[1:]: data for path, data in tree.shardings.items()}
    return Item("tree", next(iter(root.values())), handler, tree.custom_metadata, shardings)


def _jax_key(folder: Path, handler: str, where: str) -> Item:
    typed = _said(folder / f"{_JAX_KEY}_metadata", "typed")
    item = _alone(trees.read(folder / _JAX_KEY, where), handler)
    words = item.tree
    if not typed or not isinstance(words, ForeignArray):
        return item
    # Orbax does not say of which generator: the number of words does.
    shape = words.spec.shape
    generator = next((name for name, count in KEY_WORDS.items() if shape and count == shape[-1]), None)
    if generator is None or words.spec.dtype != "uint32":
        raise records.damaged(f"{where}, {folder}", f"a key of {', '.join(KEY_WORDS)}, found {words.spec}")
    spec = LeafSpec("key", f"key<{generator}>", shape[:-1])
    return Item("tree", ForeignArray(spec, "jax", words.read, words.chunk), handler, item.custom_metadata)


def _numpy_key(folder: Path, handler: str, where: str) -> Item:
    legacy = _said(folder / f"{_NUMPY_KEY}_metadata", "legacy")
    root = trees.read(folder / _NUMPY_KEY, where).root
    return Item("value", tuple(root) if legacy and isinstance(root, list) else root, handler)  # pyright: ignore[reportUnknownArgumentType]


def _said(folder: Path, name: str) -> bool:
    file = folder / "metadata"
    try:
        return bool(records.read_object(file)[name])
    except KeyError as error:
        raise records.damaged(file, f"{name!r}") from error


def _files(folder: Path) -> Iterator[tuple[str, ForeignArray]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != folders.COMMITTED:
            shape = (file.stat().st_size,)
            name = file.relative_to(folder).as_posix()
            yield name, ForeignArray(array_spec("uint8", shape), "numpy", _bytes_of(file), shape)


def _bytes_of(file: Path) -> Any:
    def read(box: Box) -> Array:
        start, stop = (*box.start, *box.stop)
        return np.fromfile(file, np.uint8, stop - start, offset=start)

    return read
