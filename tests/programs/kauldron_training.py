# SPDX-License-Identifier: Apache-2.0
"""A tiny model in Kauldron's own Trainer: `kauldron_training.py ours|theirs WORKDIR STOP_AFTER|eval`.

The checkpointer is given by name, as in a configuration. Prints what two runs that did the same have in common.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax
import numpy as np
import optax
from flax import linen as nn
from kauldron import kd, konfig

MODULES = {"ours": "milepost.compat.kauldron", "theirs": "kauldron.checkpoints"}


class Rows:
    """Pairs of numbers, the same for every run."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = np.random.default_rng(index).standard_normal(4).astype(np.float32)
        return {"x": x, "y": 2 * x[:1]}


class Model(nn.Module):
    x: kd.kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return {"y": nn.Dense(1, name="head")(nn.tanh(nn.Dense(8, name="encoder")(x)))}


def rows(**options: Any) -> Any:
    return kd.data.py.DataSource(data_source=Rows(), batch_size=8, num_workers=0, seed=1, **options)


def trainer(which: str, workdir: str, stop_after: int | None, **options: Any) -> Any:
    checkpointer = konfig.ConfigDict(
        {"__qualname__": f"{MODULES[which]}:Checkpointer", "save_interval_steps": 2, "max_to_keep": 2}
    )
    loss = {"l2": kd.losses.L2(preds="preds.y", targets="batch.y")}
    return kd.train.Trainer(
        seed=3, workdir=workdir, num_train_steps=9, stop_after_steps=stop_after, model=Model(), train_losses=loss,
        train_ds=rows(shuffle=True, num_epochs=None), optimizer=optax.adam(1e-2), log_metrics_every=3,
        checkpointer=konfig.resolve(checkpointer), **options,
    )  # fmt: skip


def evaluator() -> Any:
    loss = kd.losses.L2(preds="preds.y", targets="batch.y")
    return kd.evals.Evaluator(
        run=kd.evals.StandaloneEveryCheckpoint(executor=None), discard_opt=False, num_batches=1,
        ds=rows(shuffle=False, num_epochs=1), losses={"l2": loss}, metrics={},
    )  # fmt: skip


def main() -> None:
    which, workdir, what = sys.argv[1:]
    if what == "eval":
        setup = kd.train.setup_utils.Setup(preemptable_eval=True)
        run = trainer(which, workdir, None, evals={"e": evaluator()}, setup=setup)
        print("evaluated", run.continuous_eval("e")["e"].compute(flatten=True).loss_values)
        return
    run = trainer(which, workdir, int(what) or None)
    state, _ = run.train()
    print("end", int(state.step), list(run.checkpointer.all_steps))
    for leaf in jax.tree.leaves(state.params):
        print(np.asarray(leaf).tobytes().hex())


if __name__ == "__main__":
    main()
