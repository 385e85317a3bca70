# SPDX-License-Identifier: Apache-2.0
"""The processes of the job, as JAX counts them; one, when the program has not loaded JAX."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from milepost.compat.orbax_v1.plain import jax


def process_count() -> int:
    """Return how many processes there are."""
    module = jax()
    return 1 if module is None else int(module.process_count())


def process_index() -> int:
    """Return which one this is."""
    module = jax()
    return 0 if module is None else int(module.process_index())


def is_primary_host(primary_host: int | None) -> bool:
    """Return whether this process is the primary one; with None every process is."""
    return primary_host is None or primary_host == process_index()


def is_pathways_backend() -> bool:
    """Return False: Pathways is not known here."""
    return False


async def sync_global_processes(
    key: str,  # noqa: ARG001 these are the arguments that programs pass
    *,
    operation_id: str,  # noqa: ARG001
    timeout: int | None = None,  # noqa: ARG001, ASYNC109
    processes: Collection[int] | None = None,  # noqa: ARG001
    record_event_name: str = "/jax/checkpoint/sync_global_devices_duration_sec",  # noqa: ARG001
) -> None:
    """Wait for all processes; at once, when there is one.

    Raises:
        NotImplementedError: there are several.
    """
    if process_count() > 1:
        raise NotImplementedError("several processes do not meet through this function yet")


def reached_preemption(step: int) -> bool:
    """Return whether JAX's preemption service says that all processes are to save at this step."""
    module = jax()
    if module is None:
        return False
    try:
        utils = import_module(f"{module.__name__}.experimental.multihost_utils")
        return bool(utils.reached_preemption_sync_point(step))
    except RuntimeError:  # the service is not running: `jax.distributed` was not initialized
        return False
