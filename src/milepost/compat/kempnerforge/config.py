# SPDX-License-Identifier: Apache-2.0
"""What is saved when, and how: the `[checkpoint]` section of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias, final

Strategy: TypeAlias = "Callable[[DynamicCheckpointWindow, int], bool]"


class AsyncCheckpointMode(StrEnum):
    """Whether `save` returns before the checkpoint is written, and through which memory it goes."""

    disabled = "disabled"
    async_ = "async"
    async_pinned = "async_with_pinned_mem"


@final
class _Registry:
    def __init__(self) -> None:
        self._strategies: dict[str, Strategy] = {}

    def register_dyn_ckpt_strategy(self, name: str) -> Callable[[Strategy], Strategy]:
        """Return the decorator that makes `(window, step) -> bool` the strategy `name`."""

        def registered(strategy: Strategy) -> Strategy:
            if name in self._strategies:
                raise ValueError(f"dyn_ckpt_strategy {name!r} is registered already")
            self._strategies[name] = strategy
            return strategy

        return registered

    def get_dyn_ckpt_strategy(self, name: str) -> Strategy:
        """Return a strategy; KeyError, which lists those there are, when there is none of that name."""
        if name not in self._strategies:
            raise KeyError(f"no dyn_ckpt_strategy {name!r}; available: {self.list_dyn_ckpt_strategies()}")
        return self._strategies[name]

    def list_dyn_ckpt_strategies(self) -> list[str]:
        return sorted(self._strategies)


registry = _Registry()


@registry.register_dyn_ckpt_strategy("power2")
def _power2(window: DynamicCheckpointWindow, step: int) -> bool:  # pyright: ignore[reportUnusedFunction] registered
    ahead = step - window.start
    return ahead & (ahead - 1) == 0


@dataclass
class DynamicCheckpointWindow:
    """Steps `start` to `stop`, both included, in which a registered strategy decides what is saved, and kept."""

    start: int = 0
    stop: int = 512
    strategy: str = "power2"

    def __post_init__(self) -> None:
        if self.start < 0 or self.stop < self.start:
            raise ValueError(f"dyn_ckpt_window: expected 0 <= start <= stop, found {self.start} and {self.stop}")
        if self.strategy not in (names := registry.list_dyn_ckpt_strategies()):
            raise ValueError(f"dyn_ckpt_window: no strategy {self.strategy!r}; registered: {names}")

    def is_milestone(self, step: int) -> bool:
        """Return what the strategy says of a step; never true outside the window."""
        return self.start <= step <= self.stop and registry.get_dyn_ckpt_strategy(self.strategy)(self, step)


@dataclass
class CheckpointConfig:
    """Checkpointing settings."""

    dir: str = "checkpoints"
    interval: int = 1000
    dyn_ckpt_window: DynamicCheckpointWindow | None = None
    async_mode: AsyncCheckpointMode = AsyncCheckpointMode.disabled
    keep_last_n: int = 3
    load_path: str | None = None
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    exclude_from_loading: list[str] = field(default_factory=list[str])
    ignore_freeze_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError(f"checkpoint.interval: expected 1 or more, found {self.interval}")

    def should_save(self, step: int) -> bool:
        """Return whether to save at a step: as the window's strategy says, outside of it every `interval` steps."""
        window = self.dyn_ckpt_window
        if window is not None and window.start <= step <= window.stop:
            return window.is_milestone(step)
        return step % self.interval == 0

    def is_dynamic_milestone(self, step: int) -> bool:
        """Return whether a step is a milestone of the window, which `keep_last_n` never removes."""
        return self.dyn_ckpt_window is not None and self.dyn_ckpt_window.is_milestone(step)
