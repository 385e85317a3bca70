# SPDX-License-Identifier: Apache-2.0
"""What this door raises; the native error is always the cause."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import milepost as mp


class CheckpointError(RuntimeError):
    """A checkpoint could not be read, written or matched with the program."""


class CheckpointStateCollision(CheckpointError):
    """Two states of one session have the same identity."""


class CheckpointSerializationError(CheckpointError):
    """A value cannot be stored."""


class CheckpointStateSchemaError(CheckpointError):
    """What was saved does not fit the state that is bound."""


@contextmanager
def translated() -> Generator[None]:
    """Raise native errors as this door's own; a full or failing disk stays the OSError that it is."""
    try:
        yield
    except mp.UnsupportedLeafError as error:
        raise CheckpointSerializationError(str(error)) from error
    except mp.StorageError:
        raise
    except mp.CheckpointError as error:
        raise CheckpointError(str(error)) from error
