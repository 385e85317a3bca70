# SPDX-License-Identifier: Apache-2.0
"""The address of a node in a tree: `model/layers/3/mlp/gate`.

A key path is text: the segments of all nodes on the way, joined by `/`. The root is the empty path. It can always be
read back into the keys it was made of:

| key | segment |
|---|---|
| `str` | itself, with `%`, `/`, `@`, `*`, `?`, `[`, `]`, `{`, `}` and control characters as `%XX` (UTF-8, upper case) |
| empty `str` | `%str:` |
| index of a list or tuple | decimal, `3` |
| field of a dataclass or namedtuple | its name |
| `int`, `bool`, `float`, `bytes`, `None` | `%int:3`, `%bool:true`, `%float:0.5`, `%bytes:6869` (hex), `%none:` |

A segment is never empty, so `a//b` does not exist; `__metadata__`, reserved by safetensors, is `%5F_metadata__`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from numbers import Integral
from typing import TypeAlias

from milepost.errors import StructureError, UnsupportedLeafError

KeyPath: TypeAlias = str
Globs: TypeAlias = str | Iterable[str]

ROOT: KeyPath = ""
_SPECIAL = re.compile(r"[%/@*?\[\]{}\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(r"((?:%[0-9A-F]{2})+)")
_RESERVED = "__metadata__"
_WILDCARD = re.compile(r"(\*+|\?|\[[!^]?[^\]]+\]|\{[^}]*\})")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_MAX_RANGE = 100_000
# Not within an escape, and short enough to be read as an integer without a second thought.
_NUMBER = re.compile(r"(?<![0-9%])(?<!%[0-9A-F])[0-9]{1,18}(?![0-9])")


def segment(key: object) -> str:
    """Return the segment for one dict key.

    Raises:
        UnsupportedLeafError: the key is of a type that has no segment, or holds a lone surrogate.
    """
    if isinstance(key, str):
        text = str.__str__(key)  # what a member of an enum of texts holds, not how it prints
        if text.isalnum() and text.isascii():  # almost every key there is
            return text
        return _escaped(text) or "%str:"
    if key is None:
        return "%none:"
    if isinstance(key, bool):
        return "%bool:true" if key else "%bool:false"
    if isinstance(key, bytes):
        return f"%bytes:{key.hex()}"
    if isinstance(key, float):
        return f"%float:{float(key)!r}"
    if isinstance(key, Integral):  # NumPy's integers too
        return f"%int:{_decimal(int(key))}"
    raise UnsupportedLeafError(
        f"a key of type {type(key).__name__} ({key!r}) cannot be stored\n"
        "  Use str, int, bool, float, bytes or None as the keys of dicts."
    )


def key(text: str) -> Hashable:
    """Return the dict key that a segment stands for (a decimal index comes back as `str`).

    Raises:
        StructureError: the segment is not one that `segment` makes.
    """
    if text.isalnum() and text.isascii():
        return text
    try:
        found = _key(text)
        if segment(found) == text:
            return found
    except (KeyError, ValueError, UnsupportedLeafError):
        pass
    raise StructureError(f"{text[:200]!r} is no segment of a key path")


def _key(text: str) -> Hashable:
    if not text.startswith("%") or _ESCAPE.match(text):
        return _ESCAPE.sub(_unescape, text)
    tag, colon, value = text[1:].partition(":")
    return _TAGS[tag + colon](value)


def join(path: KeyPath, name: str) -> KeyPath:
    """Return the path of the child `name` (a segment) of the node at `path`."""
    return f"{path}/{name}" if path else name


def split(path: KeyPath) -> list[str]:
    """Return the segments of a path; the root has none."""
    return path.split("/") if path else []


def under(path: KeyPath, parent: KeyPath) -> bool:
    """Return whether `path` is `parent` or lies below it."""
    return not parent or path == parent or path.startswith(parent + "/")


def relative(path: KeyPath, parent: KeyPath) -> KeyPath:
    """Return `path` as seen from `parent`, which must be an ancestor or the node itself."""
    return path[len(parent) :].lstrip("/") if parent else path


def top_level(paths: Iterable[KeyPath]) -> list[KeyPath]:
    """Return the first segments of the paths, each once."""
    return list(dict.fromkeys(path.split("/", 1)[0] or "the root" for path in paths))


def matcher(globs: Globs) -> Callable[[KeyPath], bool]:
    """Return the test whether a path matches one of the globs.

    `*` and `?` stay within a segment, `**` spans any number of segments, `[abc]`, `[!abc]`, `{a,b}` and `{0..31}`
    choose. A glob names a node: it matches that node and everything below it, so `params` is the same as `params/**`.

    Raises:
        ValueError: a glob is malformed.
    """
    globs = [globs] if isinstance(globs, str) else list(globs)
    if not globs or ROOT in globs:
        return (lambda _: True) if globs else (lambda _: False)
    patterns = [_compiled(glob) for glob in globs]
    return lambda path: any(pattern.match(path) for pattern in patterns)


def renamer(glob: str, name: str) -> Callable[[KeyPath], KeyPath | None]:
    """Return the function that gives a path that `glob` matches its new name, and None for any other.

    The node that the glob names is renamed, and what lies below it moves along. The text that the first wildcard of
    `glob` matched is put where `name` has its first wildcard, and so on. `**` takes as much as it can.

    Raises:
        ValueError: the glob is malformed, or `name` has more wildcards than it.
    """
    pattern = _compiled(glob)
    parts = [_pieces(part) for part in split(name.strip("/"))]
    count = sum(len(part) // 2 for part in parts)
    if count > pattern.groups:
        raise ValueError(f"{name!r} has more wildcards ({count}) than {glob!r} ({pattern.groups}), which it renames")

    def renamed(path: KeyPath) -> KeyPath | None:
        match = pattern.match(path)
        if match is None:
            return None
        texts = iter(match.groups(""))
        names = ["".join(next(texts).rstrip("/") if i % 2 else piece for i, piece in enumerate(part)) for part in parts]
        return "/".join(text for text in (*names, path[match.end() :]) if text)

    return renamed


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    """Return the pattern that matches at the start of a path, with one group for each wildcard."""
    parts = split(glob.strip("/"))
    text = ""
    for place, part in enumerate(parts, 1):
        if part == "**":
            text += r"((?:[^/]+/)*)" if place < len(parts) else r"(.*)"
        else:
            pieces = (f"({_choices(piece)})" if i % 2 else re.escape(piece) for i, piece in enumerate(_pieces(part)))
            text += rf"(?=[^/]){''.join(pieces)}(?:/|\Z)"  # a segment is never empty: `*` is not the root
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise ValueError(f"malformed glob {glob!r}: {error.msg}") from None


def _pieces(part: str) -> list[str]:
    """Return the pieces of a segment of a glob: literal text at even places, wildcards at odd ones."""
    return _WILDCARD.split(part)


def _choices(wildcard: str) -> str:
    """Return the regular expression for one wildcard within a segment, without groups."""
    if wildcard[0] == "*":
        return "[^/]*"
    if wildcard[0] == "?":
        return "[^/]"
    body = wildcard[1:-1]
    if wildcard[0] == "[":
        negated = body[0] in "!^"
        items = re.findall(r"(.)-(.)|(.)", body[negated:], re.DOTALL)
        chosen = "".join(f"{re.escape(a)}-{re.escape(b)}" if a else re.escape(c) for a, b, c in items)
        return f"(?!/)[{'^' if negated else ''}{chosen}]"
    return f"(?:{'|'.join(_choice(choice) for choice in body.split(','))})"


def _choice(text: str) -> str:
    if (bounds := _RANGE.fullmatch(text)) is None:
        return "".join(_choices(piece) if i % 2 else re.escape(piece) for i, piece in enumerate(_pieces(text)))
    start, last = int(bounds[1]), int(bounds[2])
    if last - start > _MAX_RANGE:
        raise ValueError(f"the range {text} has more than {_MAX_RANGE:,} numbers")
    return "|".join(str(number).zfill(len(bounds[1])) for number in range(start, last + 1)) or "(?!)"


def numbered(path: KeyPath) -> tuple[str, list[str]]:
    """Return the path with `*` in place of every number, and the numbers."""
    return _NUMBER.sub("*", path), _NUMBER.findall(path)


def grouped(paths: Iterable[KeyPath]) -> list[tuple[str, int]]:
    """Return as few globs as easily found that match exactly these paths, each with how many it matches.

    Paths that differ in their numbers become one: `layers/{0..31}/wi`.
    """
    families: dict[str, dict[tuple[str, ...], int]] = {}
    for path in paths:
        template, numbers = numbered(path)
        families.setdefault(template, {})[tuple(numbers)] = 1
    globs: list[tuple[str, int]] = []
    for template, family in families.items():
        rows = family
        for place in reversed(range(template.count("*"))):
            rows = _merged(rows, place)
        literals = template.split("*")
        globs += [("".join(_woven(literals, numbers)), count) for numbers, count in rows.items()]
    return globs


def _merged(rows: dict[tuple[str, ...], int], place: int) -> dict[tuple[str, ...], int]:
    """Merge the rows that differ at one place only, where all still hold a single number."""
    alike: dict[tuple[str, ...], list[str]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for row, count in rows.items():
        others = row[:place] + row[place + 1 :]
        alike.setdefault(others, []).append(row[place])
        counts[others] = counts.get(others, 0) + count
    return {(*others[:place], _ranges(alike[others]), *others[place:]): count for others, count in counts.items()}


def _ranges(numbers: list[str]) -> str:
    """Return `3` for one number, else `{0..3,7}`."""
    if len(numbers) == 1:
        return numbers[0]
    runs: list[list[str]] = []
    for text in sorted(numbers, key=lambda text: (int(text), text)):
        if runs and text == str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][-1])):
            runs[-1].append(text)
        else:
            runs.append([text])
    return "{" + ",".join(run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs) + "}"


def _woven(literals: Sequence[str], numbers: Sequence[str]) -> Iterable[str]:
    yield literals[0]
    for number, literal in zip(numbers, literals[1:], strict=True):
        yield number
        yield literal


def _decimal(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # past Python's limit on digits
        raise UnsupportedLeafError(
            f"an integer of {number.bit_length()} bits cannot be the key of a dict that is stored\n"
            "  Use its bytes or its hexadecimal text as the key."
        ) from None


def _escaped(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnsupportedLeafError(
            f"the key {text!r} holds a lone surrogate, which is no text\n  Use valid text or bytes as the key."
        ) from None
    if text == _RESERVED:
        return "%5F" + text[1:]
    return _SPECIAL.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def _unescape(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode()


_TAGS: dict[str, Callable[[str], Hashable]] = {
    "int:": int,
    "bool:": {"true": True, "false": False}.__getitem__,
    "float:": float,
    "bytes:": bytes.fromhex,
    "none:": lambda _: None,
    "str:": lambda _: "",
}
