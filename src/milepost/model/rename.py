# SPDX-License-Identifier: Apache-2.0
"""Names of saved leaves in `like`: the renames that were asked for, and those that would help."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import final

from milepost.errors import StructureError, folded
from milepost.model.keypath import KeyPath, grouped, matcher, numbered, renamer, top_level
from milepost.model.leaf import LeafSpec

# Bounds on the search for renames, which keep it under a second; past them there are fewer hints or none.
_FAMILIES = 500
_TOKENS = 5
_CHOICES = 1024
_CHANGES = 4096
_TRIALS = 32
_ENTRIES = 8
_TOKEN = re.compile(r"[/.]|\*|[^/.*]+")


def renamed(paths: Collection[KeyPath], rename: Mapping[str, str]) -> dict[KeyPath, KeyPath]:
    """Return the name in `like` of every saved path, as name -> path.

    Each path is renamed once, by the first glob that matches it.

    Raises:
        StructureError: a glob renames nothing, or two paths get one name.
        ValueError: a glob is malformed.
    """
    if not rename:
        return dict(zip(paths, paths, strict=True))
    rules = {glob: renamer(glob, name) for glob, name in rename.items()}
    names: dict[KeyPath, KeyPath] = {}
    clashes: dict[KeyPath, list[KeyPath]] = {}
    used: set[str] = set()
    for path in paths:
        name = path
        for glob, rule in rules.items():
            if (found := rule(path)) is not None:
                name = found
                used.add(glob)
                break
        if name in names:
            clashes.setdefault(name, [names[name]]).append(path)
        names[name] = path
    _check_used(paths, [glob for glob in rules if glob not in used])
    if clashes:
        texts = [f"{' and '.join(sources)} -> {name}" for name, sources in clashes.items()]
        raise StructureError(
            f"rename gives one name to several saved leaves: {folded(texts, 4)}\n"
            "  Make the glob match fewer of them, or give the others another name."
        )
    return names


def _check_used(paths: Collection[KeyPath], unused: list[str]) -> None:
    for glob in unused:
        if any(map(matcher(glob), paths)):
            raise StructureError(f"rename: all that {glob!r} matches was renamed by an earlier glob\n  Put it first.")
        keys = folded(top_level(paths))
        raise StructureError(
            f"rename: {glob!r} matches nothing saved\n  Globs match saved key paths; at the top: {keys}"
        )


Fits = Callable[[LeafSpec, LeafSpec], bool]


@dataclass(frozen=True, slots=True)
class Hint:
    """Renames under which more leaves would fit.

    Attributes:
        rename: globs and names, as `rename` takes them.
        reason: what they assume.
        moved: saved path -> name in `like`, of all leaves that they rename.
        served: how many of those would then fit.
    """

    rename: dict[str, str]
    reason: str
    moved: dict[KeyPath, KeyPath]
    served: int


@dataclass(frozen=True, slots=True)
class _Family:
    """Leaves with one spec whose paths differ in their numbers only; `template` has `*` in place of each number."""

    template: str
    paths: list[KeyPath]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A saved and a wanted family with the same text before and after what changed."""

    saved: _Family
    wanted: _Family
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class _Change:
    """One text in saved paths that may have become another."""

    old: str
    new: str
    pairs: list[_Pair]

    @property
    def weight(self) -> tuple[int, int]:
        """The more leaves, and then the fewer names in a change, the likelier it is."""
        leaves = sum(min(len(pair.saved.paths), len(pair.wanted.paths)) for pair in self.pairs)
        return leaves, -len(re.findall(r"[/.]", self.old + self.new))

    @property
    def name(self) -> tuple[str, str]:
        return self.old, self.new

    @property
    def likeness(self) -> float:
        """How near the two texts are, 0 to 1; case and underscores do not count."""
        return _likeness(*(text.casefold().replace("_", "") for text in self.name))

    def contradicts(self, other: _Change) -> bool:
        """Return whether the two say different things about one family."""
        becomes = {pair.saved.paths[0]: pair.wanted.paths[0] for pair in other.pairs}
        came_from = {wanted: saved for saved, wanted in becomes.items()}
        return any(
            becomes.get(pair.saved.paths[0], pair.wanted.paths[0]) != pair.wanted.paths[0]
            or came_from.get(pair.wanted.paths[0], pair.saved.paths[0]) != pair.saved.paths[0]
            for pair in self.pairs
        )


