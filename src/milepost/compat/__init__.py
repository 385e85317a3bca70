# SPDX-License-Identifier: Apache-2.0
"""The front doors of other libraries: their names and behaviour over the public names of milepost."""
