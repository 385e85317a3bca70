# SPDX-License-Identifier: Apache-2.0
"""How a single leaf is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from milepost.compat.orbax.trees import jax

PLACEHOLDER = ...
"""As a leaf of an item to restore: leave what is saved there unread."""


@dataclass
class SaveArgs:
    """How a leaf is saved.

    Attributes:
        dtype: what to convert an array to.
        aggregate, chunk_byte_size, shard_axes: nothing here; the layout of files is milepost's own.
    """

    aggregate: bool = False
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()


@dataclass
class RestoreArgs:
    """How a leaf is restored.

    Attributes:
        restore_type: `np.ndarray`, `jax.Array`, `int`, `float`, ...; None: as it was saved.
        dtype: what to convert it to.
    """

    restore_type: Any = None
    dtype: Any = None


def _jax_array() -> Any:
    module = jax()
    return None if module is None else module.Array


@dataclass
class ArrayRestoreArgs(RestoreArgs):
    """How a leaf is restored as a JAX array.

    Attributes:
        mesh, mesh_axes: its sharding, unless `sharding` says it.
        sharding: of JAX, or a description of one.
        global_shape, shape: the same; what to cut or pad it to when not `strict`.
        strict: another shape than the saved one is an error.
    """

    restore_type: Any = field(default_factory=_jax_array)
    mesh: Any = None
    mesh_axes: Any = None
    sharding: Any = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if self.shape is not None and self.global_shape is not None and self.shape != self.global_shape:
            raise ValueError(f"shape {self.shape} and global_shape {self.global_shape} are the same thing")
        self.shape = self.global_shape = self.global_shape if self.shape is None else self.shape


@dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """As ArrayRestoreArgs: one process reads everything, so there is nothing to send around."""

    single_replica_sharding: Any = None
