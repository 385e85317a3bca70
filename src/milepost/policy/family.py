# SPDX-License-Identifier: Apache-2.0
"""What every policy is asked, and how policies unite.

A policy is a frozen, hashable value without I/O and without a clock: what it answers depends on its argument alone.
There are two families, told apart by the method they have, so any object with one of them is a policy:

| family | question | answer |
|---|---|---|
| save | `due(moment)` | why a save is due now, or None |
| keep | `keep(history)` | which checkpoints stay, and why |

`|` unites policies of one family: a save is due when one of them says so, a checkpoint stays when one of them keeps
it. There is no other way to combine, so adding a policy never saves less and never deletes more. `EveryNSteps`,
`Every` and `OnSteps` answer both questions and join either family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, overload


@dataclass(frozen=True, slots=True)
class Moment:
    """All that a save policy may know.

    Attributes:
        step: the step that is asked about.
        last_step: the newest step saved in this run, also by an earlier process; one in flight counts.
        now_s: the monotonic clock.
        last_s: the monotonic time at which this process last began a save.
        opened_s: the monotonic time at which the Checkpointer was opened.
        saving: whether a save is still being written.
        preempted: what asked the process to save, such as `SIGTERM`.
    """

    step: int
    last_step: int | None
    now_s: float
    last_s: float | None
    opened_s: float
    saving: bool
    preempted: str | None

    @property
    def behind(self) -> bool:
        """Whether this step or a later one is saved already: nothing is due then, so asking twice saves once."""
        return self.last_step is not None and self.step <= self.last_step


@dataclass(frozen=True, slots=True)
class Saved:
    """One committed checkpoint as a keep policy sees it.

    Attributes:
        step: its step.
        created_s: when it was committed, in seconds since 1970.
        metrics: numbers by name, with those annotated later; may be nested.
        reason: why it was saved.
        pinned: the names it is pinned under. The catalog keeps what is pinned, whatever the policies say.
        metadata: what the program said of it at the save and by `annotate`.
    """

    step: int
    created_s: float
    metrics: Mapping[str, Any]
    reason: str
    pinned: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


class SavePolicy(Protocol):
    """Decides when to save."""

    def due(self, moment: Moment, /) -> str | None:
        """Return why a save is due, or None."""
        ...


class KeepPolicy(Protocol):
    """Decides what to keep."""

    def keep(self, history: Sequence[Saved], /) -> dict[int, str]:
        """Return the steps that stay, each with a reason; `history` runs from oldest to newest in commit order."""
        ...


class Policy(SavePolicy, KeepPolicy, Protocol):
    """Answers both questions."""


def is_save(value: object) -> bool:
    """Return whether a value is a save policy (a class that was not called is none)."""
    return callable(getattr(value, "due", None)) and not isinstance(value, type)


def is_keep(value: object) -> bool:
    """Return whether a value is a keep policy (a class that was not called is none)."""
    return callable(getattr(value, "keep", None)) and not isinstance(value, type)


def pin_name(policy: SavePolicy, step: int) -> str | None:
    """Return the name under which a save at `step` is to be pinned, or None.

    Policies may have a method `pins(step) -> str | None`; most have none.
    """
    pins = getattr(policy, "pins", None)
    return None if pins is None else pins(step)


def joined(left: object, right: object) -> Any:
    """Return the union of two policies, flat and without repetition, or NotImplemented when one is no policy.

    Raises:
        TypeError: they are of different families, or a class was given that needs to be called.
    """
    parts: list[Any] = []
    for part in (*_parts(left), *_parts(right)):
        if isinstance(part, type) and (hasattr(part, "due") or hasattr(part, "keep")):
            raise TypeError(f"{part.__name__} is a class, not a policy\n  Write {part.__name__}(...).")
        if not (is_save(part) or is_keep(part)):
            return NotImplemented
        if part not in parts:  # by equality: a policy of the user need not be hashable
            parts.append(part)
    keep_only = [part for part in parts if not is_save(part)]
    save_only = [part for part in parts if not is_keep(part)]
    if keep_only and save_only:
        raise TypeError(
            f"{save_only[0]!r} says when to save, {keep_only[0]!r} what to keep: they do not unite\n"
            f"  Pass them apart: save={save_only[0]!r}, keep={keep_only[0]!r}."
        )
    union = SaveUnion if save_only else KeepUnion if keep_only else Union
    return union(tuple(parts))


def save_or(self: SavePolicy, other: SavePolicy) -> SaveUnion:
    """`self | other` for a policy that only saves."""
    return joined(self, other)


def save_ror(self: SavePolicy, other: SavePolicy) -> SaveUnion:
    """`other | self`, where `other` has no `|` of its own."""
    return joined(other, self)


def keep_or(self: KeepPolicy, other: KeepPolicy) -> KeepUnion:
    """`self | other` for a policy that only keeps."""
    return joined(self, other)


def keep_ror(self: KeepPolicy, other: KeepPolicy) -> KeepUnion:
    """`other | self`, where `other` has no `|` of its own."""
    return joined(other, self)


@overload
def both_or(self: Policy, other: Policy) -> Union: ...  # pyright: ignore[reportOverlappingOverload] the narrowest wins
@overload
def both_or(self: Policy, other: SavePolicy) -> SaveUnion: ...
@overload
def both_or(self: Policy, other: KeepPolicy) -> KeepUnion: ...
def both_or(self: Policy, other: object) -> Any:
    """`self | other` for a policy of both families: the result is of the families that `other` is of."""
    return joined(self, other)


@overload
def both_ror(self: Policy, other: Policy) -> Union: ...  # pyright: ignore[reportOverlappingOverload] the narrowest wins
@overload
def both_ror(self: Policy, other: SavePolicy) -> SaveUnion: ...
@overload
def both_ror(self: Policy, other: KeepPolicy) -> KeepUnion: ...
def both_ror(self: Policy, other: object) -> Any:
    """`other | self`, where `other` has no `|` of its own."""
    return joined(other, self)


@dataclass(frozen=True, slots=True)
class SaveUnion:
    """Save policies joined with `|`: due when one of them is, for all the reasons there are."""

    policies: tuple[SavePolicy, ...]

    def due(self, moment: Moment) -> str | None:
        return _any_due(self.policies, moment)

    def pins(self, step: int) -> str | None:
        return _first_pin(self.policies, step)

    __or__ = save_or
    __ror__ = save_ror

    def __str__(self) -> str:
        return ", ".join(map(str, self.policies))


@dataclass(frozen=True, slots=True)
class KeepUnion:
    """Keep policies joined with `|`: a checkpoint stays when one of them keeps it, for all the reasons there are."""

    policies: tuple[KeepPolicy, ...]

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return _all_kept(self.policies, history)

    __or__ = keep_or
    __ror__ = keep_ror

    def __str__(self) -> str:
        return ", ".join(map(str, self.policies))


@dataclass(frozen=True, slots=True)
class Union:
    """Policies of both families joined with `|`: itself of both."""

    policies: tuple[Policy, ...]

    def due(self, moment: Moment) -> str | None:
        return _any_due(self.policies, moment)

    def pins(self, step: int) -> str | None:
        return _first_pin(self.policies, step)

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return _all_kept(self.policies, history)

    __or__ = both_or
    __ror__ = both_ror

    def __str__(self) -> str:
        return ", ".join(map(str, self.policies))


def _parts(value: object) -> tuple[object, ...]:
    return cast("tuple[object, ...]", value.policies) if isinstance(value, SaveUnion | KeepUnion | Union) else (value,)


def _any_due(policies: Sequence[SavePolicy], moment: Moment) -> str | None:
    reasons = [reason for policy in policies if (reason := policy.due(moment))]
    return " · ".join(dict.fromkeys(reasons)) or None


def _first_pin(policies: Sequence[SavePolicy], step: int) -> str | None:
    return next((name for policy in policies if (name := pin_name(policy, step))), None)


def _all_kept(policies: Sequence[KeepPolicy], history: Sequence[Saved]) -> dict[int, str]:
    answers = [policy.keep(history) for policy in policies]
    reasons = {saved.step: [answer[saved.step] for answer in answers if saved.step in answer] for saved in history}
    return {step: " · ".join(dict.fromkeys(texts)) for step, texts in reasons.items() if texts}
