# SPDX-License-Identifier: Apache-2.0
"""Pure values: key paths, leaves, trees, their comparison, and the format on disk."""
