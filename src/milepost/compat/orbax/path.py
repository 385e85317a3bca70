# SPDX-License-Identifier: Apache-2.0
"""What programs reach as `ocp.path`."""

from __future__ import annotations

from milepost.compat.orbax import step

__all__ = ["step"]
