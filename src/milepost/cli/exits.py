# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and how an error becomes one.

| code | meaning |
|---|---|
| 0 | fine |
| 1 | failed |
| 2 | the command line is wrong |
| 3 | they differ (`diff --exit-code`), or the step was never finished |
| 4 | damaged |
| 10 | no such store |
| 11 | busy: another process writes there, or reads what was to go |
| 12 | no such step or leaf |
| 13 | access denied |
| 14 | of a newer format |
| 75 | saved and interrupted: run the same command again (programs that save; EX_TEMPFAIL of sysexits.h) |
| 130 | Ctrl-C |
"""

from __future__ import annotations

import errno
from typing import IO, Any

import click

from milepost.cli.output import cleaned
from milepost.errors import CheckpointError, ConflictError, CorruptionError, FormatError, NotFoundError, StorageError

OK, FAILED, USAGE, DIFFERS, INCOMPLETE, DAMAGED = 0, 1, 2, 3, 3, 4
NO_STORE, BUSY, NO_STEP, DENIED, NEWER, INTERRUPTED = 10, 11, 12, 13, 14, 130

NO_STORE_CODE = "no_store"
"""The code of a NotFoundError that is about the store itself, not about something in it."""


class Refusal(click.ClickException):
    """An outcome of ours that ends the command: what happened, what to do, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code  # pyright: ignore[reportAttributeAccessIssue] click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        complain(self.message)


def complain(text: str) -> None:
    """Say on stderr what is wrong."""
    click.echo(f"{click.style('milepost:', fg='red', bold=True)} {cleaned(text)}", err=True)


def exit_code(error: CheckpointError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, CorruptionError):
        return DAMAGED
    if isinstance(error, NotFoundError):
        return NO_STORE if error.code == NO_STORE_CODE else NO_STEP
    if isinstance(error, ConflictError):
        return BUSY if error.code in ("locked", "busy") else FAILED
    if isinstance(error, FormatError):
        return NEWER if error.code == "newer" else FAILED
    if isinstance(error, StorageError):
        return DENIED if error.code == "denied" else FAILED
    return FAILED


def system_text(error: OSError) -> str:
    """Return what a system error says, with the file if it names one."""
    reason = error.strerror or str(error) or errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{error.filename}: {reason}" if error.filename else reason
