# SPDX-License-Identifier: Apache-2.0
"""milepost itself as a subject: what its users do, over the public names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

import milepost as mp
from milepost.stores import Store
from milepost.testing.faults.subject import TORN, Journal, Script, Things
from milepost.testing.model import Content, Disk, ModelStore

_FROZEN = 3_000
# Enough for several chunks, threads and direct writes, whatever their sizes are.
_LARGE = 9 << 20


def tree(step: int, seed: int, *, large: bool = False) -> dict[str, Any]:
    """Return a state that its step and seed determine: one part that changes, one that never does, and values."""
    random = np.random.default_rng([step, seed])
    return {
        "w": random.integers(0, 256, _LARGE if large else 5_000, np.uint8),
        "frozen": np.arange(_FROZEN, dtype=np.int64),
        "scale": random.random((3, 4)),
        "seed": seed,
        "large": large,
    }


def _content(step: int, checkpoint: mp.Checkpoint) -> str:
    """Return the seed of what a step holds, when all of it is as it was saved."""
    try:
        checkpoint.verify()
        loaded = checkpoint.load()
        expected = tree(step, loaded["seed"], large=loaded["large"])
        for name, value in expected.items():
            if np.asarray(value).tobytes() != np.asarray(loaded[name]).tobytes():
                return f"{TORN}: {name} differs"
    except (mp.CheckpointError, KeyError, TypeError) as error:
        return f"{TORN}: {type(error).__name__}: {str(error)[:300]}"
    return str(loaded["seed"])


def _saver(root: Path, *, keep: str = "all", resume_from: mp.Checkpoint | None = None) -> mp.Checkpointer:
    return mp.Checkpointer(root, save="every step", keep=keep, resume_from=resume_from)


def _steps(*steps: int) -> Any:
    def prepare(root: Path) -> None:
        if steps:
            with _saver(root) as saver:
                for step in steps:
                    saver.save(step, tree(step, step))

    return prepare


def _made(step: int, seed: int = 0) -> Things:
    return {str(step): str(seed), "latest": str(step)}


def _one_by_one(root: Path, journal: Journal) -> None:
    for step in (1, 2):
        with journal.doing(_made(step)):
            mp.save(root, tree(step, 0), step=step)


def _a_run(root: Path, journal: Journal) -> None:
    """Saves in the background, three in a row; each is waited for by the next."""
    with _saver(root) as saver:
        pending: list[tuple[int, mp.PendingSave]] = []
        for step in (1, 2, 3):
            action = journal.begin(_made(step))
            try:
                pending.append((action, saver.save(step, tree(step, 0))))
            except mp.CheckpointError as error:  # of this save, or of the one before it: neither is acknowledged
                journal.failed(action, _Before(error))
        for action, save in pending:
            try:
                save.result()
                journal.done(action)
            except mp.CheckpointError as error:
                journal.failed(action, error)


class _Before(Exception):
    """`save` raised, perhaps for the save before it: nothing is known of its own."""


def _overwriting(root: Path, journal: Journal) -> None:
    with _saver(root) as saver:
        for step, seed in ((2, 7), (2, 8)):
            with journal.doing(_made(step, seed)):
                saver.save(step, tree(step, seed), overwrite=True).result()


def _keeping_two(root: Path, journal: Journal) -> None:
    with _saver(root, keep="last 2") as saver:
        for step in (3, 4):
            with journal.doing(_made(step), removes=[str(old) for old in range(1, step - 1)]):
                saver.save(step, tree(step, 0)).result()


def _deleting(root: Path, journal: Journal) -> None:
    with journal.doing(removes=["2"]):
        mp.open(root).delete(2)
    with journal.doing(removes=["1"]):
        mp.open(root).prune("last 1")


def _noting(root: Path, journal: Journal) -> None:
    catalog = mp.open(root)
    with journal.doing({"1 loss": "0.5"}):
        catalog.annotate(1, metrics={"loss": 0.5})
    with journal.doing({"1 pin best": "yes"}):
        catalog.pin(1, "best")


def _after_a_crash(root: Path) -> None:
    """Two steps, what a killed save left of a third, and what a killed deletion left of another."""
    _steps(1, 2)(root)
    (root / "3").mkdir()
    (root / "3" / "p00000-01234567.safetensors").write_bytes(b"half")
    (root / "3" / ".tmp-0123456789abcdef").write_bytes(b"half")
    (root / ".trash-0123456789abcdef" / "notes").mkdir(parents=True)
    (root / ".trash-0123456789abcdef" / "manifest.json").write_bytes(b"{}")


def _recovering(root: Path, journal: Journal) -> None:
    with _saver(root) as saver, journal.doing(_made(3)):
        saver.save(3, tree(3, 0)).result()


def _large(root: Path, journal: Journal) -> None:
    with _saver(root) as saver:
        for step in (1, 2):
            with journal.doing(_made(step)):
                saver.save(step, tree(step, 0, large=True)).result()


def _loading(root: Path, journal: Journal) -> None:
    with journal.doing():
        restored = mp.open(root).restore()
        assert restored is not None
        step, seed = restored.checkpoint.step, restored.tree["seed"]
        for name, value in tree(step, seed).items():
            if np.asarray(restored.tree[name]).tobytes() != np.asarray(value).tobytes():
                raise AssertionError(f"{name} of step {step} was loaded wrong")


def _branching(root: Path, journal: Journal) -> None:
    with _saver(root, resume_from=mp.open(root)[1]) as saver:
        for step in (2, 4):
            # From the declaration on, what the branch began with is the latest.
            with journal.doing(_made(step, 9), may={"latest": "1"} if step == 2 else {}):
                saver.save(step, tree(step, 9)).result()


@final
class Milepost:
    """milepost, through its public names."""

    scripts: Mapping[str, Script] = {
        "save": Script(_steps(), _one_by_one),
        "run": Script(_steps(), _a_run),
        "overwrite": Script(_steps(1, 2), _overwriting),
        "retention": Script(_steps(1, 2), _keeping_two),
        "delete": Script(_steps(1, 2, 3), _deleting),
        "annotate": Script(_steps(1), _noting),
        "recovery": Script(_after_a_crash, _recovering),
        "load": Script(_steps(1, 2), _loading),
        "branch": Script(_steps(1, 2, 3), _branching),
        "large": Script(_steps(), _large),
    }

    fresh: Things = _made(1_000)

    def read(self, root: Path) -> Things:
        return self._read(root)

    def read_files(self, files: Mapping[str, bytes], folders: Collection[str]) -> Things:
        content = Content({name: (i, data) for i, (name, data) in enumerate(files.items())}, dict.fromkeys(folders, 0))
        return self._read(ModelStore(Disk(content).perform))

    def _read(self, root: Path | Store) -> Things:
        try:
            catalog = mp.open(root)
        except mp.NotFoundError:  # the first save did not get far enough
            return {}
        found: dict[str, str] = {}
        for step, checkpoint in catalog.items():
            found[str(step)] = _content(step, checkpoint)
            if not found[str(step)].startswith(TORN):
                found |= {f"{step} {name}": str(value) for name, value in checkpoint.metrics.items()}
                found |= {f"{step} pin {name}": "yes" for name in checkpoint.info.pins}
        if latest := catalog.latest():
            found["latest"] = str(latest.step)
        return found

    def again(self, root: Path) -> None:
        mp.save(root, tree(1_000, 0), step=1_000)

    def strays(self, root: Path) -> Collection[str]:
        known: set[Path] = set()
        for manifest in root.glob("*/manifest.json"):
            names = [name for name, *_ in json.loads(manifest.read_bytes())["files"]]
            known |= {manifest, *(manifest.parent / name for name in names)}
        # A kill between link and unlink leaves a second name, which takes no space and goes with the step. One in the
        # middle of a record of the root's own, or of a note, leaves some hundred bytes that no listing shows.
        inodes = {path.stat().st_ino for path in known if path.exists()}
        return [str(path.relative_to(root)) for path in _in_slots_and_trash(root) if path.stat().st_ino not in inodes]

    def code_of(self, error: BaseException) -> str | None:
        if isinstance(error, mp.CommitUnknownError | _Before):
            return "unknown"
        return error.code if isinstance(error, mp.CheckpointError) else None


def _in_slots_and_trash(root: Path) -> Iterator[Path]:
    for path in root.iterdir():
        if path.is_dir() and (path.name[0].isdecimal() or path.name[0] == "."):
            yield from (file for file in path.rglob("*") if not file.is_dir() and file.parent.name != "notes")
        elif path.name[0] == ".":
            yield path
