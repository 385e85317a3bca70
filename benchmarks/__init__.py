# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of milepost beside other libraries and beside the floors of this machine: `python -m benchmarks`."""
