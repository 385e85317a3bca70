# SPDX-License-Identifier: Apache-2.0
"""The program behind `milepost demo`: a training run that is killed and damaged, and ends with the same numbers."""

from milepost.demo.acts import run
from milepost.demo.model import FRAMEWORKS

__all__ = ["FRAMEWORKS", "run"]
