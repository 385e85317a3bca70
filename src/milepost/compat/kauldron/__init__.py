# SPDX-License-Identifier: Apache-2.0
"""Kauldron's `kd.ckpts`, on milepost: the same names, another engine. Works without Kauldron, and takes its states."""

from milepost.compat.kauldron import items
from milepost.compat.kauldron.checkpointer import BaseCheckpointer, Checkpointer, NoopCheckpointer
from milepost.compat.kauldron.transforms import (
    InitTransform,
    MultiTransform,
    NoopTransform,
    PartialKauldronLoader,
    SimpleCheckpointLoader,
)
from milepost.compat.orbax.options import MultiprocessingOptions

__all__ = [
    "BaseCheckpointer", "Checkpointer", "InitTransform", "MultiTransform", "MultiprocessingOptions", "NoopCheckpointer",
    "NoopTransform", "PartialKauldronLoader", "SimpleCheckpointLoader", "items",
]  # fmt: skip
