# SPDX-License-Identifier: Apache-2.0
"""A user's program with several items: a state, the position of a data iterator, JSON, random keys, with Orbax v0.

Run with a folder as its argument.
"""

import dataclasses
import sys
from pathlib import Path

import grain.python as grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def batches():
    return iter(grain.MapDataset.source(list(range(100))).shuffle(seed=3).batch(4).to_iter_dataset())


class TokenizerHandler(ocp.CheckpointHandler):
    """A handler of the user's own, for an object that writes a file."""

    def save(self, directory, args):
        (directory / "vocabulary.txt").write_text("\n".join(args.words))

    def restore(self, directory, args=None):
        return (directory / "vocabulary.txt").read_text().split("\n")


@ocp.args.register_with_handler(TokenizerHandler, for_save=True)
@dataclasses.dataclass
class TokenizerSave(ocp.args.CheckpointArgs):
    words: list


@ocp.args.register_with_handler(TokenizerHandler, for_restore=True)
@dataclasses.dataclass
class TokenizerRestore(ocp.args.CheckpointArgs):
    pass


root = Path(sys.argv[1]) / "items"
state = {"layers": [{"w": jnp.arange(4.0)}, {"w": jnp.ones((2, 2), jnp.bfloat16)}], "step": 3, "scale": 0.5}
iterator = batches()
print("first", next(iterator).tolist())

with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(step_prefix="ckpt")) as manager:
    for step in range(3):
        batch = next(iterator)
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({**state, "step": step}),
                data=grain.PyGrainCheckpointSave(iterator),
                config=ocp.args.JsonSave({"lr": 0.1, "layers": [1, 2], "name": None}),
                key=ocp.args.JaxRandomKeySave(jax.random.key(step)),
                words=TokenizerSave(["a", "b", f"c{step}"]),
                table=ocp.args.ArraySave(np.arange(3)),
            ),
        )
        print("saved", step, batch.tolist(), manager.all_steps())
    after = next(iterator).tolist()

names = sorted(path.name for path in root.iterdir() if path.name.startswith("ckpt"))
print("folders", names)

with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(step_prefix="ckpt")) as manager:
    again = batches()
    restored = manager.restore(
        2,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
            data=grain.PyGrainCheckpointRestore(again),
            config=ocp.args.JsonRestore(),
            key=ocp.args.JaxRandomKeyRestore(),
            words=TokenizerRestore(),
        ),
    )
    print("items", sorted(restored.keys()), type(restored).__name__.removesuffix("Args"))
    print("state", jax.tree.map(lambda leaf: (type(leaf).__name__, np.asarray(leaf).tolist()), restored.state))
    print("goes on with the same batch", next(restored.data).tolist() == after)
    print("config", restored.config, "words", restored["words"], "in", "table" in restored)
    print("key", jax.random.key_data(restored.key).tolist(), jax.random.uniform(restored.key, (1,)).shape)
    print("some", manager.restore(1, args=ocp.args.Composite(config=ocp.args.JsonRestore())))
    print("table", manager.restore(1, args=ocp.args.Composite(table=ocp.args.ArrayRestore())).table.tolist())
    try:
        manager.restore(1, args=ocp.args.Composite(nothing=ocp.args.JsonRestore()))
    except KeyError as error:
        print("no such item", type(error).__name__)
    try:
        manager.save(9, args=ocp.args.StandardSave(state))
    except ValueError:
        print("a Composite is asked for")
    described = manager.item_metadata(2)
    print(
        "described",
        jax.tree.map(lambda leaf: leaf.shape, described.state.tree)["layers"],
        described.state["step"].dtype,
    )
