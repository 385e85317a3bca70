# SPDX-License-Identifier: Apache-2.0
"""What evaluation jobs use: follow the steps that another job writes; and arguments to restore with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

import milepost as mp
from milepost.compat.orbax import places, step, trees
from milepost.compat.orbax.leaf_args import PLACEHOLDER, ArrayRestoreArgs, RestoreArgs
from milepost.compat.orbax.metadata import ArrayMetadata, Metadata, ScalarMetadata, StringMetadata, TreeMetadata
from milepost.compat.orbax.trees import jax


def checkpoints_iterator(
    checkpoint_dir: Any,
    *,
    min_interval_secs: float = 0,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: step.NameFormat | None = None,
    snapshot_dir: Any = None,  # noqa: ARG001
    set_immutable: bool | None = None,  # noqa: ARG001
    ignore_snapshot_errors: bool | None = True,  # noqa: ARG001
) -> Iterator[int]:
    """Yield the latest step whenever there is a new one; those in between are left out.

    While the caller works with a step, it is not deleted: a lease holds it. No copy is made, so `snapshot_dir`,
    `set_immutable` and `ignore_snapshot_errors` change nothing.

    Args:
        checkpoint_dir: the directory of a manager; it may not be there yet.
        min_interval_secs: at least so long between two steps.
        seconds_to_sleep: between two looks.
        timeout: stop when nothing new has come for so long; None: never.
        timeout_fn: asked when that has passed; False: go on.
        step_prefix, step_format_fixed_length, step_name_format: only steps that are named like that.
    """
    last: int | None = None
    while True:
        with wait_for_new_checkpoint(
            checkpoint_dir,
            until_step=None if last is None else last + 1,
            seconds_to_sleep=seconds_to_sleep,
            timeout=timeout,
            timeout_fn=timeout_fn,
            step_prefix=step_prefix,
            step_format_fixed_length=step_format_fixed_length,
            step_name_format=step_name_format,
        ) as found:
            if found == -1:
                return
            started_s = time.monotonic()
            last = found
            yield found
        time.sleep(max(0.0, started_s + min_interval_secs - time.monotonic()))


@contextlib.contextmanager
def wait_for_new_checkpoint(
    checkpoint_dir: Any,
    *,
    until_step: int | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: step.NameFormat | None = None,
    snapshot_dir: Any = None,  # noqa: ARG001
    set_immutable: bool | None = None,  # noqa: ARG001
    ignore_snapshot_errors: bool | None = True,  # noqa: ARG001
) -> Generator[int]:
    """Wait for a step, the latest, of at least `until_step`; it is not deleted within the `with`.

    Yields:
        the step; -1 when `timeout` seconds have passed and `timeout_fn`, if there is one, says so.
    """
    directory = places.absolute(checkpoint_dir)
    wanted = step_name_format
    if wanted is None and (step_prefix is not None or step_format_fixed_length is not None):
        wanted = step.standard_name_format(step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length)
    stop_s = None if timeout is None else time.monotonic() + timeout
    while True:
        found = _latest(directory, wanted)
        if found is not None and (until_step is None or found[0] >= until_step):
            try:
                hold = found[1].lease()
            except mp.NotFoundError:
                continue  # deleted since it was listed
            with hold:
                yield found[0]
            return
        if stop_s is not None and time.monotonic() + seconds_to_sleep > stop_s and (timeout_fn is None or timeout_fn()):
            yield -1
            return
        time.sleep(seconds_to_sleep)


def _latest(directory: Path, wanted: step.NameFormat | None) -> tuple[int, mp.Checkpoint] | None:
    """Return the highest step, and its checkpoint; None when there is none."""
    paths = {number: path for path, number in step.folders(directory)}
    named = [number for number, path in paths.items() if wanted is None or wanted.build_name(number) == path.name]
    if not named:
        return None
    try:
        return max(named), places.find(paths[max(named)]).checkpoint
    except FileNotFoundError:  # deleted since it was listed
        return None


def construct_restore_args(
    target: Any,
    sharding_tree: Any = None,
    set_global_shape: bool = True,
    support_layout: bool = False,  # noqa: ARG001
    strict: bool = True,
) -> Any:
    """Return arguments to restore each leaf as it is in `target`: its type, dtype, shape and sharding.

    Args:
        target: a tree of arrays, specs, numbers and text, or the metadata of an item.
        sharding_tree: shardings to use instead, in the same structure.
        set_global_shape: whether another shape than the target's is an error.
        support_layout: nothing here; memory layouts are JAX's own choice.
        strict: False: cut or pad to the target's shape.
    """

    def leaf(path: trees.Path, value: Any) -> RestoreArgs:
        placed = getattr(value, "sharding", None) if sharding_tree is None else trees.at(sharding_tree, path)
        return _args_for(value, placed, set_global_shape, strict)

    if isinstance(target, TreeMetadata):
        sharding_tree = sharding_tree.tree if isinstance(sharding_tree, TreeMetadata) else sharding_tree
        return TreeMetadata(tree=trees.mapped(target.tree, leaf), custom_metadata=target.custom_metadata)
    return trees.mapped(target, leaf)


def _args_for(value: Any, placed: Any, set_global_shape: bool, strict: bool) -> Any:
    if value is None:
        return None
    if value is PLACEHOLDER:
        return RestoreArgs(restore_type=type(...))
    if isinstance(value, str | StringMetadata):
        return RestoreArgs(restore_type=str)
    if isinstance(value, ScalarMetadata):
        return RestoreArgs(restore_type=type(np.zeros((), value.dtype).item()), dtype=value.dtype)
    kind: Any = cast("Any", type(value))
    if issubclass(kind, np.ndarray):
        return RestoreArgs(restore_type=kind, dtype=value.dtype)
    if issubclass(kind, bool | int | float | complex | np.number):
        return RestoreArgs(restore_type=kind)
    module: Any = jax()
    is_jax = module is not None and isinstance(value, module.Array)
    if not is_jax and not isinstance(value, ArrayMetadata) and not hasattr(value, "shape"):
        raise ValueError(f"Unsupported type of {'metadata' if isinstance(value, Metadata) else 'leaf'}: {kind}")
    if placed is None and not is_jax:
        return RestoreArgs(restore_type=np.ndarray, dtype=value.dtype)
    is_key = is_jax and bool(jax().dtypes.issubdtype(value.dtype, jax().dtypes.prng_key))
    return ArrayRestoreArgs(
        sharding=placed,
        global_shape=tuple(value.shape) if set_global_shape and not is_key else None,
        dtype=None if is_key else value.dtype,
        strict=strict,
    )
