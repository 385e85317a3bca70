# SPDX-License-Identifier: Apache-2.0
"""What a run needs next to model and optimizer: counters, random states, scheduler, position in the data."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

_STANDARD = ("step", "tokens_seen", "rng", "scheduler", "dataloader")


def torch_module() -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("KempnerForge's checkpointing needs PyTorch: import torch first")
    return torch


def get_rng_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators; of CUDA those of every device."""
    torch = torch_module()
    cuda = {"torch_cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}
    numpy = np.random.get_state()  # noqa: NPY002 the global generator is what is asked for
    return {"python": random.getstate(), "numpy": numpy, "torch_cpu": torch.get_rng_state(), **cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `get_rng_state` returned, or a part; one state of CUDA alone goes to the current device."""
    torch = torch_module()
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
    if "numpy" in state:
        np.random.set_state(state["numpy"])  # noqa: NPY002
    if "torch_cpu" in state:
        torch.set_rng_state(state["torch_cpu"])
    cuda: Any = state.get("torch_cuda")
    if cuda is None or not torch.cuda.is_available():
        return
    if not isinstance(cuda, list):
        torch.cuda.set_rng_state(cuda)
        return
    for device, one in zip(range(torch.cuda.device_count()), cast("list[Any]", cuda), strict=False):
        torch.cuda.set_rng_state(one, device)


def build_train_state(
    step: int, tokens_seen: int, scheduler: Any = None, dataloader: Any = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all that a run needs next to model and optimizer; `extra` adds keys of its own."""
    if taken := sorted(set(extra or {}).intersection(_STANDARD)):
        raise ValueError(f"extra: {', '.join(taken)} are names of the train state itself")
    state: dict[str, Any] = {"step": step, "tokens_seen": tokens_seen, "rng": get_rng_state()}
    for name, owner in (("scheduler", scheduler), ("dataloader", dataloader)):
        if hasattr(owner, "state_dict"):
            state[name] = owner.state_dict()
    return state | dict(extra or {})


def restore_train_state(
    state: Mapping[str, Any], scheduler: Any = None, dataloader: Any = None
) -> tuple[int, int, dict[str, Any]]:
    """Put a train state back; returns step, tokens and what `extra` had added."""
    if "rng" in state:
        set_rng_state(state["rng"])
    if scheduler is not None and "scheduler" in state:
        now, saved = scheduler.state_dict(), state["scheduler"]
        # A checkpoint holds dicts; MultiStepLR counts on its `Counter`.
        scheduler.load_state_dict({k: Counter(v) if isinstance(now.get(k), Counter) else v for k, v in saved.items()})
    if hasattr(dataloader, "load_state_dict") and "dataloader" in state:
        dataloader.load_state_dict(state["dataloader"])
    extra = {name: value for name, value in state.items() if name not in _STANDARD}
    return int(state.get("step", 0)), int(state.get("tokens_seen", 0)), extra
