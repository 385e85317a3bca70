# SPDX-License-Identifier: Apache-2.0
"""What is saved against what `like` asks for: every difference at once, before a byte is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import Literal, final

from milepost.errors import StructureError, folded
from milepost.model.keypath import ROOT, Globs, KeyPath, grouped, join, matcher, numbered, top_level
from milepost.model.leaf import LeafSpec
from milepost.model.rename import Hint, renamed, suggested

Difference = Literal["missing", "unexpected", "shape", "dtype", "kind"]

_PYTHON_NUMBERS = frozenset({"bool", "int", "float", "complex"})
# Names that NumPy and ml_dtypes can convert; complex32 and packed pairs (`_x2`) are handed out as raw parts.
_NUMERIC = re.compile(
    r"(?P<bool>bool)|(?P<int>u?int\d*)|(?P<complex>bcomplex32|complex(?!32$)\w*)|(?P<float>b?float(?!\w+_x2$)\w*)"
)
_LINES = 12
_COLUMN = 60
_PROBES = 8


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One leaf that does not fit.

    Attributes:
        kind: `missing` (in `like`, not saved), `unexpected` (saved, not in `like`), or what differs: `shape` (then
            the dtype may differ too), `dtype`, or `kind` (an array against a value or a key).
        path: the path in `like`; of an unexpected leaf, the path under which it was saved.
        saved: the saved spec, None when missing.
        wanted: the spec in `like`, None when unexpected.
    """

    kind: Difference
    path: KeyPath
    saved: LeafSpec | None
    wanted: LeafSpec | None


@dataclass(frozen=True, slots=True)
class _Question:
    """What `compare` was asked, and what is left on either side: all that the way out needs."""

    saved: Mapping[KeyPath, LeafSpec] = field(default_factory=dict[KeyPath, LeafSpec])
    names: Mapping[KeyPath, KeyPath] = field(default_factory=dict[KeyPath, KeyPath])  # name in `like` -> saved path
    absent: Mapping[KeyPath, LeafSpec] = field(default_factory=dict[KeyPath, LeafSpec])
    unread: Mapping[KeyPath, LeafSpec] = field(default_factory=dict[KeyPath, LeafSpec])
    rename: Mapping[str, str] = field(default_factory=dict[str, str])
    keepable: Container[KeyPath] = ()
    cast: bool = False