def suggested(
    unread: Mapping[KeyPath, LeafSpec],
    absent: Mapping[KeyPath, LeafSpec],
    *,
    fixed: Collection[KeyPath],
    taken: Collection[KeyPath],
    fits: Fits,
) -> list[Hint]:
    """Return renames of unread leaves under which they would be the absent ones.

    A name in the path became another, was put in or was taken out, and the specs agree. Where that could have happened
    in two ways nothing is said, unless one name is much the nearer. Every hint was tried: it does what it says.

    Args:
        unread: saved leaves that nothing takes.
        absent: wanted leaves that nothing fills.
        fixed: saved paths that must keep their names.
        taken: names in `like` that are not free.
        fits: whether a saved leaf may fill a wanted one.
    """
    trial = _Trial(dict(unread), dict(absent), fixed, set(taken), fits)
    hints: list[Hint] = []
    changes = _changes(unread, absent)
    tried: set[tuple[str, str]] = set()
    while len(tried) < _TRIALS and sum(len(hint.rename) for hint in hints) < _ENTRIES:
        untried = [change for change in changes if change.name not in tried]
        if not untried:
            break
        best = max(untried, key=lambda change: (change.weight, change.likeness))
        tried.add(best.name)
        if _clear(best, changes) and (hint := trial.hint(best)) is not None:
            hints.append(hint)
            changes = list(filter(lambda change: change.pairs, map(trial.left_of, changes)))
    return hints


def _clear(change: _Change, changes: list[_Change]) -> bool:
    """Return whether nothing that is as likely contradicts a change."""
    rivals = [rival for rival in changes if rival.weight >= change.weight and rival.contradicts(change)]
    nearest = max((rival.likeness for rival in rivals), default=-1.0)
    return not rivals or (change.likeness >= 0.75 and change.likeness >= nearest + 0.2)


@lru_cache(maxsize=2 * _CHANGES)
def _likeness(old: str, new: str) -> float:
    return SequenceMatcher(None, old, new).ratio()


_Families = dict[tuple[str, object], _Family]


def _families(leaves: Mapping[KeyPath, LeafSpec]) -> _Families:
    families: _Families = {}
    for path, spec in leaves.items():
        template, _ = numbered(path)
        spec_of_family = (spec.kind, spec.dtype.removeprefix(">"), spec.shape)
        families.setdefault((template, spec_of_family), _Family(template, [])).paths.append(path)
    return dict(list(families.items())[:_FAMILIES])


def _cuts(families: _Families) -> dict[tuple[str, str, object], list[tuple[list[str], _Family]]]:
    """Return what is left of each template when a few tokens are cut out, with what was cut and of which family."""
    cuts: dict[tuple[str, str, object], list[tuple[list[str], _Family]]] = {}
    for (template, spec), family in families.items():
        tokens = _TOKEN.findall(template)
        for start in range(len(tokens) + 1):
            for stop in range(start, min(start + _TOKENS, len(tokens)) + 1):
                left = ("".join(tokens[:start]), "".join(tokens[stop:]), spec)
                cuts.setdefault(left, []).append((tokens[start:stop], family))
    return cuts


def _changes(unread: Mapping[KeyPath, LeafSpec], absent: Mapping[KeyPath, LeafSpec]) -> list[_Change]:
    changes: dict[tuple[str, str], _Change] = {}
    wanted_cuts = _cuts(_families(absent))
    for left, olds in _cuts(_families(unread)).items():
        before, after, _ = left
        news = wanted_cuts.get(left, [])
        if len(olds) * len(news) > _CHOICES:
            continue
        for old, saved in olds:
            for new, wanted in news:
                if old and new and (old[0] == new[0] or old[-1] == new[-1]):
                    continue  # a smaller change says the same
                texts = _texts("".join(old), "".join(new), saved, wanted, before)
                if texts is not None:
                    changes.setdefault(texts, _Change(*texts, [])).pairs.append(_Pair(saved, wanted, before, after))
    return list(changes.values()) if len(changes) <= _CHANGES else []


def _texts(old: str, new: str, saved: _Family, wanted: _Family, before: str) -> tuple[str, str] | None:
    """Return the two texts of a change, with the numbers in them spelled out where one has more of them."""
    if old == new:
        return None
    if old.count("*") == new.count("*"):
        return old, new
    literals = [_literal(old, saved, before.count("*")), _literal(new, wanted, before.count("*"))]
    return (literals[0], literals[1]) if literals[0] is not None and literals[1] is not None else None


def _literal(text: str, family: _Family, place: int) -> str | None:
    """Return a part of a template with its numbers, None when they differ within the family."""
    found = {_filled(text, numbered(path)[1][place:]) for path in family.paths}
    return found.pop() if len(found) == 1 else None


def _filled(template: str, numbers: list[str]) -> str:
    rest = iter(numbers)
    return re.sub(r"\*", lambda _: next(rest), template)


