# SPDX-License-Identifier: Apache-2.0
"""A user's program that saves single checkpoints with Orbax v0, and restores parts of them, sharded otherwise.

Run with a folder as its argument.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Stats(NamedTuple):
    mean: object
    count: object


root = Path(sys.argv[1]) / "single"
mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
sharded = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, P("x", "y")))
tree = {"w": sharded, "b": np.arange(4), "stats": Stats(jnp.ones(3), 7), "lr": 0.25, "deep": [{"k": jnp.zeros((2, 3))}]}


def shown(value):
    return jax.tree.map(lambda leaf: (type(leaf).__name__, str(getattr(leaf, "dtype", "")), np.shape(leaf)), value)


with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(root / "a", tree)
    checkpointer.wait_until_finished()
    print("is there", (root / "a").exists())
    plain = checkpointer.restore(root / "a")
    print("plain", shown(plain))
    print("sharded as it was", plain["w"].sharding.spec, np.array_equal(plain["w"], sharded))
    other = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    other["w"] = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, ("x", "y"))))
    back = checkpointer.restore(root / "a", other)
    print("resharded", type(back["stats"]).__name__, back["w"].dtype, back["w"].sharding.spec, back["stats"].count)
    other["w"] = jax.ShapeDtypeStruct((9, 4), jnp.float32, sharding=NamedSharding(mesh, P()))
    print("padded", checkpointer.restore(root / "a", other, strict=False)["w"].sum(1).tolist())
    for bad in ({"w": tree["w"]}, {**tree, "more": 1}, other):
        try:
            checkpointer.restore(root / "a", bad)
        except ValueError:
            print("does not fit")
    try:
        checkpointer.save(root / "a", {"w": jnp.zeros(1)})
    except ValueError as error:
        print("taken", "already exists" in str(error))
    checkpointer.save(root / "a", {"w": jnp.zeros(1)}, force=True)
    print("replaced", shown(checkpointer.restore(root / "a")))
    print("metadata", checkpointer.metadata(root / "a").item_metadata["w"].shape)

pytree = ocp.PyTreeCheckpointer()
pytree.save(root / "b", tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(), tree))
item = {"w": 0, "lr": 0.0}
print("part", shown(pytree.restore(root / "b", args=ocp.args.PyTreeRestore(item=item, partial_restore=True))))
args = ocp.checkpoint_utils.construct_restore_args(tree)
args["w"] = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float64)
args["b"] = ocp.ArrayRestoreArgs(mesh=mesh, mesh_axes=P("x"))
whole = pytree.restore(root / "b", item=tree, restore_args=args)
print("by args", shown(whole), whole["b"].sharding.spec)
renamed = pytree.restore(
    root / "b",
    item={"weights": np.zeros((8, 4)), "lr": 0.0, "fresh": np.ones(2)},
    restore_args={"weights": ocp.RestoreArgs(), "lr": ocp.RestoreArgs(), "fresh": ocp.RestoreArgs()},
    transforms={"weights": ocp.Transform(original_key="w"), "fresh": ocp.Transform(use_fallback=True)},
)
print("renamed", {name: np.shape(value) for name, value in renamed.items()}, float(np.sum(renamed["weights"])))
skipped = pytree.restore(root / "b", args=ocp.args.PyTreeRestore(item={**tree, "w": ocp.PLACEHOLDER}))
print("skipped", skipped["w"], type(skipped["stats"]).__name__)

composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
composite.save(root / "c", args=ocp.args.Composite(a=ocp.args.StandardSave({"x": 1}), j=ocp.args.JsonSave({"y": [2]})))
print("composite", composite.restore(root / "c").j, sorted(composite.restore(root / "c").keys()))
print("an item alone", pytree.restore(root / "c" / "a"))
with ocp.AsyncCheckpointer(ocp.JsonCheckpointHandler()) as json_checkpointer:
    json_checkpointer.save(root / "d", {"z": 3}, custom_metadata={"who": "me"})
    json_checkpointer.wait_until_finished()
    print("json", json_checkpointer.restore(root / "d"), json_checkpointer.metadata(root / "d").custom_metadata)
try:
    pytree.restore(root / "nowhere")
except FileNotFoundError:
    print("nowhere")
for number in (3, 20):
    pytree.save(root / "numbered" / str(number), {"n": number})
print("steps", sorted(ocp.utils.checkpoint_steps(root / "numbered")))
