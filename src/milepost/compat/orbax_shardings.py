# SPDX-License-Identifier: Apache-2.0
"""Shardings of JAX as data, for both front doors of Orbax: so arrays come back as they were, if nobody says how."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from milepost.compat.orbax_trees import Path, jax


def described(array: Any) -> dict[str, Any] | None:
    """Return the sharding of a JAX array as JSON data; None when it lies on one device, or cannot be described."""
    module = jax()
    if module is None or not isinstance(array, module.Array):
        return None
    sharding: Any = array.sharding
    if not isinstance(sharding, module.sharding.NamedSharding) or len(sharding.device_set) == 1:
        return None
    parts: list[Any] = []
    for part in sharding.spec:
        if part is not None and not isinstance(part, str | tuple):
            return None  # an unconstrained dimension
        parts.append(list(cast("tuple[str, ...]", part)) if isinstance(part, tuple) else part)
    mesh = sharding.mesh
    return {
        "axes": list(mesh.axis_names),
        "shape": list(mesh.devices.shape),
        "devices": [int(device.id) for device in mesh.devices.flat],
        "spec": parts,
    }


def restored(data: Mapping[str, Any] | None) -> Any:
    """Return the sharding that `described` saw, None when this machine does not have its devices.

    An array of a single device stays uncommitted, so that a jitted program may still move it.
    """
    module = jax()
    if module is None or data is None:
        return None
    there = {device.id: device for device in module.devices()}
    if not all(number in there for number in data["devices"]):
        return None
    devices = np.array([there[number] for number in data["devices"]], dtype=object).reshape(data["shape"])
    spec = [tuple(cast("list[str]", part)) if isinstance(part, list) else part for part in data["spec"]]
    mesh = module.sharding.Mesh(devices, tuple(data["axes"]))
    return module.sharding.NamedSharding(mesh, module.sharding.PartitionSpec(*spec))


def folded(shardings: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """Return shardings by path with each different one once: a model has few of them, and many leaves."""
    different: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for path, data in shardings.items():
        if data not in different:
            different.append(data)
        places[json.dumps(list(path))] = different.index(data)
    return {"all": different, "of": places}


def lookup(record: Mapping[str, Any], name: str) -> Callable[[Path], dict[str, Any] | None]:
    """Return what tells the described sharding of each leaf of an item."""
    every: list[Any] = record.get("all", [])
    places: Mapping[str, int] = record.get("of", {})

    def of(path: Path) -> dict[str, Any] | None:
        place = places.get(json.dumps([name, *path]))
        return None if place is None else every[place]

    return of
