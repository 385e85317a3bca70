# SPDX-License-Identifier: Apache-2.0
"""Policies as a phrase: `every 500 steps or 10 min`, `last 3, best 1 loss`.

Terms are separated by a comma, `or`, or `and`, which all mean `|`. Every policy that has a phrase prints as it.

| save | keep | |
|---|---|---|
| `every 500 steps`, `every step` | the same | `EveryNSteps(500)` |
| `every 10 min`, `every hour` | the same | `Every(minutes=10)` |
| `on steps 1 2 5` | the same | `OnSteps([1, 2, 5])`; the `on` may be left out |
| `first` | | `First()` |
| `continuously`, `continuously every 30 s at most` | | `Continuous(30)` |
| `on preemption` | | `OnPreemption()` |
| | `all` | `All()` |
| | `last 3` | `Latest(3)` |
| | `best loss`, `best 2 eval.acc max` | `Best("eval.acc", 2, "max")` |
| | `within 2 days` | `Within(days=2)` |
| | `spaced 2` | `Spaced(2)` |

After an `every`, the next may be just a number: `every 500 steps or 10 min`. Units are `s`, `min`, `h`, `d`, and the
whole words. The mode of `best` may be left out where the metric's name tells it (`default_mode`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, TypeAlias

from milepost.policy.cadence import Every, EveryNSteps, OnSteps
from milepost.policy.family import KeepPolicy, SavePolicy, is_keep, is_save, joined
from milepost.policy.keep import All, Best, Latest, Spaced, Within
from milepost.policy.save import Continuous, First, OnPreemption

DEFAULT_SAVE = First() | Every(minutes=10) | OnPreemption()
DEFAULT_KEEP = All()

_SEPARATORS = (",", "or", "and")
_WORD = re.compile(r",|[^\s,]+")
_WHOLE = re.compile(r"[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[0-9]+(_[0-9]+)*(\.[0-9]+)?(e[+-]?[0-9]+)?")
_UNIT_S = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}


def save_policy(value: SavePolicy | str | None) -> SavePolicy:
    """Return the save policy that a policy, a phrase or None (`DEFAULT_SAVE`) stands for.

    Raises:
        ValueError: the phrase cannot be read; the message points at the word.
        TypeError: it is neither, or a keep policy.
    """
    if value is None:
        return DEFAULT_SAVE
    if isinstance(value, str):
        return _read(value, "save", _SAVE, "every 500 steps or 10 min, on preemption")
    if not is_save(value):
        raise _no_policy(value, "save", "when to save", "EveryNSteps(500) or 'every 500 steps'")
    return value


def keep_policy(value: KeepPolicy | str | None) -> KeepPolicy:
    """Return the keep policy that a policy, a phrase or None (`DEFAULT_KEEP`) stands for.

    Raises:
        ValueError: the phrase cannot be read; the message points at the word.
        TypeError: it is neither, or a save policy.
    """
    if value is None:
        return DEFAULT_KEEP
    if isinstance(value, str):
        return _read(value, "keep", _KEEP, "last 3, best 1 loss, every 10000 steps")
    if not is_keep(value):
        raise _no_policy(value, "keep", "what to keep", "Latest(3) or 'last 3'")
    return value


class _Words:
    """The words of a phrase, and where we are."""

    def __init__(self, phrase: str, family: str, example: str) -> None:
        self.phrase = re.sub(r"\s", " ", phrase)
        self.family = family
        self.example = example
        self.words = list(_WORD.finditer(self.phrase))
        self.at = 0

    def next(self, ahead: int = 0) -> str:
        """Return a word that is still to come, keywords in lower case, or "" after the last."""
        return self.words[self.at + ahead][0].lower() if self.at + ahead < len(self.words) else ""

    def take(self) -> str:
        self.at += 1
        return self.words[self.at - 1][0]

    def skip(self, *words: str) -> bool:
        """Pass over the next word if it is one of these."""
        found = self.next() in words
        self.at += found
        return found

    def expect(self, *words: str) -> None:
        if not self.skip(*words):
            raise self.wrong(" or ".join(f"'{word}'" for word in words))

    def separators(self) -> int:
        """Return how many separators come next; `, or` is two."""
        if self.next() == "," and self.next(1) in _SEPARATORS[1:]:
            return 2
        return int(self.next() in _SEPARATORS)

    def number_goes_on(self) -> bool:
        """Pass over the separators if a number comes after them: a list goes on, no term begins with a number."""
        count = self.separators()
        if not count or not self.next(count)[:1].isdecimal():
            return False
        self.at += count
        return True

    def whole(self, least: int, expected: str = "a whole number") -> int:
        if not _WHOLE.fullmatch(self.next()):
            raise self.wrong(expected)
        number = int(self.next())
        if number < least:
            raise self.wrong(f"{least} or more")
        self.at += 1
        return number

    def span_s(self, expected: str = "a number") -> float:
        """Read a number and a unit."""
        if not _NUMBER.fullmatch(self.next()):
            raise self.wrong(expected)
        number, unit_s = float(self.next()), _UNIT_S.get(self.next(1))
        if unit_s is not None and not 0 < number * unit_s < math.inf:
            raise self.wrong("a span of time above zero")
        self.at += 1
        if unit_s is None:
            raise self.wrong("'s', 'min', 'hours' or 'days'")
        self.at += 1
        return number * unit_s

    def wrong(self, expected: str) -> ValueError:
        """Return the error that points at the next word."""
        if self.at < len(self.words):
            start, stop = self.words[self.at].span()
            found = f"found '{self.words[self.at][0]}'"
        else:
            start, stop = len(self.phrase), len(self.phrase) + 1
            found = "the phrase ends"
        return ValueError(
            f"cannot read the {self.family} policy: expected {expected}, {found}\n"
            f"  {self.phrase}\n  {' ' * start}{'^' * (stop - start)}\n  For example: '{self.example}'."
        )


_Term: TypeAlias = Callable[[_Words], list[Any]]


def _read(phrase: str, family: str, terms: Mapping[str, _Term], example: str) -> Any:
    words = _Words(phrase, family, example)
    policies: list[Any] = []
    while True:
        term = terms.get(words.next())
        if term is None:
            raise words.wrong("one of " + ", ".join(f"'{word}'" for word in terms if word != "step"))
        words.at += 1
        policies += term(words)
        if not words.next():
            return reduce(joined, policies)
        if not words.separators():
            raise words.wrong("a comma, 'or', or the end")
        words.at += words.separators()


def _every(words: _Words) -> list[Any]:
    policies = [_cadence(words)]
    while words.number_goes_on():
        policies.append(_cadence(words))
    return policies


def _cadence(words: _Words) -> Every | EveryNSteps:
    if words.skip("step"):
        return EveryNSteps(1)
    if words.next() in ("second", "minute", "hour", "day"):
        return Every(seconds=_UNIT_S[words.take()])
    if words.next(1) in ("step", "steps"):
        n = words.whole(least=1)
        words.expect("step", "steps")
        return EveryNSteps(n)
    if words.next(1) in _UNIT_S:
        return Every(seconds=words.span_s())
    if _NUMBER.fullmatch(words.next()):
        words.at += 1
        raise words.wrong("'steps', 's', 'min', 'hours' or 'days'")
    raise words.wrong("a number")


def _steps(words: _Words) -> list[Any]:
    steps = [words.whole(least=0, expected="a step")]
    while words.next()[:1].isdecimal() or words.number_goes_on():
        steps.append(words.whole(least=0, expected="a step"))
    return [OnSteps(steps)]


def _on(words: _Words) -> list[Any]:
    if words.family == "save" and words.skip("preemption"):
        return [OnPreemption()]
    words.expect("steps", "step", *["preemption"] * (words.family == "save"))
    return _steps(words)


def _continuously(words: _Words) -> list[Any]:
    if not words.skip("every"):
        return [Continuous()]
    policy = Continuous(words.span_s())
    words.expect("at")
    words.expect("most")
    return [policy]


def _best(words: _Words) -> list[Any]:
    n = words.whole(least=1) if _WHOLE.fullmatch(words.next()) else 1
    if not words.next() or words.next().endswith("()") or words.separators():
        raise words.wrong("the name of a metric")
    metric = words.take()
    return [Best(metric, n, "min" if words.skip("min") else "max" if words.skip("max") else None)]


def _no_policy(value: object, family: str, question: str, example: str) -> TypeError:
    text = f"expected a policy that says {question}, found {value!r}"
    if isinstance(value, type):
        return TypeError(f"{text}\n  Write {value.__name__}(...): a policy is a value, not a class.")
    if is_save(value) or is_keep(value):
        return TypeError(f"{text}\n  Pass it as {'keep' if family == 'save' else 'save'}=.")
    return TypeError(f"{text}\n  Write {example}.")


_SAVE: dict[str, _Term] = {
    "every": _every,
    "on": _on,
    "steps": _steps,
    "step": _steps,
    "first": lambda _: [First()],
    "continuously": _continuously,
}
_KEEP: dict[str, _Term] = {
    "all": lambda _: [All()],
    "last": lambda words: [Latest(words.whole(least=1))],
    "best": _best,
    "every": _every,
    "within": lambda words: [Within(seconds=words.span_s())],
    "spaced": lambda words: [Spaced(words.whole(least=2))],
    "on": _on,
    "steps": _steps,
    "step": _steps,
}
