# SPDX-License-Identifier: Apache-2.0
"""Where the time and the bytes of a save go."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final


@final
@dataclass(slots=True)
class Anatomy:
    """Where the time and the bytes of one save went, or have gone so far.

    Attributes:
        captured_s: until the caller may go on: the tree is walked, and what can change is copied.
        hashed_s: digests; those of bytes that are written are taken meanwhile, so this is a part of `written_s` too.
        written_s: until the store has taken all bytes.
        synced_s: from then on until they are durable, the leaf table with them.
        committed_s: the manifest, and what it replaces.
        nbytes: of the arrays.
        copied_nbytes: of these were copied.
        hashed_nbytes: were digested.
        new_nbytes: are to be written, as far as that is known.
        written_nbytes: are written.
    """

    captured_s: float = 0.0
    hashed_s: float = 0.0
    written_s: float = 0.0
    synced_s: float = 0.0
    committed_s: float = 0.0
    nbytes: int = 0
    copied_nbytes: int = 0
    hashed_nbytes: int = 0
    new_nbytes: int = 0
    written_nbytes: int = 0

    def hashed(self, nbytes: int, start: float) -> None:
        """Count a digest that was begun at `start`, of the monotonic clock."""
        self.hashed_s += time.monotonic() - start
        self.hashed_nbytes += nbytes
