# SPDX-License-Identifier: Apache-2.0
"""What programs call as `ocp.utils`."""

from __future__ import annotations

from typing import Any

from milepost.compat.orbax import trees
from milepost.compat.orbax.processes import (
    broadcast_one_to_all,
    is_pathways_backend,
    is_primary_host,
    reached_preemption,
    sync_global_processes,
)
from milepost.compat.orbax.step import (
    TMP_DIR_SUFFIX,
    any_checkpoint_step,
    checkpoint_steps,
    checkpoint_steps_paths,
    get_save_directory,
    is_checkpoint_finalized,
    is_tmp_checkpoint,
    step_from_checkpoint_name,
    tmp_checkpoints,
)
from milepost.compat.orbax.transform_utils import from_flat_dict, to_flat_dict
from milepost.compat.orbax.tree import deserialize_tree, serialize_tree, to_shape_dtype_struct

__all__ = [
    "TMP_DIR_SUFFIX", "any_checkpoint_step", "broadcast_one_to_all", "checkpoint_steps", "checkpoint_steps_paths",
    "deserialize_tree", "from_flat_dict", "get_key_name", "get_save_directory", "is_checkpoint_finalized",
    "is_dict_key", "is_empty_node", "is_empty_or_leaf", "is_gcs_path", "is_pathways_backend", "is_primary_host",
    "is_scalar", "is_sequence_key", "is_tmp_checkpoint", "leaf_is_placeholder", "reached_preemption", "serialize_tree",
    "step_from_checkpoint_name", "sync_global_devices", "sync_global_processes", "tmp_checkpoints", "to_flat_dict",
    "to_shape_dtype_struct", "tuple_path_from_keypath",
]  # fmt: skip

sync_global_devices = sync_global_processes


def is_scalar(x: Any) -> bool:
    """Return whether a value is a number of Python or NumPy."""
    return isinstance(x, int | float) or (hasattr(x, "dtype") and not getattr(x, "shape", None) and hasattr(x, "item"))


def is_empty_node(x: Any) -> bool:
    """Return whether a value is a container without children."""
    node = trees.opened(x)
    return x is None or (node is not None and not node.children)


def is_empty_or_leaf(x: Any) -> bool:
    """Return whether a value is a leaf, or a container without children."""
    return is_empty_node(x) or trees.opened(x) is None


def get_key_name(key: Any) -> int | str:
    """Return the name of one key of a path of JAX."""
    for attribute in ("idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key.key if type(key).__name__ == "FlattenedIndexKey" else str(key.key)


def is_dict_key(key: Any) -> bool:
    """Return whether a key of a path of JAX names an entry of a dict, or a field."""
    return type(key).__name__ in ("DictKey", "GetAttrKey")


def is_sequence_key(key: Any) -> bool:
    """Return whether a key of a path of JAX is a number."""
    return type(key).__name__ in ("SequenceKey", "FlattenedIndexKey")


def tuple_path_from_keypath(keypath: tuple[Any, ...]) -> tuple[str, ...]:
    """Return a path of JAX as text."""
    return tuple(str(get_key_name(key)) for key in keypath)


def is_gcs_path(path: Any) -> bool:
    """Return whether a path lies on Google Cloud Storage."""
    return str(path).startswith(("gs://", "/gcs/"))


def leaf_is_placeholder(leaf: Any) -> bool:
    """Return whether a leaf is to stay unread."""
    return leaf is ...
