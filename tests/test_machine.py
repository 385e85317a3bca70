# SPDX-License-Identifier: Apache-2.0
"""The real catalog and a plain dict side by side, under random histories of saves, deletions, pins and restarts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import milepost as mp
from milepost.policy import Saved, keep_policy

POLICIES = ("all", "last 1", "last 3", "last 2, best 1 loss", "every 4 steps", "steps 3, 5", "spaced 2", "within 1 day")


@dataclass
class Model:
    """What one committed step should be."""

    value: int
    order: int
    metrics: dict[str, float] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    superseded: bool = False


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "root"
        self.model: dict[int, Model] = {}
        self.saver = mp.Checkpointer(self.root)
        self.value = 0

    def teardown(self) -> None:
        self.saver.close()
        shutil.rmtree(self.folder)

    # --- what the dict says

    def line(self) -> list[int]:
        return [step for step, item in self.model.items() if not item.superseded]

    def latest(self) -> int | None:
        return max(self.line() or self.model, key=lambda step: self.model[step].order, default=None)

    def tree(self) -> dict[str, Any]:
        self.value += 1
        return {"w": np.full(5, self.value), "frozen": np.arange(100.0), "n": self.value}

    def record(self, step: int, loss: float | None) -> None:
        order = max((item.order for item in self.model.values()), default=0) + 1
        self.model[step] = Model(self.value, order, {} if loss is None else {"loss": loss})

    # --- what happens

    @initialize()
    def begin(self) -> None:
        self.save(1, 1.0)

    @rule(jump=st.integers(1, 3), loss=st.none() | st.sampled_from([1.0, 2.0, 3.0, float("nan")]))
    def save(self, jump: int, loss: float | None) -> None:
        latest = self.latest()
        step = jump if latest is None else latest + jump
        self.saver.save(step, self.tree(), metrics={} if loss is None else {"loss": loss}).result()
        self.record(step, loss)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def save_again(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.model)))
        if self.model[step].superseded:
            return
        with pytest.raises(mp.ConflictError):
            self.saver.save(step, self.tree())
        order = self.model[step].order
        self.saver.save(step, self.tree(), overwrite=True).result()
        self.model[step] = Model(self.value, order)

    @precondition(lambda self: self.line())
    @rule(data=st.data())
    def branch(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.line())))
        self.saver.close()
        self.saver = mp.Checkpointer(self.root, resume_from=mp.open(self.root)[step])
        order = self.model[step].order
        self.saver.save(step + 1, self.tree()).result()
        for other, item in self.model.items():
            item.superseded = item.superseded or (other > step and item.order > order)
        self.record(step + 1, None)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.model)))
        self.saver.catalog.delete(step)
        del self.model[step]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), loss=st.sampled_from([0.5, 1.5]))
    def annotate(self, data: st.DataObject, loss: float) -> None:
        step = data.draw(st.sampled_from(sorted(self.model)))
        mp.open(self.root).annotate(step, metrics={"loss": loss})
        self.model[step].metrics["loss"] = loss

    @precondition(lambda self: self.model)
    @rule(data=st.data(), name=st.sampled_from(["a", "b"]))
    def pin(self, data: st.DataObject, name: str) -> None:
        step = data.draw(st.sampled_from(sorted(self.model)))
        mp.open(self.root).pin(step, name)
        self.model[step].pins.add(name)

    @rule(name=st.sampled_from(["a", "b"]))
    def unpin(self, name: str) -> None:
        if not any(name in item.pins for item in self.model.values()):
            with pytest.raises(mp.NotFoundError):
                self.saver.catalog.unpin(name)
            return
        self.saver.catalog.unpin(name)
        for item in self.model.values():
            item.pins.discard(name)

    @rule(phrase=st.sampled_from(POLICIES))
    def prune(self, phrase: str) -> None:
        catalog = mp.open(self.root)
        created = {step: catalog[step].created.timestamp() for step in self.model}
        history = [
            Saved(step, created[step], item.metrics, "", pinned=tuple(item.pins))
            for step, item in sorted(self.model.items(), key=lambda entry: entry[1].order)
        ]
        kept = set(keep_policy(phrase).keep(history)) | {step for step, item in self.model.items() if item.pins}
        latest = self.latest()
        kept |= set() if latest is None else {latest}
        planned = catalog.prune(phrase, dry_run=True)
        done = self.saver.catalog.prune(phrase)

        assert set(planned.kept) == set(done.kept) == kept & set(self.model)
        assert set(planned.dropped) == set(done.dropped) == set(self.model) - kept
        self.model = {step: item for step, item in self.model.items() if step in kept}

    @rule()
    def reopen(self) -> None:
        self.saver.close()
        self.saver = mp.Checkpointer(self.root)

    # --- what must hold

    @invariant()
    def the_catalog_is_the_dict(self) -> None:
        catalog = mp.open(self.root) if self.model or self.root.exists() else {}
        assert list(catalog) == sorted(self.model)
        for step, item in self.model.items():
            checkpoint = catalog[step]
            assert checkpoint.load()["n"] == item.value
            assert checkpoint.metrics.keys() == item.metrics.keys()
            assert set(checkpoint.info.pins) == item.pins
            assert checkpoint.info.superseded == item.superseded

    @invariant()
    def latest_is_the_same_for_every_handle(self) -> None:
        latest = self.latest()
        for catalog in (self.saver.catalog, mp.open(self.root)):
            found = catalog.latest()
            assert (None if found is None else found.step) == latest


TestCatalog = CatalogMachine.TestCase
TestCatalog.settings = settings(max_examples=25, stateful_step_count=25)
