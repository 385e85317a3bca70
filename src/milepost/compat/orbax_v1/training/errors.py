# SPDX-License-Identifier: Apache-2.0
"""Errors of a Checkpointer."""

from __future__ import annotations


class StepAlreadyExistsError(FileExistsError):
    """The step to be saved is there already.

    Attributes:
        step: the step.
        path: where it lies.
    """

    def __init__(self, text: str = "", *, step: int | None = None, path: str | None = None) -> None:
        super().__init__(text)
        self.step, self.path = step, path


class StepNotFoundError(FileNotFoundError):
    """There is no such step, or none at all.

    Attributes:
        step: the step that was asked for.
        path: the root.
    """

    def __init__(self, text: str = "", *, step: int | None = None, path: str | None = None) -> None:
        super().__init__(text)
        self.step, self.path = step, path
