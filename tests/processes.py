# SPDX-License-Identifier: Apache-2.0
"""The processes whose orders `test_schedules.py` tries, and what must hold after each of their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

import milepost as mp
from milepost.checkpoint import Checkpoint
from milepost.engine import commit, save
from milepost.engine.anatomy import Anatomy
from milepost.engine.capture import borrowed
from milepost.engine.gate import Gate
from milepost.engine.opening import open_root
from milepost.engine.prepare import Outline, prepare
from milepost.engine.root import Root
from milepost.engine.save import Order
from milepost.engine.transfer import Limits
from milepost.errors import ConflictError, NotFoundError
from milepost.leafref import Opened
from milepost.model.format import Manifest, Slot
from milepost.stores import Claim, Store
from milepost.testing.model import Content
from milepost.testing.schedules import Process, World, filled

Work = Callable[[Process], object]


def tree(step: int, by: str) -> dict[str, Any]:
    return {"w": np.full(3, float(step)), "frozen": np.arange(4.0), "step": step, "by": by}


def is_tree(loaded: Mapping[str, Any], step: int) -> bool:
    """Whether what was loaded is what somebody saved as this step, bit for bit."""
    expected = tree(step, loaded["by"])
    same = all(loaded[name].tobytes() == expected[name].tobytes() for name in ("w", "frozen"))
    return same and loaded["step"] == step


def checkpointer(store: Store, **options: Any) -> mp.Checkpointer:
    """A Checkpointer that writes in the foreground: a process of an exploration has one thread."""
    return mp.Checkpointer(
        store, **{"save": "every step", "keep": "all", "limits": mp.Limits(memory_bytes=1), **options}
    )


def root_with(*steps: int, unfinished: int | None = None) -> Content:
    """A root with these steps, and what a killed save of another one left."""

    def fill(store: Store) -> None:
        with checkpointer(store) as saver:
            for step in steps:
                saver.save(step, tree(step, "before")).result()

    def leave(store: Store) -> None:
        if unfinished is not None:
            store.claim(f"{unfinished}/").put("p00000-00000000.safetensors", [b"half"])

    return filled(fill, leave)


# --- processes that save


def writer(*steps: int, overwrite: bool = False, branch_from: int | None = None, **options: Any) -> Work:
    """Saves these steps; says which were acknowledged, or why it was refused."""

    def work(process: Process) -> None:
        with process.alone():  # opening changes nothing
            if branch_from is not None:
                options["resume_from"] = mp.open(process.store)[branch_from]
            saver = checkpointer(process.store, **options)
        try:
            with saver:
                _save(process, saver, steps, overwrite)
        except (ConflictError, NotFoundError) as error:
            process.say("refused", error.code)

    return work


def zombie(first: int, *steps: int, overwrite: bool = False, **options: Any) -> Work:
    """A writer that has its epoch, and the first step, before the others begin."""

    def work(process: Process) -> None:
        with process.alone():
            saver = checkpointer(process.store, **options)
            _save(process, saver, [first], overwrite=False)
        try:
            with saver:
                _save(process, saver, steps, overwrite)
        except ConflictError as error:
            process.say("refused", error.code)

    return work


def _save(process: Process, saver: mp.Checkpointer, steps: Iterable[int], overwrite: bool) -> None:
    for step in steps:
        made = saver.save(step, tree(step, process.name), overwrite=overwrite).result()
        process.say("saved", made.step, made.info.id)


def attempt(step: int, *, late: bool = False) -> Work:
    """Takes an epoch, and saves one step, with nothing around it; `late`: all but the publishing comes first."""

    def work(process: Process) -> None:
        before = ExitStack()

        class Late(commit.Lock):
            def publish(self, claim: Claim, manifest: Manifest) -> None:
                before.close()
                super().publish(claim, manifest)

        if late:
            before.enter_context(process.alone())
        with process.alone():
            root = open_root(process.store)
        captured = prepare(tree(step, process.name), root, None, Outline())
        order = Order(step, "", {}, {}, [], "all", None, [])
        try:
            with (Late if late else commit.Lock)(root) as lock:
                buffers = borrowed(captured.held)
                written = save.write(
                    root,
                    lock,
                    order,
                    captured,
                    buffers,
                    base=None,
                    limits=Limits(),
                    gate=Gate(order.step),
                    anatomy=Anatomy(),
                )
            process.say("saved", step, written.manifest.id)
        except ConflictError as error:
            process.say("refused", error.code)

    return work


def sweeper(*, late: bool = False) -> Work:
    """Takes over, sweeps, and saves nothing; `late`: the sweep itself is what others may come before."""

    def work(process: Process) -> None:
        before = ExitStack()

        class Late(commit.Lock):
            def _sweep(self) -> None:
                before.close()
                super()._sweep()

        if late:
            before.enter_context(process.alone())
        with process.alone():
            root = open_root(process.store)
        try:
            with (Late if late else commit.Lock)(root) as lock:
                lock.epoch()
        except ConflictError as error:
            process.say("refused", error.code)

    return work


# --- processes that delete, and that say something of a step


def pruner(keep: str) -> Work:
    return _catalog_work(lambda catalog: ("pruned", *catalog.prune(keep).dropped))


def deleter(step: int) -> Work:
    return _catalog_work(lambda catalog: ("deleted", catalog.delete(step)))


def pinner(step: int, name: str = "paper") -> Work:
    return _catalog_work(lambda catalog: ("pinned", catalog.pin(step, name), step, name))


def annotator(step: int, name: str) -> Work:
    return _catalog_work(lambda catalog: ("annotated", catalog.annotate(step, metrics={name: 1}), step, name))


def _catalog_work(change: Callable[[mp.Catalog], tuple[Any, ...]]) -> Work:
    def work(process: Process) -> None:
        with process.alone():
            catalog = mp.open(process.store)
        try:
            said = change(catalog)
        except (ConflictError, NotFoundError) as error:
            said = ("refused", error.code)
        process.say(*[word for word in said if word is not None])

    return work


# --- processes that read


def reader(process: Process) -> None:
    """Loads the latest, as a run that starts does."""
    with process.alone():
        catalog = mp.open(process.store)
    process.say("looks")
    latest = catalog.latest()
    process.say("sees", 0 if latest is None else latest.step)
    if latest is not None:
        _load(process, latest)


def reader_of(step: int) -> Work:
    """Loads one step, of a catalog that was opened before."""

    def work(process: Process) -> None:
        with process.alone():
            catalog = mp.open(process.store)
        if (checkpoint := catalog.get(step)) is None:
            process.say("not found", step)
        else:
            _load(process, checkpoint)

    return work


def leaseholder(step: int) -> Work:
    """Holds one step, then loads it twice: what is held can be read."""

    def work(process: Process) -> None:
        with process.alone():
            checkpoint = mp.open(process.store)[step]
        try:
            hold = checkpoint.lease()
        except (ConflictError, NotFoundError) as error:
            if error.code not in ("deleted", "busy"):
                raise
            return
        with hold:
            assert is_tree(checkpoint.load(), step)
            assert is_tree(checkpoint.load(), step)

    return work


def _load(process: Process, checkpoint: Checkpoint) -> None:
    try:
        loaded = checkpoint.load()
    except (ConflictError, NotFoundError) as error:
        if error.code not in ("deleted", "busy"):
            raise
        process.say(error.code, checkpoint.step)
    else:
        assert is_tree(loaded, checkpoint.step)
        process.say("read", checkpoint.step)


# --- what must hold


class Promises:
    """What must hold after every call.

    Nothing torn is visible: whatever has a manifest loads, bit for bit. What was acknowledged is there. `latest` is
    what the newest writer saved last, or, before it has saved, what it goes on from.

    Args:
        may_go: steps that a policy or a call removes.
        forward: all writers go on from the latest, so that it never moves back.
    """

    def __init__(self, *, may_go: Iterable[int] = (), forward: bool = True) -> None:
        self._may_go, self._forward = set(may_go), forward
        self._whole: set[Any] = set()

    def __call__(self, world: World) -> None:
        if "milepost.json" not in world.content.files:
            return
        root = open_root(world.store)
        there = [(slot, manifest) for slot in root.slots() if (manifest := root.manifest(slot)) is not None]
        for slot, manifest in there:
            self._check_whole(world.content, root, slot, manifest)
        ids = {manifest.id for _, manifest in there}
        for step, identity in world.saying("saved"):
            assert identity in ids or step in self._may_go, f"step {step} was acknowledged, and is lost"
        if there:
            self._check_latest(root, there, world)

    def _check_whole(self, content: Content, root: Root, slot: Slot, manifest: Manifest) -> None:
        prefix = f"{slot.name}/"
        files = frozenset((key, number) for key, (number, _) in content.files.items() if key.startswith(prefix))
        if files not in self._whole:
            checkpoint = Checkpoint(Opened(root, slot, manifest))
            checkpoint.verify()
            assert is_tree(checkpoint.load(), slot.step)
            self._whole.add(files)

    def _check_latest(self, root: Root, there: list[tuple[Slot, Manifest]], world: World) -> None:
        head, latest = root.head(), root.latest()
        assert latest is not None
        newest = [slot for slot, manifest in there if manifest.epoch >= head.line]
        if newest:
            assert latest[0] == newest[-1], "latest is not what the newest writer saved last"
        elif any(slot.name == head.slot for slot, _ in there):
            assert latest[0].name == head.slot, "latest is not what the newest writer goes on from"
        if self._forward:
            acknowledged = max((step for step, _ in world.saying("saved") if step not in self._may_go), default=0)
            assert latest[0].step >= acknowledged, "latest moved back"


def readers_are_up_to_date(world: World) -> None:
    """What a reader is given is no older than what was acknowledged before it looked; step 1 was there before."""
    acknowledged, before = 1, 0
    for _, (word, *what) in world.said:
        if word == "saved":
            acknowledged = max(acknowledged, what[0])
        elif word == "looks":
            before = acknowledged
        elif word == "sees":
            assert what[0] >= before, f"step {before} was there, and the reader was given {what[0]}"


def what_was_said_stays(world: World) -> None:
    """Pins and metrics that were acknowledged are there."""
    for step, name in world.saying("pinned"):
        assert name in mp.open(world.store)[step].info.pins, "the pin was acknowledged, and is gone"
    for step, name in world.saying("annotated"):
        assert name in mp.open(world.store)[step].metrics
