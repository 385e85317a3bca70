# SPDX-License-Identifier: Apache-2.0
"""Policies that say what to keep.

Asked again about what it kept, each keeps all of it. The catalog itself keeps the newest checkpoint, pinned ones and
ones in flight, whatever the policies say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

from milepost.policy.cadence import span_s, span_text, whole
from milepost.policy.family import Saved, keep_or, keep_ror

Mode: TypeAlias = Literal["min", "max"]
Metric: TypeAlias = str | Callable[[Mapping[str, Any]], float | None]
"""A dotted path into the metrics, `eval.loss`, or a function of all of them."""

_LOWER_IS_BETTER = ("loss", "error", "perplexity", "rmse", "mae", "mse")


@dataclass(frozen=True, slots=True)
class All:
    """All of them."""

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {saved.step: str(self) for saved in history}

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest `n`. Pinned ones stay anyway, so they take none of the places."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "Latest(n)", least=1))

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {saved.step: str(self) for saved in [saved for saved in history if not saved.pinned][-self.n :]}

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        return f"last {self.n}"


@dataclass(frozen=True, slots=True, init=False)
class Within:
    """Those created at most a span of time before the newest, whatever the time is now."""

    seconds: float

    def __init__(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        object.__setattr__(self, "seconds", span_s("Within", seconds, minutes, hours, days))

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {saved.step: str(self) for saved in history if history[-1].created_s - saved.created_s <= self.seconds}

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        return f"within {span_text(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Best:
    """The `n` best by a metric; on a tie the newer wins.

    A checkpoint whose metric is missing or NaN has no score. It is never among the best, but as long as it is newer
    than the newest that has one, its score may still come: it stays.

    Attributes:
        metric: a dotted path into the metrics, in which `*` stands for any text within a name (the first name that
            has a number counts); or a function of them (a LookupError in it means no score).
        mode: None: as `default_mode(metric)` says.
    """

    metric: Metric
    n: int = 1
    mode: Mode | None = None

    def __post_init__(self) -> None:
        if not (callable(self.metric) or (isinstance(cast("object", self.metric), str) and self.metric)):
            raise TypeError(f"Best(metric): expected a name or a function, found {self.metric!r}")
        object.__setattr__(self, "n", whole(self.n, "Best(n)", least=1))
        object.__setattr__(self, "mode", _checked_mode(self.metric, self.mode))

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        best = {saved.step for saved in ranked(history, self.metric, self.mode)[: self.n]}
        scored = [i for i, saved in enumerate(history) if score(saved.metrics, self.metric) is not None]
        waiting = {saved.step for saved in history[scored[-1] + 1 if scored else 0 :]}
        return {
            saved.step: str(self) if saved.step in best else "unscored yet"
            for saved in history
            if saved.step in best or saved.step in waiting
        }

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        # A function shows as one, which no phrase takes for the name of a metric.
        name = self.metric if isinstance(self.metric, str) else f"{getattr(self.metric, '__name__', 'metric')}()"
        return f"best {self.n} {name}" + (f" {self.mode}" if self.mode != default_mode(self.metric) else "")


@dataclass(frozen=True, slots=True)
class Spaced:
    """Fewer and fewer with age: the gaps between those kept grow by `base`, as a power of it.

    A checkpoint whose age is at least `base**k` steps, and less than `base**(k + 1)`, stays when it is the first in
    its bucket `step // base**k`. Age is counted in steps from the newest. Of a long run about `base - 1` stay for
    each gap: of steps 0 to 64, `Spaced(2)` keeps 0, 32, 48, 56, 60, 62, 63 and 64.

    Guarantee: as buckets nest like the marks of a ruler, what is first in a wide one is first in each narrower one.
    So pruning after every save, or now and then, or once at the end leaves the same checkpoints.
    """

    base: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", whole(self.base, "Spaced(base)", least=2))

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        steps = sorted(saved.step for saved in history)
        kept = set(steps[:1])
        for before, step in pairwise(steps):
            width = self._width(history[-1].step - step)
            if before // width != step // width:
                kept.add(step)
        return {saved.step: str(self) for saved in history if saved.step in kept}

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        return f"spaced {self.base}"

    def _width(self, age: int) -> int:
        width = 1
        while width * self.base <= age:
            width *= self.base
        return width


class Scored(Protocol):
    """What has metrics: a Saved, a Checkpoint."""

    @property
    def metrics(self) -> Mapping[str, Any]: ...


T = TypeVar("T", bound=Scored)


def ranked(history: Sequence[T], metric: Metric, mode: Mode | None = None) -> list[T]:
    """Return those that have a score, the best first; on a tie the newer comes first. `history` is oldest first."""
    sign = 1.0 if _checked_mode(metric, mode) == "max" else -1.0
    scores = [(score(saved.metrics, metric), i) for i, saved in enumerate(history)]
    rising = sorted((sign * value, i) for value, i in scores if value is not None)
    return [history[i] for _, i in reversed(rising)]


def score(metrics: Mapping[str, Any], metric: Metric) -> float | None:
    """Return the number that a metric has, or None when it is missing, no number, or NaN."""
    try:
        value = _at(metrics, metric) if isinstance(metric, str) else metric(metrics)
    except LookupError:
        return None
    if value is None or isinstance(value, str | bytes):  # float() would read text
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def default_mode(metric: Metric) -> Mode:
    """Return "min" for a metric whose last part contains loss, error, perplexity, rmse, mae or mse, else "max"."""
    last = metric.rpartition(".")[2].lower() if isinstance(metric, str) else ""
    return "min" if any(word in last for word in _LOWER_IS_BETTER) else "max"


def _checked_mode(metric: Metric, mode: str | None) -> Mode:
    if mode is None:
        return default_mode(metric)
    if mode in ("min", "max"):
        return mode
    raise ValueError(f"mode: expected 'min' or 'max', found {mode!r}")


def _at(metrics: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path; a key may itself contain dots, and a part of the path `*`."""
    if path in metrics:
        return metrics[path]
    parts = path.split(".")
    for i in range(1, len(parts)):
        for inner in _called(metrics, ".".join(parts[:i])):
            value = _at(cast("Mapping[str, Any]", inner), ".".join(parts[i:])) if isinstance(inner, Mapping) else None
            if value is not None:
                return value
    return next((value for value in _called(metrics, path) if not isinstance(value, Mapping)), None)


def _called(metrics: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of a name, in which `*` may stand for any text."""
    if "*" not in name:
        return [metrics[name]] if name in metrics else []
    return [metrics[each] for each in sorted(metrics) if fnmatchcase(each, name)]
