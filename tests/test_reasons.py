# SPDX-License-Identifier: Apache-2.0
"""Why a checkpoint was saved and what keeps it: words that are stored in the checkpoint itself."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import milepost as mp
from milepost.cli import main
from milepost.policy import EMERGENCY, FINAL, keep_policy, save_policy
from milepost.stores import MemoryStore


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def test_a_reason_that_is_given_is_stored_instead_of_what_due_said(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, save="every 10 steps") as saver:
        assert saver.due(10) == "every 10 steps"
        by_policy = saver.save(10, {"a": 1}).result()
        assert saver.due(20) == "every 10 steps"
        final = saver.save(20, {"a": 2}, reason=FINAL).result()
        emergency = saver.save(23, {"a": 3}, reason=f"{EMERGENCY}: the loss is NaN").result()

    assert [c.reason for c in (by_policy, final, emergency)] == [
        "every 10 steps",
        "final",
        "emergency: the loss is NaN",
    ]
    assert [c.reason for c in mp.open(memory).values()] == ["every 10 steps", "final", "emergency: the loss is NaN"]


def test_the_reason_and_the_pins_of_a_save_are_shown(root: Path) -> None:
    with mp.Checkpointer(root, keep="last 1") as saver:
        saver.save(1, {"a": 1}, pin="paper")
        saver.save(2, {"a": 2}, reason=EMERGENCY)

    shown = CliRunner().invoke(main, ["ls", str(root)]).output.splitlines()

    assert shown[1].endswith("SAVED BECAUSE  KEPT BECAUSE")
    assert re.split("  +", shown[2])[-2:] == ["emergency", "latest · last 1"]
    assert shown[3].endswith('pinned "paper"')
    assert "emergency" in str(mp.open(root))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"reason": ""}, ValueError, "reason: expected a few words"),
        ({"reason": 3}, TypeError, "reason: expected text, found 3"),
        ({"reason": "x" * 201}, ValueError, "reason: 201 characters are more than 200\n  Put the rest into `metadata`"),
        ({"reason": "two\nlines"}, ValueError, "do not print in one line"),
        ({"reason": "\ud800"}, ValueError, "do not print in one line"),
        ({"pin": ""}, ValueError, "pin: expected a few words"),
        ({"pin": ["good", "\x1b[2J"]}, ValueError, "do not print in one line"),
        ({"pin": b"bytes"}, TypeError, "pin: expected a name or several, found b'bytes'"),
        ({"pin": 7}, TypeError, "pin: expected a name or several, found 7"),
        ({"pin": True}, TypeError, "pin: expected a name or several, found True"),
    ],
)
def test_a_reason_or_pin_that_cannot_be_shown_is_refused_before_anything_is_written(
    memory: MemoryStore, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with mp.Checkpointer(memory) as saver:
        with pytest.raises(error, match=text.replace("[", r"\[")):
            saver.save(1, {"a": 1}, **options)
        saver.save(1, {"a": 1})

    assert list(mp.open(memory)) == [1]


def test_a_pin_given_at_the_save_keeps_the_step_from_its_first_moment(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, keep="last 1") as saver:
        for step in range(4):
            saver.save(step, {"a": step}, pin="start" if step == 0 else ["a", "b", "a"] if step == 1 else None)
    catalog = mp.open(memory)

    assert list(catalog) == [0, 1, 3]
    assert catalog[0].info.pins == ("start",)
    assert catalog[1].info.pins == ("a", "b")
    assert not any("notes/" in info.key for info in memory.list(""))

    catalog.unpin("start")
    catalog.unpin("a")
    catalog.prune("last 1")
    assert list(catalog) == [1, 3]


def test_pins_of_a_policy_and_of_the_save_are_both_stored(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, save=mp.Window(0, 8, pin="early")) as saver:
        saved = saver.save(4, {"a": 1}, pin=["mine", "early"]).result()

    assert saved.info.pins == ("early", "mine")


def test_a_keep_policy_sees_metadata_also_what_was_said_later(memory: MemoryStore) -> None:
    class OfBranch:
        def keep(self, history: Any) -> dict[int, str]:
            return {saved.step: "main" for saved in history if saved.metadata.get("branch") == "main"}

    with mp.Checkpointer(memory) as saver:
        for step, branch in enumerate(["main", "try", "try", "try"]):
            saver.save(step, {"a": step}, metadata={"branch": branch, "at": np.datetime64("2026-01-01")})
    catalog = mp.open(memory)
    catalog.annotate(2, metadata={"branch": "main"})

    assert catalog.prune(OfBranch()).kept == {0: "main", 2: "main", 3: "latest"}


def test_phrases_are_read_by_public_functions() -> None:
    assert keep_policy("last 3, best 1 loss") == mp.Latest(3) | mp.Best("loss", 1)
    assert mp.policy.save_policy("every 10 steps") == save_policy(mp.EveryNSteps(10))


class Counter:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Iterator:
    def get_state(self) -> bytes:
        return b""

    def set_state(self, state: bytes) -> None: ...


def test_whether_an_object_owns_state_is_told() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    stateful = [model, optimizer, random.Random(0), np.random.default_rng(0), torch.Generator(), Counter(), Iterator()]
    stateless = [
        np.zeros(3),
        torch.zeros(3),
        jax.random.key(0),
        1,
        "a",
        None,
        {"a": 1},
        [model],
        (1,),
        Counter,
        object(),
    ]

    assert [mp.is_stateful(value) for value in stateful] == [True] * len(stateful)
    assert [mp.is_stateful(value) for value in stateless] == [False] * len(stateless)
