# SPDX-License-Identifier: Apache-2.0
"""Restoring a checkpoint part by part, as the program comes to have the parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

import milepost as mp

pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital")


def make_loader() -> StatefulDataLoader[int]:
    generator = torch.Generator().manual_seed(7)
    return StatefulDataLoader(list(range(12)), batch_size=2, shuffle=True, generator=generator)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, count: int) -> list[float]:
    losses: list[float] = []
    for batch in (next(batches) for _ in range(count)):
        optimizer.zero_grad()
        loss = (model(batch.float().reshape(1, 2)) - 1.0).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_checkpoint_is_restored_in_phases_while_retention_runs_between_them(root: Path) -> None:
    model, loader = make_model(), make_loader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = iter(loader)
    train(model, optimizer, batches, 3)
    with mp.Checkpointer(root, keep="last 1") as saver:
        saver.save(3, {"model": model, "optimizer": optimizer, "loader": mp.PerProcess(loader)})
    uninterrupted = train(model, optimizer, batches, 3)

    with mp.Checkpointer(root, keep="last 1") as saver:
        last = saver.catalog.latest()
        assert last is not None
        with last.lease():
            model = make_model()
            last.at("model").load_into(model)
            saver.save(4, {"other": 1}).result()  # what somebody saves meanwhile
            saver.save(5, {"other": 2}).result()
            assert list(mp.open(root)) == [3, 5]
            optimizer = torch.optim.AdamW(model.parameters())
            last.at("optimizer").load_into(optimizer)
            saver.save(6, {"other": 3}).result()
            loader = make_loader()
            last.at("loader").load_into(loader)
        saver.save(7, {"other": 4}).result()

    assert list(mp.open(root)) == [7]  # once it was let go of
    assert train(model, optimizer, iter(loader), 3) == uninterrupted


def test_the_whole_tree_is_compared_before_the_first_phase(root: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, iter(make_loader()), 1)
    mp.save(root, {"model": model, "optimizer": optimizer}, metadata={"frozen": []})
    last = mp.open(root).latest()
    assert last is not None
    with torch.device("meta"):
        shapes = make_model().state_dict()

    told = last.compare({"model": shapes, "optimizer": mp.SKIP}, require={"frozen": []})

    assert list(told.read) == [f"model/{name}" for name in shapes]
    assert all(path.startswith("optimizer/") for path in told.unread)