@final
class _Trial:
    """What is still to be matched, while hints are tried one after another."""

    def __init__(
        self,
        unread: dict[KeyPath, LeafSpec],
        absent: dict[KeyPath, LeafSpec],
        fixed: Collection[KeyPath],
        taken: set[KeyPath],
        fits: Fits,
    ) -> None:
        self.unread, self.absent, self.fixed, self.taken, self.fits = unread, absent, fixed, taken, fits

    def left_of(self, change: _Change) -> _Change:
        """Return the change with what no earlier hint moved."""
        pairs = [
            pair for pair in change.pairs if pair.saved.paths[0] in self.unread and pair.wanted.paths[0] in self.absent
        ]
        return _Change(change.old, change.new, pairs)

    def hint(self, change: _Change) -> Hint | None:
        """Return the hint for a change in the form that serves most leaves, and count those as matched."""
        best: Hint | None = None
        for rename in _forms(change):
            if rename and len(rename) <= _ENTRIES and (moved := self._moved(rename)) is not None:
                served = sum(name in self.absent for name in moved.values())
                if best is None or served > best.served:
                    best = Hint(rename, _reason(change), moved, served)
                if served >= change.weight[0]:
                    break
        if best is not None:
            for path, name in best.moved.items():
                del self.unread[path]
                self.absent.pop(name, None)
                self.taken.add(name)
        return best

    def _moved(self, rename: Mapping[str, str]) -> dict[KeyPath, KeyPath] | None:
        """Return path -> name of all that `rename` moves, None when that does harm or one of its globs no good."""
        moved: dict[KeyPath, KeyPath] = {}
        for glob, name in rename.items():
            rule = renamer(glob, name)
            if any(rule(path) is not None for path in self.fixed):
                return None
            found = {path: to for path in self.unread if path not in moved and (to := rule(path)) is not None}
            if not any(to in self.absent for to in found.values()):
                return None
            moved |= found
        names = set(moved.values())
        if len(names) < len(moved) or not names.isdisjoint(self.taken):
            return None
        if any(path in names for path in self.unread if path not in moved):
            return None
        misfit = (n in self.absent and not self.fits(self.unread[p], self.absent[n]) for p, n in moved.items())
        return None if any(misfit) else moved


def _reason(change: _Change) -> str:
    old, new, pair = change.old, change.new, change.pairs[0]
    if not old and (new[0] in "/." or new[-1] in "/."):
        return f"if '{new.strip('/.')}' was put in (the specs agree)"
    if not new and (old[0] in "/." or old[-1] in "/."):
        return f"if '{old.strip('/.')}' was taken out (the specs agree)"
    start, end = re.split(r"[/.]", pair.before)[-1], re.split(r"[/.]", pair.after)[0]
    return f"if '{start}{old}{end}' became '{start}{new}{end}' (the specs agree)"


def _forms(change: _Change) -> list[dict[str, str]]:
    """Return ways to write a change, from the one that matches most to the exact one."""
    old, new = change.old, change.new
    anywhere: dict[str, str] = {}
    here: dict[str, str] = {}
    for pair in change.pairs:
        end = _end(pair.after, old or new)
        for form, start in ((anywhere, _start(pair.before, old or new)), (here, pair.before)):
            form[start + old + end] = start + new + end
    forms = [anywhere, here] if old and new else sorted([here, anywhere], key=len)
    return [*forms, dict(_exact(change))]


def _start(before: str, text: str) -> str:
    """Return the glob for any text like the one before a change."""
    if not before or before[-1] == "/":
        return "**/" if before else ""
    if text[0] == "/":
        return "**"
    node, _, name = before.rpartition("/")
    return ("**/" if node else "") + ("*." if name[-1] == "." else name)


def _end(after: str, text: str) -> str:
    """Return the glob for the rest of the node in which a change is; what lies below it moves along anyway."""
    if not after or after[0] == "/":
        return ""
    if after[0] == ".":
        return ".*"
    return {"/": "**", ".": "*"}.get(text[-1], after.split("/", 1)[0])


def _exact(change: _Change) -> Iterator[tuple[str, str]]:
    for pair in change.pairs:
        contexts: list[str] = []
        wanted = set(pair.wanted.paths)
        first, last = pair.before.count("*"), pair.after.count("*")
        for path in pair.saved.paths:
            numbers = numbered(path)[1]
            before, after = _filled(pair.before, numbers), _filled(pair.after, numbers[len(numbers) - last :])
            new = _filled(change.new, numbers[first:])
            if f"{before}{new}{after}" in wanted:
                contexts.append(f"{before}\0{after.split('/', 1)[0]}")
        for context, _ in grouped(contexts):
            before, _, after = context.partition("\0")
            yield before + change.old + after, before + change.new + after
