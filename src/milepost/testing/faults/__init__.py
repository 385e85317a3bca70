# SPDX-License-Identifier: Apache-2.0
"""Let faults strike programs that save, and compare what is left with what was promised.

`python -m milepost.testing.faults --help` runs the harnesses over milepost, or over a `Subject` of yours.
"""
