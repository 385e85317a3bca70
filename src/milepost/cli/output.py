# SPDX-License-Identifier: Apache-2.0
"""What goes to the terminal or the pipe: JSON with a schema, aligned text, numbers for people.

Text that comes out of a store (paths, metrics, names of pins) never reaches the terminal with control characters in
it: a store of somebody else could otherwise write anywhere on the screen.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import click

from milepost.errors import UnsupportedLeafError
from milepost.model.leaf import LeafSpec
from milepost.model.value import encode

NONE = "–"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT = {"bfloat16": "bf16", "bool": "bool", "complex64": "c64", "complex128": "c128"}
_WIDTH = re.compile(r"(float|uint|int)(\d+)")


def emit(name: str, *, one_line: bool = False, **fields: Any) -> None:
    """Print one JSON object of the schema `milepost.<name>/1`, on a terminal indented unless `one_line`."""
    indent = 2 if sys.stdout.isatty() and not one_line else None
    document = {"schema": f"milepost.{name}/1", **fields}
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent))


def say(text: str = "") -> None:
    """Print a line that the caller has made safe (`cleaned`) and perhaps coloured."""
    click.echo(text)


def cleaned(text: str) -> str:
    """Return the text with control characters made visible; line ends and tabs stay."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def cell(text: str) -> str:
    """Return the text as one cell of a table: no control characters, no line ends."""
    return cleaned(re.sub(r"[\t\n]", " ", text))


def columns(
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    style: Callable[[int], Mapping[str, Any]] | None = None,
    indent: str = "",
) -> list[str]:
    """Return aligned lines of cells.

    Args:
        rows: the cells; short rows are filled up.
        right: the columns that are aligned to the right.
        style: how a row looks on a terminal, as keywords of `click.style`.
        indent: what every line begins with.
    """
    count = max((len(row) for row in rows), default=0)
    table = [[*map(cell, row), *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(count)]
    lines: list[str] = []
    for number, row in enumerate(table):
        texts = (
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        line = f"{indent}{'  '.join(texts)}".rstrip()
        looks: Mapping[str, Any] = style(number) if style is not None else {}
        lines.append(click.style(line, **looks) if looks else line)
    return lines


def count(number: int) -> str:
    """Return an integer with its digits in groups of three: `6 144 000`."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, noun: str) -> str:
    """Return `1 leaf`, `2 leaves`, `3 steps`."""
    plural = "leaves" if noun == "leaf" else f"{noun}s"
    return f"{count(number)} {noun if number == 1 else plural}"


def number(value: float) -> str:
    """Return a metric as people read it."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def short_dtype(name: str) -> str:
    """Return `bf16`, `f32`, `i64`; other names as they are."""
    match = _WIDTH.fullmatch(name)
    return f"{match[1][0]}{match[2]}" if match else _SHORT.get(name, name)


def shown(value: Any) -> str:
    """Return a saved value as text, cut to a length that fits a line."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return count(value) if abs(value) < 1 << 63 else f"({value.bit_length()} bits)"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def spec_json(spec: LeafSpec | None) -> dict[str, Any] | None:
    """Return a spec for JSON."""
    return None if spec is None else {"kind": spec.kind, "dtype": spec.dtype, "shape": list(spec.shape)}


def plain(value: Any) -> Any:
    """Return a value for JSON, tagged as in the format where JSON has no such thing (NaN, dates, bytes)."""
    try:
        return encode(value)
    except UnsupportedLeafError:
        return str(value)


def stamp(time: dt.datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return None if time is None else time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers among the metrics by their dotted path."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat_metrics(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        elif not isinstance(value, bool | str | bytes) and (score := _number(value)) is not None:
            found[f"{prefix}{name}"] = score
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
