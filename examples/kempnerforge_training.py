# SPDX-License-Identifier: Apache-2.0
"""KempnerForge's first training run, through its front door: the same command goes on where it was interrupted.

    python kempnerforge_training.py --root runs/debug     # kill -9 it, start it again: the last line is always the same

In a program that uses KempnerForge, only the imports of the checkpointing change.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import torch

from milepost.compat.kempnerforge import (
    CheckpointConfig,
    CheckpointManager,
    DynamicCheckpointWindow,
    ShutdownHandler,
    resolve_resume_path,
)

VOCABULARY, LENGTH, BATCH = 64, 16, 4


class SyntheticTokens:
    """Batches of random tokens, in an order of their own; position by `state_dict`."""

    def __init__(self) -> None:
        self.batches_yielded = 0

    def __next__(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(self.batches_yielded)
        self.batches_yielded += 1
        return torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=random)

    def state_dict(self) -> dict[str, Any]:
        return {"batches_yielded": self.batches_yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches_yielded = state["batches_yielded"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="where the checkpoints go")
    parser.add_argument("--steps", type=int, default=1_000)
    args = parser.parse_args()

    torch.set_num_threads(1)  # with other threads, sums have other last bits
    torch.manual_seed(42)
    model = torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, VOCABULARY)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    data = SyntheticTokens()

    config = CheckpointConfig(
        dir=args.root, interval=100, keep_last_n=2, async_mode="async", dyn_ckpt_window=DynamicCheckpointWindow(0, 64)
    )
    manager = CheckpointManager(config, model, optimizer)
    shutdown = ShutdownHandler(timeout_sec=100)
    shutdown.register()

    step, tokens, _ = manager.load(resolve_resume_path(config.dir), scheduler, data)
    while step < args.steps:
        batch = next(data)
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        step, tokens = step + 1, tokens + batch.numel()
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item()!r}  tokens {tokens}", flush=True)
        if config.should_save(step):
            manager.save(step, tokens, scheduler, data)
        if shutdown.should_shutdown():
            manager.save(step, tokens, scheduler, data)
            break
    manager.wait()
    shutdown.finish()
    if step == args.steps:
        print("weights", hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())


if __name__ == "__main__":
    main()
