# SPDX-License-Identifier: Apache-2.0
"""Paths, and how steps are named."""

from pathlib import Path

from milepost.compat.orbax_v1.path import step
from milepost.compat.orbax_v1.path.types import PathAwaitingCreation, PathLike

__all__ = ["Path", "PathAwaitingCreation", "PathLike", "step"]
