# SPDX-License-Identifier: Apache-2.0
"""When to save and what to keep: frozen values joined with `|`, or a phrase."""

from __future__ import annotations

from milepost.policy.cadence import Every, EveryNSteps, OnSteps
from milepost.policy.family import (
    KeepPolicy,
    KeepUnion,
    Moment,
    Policy,
    Saved,
    SavePolicy,
    SaveUnion,
    Union,
    pin_name,
)
from milepost.policy.keep import All, Best, Latest, Metric, Mode, Spaced, Within, default_mode, ranked, score
from milepost.policy.phrase import DEFAULT_KEEP, DEFAULT_SAVE, keep_policy, save_policy
from milepost.policy.reason import EMERGENCY, FINAL
from milepost.policy.save import (
    Continuous,
    First,
    OnPreemption,
    Strategy,
    Window,
    get_strategy,
    list_strategies,
    register_strategy,
)

__all__ = [
    "DEFAULT_KEEP",
    "DEFAULT_SAVE",
    "EMERGENCY",
    "FINAL",
    "All",
    "Best",
    "Continuous",
    "Every",
    "EveryNSteps",
    "First",
    "KeepPolicy",
    "KeepUnion",
    "Latest",
    "Metric",
    "Mode",
    "Moment",
    "OnPreemption",
    "OnSteps",
    "Policy",
    "SavePolicy",
    "SaveUnion",
    "Saved",
    "Spaced",
    "Strategy",
    "Union",
    "Window",
    "Within",
    "default_mode",
    "get_strategy",
    "keep_policy",
    "list_strategies",
    "pin_name",
    "ranked",
    "register_strategy",
    "save_policy",
    "score",
]
