# SPDX-License-Identifier: Apache-2.0
"""The words that are stored with a checkpoint: why it was saved, and the names that keep it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

FINAL = "final"
"""The reason of a save at the end of a run."""
EMERGENCY = "emergency"
"""The reason of a save because something went wrong, and the state may be lost otherwise."""

MAX_WORDS = 200


def checked_words(text: object, what: str) -> str:
    """Return a text that is fit to be stored and shown in one line.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, longer than 200 characters, or not printable.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}: expected text, found {text!r}")
    if not text.strip():
        raise ValueError(f"{what}: expected a few words, found {text!r}")
    if len(text) > MAX_WORDS:
        raise ValueError(f"{what}: {len(text)} characters are more than {MAX_WORDS}\n  Put the rest into `metadata`.")
    if not text.isprintable():
        raise ValueError(f"{what}: {text!r} has characters that do not print in one line\n  Put it into `metadata`.")
    return text


def pin_names(pin: str | Iterable[str] | None) -> list[str]:
    """Return the names that a save was given as `pin`, each once.

    Raises:
        TypeError, ValueError: one is not fit to be stored.
    """
    if pin is None:
        return []
    if isinstance(cast("object", pin), bytes) or not isinstance(cast("object", pin), Iterable):
        raise TypeError(f"pin: expected a name or several, found {pin!r}")
    names = [pin] if isinstance(pin, str) else list(pin)
    return list(dict.fromkeys(checked_words(name, "pin") for name in names))
