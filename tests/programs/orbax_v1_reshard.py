# SPDX-License-Identifier: Apache-2.0
"""A user's program with Orbax v1 that saves several things, and restores parts of them on another mesh.

Run with a folder as its argument, on four devices.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp


def sharded(mesh, *spec):
    return NamedSharding(mesh, PartitionSpec(*spec))


class Batches:
    """A data iterator that saves itself."""

    def __init__(self):
        self.position = 0

    def take(self):
        self.position += 1
        return self.position

    async def save(self, directory):
        text = json.dumps({"position": self.position})

        async def write():
            folder = await directory.await_creation()
            (folder / "position.json").write_text(text)

        return write()

    async def load(self, directory):
        async def read():
            self.position = json.loads((directory / "position.json").read_text())["position"]

        return read()


root = Path(sys.argv[1]) / "sharded"
devices = np.array(jax.devices())
row = Mesh(devices.reshape(4), ("data",))
grid = Mesh(devices.reshape(2, 2), ("data", "model"))

batches = Batches()
for _ in range(5):
    batches.take()
model = {
    "encoder": {"kernel": jax.device_put(jnp.arange(32.0).reshape(8, 4), sharded(row, "data")), "bias": jnp.ones(4)},
    "decoder": {"kernel": jax.device_put(jnp.ones((4, 4), jnp.bfloat16), sharded(row, None, "data"))},
    "layers": [np.arange(3), np.arange(2)],
}
with ocp.training.Checkpointer(root) as ckptr:
    print(
        "saved",
        ckptr.save_checkpointables(7, {"model": model, "batches": batches, "settings": {"lr": 0.1, "name": "a"}}),
    )
    print("holds", sorted(ckptr.checkpointables_metadata(7).metadata))

abstract = {
    "encoder": {
        "kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharded(grid, "model", "data")),
        "bias": jax.ShapeDtypeStruct((4,), jnp.bfloat16, sharding=sharded(grid)),
    },
    "decoder": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=sharded(grid, "data", "model"))},
    "layers": [np.zeros(3, int), np.zeros(2, int)],
}
with ocp.training.Checkpointer(root) as ckptr:
    fresh = Batches()
    loaded = ckptr.load_checkpointables(None, {"model": abstract, "batches": fresh})
    print("names", sorted(loaded), "next batch", fresh.take(), loaded["batches"] is fresh)
    for name in ("encoder", "decoder"):
        kernel = loaded["model"][name]["kernel"]
        shard = kernel.addressable_shards[1]
        print(name, kernel.dtype, kernel.sharding.spec, float(kernel.sum()), shard.index, np.asarray(shard.data).shape)
    print("bias", loaded["model"]["encoder"]["bias"].dtype)

    part = {**abstract, "decoder": {"kernel": ocp.PLACEHOLDER}, "layers": [ocp.PLACEHOLDER, np.zeros(2, int)]}
    loaded = ckptr.load(7, part, checkpointable_name="model")
    print("left out", loaded["decoder"]["kernel"], loaded["layers"][0], loaded["layers"][1].tolist())

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ckptr.load(7, {"encoder": abstract["encoder"]}, checkpointable_name="model")
        print("by omission", sorted(loaded), loaded["encoder"]["kernel"].sharding.spec)
    try:
        with context:
            context.pytree.loading.partial_load = False
    except RuntimeError:
        print("an active context does not change")

    context = ocp.Context()
    context.array.loading.enable_padding_and_truncation = True
    with context:
        larger = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=sharded(grid, "data", "model"))
        wide = {**abstract, "encoder": {**abstract["encoder"], "kernel": larger}}
        kernel = ckptr.load(7, wide, checkpointable_name="model")["encoder"]["kernel"]
        print("filled up", kernel.shape, np.asarray(kernel)[0].tolist(), kernel.sharding.spec)

    print("as saved", ckptr.load(7, checkpointable_name="model")["encoder"]["kernel"].sharding.spec)
    print("settings", ckptr.load(7, checkpointable_name="settings"))
    missing = {**abstract, "head": jax.ShapeDtypeStruct((4,), jnp.float32)}
    try:
        ckptr.load(7, missing, checkpointable_name="model")
    except (KeyError, ValueError) as error:
        print("does not fit:", "head" in str(error))
    try:
        ckptr.load_checkpointables(7, {"optimizer": None})
    except KeyError:
        print("no optimizer")
    print(
        "deleted",
        ckptr.delete(7, checkpointable_name="settings"),
        sorted(ckptr.load_checkpointables(7, {"model": None})),
    )
