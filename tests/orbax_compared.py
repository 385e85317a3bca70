# SPDX-License-Identifier: Apache-2.0
"""Restores with Orbax and with the doors, of what Orbax wrote: `python orbax_compared.py theirs ours`.

`theirs` is what `orbax_written.py` wrote, read by Orbax; `ours` the same folder, or an import of it, read by the doors.
Prints a line for each difference.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
import orbax.checkpoint as real
from orbax.checkpoint import v1 as real_v1

import milepost.compat.orbax as ours
import milepost.compat.orbax_v1 as ours_v1
from orbax_written import Nothing, Pair, loss, tree


def differences(a: Any, b: Any, path: str) -> Iterator[str]:
    """Yield where two restored trees differ, in structure, type, dtype, sharding or value."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            yield f"{path}: {sorted(set(a) ^ set(b))} on one side"
        for name in a:
            yield from differences(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        for place, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from differences(left, right, f"{path}/{place}")
    elif type(a) is not type(b):
        yield f"{path}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, jax.Array) and (a.dtype, str(a.sharding)) != (b.dtype, str(b.sharding)):
        yield f"{path}: {a.dtype}, {a.sharding} and {b.dtype}, {b.sharding}"
    elif not np.array_equal(plain(a), plain(b)):
        yield f"{path}: {a!r} and {b!r}"


def plain(value: Any) -> Any:
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(value))
    return np.asarray(value)


def told(metadata: Any) -> Any:
    return metadata.custom_metadata, metadata.init_timestamp_nsecs, metadata.commit_timestamp_nsecs // 1000


def v0_single(ocp: Any, root: Path) -> Any:
    with ocp.CheckpointManager(
        root / "single", options=ocp.CheckpointManagerOptions(create=False, best_fn=loss)
    ) as manager:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree(0))
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("z",))
        other = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("z"))
        target["w"] = jax.ShapeDtypeStruct((8, 8), np.float32, sharding=other)
        restored = manager.restore(10, args=ocp.args.StandardRestore(target))
        assert isinstance(restored["nothing"], Nothing) and isinstance(restored["pair"], Pair)
        item = manager.item_metadata(10)
        return {
            "steps": list(manager.all_steps()), "latest": manager.latest_step(), "best": manager.best_step(),
            "metrics": manager.metrics(2), "root": manager.metadata().custom_metadata,
            "step": told(manager.metadata(2)),
            "as saved": manager.restore(2, args=ocp.args.StandardRestore()), "without args": manager.restore(1),
            "to target": dict(enumerate(jax.tree.leaves(restored))),
            "shape": item["w"].shape, "dtype": item["bf16"].dtype,
            "of the item": item.custom_metadata,
        }  # fmt: skip


def v0_named(ocp: Any, root: Path) -> Any:
    options = ocp.CheckpointManagerOptions(create=False, step_prefix="ck", step_format_fixed_length=6)
    with ocp.CheckpointManager(root / "named", options=options) as manager:
        args, kinds = ocp.args, {"array": "Array", "key": "JaxRandomKey", "old_key": "JaxRandomKey"}
        wanted = {
            "state": args.PyTreeRestore(),
            "config": args.JsonRestore(),
            "numpy_key": args.NumpyRandomKeyRestore(),
        }
        wanted |= {name: getattr(args, f"{kind}Restore")() for name, kind in kinds.items()}
        return {
            "steps": list(manager.all_steps()), "by args": dict(manager.restore(4, args=args.Composite(**wanted))),
            "without args": dict(manager.restore(4).items()),
        }  # fmt: skip


def v0_alone(ocp: Any, root: Path) -> Any:
    names = [f"alone_{ocdbt}_{zarr3}" for ocdbt in ("true", "false") for zarr3 in ("true", "false")]
    return {name: ocp.PyTreeCheckpointer().restore(root / name) for name in [*names, "cut"]}


def v1_all(ocp: Any, root: Path) -> Any:
    with ocp.training.Checkpointer(root / "v1") as checkpointer:
        abstract = jax.tree.map(lambda leaf: leaf, tree(0))
        restored = checkpointer.load(1, abstract)
        assert isinstance(restored["nothing"], Nothing)
        return {
            "steps": [each.step for each in checkpointer.checkpoints],
            "root": checkpointer.root_metadata().custom_metadata,
            "metrics": checkpointer.checkpoints[0].metrics, "step": told(checkpointer.metadata(1)),
            "as saved": checkpointer.load(1), "all": checkpointer.load_checkpointables(2),
            "to target": dict(enumerate(jax.tree.leaves(restored))), "alone": ocp.load(root / "v1_alone"),
            "of it": told(ocp.metadata(root / "v1_alone")),
        }  # fmt: skip


def main(theirs: Path, root: Path) -> None:
    found = 0
    for read in (v0_single, v0_named, v0_alone):
        for line in differences(read(real, theirs), read(ours, root), read.__name__):
            print(line)
        found += 1
    for line in differences(v1_all(real_v1, theirs), v1_all(ours_v1, root), "v1"):
        print(line)
    print("compared", found + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
