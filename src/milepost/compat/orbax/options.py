# SPDX-License-Identifier: Apache-2.0
"""Options that programs pass around. docs/doors/orbax.md says of each field what it does here."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class AsyncOptions:
    """How a save in the background behaves."""

    timeout_secs: float = 1200
    barrier_sync_fn: Any = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclass
class MultiprocessingOptions:
    """Who takes part in a save. One process saves, so these change nothing yet."""

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


@dataclass(frozen=True)
class FileOptions:
    """How files are made."""

    path_permission_mode: int | None = None
    skip_sync_file_validations: bool = False


class AtomicityMode(enum.StrEnum):
    """How a commit is made visible; here always by one create-only put of the manifest."""

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


@dataclass(frozen=True)
class AtomicityOptions:
    """How a commit is made visible."""

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclass
class MemoryLimitOptions:
    """How much memory a transfer may take, in GiB."""

    max_transfer_concurrent_gb: int | None = None
