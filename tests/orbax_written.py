# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that Orbax itself writes, in a process of its own: `python orbax_written.py folder`.

`expected` tells, without JAX, what is in them.
"""

from __future__ import annotations

import collections
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Pair = collections.namedtuple("Pair", ["a", "b"])


class Nothing(NamedTuple):
    """A state of Optax that holds nothing."""


W = np.arange(64, dtype=np.float32).reshape(8, 8)
LARGE = np.arange(90_000, dtype=np.float32).reshape(300, 300)


def expected(step: int) -> dict[str, Any]:
    """Return what a saved tree reads as: dicts, lists and NumPy arrays."""
    return {
        "w": W + step,
        "bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "fp8": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
        "int4": np.array([1, -2, 3]).astype(ml_dtypes.int4),
        "complex": np.full(2, 1 + 2j, np.complex64),
        "scalar_array": np.float32(3).reshape(()),
        "numpy": np.arange(5, dtype=np.int64),
        "int": 3,
        "float": 2.5,
        "bool": True,
        "none": None,
        "nothing": None,
        "empty": {"dict": {}, "list": [], "tuple": ()},
        "list": [np.ones(3, np.float32), {"z": np.zeros(1, np.float16)}],
        "tuple": [np.zeros(2, np.float32), 7],
        "pair": {"a": np.ones(2, np.float32), "b": 4},
        "a.b": {"c/d": np.ones(1, np.float32)},
    }


def tree(step: int) -> dict[str, Any]:
    """Return the tree that is saved, on four devices."""
    import jax

    devices = np.array(jax.devices()).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("x", "y"))
    put, told = jax.numpy.asarray, expected(step)
    return {
        **told,
        "w": jax.device_put(told["w"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))),
        **{name: put(told[name]) for name in ("bf16", "fp8", "int4", "complex", "scalar_array")},
        "nothing": Nothing(),
        "list": [put(told["list"][0]), told["list"][1]],
        "tuple": (put(told["tuple"][0]), 7),
        "pair": Pair(put(told["pair"]["a"]), 4),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
    }


def loss(metrics: Any) -> float:
    return metrics["loss"]


def write(root: Path) -> None:
    """Write one directory for each kind."""
    import jax
    import orbax.checkpoint as ocp
    from orbax.checkpoint import v1

    options = ocp.CheckpointManagerOptions
    with ocp.CheckpointManager(root / "single", options=options(best_fn=loss), metadata={"run": "x"}) as manager:
        for step in (1, 2, 10):
            args = ocp.args.StandardSave(tree(step), custom_metadata={"of": "the item"})
            manager.save(step, args=args, metrics={"loss": 1 / step}, custom_metadata={"note": f"n{step}"})
    named = options(step_prefix="ck", step_format_fixed_length=6)
    with ocp.CheckpointManager(root / "named", options=named) as manager:
        manager.save(
            4,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave({**tree(4), "text": "hello"}),
                config=ocp.args.JsonSave({"layers": [1, None, "x"]}),
                array=ocp.args.ArraySave(jax.numpy.arange(3)),
                key=ocp.args.JaxRandomKeySave(jax.random.key(5)),
                old_key=ocp.args.JaxRandomKeySave(jax.random.PRNGKey(5)),
                numpy_key=ocp.args.NumpyRandomKeySave(np.random.RandomState(0).get_state()),
            ),
        )
    for ocdbt in (True, False):
        for zarr3 in (True, False):
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
            ocp.Checkpointer(handler).save(root / f"alone_{ocdbt}_{zarr3}".lower(), tree(0))
    cut = {"large": jax.numpy.asarray(LARGE), "w": tree(0)["w"]}
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=20_000), cut)
    ocp.PyTreeCheckpointer().save(root / "cut", cut, save_args=save_args)
    with v1.training.Checkpointer(root / "v1", custom_metadata={"run": "y"}) as checkpointer:
        checkpointer.save(1, tree(1), metrics={"loss": 1.0}, custom_metadata={"k": 1})
        checkpointer.save_checkpointables(2, {"state": tree(2), "config": {"a": 1, "b": "x"}}, force=True)
    v1.save(root / "v1_alone", {**tree(0), "text": "hello"}, custom_metadata={"q": 1})


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    write(Path(sys.argv[1]))
