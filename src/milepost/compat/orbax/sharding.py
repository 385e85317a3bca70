# SPDX-License-Identifier: Apache-2.0
"""Shardings of JAX, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from milepost.compat.orbax_trees import jax


@dataclass
class ShardingMetadata:
    """A sharding, described."""

    def to_jax_sharding(self) -> Any:
        """Return the sharding over the devices of this process."""
        raise NotImplementedError


@dataclass
class SingleDeviceShardingMetadata(ShardingMetadata):
    """An array on one device."""

    device_str: str

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> SingleDeviceShardingMetadata:
        """Describe a sharding."""
        return cls(str(next(iter(jax_sharding.device_set))))

    def to_jax_sharding(self) -> Any:
        module = _loaded()
        device = next((device for device in module.local_devices() if str(device) == self.device_str), None)
        if device is None:
            raise ValueError(f"no local device is {self.device_str}: there are {module.local_devices()}")
        return module.sharding.SingleDeviceSharding(device)


@dataclass
class NamedShardingMetadata(ShardingMetadata):
    """An array over a mesh."""

    shape: Any
    axis_names: list[str]
    partition_spec: tuple[Any, ...]
    axis_types: tuple[Any, ...] | None = None
    device_mesh: Any = None

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> NamedShardingMetadata:
        """Describe a sharding."""
        mesh = jax_sharding.mesh
        return cls(
            np.array(mesh.devices.shape), list(mesh.axis_names), tuple(jax_sharding.spec), tuple(mesh.axis_types),
            [int(device.id) for device in mesh.devices.flat],
        )  # fmt: skip

    def to_jax_sharding(self) -> Any:
        module = _loaded()
        there = {device.id: device for device in module.devices()}
        numbers = list(there) if self.device_mesh is None else self.device_mesh
        if missing := [number for number in numbers if number not in there]:
            raise ValueError(f"devices {missing} of the mesh are not there: there are {module.devices()}")
        devices = np.array([there[number] for number in numbers], dtype=object).reshape(self.shape)
        mesh = module.sharding.Mesh(devices, tuple(self.axis_names), axis_types=self.axis_types)
        return module.sharding.NamedSharding(mesh, module.sharding.PartitionSpec(*self.partition_spec))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedShardingMetadata) and _data(self) == _data(other)

    __hash__ = None  # its fields may change


def _loaded() -> Any:
    module = jax()
    if module is None:
        raise ValueError("shardings are for JAX, which this program has not imported")
    return module


def _data(sharding: NamedShardingMetadata) -> tuple[Any, ...]:
    return sharding.axis_names, np.array(sharding.shape).tolist(), sharding.device_mesh, tuple(sharding.partition_spec)


def metadata_of(data: Mapping[str, Any] | None) -> ShardingMetadata | None:
    """Return what `described` gave as metadata; of an array on a single device, the first device of this process."""
    if data is None:
        module = jax()
        return None if module is None else SingleDeviceShardingMetadata(str(module.local_devices()[0]))
    spec = tuple(tuple(cast("list[str]", part)) if isinstance(part, list) else part for part in data["spec"])
    return NamedShardingMetadata(np.array(data["shape"]), data["axes"], spec, device_mesh=data["devices"])
