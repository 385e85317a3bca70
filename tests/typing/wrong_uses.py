# SPDX-License-Identifier: Apache-2.0
# pyright: standard
# ruff: noqa: B018
"""Uses that a type checker must refuse: pyright reports each line marked `# wrong`, and no other.

Never executed: `tests/test_typing.py` compares the marks with pyright's report.
"""

from __future__ import annotations

import numpy as np

import milepost as mp
from milepost import Best, Every, EveryNSteps, First, Latest, OnPreemption

tree = {"weights": np.zeros(3)}

# Opening.
mp.Checkpointer()  # wrong: where?
mp.Checkpointer(1)  # wrong: a root is a path, a URL or a Store
mp.Checkpointer("runs/1", "every 10 steps")  # wrong: options have names
mp.Checkpointer("runs/1", every=10)  # wrong: no such option
mp.Checkpointer("runs/1", save=Latest(3))  # wrong: Latest keeps, it is never due
mp.Checkpointer("runs/1", keep=First())  # wrong: First is due, it keeps nothing
mp.Checkpointer("runs/1", save=1_000)  # wrong: a policy, or a phrase
mp.Checkpointer("runs/1", busy="block")  # wrong: "wait" or "skip"
mp.Checkpointer("runs/1", copy=True)  # wrong: "auto" or "always"
mp.Checkpointer("runs/1", limits=mp.Limits(memory=1 << 30))  # wrong: the unit is in the name
mp.Checkpointer("runs/1", save=EveryNSteps(1_000) | OnPreemption() | Every(minutes=10))
mp.Checkpointer("runs/1", keep=Latest(3) | Best("loss", 2, mode="min") | EveryNSteps(10_000))
mp.Checkpointer("runs/1", save="every 500 steps or 10 min", keep="last 3, best 1 loss")

# Policies.
Best("loss", 2, mode="lowest")  # wrong: "min" or "max"
Every("10 min")  # wrong: seconds=, minutes= or hours=
First() | Latest(3)  # wrong: one says when, the other what stays
Latest(3) | OnPreemption()  # wrong: the same the other way round
Latest(3).n = 4  # wrong: a policy is a value

# Saving.
with mp.Checkpointer("runs/1") as saver:
    saver.due()  # wrong: due at which step?
    saver.due(1, True)  # wrong: `last` has a name
    saver.save("12", tree)  # wrong: a step is an integer
    saver.save(12, tree, {"loss": 1.0})  # wrong: `metrics` has a name
    saver.save(12, tree, metrics=1.0)  # wrong: metrics have names
    saver.step = 12  # wrong: no such attribute
    pending = saver.save(12, tree, metrics={"loss": 1.0})
    pending.result(timeout=3.0)  # wrong: the unit is in the name
    pending.result().state  # wrong: a Checkpoint is read with `load`
    saver.catalog.latest().step  # wrong: None on the first run

# Reading.
catalog = mp.open("runs/1")
catalog["latest"]  # wrong: a Catalog maps steps
catalog.restore(like=tree, on_corrupt="skip")  # wrong: "raise" or "previous"
catalog.best("loss", "lowest")  # wrong: "min" or "max"
catalog.prune("last 3", dry=True)  # wrong: no such option
catalog.watch(every_s=1.0)  # wrong: no such option

checkpoint = catalog[12]
checkpoint.step = 13  # wrong: a Checkpoint never changes
checkpoint.load(like=tree, strict=False)  # wrong: say what may be missing
checkpoint.load(like=tree, missing="ignore")  # wrong: "error" or "keep"
checkpoint.load(like=tree, unexpected="keep")  # wrong: "error" or "ignore"
checkpoint.load(like=tree, dtype="float32")  # wrong: "error" or "cast"
checkpoint.load(like=tree, rename=["a", "b"])  # wrong: old to new
checkpoint.at(3)  # wrong: a key path is text
checkpoint.leaf("weights")["a"]  # wrong: a range of an array
checkpoint.leaf("weights").spec.shape = (3,)  # wrong: a LeafSpec never changes
checkpoint.diff(12)  # wrong: another Checkpoint
checkpoint.load(tree, missing="keep", unexpected="ignore", dtype="cast", only="weights", exclude=["rng/**"])
