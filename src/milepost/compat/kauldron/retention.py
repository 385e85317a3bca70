# SPDX-License-Identifier: Apache-2.0
"""What stays, and the metrics that say so."""

from __future__ import annotations

import datetime as dt
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast, final

import numpy as np

import milepost as mp


@final
class _KeptBy:
    """Several rules for what stays: those of milepost, of Orbax, and multiples of a period."""

    def __init__(self, policies: Sequence[Any], period: int | None) -> None:
        self._policies, self._period = policies, period

    def keep(self, history: Sequence[Any]) -> dict[int, str]:
        kept: dict[int, str] = {}
        for policy in self._policies:
            if hasattr(policy, "should_preserve"):
                seen = [SimpleNamespace(step=s.step, time=_time(s.created_s), metrics=s.metrics) for s in history]
                flags = policy.should_preserve(seen, context=None)
                kept |= {saved.step: str(policy) for saved, flag in zip(history, flags, strict=True) if flag}
            else:
                kept |= policy.keep(history)
        if self._period is not None:
            kept |= {s.step: f"multiple of {self._period}" for s in history if s.step % self._period == 0}
        return kept


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def kept_by(config: Any) -> Any:
    if config.preservation_policy is not None:
        policies: list[Any] = [config.preservation_policy]
    elif config.max_to_keep is None:
        return mp.All()
    elif config.best_metric_path is not None:
        policies = [mp.Best(_metric(config.best_metric_path), config.max_to_keep, config.best_mode)]
    else:
        policies = [mp.Latest(config.max_to_keep)]
    if config.keep_time_interval is not None:
        policies.append(mp.Every(seconds=config.keep_time_interval.total_seconds()))
    return _KeptBy(policies, config.keep_period)


def _metric(path: str) -> Any:
    """Return a metric of milepost for a dotted path, in which `*` stands for any text: the first that matches."""
    if "*" not in path:
        return path

    def first(metrics: Mapping[str, Any]) -> Any:
        flat = dict(_dotted(metrics))
        return flat[next((name for name in sorted(flat) if fnmatch.fnmatchcase(name, path)), path)]

    return first


def _dotted(metrics: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _dotted(cast("Mapping[str, Any]", value), f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def plain_metrics(metrics: Any) -> dict[str, Any] | None:
    plain = None if metrics is None else _plain(metrics, "metrics")
    if plain is not None and not isinstance(plain, dict):
        raise ValueError(f"metrics: expected a dict, found a {type(metrics).__name__}")
    return cast("dict[str, Any] | None", plain)


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{name}.{key}") for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name) for inner in cast("Iterable[Any]", value)]
    if hasattr(value, "__array__"):
        array: Any = np.asarray(value)
        if array.dtype.kind in "biufV":
            return (array.astype(np.float64) if array.dtype.kind == "V" else array).tolist()
    raise ValueError(f"{name}: a {type(value).__name__} is no metric; expected numbers, text or arrays")
