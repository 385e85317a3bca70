# SPDX-License-Identifier: Apache-2.0
"""Errors that users of the door catch, under the names and the base classes that they have in Orbax."""

from __future__ import annotations

import milepost as mp


class InvalidLayoutError(ValueError):
    """There is no checkpoint at a path, or none of that item."""


class DeletionInProgressError(RuntimeError):
    """Never raised here: what is deleted is gone at once, or not at all."""


class DeletionRecoveryError(RuntimeError):
    """Never raised here: an interrupted deletion leaves nothing that would have to be recovered."""


class UnsupportedLeafError(mp.UnsupportedLeafError, ValueError):
    """A value cannot be stored. In Orbax a ValueError, so it is one here too."""
