# SPDX-License-Identifier: Apache-2.0
"""The JSON files of Orbax."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

from milepost.errors import CorruptionError, NotFoundError, message

_log = logging.getLogger("milepost.interop.orbax")


def read(file: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        NotFoundError: it is not there.
        CorruptionError: it is no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{file} is not there: no checkpoint of Orbax, or one that lost a part") from error
    except ValueError as error:
        raise damaged(file, f"JSON, {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        NotFoundError: it is not there.
        CorruptionError: it holds something else.
    """
    found = read(file)
    if not isinstance(found, dict):
        raise damaged(file, "a JSON object")
    return cast("dict[str, Any]", found)


def read_advice(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file that can be done without: empty, with a warning, when it is damaged."""
    if not file.exists():
        return {}
    try:
        return read_object(file)
    except CorruptionError as error:
        _log.warning("%s; left out", str(error).partition("\n")[0])
        return {}


def damaged(place: object, expected: str) -> CorruptionError:
    """Return the error for something that is not what Orbax writes there."""
    return CorruptionError(
        message(
            f"{place} is damaged: expected {expected}",
            remedy="Put back the file from a copy, or leave this step out (`steps=`).",
        )
    )
