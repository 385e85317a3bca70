# SPDX-License-Identifier: Apache-2.0
"""The environment of every test, and the fixtures that more than one file needs."""

from __future__ import annotations

import os
from pathlib import Path

# Set before anything loads NumPy, torch or JAX: BLAS sums in another order with another number of threads, and XLA
# reads its flags once. Child processes of tests inherit all of it.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_name] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
_DEVICES = "--xla_force_host_platform_device_count=4"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# `ci` tries the same examples in every run, so that a red run can be repeated; `dev` looks for new ones.
# Tests of stores and processes are slow by nature, which is no reason to fail them.
settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root on the local file system that does not exist yet."""
    return tmp_path / "root"


@pytest.fixture
def project() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).parent.parent
