# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal for what takes longer than a second: share, rate and time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, final

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


@final
class Progress:
    """Counts bytes; shows them once the work has lasted `after_s` seconds, and nothing where there is no terminal.

    Args:
        what: what is being done.
        nbytes: how much there is to do.
        after_s: seconds without a bar.
    """

    def __init__(self, what: str, nbytes: int, *, after_s: float = 1.0) -> None:
        self._what, self._nbytes, self._done = what, nbytes, 0
        self._start_s = time.monotonic() + after_s
        self._terminal = sys.stderr.isatty()
        self._bar: Bar | None = None

    def __call__(self, nbytes: int) -> None:
        """Note that so many more bytes are done."""
        self._done += nbytes
        if not self._terminal or time.monotonic() < self._start_s:
            return
        if self._bar is None:
            self._bar = _started(self._what, self._nbytes)
        self._bar.update(self._bar.task_ids[0], completed=self._done)

    def about(self, what: str) -> None:
        """Say what is being done now."""
        self._what = what
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what)

    def line(self, text: str) -> None:
        """Print a line on stdout without disturbing the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        click.echo(text)
        sys.stdout.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _started(what: str, nbytes: int) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    bar.add_task(what, total=nbytes)
    bar.start()
    return bar
