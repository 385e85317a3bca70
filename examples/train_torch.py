# SPDX-License-Identifier: Apache-2.0
"""Train with PyTorch, be killed at any moment, start the same command again: the numbers are the same.

    python train_torch.py --root runs/torch     # kill -9 it, start it again: the last line is always the same

SIGTERM lets it save first; it then ends with exit code 75, which means: run me again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from typing import Any

import torch

import milepost as mp


class Batches:
    """Shuffled batches. Without its state a resumed run would see other batches than one that went on."""

    def __init__(self, inputs: torch.Tensor, size: int) -> None:
        self.inputs, self.size = inputs, size
        self.random, self.order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.order) < self.size:
            self.order = torch.randperm(len(self.inputs), generator=self.random)
        batch, self.order = self.inputs[self.order[: self.size]], self.order[self.size :]
        return batch, torch.sin(3 * batch.sum(dim=1, keepdim=True))

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.get_state(), "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"])
        self.order = state["order"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="where the checkpoints go")
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()

    torch.set_num_threads(1)  # with other threads, sums have other last bits
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    batches = Batches(torch.rand(2_000, 16, generator=torch.Generator().manual_seed(2)), size=256)
    # The objects themselves; each is asked for its state at a save, and given it back by `load_into`.
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": mp.PerProcess(batches)}

    with mp.Checkpointer(args.root, save="every 100 steps or 10 min, on preemption", keep="last 3") as saver:
        if last := saver.catalog.latest():  # None on the first run
            last.load_into(state)
        for step in range(last.step + 1 if last else 0, args.steps):
            inputs, wanted = next(batches)
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                print(f"step {step:5}  loss {loss.item()!r}", flush=True)
            if saver.due(step, last=step == args.steps - 1):
                saver.save(step, state, metrics={"loss": loss.item()})
            if saver.stopping:  # told to stop, and saved
                return saver.exit_code
    print("weights", hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
