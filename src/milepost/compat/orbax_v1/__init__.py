# SPDX-License-Identifier: Apache-2.0
"""The front door of Orbax's v1 API: `import milepost.compat.orbax_v1 as ocp` in place of its own `v1`.

The same names, arguments and results, on milepost's engine and in its format. `docs/doors/orbax_v1.md` lists every
name, and what is better here.
"""

from milepost.compat.orbax_v1 import (
    arrays,
    errors,
    handlers,
    multihost,
    options,
    partial,
    path,
    training,
    tree,
)
from milepost.compat.orbax_v1.context import Context
from milepost.compat.orbax_v1.described import CheckpointMetadata, PyTreeMetadata
from milepost.compat.orbax_v1.free import (
    checkpointables_metadata,
    delete,
    delete_async,
    is_orbax_checkpoint,
    load,
    load_async,
    load_checkpointables,
    load_checkpointables_async,
    load_pytree,
    load_pytree_async,
    metadata,
    pytree_metadata,
    save,
    save_async,
    save_checkpointables,
    save_checkpointables_async,
    save_pytree,
    save_pytree_async,
)
from milepost.compat.orbax_v1.leaves import PLACEHOLDER
from milepost.compat.orbax_v1.registry import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    StatefulCheckpointable,
)
from milepost.compat.orbax_v1.response import AsyncResponse

__all__ = [
    "PLACEHOLDER", "AbstractCheckpointable", "AsyncResponse", "CheckpointMetadata", "Checkpointable",
    "CheckpointableHandler", "Context", "PyTreeMetadata", "StatefulCheckpointable", "arrays",
    "checkpointables_metadata", "delete", "delete_async", "errors", "handlers", "is_orbax_checkpoint", "load",
    "load_async", "load_checkpointables", "load_checkpointables_async", "load_pytree", "load_pytree_async", "metadata",
    "multihost", "options", "partial", "path", "pytree_metadata", "save", "save_async", "save_checkpointables",
    "save_checkpointables_async", "save_pytree", "save_pytree_async", "training", "tree",
]  # fmt: skip