@final
@dataclass(frozen=True, slots=True)
class Match:
    """Which saved leaf fills which leaf of `like`.

    Attributes:
        pairs: path in `like` -> saved path, in the order of `like`.
        kept: paths in `like` that keep the value they have there.
        skipped: paths in `like` that stay unread: `mp.SKIP`, and what was not asked for and has no value to keep.
        mismatches: every difference, one entry per leaf; empty when everything fits.
        question: what was asked, from which `raise_for` finds the way out.
    """

    pairs: dict[KeyPath, KeyPath]
    kept: tuple[KeyPath, ...] = ()
    skipped: tuple[KeyPath, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    question: _Question = field(default_factory=_Question, repr=False, compare=False)

    def raise_for(self, where: str) -> None:
        """Raise when something does not fit; `where` says what was compared, as in `step 12000 of runs/7`.

        Raises:
            StructureError: with every difference, folded, and what to do.
        """
        if self.mismatches:
            raise StructureError("\n".join(_message(where, self)), mismatches=self.mismatches)


def compare(
    saved: Mapping[KeyPath, LeafSpec],
    wanted: Mapping[KeyPath, LeafSpec],
    *,
    rename: Mapping[str, str] = {},
    missing: Literal["error", "keep"] = "error",
    unexpected: Literal["error", "ignore"] = "error",
    dtype: Literal["error", "cast"] = "error",
    only: Globs | None = None,
    exclude: Globs = (),
    keepable: Container[KeyPath] = (),
) -> Match:
    """Return which saved leaf fills which wanted one, and every difference.

    Args:
        saved: path -> spec of what is stored.
        wanted: path -> spec of the leaves of `like`; kind `skip` leaves what is saved there and below unread.
        rename: globs over saved paths -> their names in `like`, see `keypath.renamer`; the first that matches counts.
        missing: `keep` lets a wanted leaf that is not saved keep its value, where it has one.
        unexpected: `ignore` leaves what is saved and not wanted unread.
        dtype: `cast` lets a numeric array fill one of another numeric dtype, but complex numbers no real one.
        only: globs over the paths of `like`: all others stay as they are.
        exclude: globs over the paths of `like` that stay as they are.
        keepable: the wanted paths that have a value.

    Raises:
        StructureError: `rename` or `only` matches nothing, or gives one name to two leaves.
        ValueError: an option has no such value.
    """
    _check("missing", missing, ("error", "keep"))
    _check("unexpected", unexpected, ("error", "ignore"))
    _check("dtype", dtype, ("error", "cast"))
    chosen, left_out = None if only is None else _globs(only), _globs(exclude)
    if not rename and chosen is None and not left_out and saved == wanted:
        return Match(dict(zip(wanted, wanted, strict=True)))
    names = renamed(saved, rename)
    asked = _asked(chosen, left_out, wanted, names)
    pairs: dict[KeyPath, KeyPath] = {}
    kept: list[KeyPath] = []
    skipped: list[KeyPath] = []
    absent: dict[KeyPath, LeafSpec] = {}
    mismatches: list[Mismatch] = []
    for path, spec in wanted.items():
        source = names.get(path)
        if spec.kind == "skip":
            skipped.append(path)
        elif not asked(path):
            (kept if path in keepable else skipped).append(path)
        elif source is None:
            absent[path] = spec
            if missing == "keep" and path in keepable:
                kept.append(path)
            else:
                mismatches.append(Mismatch("missing", path, None, spec))
        elif kind := difference(saved[source], spec, cast=dtype == "cast"):
            mismatches.append(Mismatch(kind, path, saved[source], spec))
        else:
            pairs[path] = source
    skips = {path for path in skipped if wanted[path].kind == "skip"}
    left = {name: source for name, source in names.items() if name not in wanted and not _below(name, skips)}
    unread = {source: saved[source] for name, source in left.items() if asked(name)}
    if unexpected == "error":
        mismatches += [Mismatch("unexpected", path, spec, None) for path, spec in unread.items()]
    question = _Question(saved, names, absent, unread, rename, keepable, dtype == "cast")
    return Match(pairs, tuple(kept), tuple(skipped), tuple(mismatches), question)


def _check(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option}={value!r}: expected {' or '.join(map(repr, choices))}")


def _globs(globs: Globs) -> list[str]:
    return [globs] if isinstance(globs, str) else list(globs)


def _asked(
    only: list[str] | None, exclude: list[str], wanted: Iterable[KeyPath], names: Iterable[KeyPath]
) -> Callable[[KeyPath], bool]:
    if only is None and not exclude:
        return lambda _: True
    for glob in only or ():
        # A misspelt glob would load nothing, and say nothing.
        if not any(map(matcher(glob), chain(wanted, names))):
            keys = folded(top_level(wanted))
            raise StructureError(
                f"only: {glob!r} matches no leaf of `like` and none that is saved\n  `like` has: {keys}"
            )
    chosen, left_out = matcher(ROOT if only is None else only), matcher(exclude)
    return lambda path: chosen(path) and not left_out(path)


def _below(path: KeyPath, nodes: Container[KeyPath]) -> bool:
    ends = (place for place, char in enumerate(path) if char == "/")
    return ROOT in nodes or any(path[:end] in nodes for end in ends)


def difference(saved: LeafSpec, wanted: LeafSpec, *, cast: bool = False) -> Literal["shape", "dtype", "kind"] | None:
    """Return what keeps a saved leaf from filling a wanted one, None when it fits.

    Byte order does not matter, nor do the types of values: the type of a value is data. A number fills a 0-d array of
    its family and the reverse, and an integer one of floats.
    """
    if saved == wanted or saved.kind == wanted.kind == "value":
        return None
    if saved.kind != wanted.kind and (saved.shape or wanted.shape or {saved.kind, wanted.kind} != {"array", "value"}):
        return "kind"
    if saved.shape != wanted.shape:
        return "shape"
    if saved.dtype.removeprefix(">") == wanted.dtype.removeprefix(">"):
        return None
    if saved.kind != wanted.kind:
        families = (family(saved.dtype), family(wanted.dtype))
        if {saved.dtype, wanted.dtype} & _PYTHON_NUMBERS and None not in families:
            return None if families[0] == families[1] or families == ("int", "float") else "kind"
        if None in families:
            return "kind"
    return None if cast and castable(saved.dtype, wanted.dtype) else "dtype"


def castable(saved: str, wanted: str) -> bool:
    """Return whether one dtype converts to another: numbers do, but complex ones to no real one."""
    families = (family(saved), family(wanted))
    return None not in families and (families[0] != "complex" or families[1] == "complex")


@lru_cache(maxsize=1024)
def family(dtype: str) -> str | None:
    """Return `bool`, `int`, `float` or `complex` for a dtype that NumPy can convert, else None."""
    match = _NUMERIC.fullmatch(dtype.removeprefix(">"))
    return match and match.lastgroup


_ByKind = dict[Difference, list[Mismatch]]
_TITLES: dict[Difference, tuple[str, str]] = {
    "missing": ("in `like`, not saved", "not saved"),
    "unexpected": ("saved, not in `like`", "not wanted"),
    "shape": ("another shape", "other shape"),
    "dtype": ("another dtype", "other dtype"),
    "kind": ("another kind", "other kind"),
}


def _message(where: str, match: Match) -> Iterator[str]:
    by_kind: _ByKind = {kind: [] for kind in _TITLES}
    for mismatch in match.mismatches:
        by_kind[mismatch.kind].append(mismatch)
    counts = [_counted(len(found), _TITLES[kind][1]) for kind, found in by_kind.items() if found]
    leaves = len(match.pairs) + sum(m.wanted is not None for m in match.mismatches)
    nothing = not match.pairs and not by_kind["shape"] and not by_kind["dtype"] and not by_kind["kind"]
    fitting = "nothing fits" if nothing else f"{len(match.pairs)} of {leaves} leaves fit"
    yield f"{where} does not fit `like`: {', '.join(counts)}; {fitting}."
    if nothing:
        yield "  at the top level:"
        yield f"    saved   {folded(top_level(match.question.saved)) or 'nothing'}"
        yield f"    `like`  {folded(top_level(match.question.absent)) or 'nothing'}"
    groups: dict[Difference, list[tuple[str, str, int]]] = {
        kind: _rows(found) for kind, found in by_kind.items() if found
    }
    width = max(min(len(path), _COLUMN) for rows in groups.values() for path, _, _ in rows[:_LINES])
    for kind, rows in groups.items():
        yield f"  {_TITLES[kind][0]}:"
        details = max((len(detail) for _, detail, count in rows[:_LINES] if count > 1), default=0)
        for path, detail, count in rows[:_LINES]:
            yield f"    {path:{width}}  " + (f"{detail:{details}}  x{count}" if count > 1 else detail)
        if len(rows) > _LINES:
            yield f"    … and {sum(count for _, _, count in rows[_LINES:])} more"
    yield "  To load it all the same:"
    remedies, sentences = _way_out(match, by_kind)
    width = max((min(len(code), _COLUMN) for code, text in remedies if text), default=0)
    for code, text in remedies:
        yield f"    {code:{width}}   {text}".rstrip()
    for sentence in sentences:
        yield f"    {sentence}"


def _counted(count: int, what: str) -> str:
    """Return `1 leaf`, `2 leaves`, `2 other shapes`; `not saved` has no plural."""
    if count == 1 or what.startswith("not"):
        return f"{count} {what}"
    return f"{count} {what.removesuffix('f')}ves" if what.endswith("leaf") else f"{count} {what}s"


def _rows(mismatches: list[Mismatch]) -> list[tuple[str, str, int]]:
    """Return path, detail and number of leaves of each line: leaves whose paths differ in numbers share one."""
    alike: dict[tuple[str, str], list[KeyPath]] = {}
    for mismatch in mismatches:
        alike.setdefault((numbered(mismatch.path)[0], _detail(mismatch)), []).append(mismatch.path)
    return [
        (_shortened(glob) or "the root", detail, count)
        for (_, detail), paths in alike.items()
        for glob, count in grouped(paths)
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _COLUMN else f"{text[:_COLUMN]}…{text[-_COLUMN:]}"


def _detail(mismatch: Mismatch) -> str:
    saved, wanted = mismatch.saved, mismatch.wanted
    if saved is None or wanted is None:
        return str(saved or wanted)
    if mismatch.kind == "dtype":
        return f"saved {saved.dtype}, `like` {wanted.dtype}"
    texts = [f"{spec} value" if spec.kind == "value" else str(spec) for spec in (saved, wanted)]
    return f"saved {texts[0]}, `like` {texts[1]}"


def _way_out(match: Match, by_kind: _ByKind) -> tuple[list[tuple[str, str]], list[str]]:
    """Return arguments to paste, each with what it does, and what no argument can do."""
    if levels := _levels(match):
        return levels, []
    hints = _hints(match.question)
    filled = {name: path for hint in hints for path, name in hint.moved.items() if name in match.question.absent}
    sources = set(filled.values())
    lost = [m.path for m in by_kind["missing"] if m.path not in filled]
    keepable = sum(path in match.question.keepable for path in lost)
    unread = sum(m.path not in sources for m in by_kind["unexpected"])
    dtypes = [castable(m.saved.dtype, m.wanted.dtype) for m in by_kind["dtype"] if m.saved and m.wanted]
    remedies = _rename_lines(match.question.rename, hints)
    if keepable:
        remedies.append(('missing="keep"', f"keep `like`'s own value for {_counted(keepable, 'leaf')}"))
    if unread:
        remedies.append(('unexpected="ignore"', f"leave {_counted(unread, 'saved leaf')} unread"))
    if any(dtypes):
        some = "" if all(dtypes) else f", where numbers allow it ({sum(dtypes)} of {len(dtypes)})"
        remedies.append(('dtype="cast"', f"convert to the dtypes of `like`{some}"))
    empty = len(lost) - keepable
    never = [
        (empty > 0, f"No value to keep for {_counted(empty, 'leaf')}", "values"),
        (bool(by_kind["shape"]), "Shapes are never changed", "the saved shape"),
        (not all(dtypes), "Text, keys, dates and records are never converted, nor complex to real", "the saved dtype"),
        (bool(by_kind["kind"]), "Kinds are never changed", "the saved kind"),
    ]
    return remedies, [f"{why}: pass a `like` with {what}, or `mp.SKIP` there." for holds, why, what in never if holds]


def _levels(match: Match) -> list[tuple[str, str]]:
    """Return the nodes below which most leaves of `like` are saved, when none is where `like` has it."""
    saved, absent = match.question.saved, match.question.absent
    if match.pairs or not absent:
        return []
    above: Counter[KeyPath] = Counter()
    for path in list(absent)[:_PROBES]:
        above.update(other.removesuffix(f"/{path}") for other in saved if path and other.endswith(f"/{path}"))
    found: dict[KeyPath, int] = {}
    for node, _ in above.most_common(_PROBES):
        there = ((saved.get(join(node, path)), spec) for path, spec in absent.items())
        found[node] = sum(spec is not None and not difference(spec, wanted, cast=True) for spec, wanted in there)
    most = max(found.values(), default=0)
    if 2 * most < len(absent):
        return []
    count = f"all {_counted(most, 'leaf')}" if most == len(absent) else f"{most} of {_counted(len(absent), 'leaf')}"
    return [
        (f"ckpt.at({json.dumps(node, ensure_ascii=False)})", f"{count} of `like` are saved below {node!r}")
        for node, fitting in found.items()
        if fitting == most
    ]


def _hints(question: _Question) -> list[Hint]:
    renamed_already = matcher(question.rename)  # each path is renamed once
    unread = {path: spec for path, spec in question.unread.items() if not renamed_already(path)}
    return suggested(
        unread,
        question.absent,
        fixed=[path for path in question.saved if path not in unread and not renamed_already(path)],
        taken=[name for name, path in question.names.items() if path not in unread],
        fits=lambda saved, wanted: difference(saved, wanted, cast=question.cast) is None,
    )


def _rename_lines(rename: Mapping[str, str], hints: list[Hint]) -> list[tuple[str, str]]:
    quoted = partial(json.dumps, ensure_ascii=False)
    entries = [(f"{quoted(glob)}: {quoted(name)}", "") for glob, name in rename.items()]
    for hint in hints:
        texts = [hint.reason] + [""] * (len(hint.rename) - 1)
        pairs = zip(hint.rename.items(), texts, strict=True)
        entries += [(f"{quoted(glob)}: {quoted(name)}", text) for (glob, name), text in pairs]
    if not hints:
        return []
    if len(entries) == 1:
        return [(f"rename={{{entries[0][0]}}}", entries[0][1])]
    lines = [(f"    {entry},", text and f"# {text}") for entry, text in entries]
    return [("rename={", ""), *lines, ("}", "")]
