# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other libraries wrote, and checkpoints for them to read."""
