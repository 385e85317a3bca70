# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_DEBUG = "milepost.debug"


def _note_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True  # shared by all contexts of one command line


def debugging(ctx: click.Context) -> bool:
    """Return whether `--debug` was given, before or after the verb."""
    return bool(ctx.meta.get(_DEBUG))


@contextmanager
def log_hushed() -> Generator[None]:
    """Leave out what the library would warn of: the command itself shows it."""
    log = logging.getLogger("milepost")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def debug_option(function: _F) -> _F:
    """Add `--debug`."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_note_debug, help="Show tracebacks and the log."
    )(function)


def json_option(function: _F) -> _F:
    """Add `--json` and `--debug`, which every verb has."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema version.")
    return as_json(debug_option(function))


def metric_option(function: _F) -> _F:
    """Add `--metric`, which says what `@best` means."""
    return click.option("--metric", metavar="NAME", help="What @best is the best of; a dotted path.")(function)
