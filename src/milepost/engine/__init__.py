# SPDX-License-Identifier: Apache-2.0
"""Plan, capture, transfer, commit: how bytes get to the store and back."""
