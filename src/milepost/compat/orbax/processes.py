# SPDX-License-Identifier: Apache-2.0
"""Which process this is. One process saves, so nothing here waits for another."""

from __future__ import annotations

import sys
from typing import Any

from milepost.compat.orbax.trees import jax


def process_index() -> int:
    """Return the number of this process, 0 without JAX."""
    module = jax()
    return 0 if module is None else module.process_index()


def process_count() -> int:
    """Return the number of processes, 1 without JAX."""
    module = jax()
    return 1 if module is None else module.process_count()


def is_primary_host(primary_host: int | None) -> bool:
    """Return whether this process is the one that does what is done once; None: every one."""
    return primary_host is None or primary_host == process_index()


def reached_preemption(step: int) -> bool:
    """Return whether JAX says that the machine goes away and that all processes know; False when nobody asked it to."""
    multihost: Any = sys.modules.get("jax.experimental.multihost_utils")
    if multihost is None:
        return False
    try:
        return bool(multihost.reached_preemption_sync_point(step))
    except RuntimeError:  # the service that tells is not on
        return False


def sync_global_processes(
    name: str,
    *,
    timeout: int | None = None,
    processes: set[int] | None = None,  # noqa: ARG001 these are the arguments that programs pass
    barrier_sync_fn: Any = None,
    record_event_name: str = "/jax/checkpoint/sync_global_devices_duration_sec",  # noqa: ARG001
) -> None:
    """Wait for all processes: JAX does it where there are several."""
    if process_count() == 1:
        return
    if barrier_sync_fn is not None:
        barrier_sync_fn(key=name, timeout_ms=1000 * (timeout or 1200))
        return
    multihost: Any = sys.modules.get("jax.experimental.multihost_utils")
    if multihost is None:
        raise RuntimeError("import jax.experimental.multihost_utils to wait for other processes")
    multihost.sync_global_devices(name)


def broadcast_one_to_all(in_tree: Any, is_source: bool | None = None) -> Any:
    """Return what process 0 gave: JAX sends it where there are several."""
    if process_count() == 1:
        return in_tree
    multihost: Any = sys.modules.get("jax.experimental.multihost_utils")
    if multihost is None:
        raise RuntimeError("import jax.experimental.multihost_utils to send to other processes")
    return multihost.broadcast_one_to_all(in_tree, is_source=is_source)


def is_pathways_backend() -> bool:
    """Return whether the program runs under Pathways: never, as it has other ways to save."""
    return False
