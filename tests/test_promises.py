# SPDX-License-Identifier: Apache-2.0
"""Promises that belong to no single module: nothing is executed, specs before bytes, every option is tested."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
from milepost.stores import MemoryStore

# Events that mean that code came from the data: https://docs.python.org/3/library/audit_events.html
EXECUTED = (
    "exec", "compile", "code.__new__", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "os.system", "os.exec",
    "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.__new__",
)  # fmt: skip


def test_loading_executes_nothing(root: Path) -> None:
    tree = {
        "w": np.arange(10.0), "s": np.zeros(2, [("a", "<i4"), ("b", "<f8")]), "rng": np.random.default_rng(0),
        "values": [None, 1, 2**80, 1.5, float("nan"), 1j, "x", b"y", np.datetime64("2026-01-01"), np.dtype("int8")],
    }  # fmt: skip
    mp.save(root, tree, metrics={"loss": 1.0})
    mp.open(root).pin(0, "a")
    program = f"""
import sys, milepost as mp
def everything():
    catalog = mp.open({str(root)!r})
    checkpoint = catalog.latest()
    checkpoint.load(); checkpoint.load(lazy=True); checkpoint.verify(); checkpoint.metrics; checkpoint.info
    [ref.read() for ref in checkpoint.leaves.values()]
    str(catalog); catalog.restore(); checkpoint.diff(checkpoint)
everything()  # what is imported when first needed
seen = []
watched = {(*EXECUTED, "import")!r}
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:80])) if event in watched else None)
everything()
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_load_compares_everything_before_it_reads() -> None:
    memory = MemoryStore()
    mp.save(memory, {"a": np.zeros(3), "b": np.ones(3)})
    read: list[str] = []

    class Counting:
        url = memory.url

        def __getattr__(self, name: str) -> Any:
            return getattr(memory, name)

        def get(self, key: str, **options: Any) -> memoryview:
            read.append(key)
            return memory.get(key, **options)

    checkpoint = mp.open(Counting())[0]  # pyright: ignore[reportArgumentType]
    target = {"a": np.full(3, 7.0), "c": np.full(3, 7.0)}
    for use in (checkpoint.load, checkpoint.load_into):
        with pytest.raises(mp.StructureError):
            use(target)

    assert not [key for key in read if key.endswith(".safetensors")]
    np.testing.assert_array_equal(target["a"], np.full(3, 7.0))


def options() -> list[tuple[str, str]]:
    """Every named option of the public callables."""
    found: list[tuple[str, str]] = []
    for owner in (mp.Checkpointer, mp.Catalog, mp.Checkpoint, mp.LeafRef, mp.PendingSave):
        for name, function in inspect.getmembers(owner, inspect.isfunction):
            if name.startswith("_") and name != "__init__":
                continue
            if owner in (mp.Catalog, mp.Checkpoint, mp.LeafRef, mp.PendingSave) and name == "__init__":
                continue  # users get these from calls
            found += [(f"{owner.__name__}.{name}", each.name) for each in _named(function)]
    for function in (mp.save, mp.load, mp.Every.__init__, mp.Within.__init__):
        found += [(function.__qualname__, each.name) for each in _named(function)]
    found += [("Limits", each.name) for each in dataclasses.fields(mp.Limits)]
    found += [("Window", each.name) for each in dataclasses.fields(mp.Window)]
    found += [("StepFormat", each.name) for each in dataclasses.fields(mp.StepFormat)]
    return sorted(set(found))


def _named(function: Any) -> list[inspect.Parameter]:
    return [each for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]


@pytest.mark.parametrize(("owner", "option"), options())
def test_every_option_is_observed_by_a_test(owner: str, option: str, project: Path) -> None:
    """Whether the test observes its effect is for people to judge; that one uses it is not."""
    tests = [path for path in (project / "tests").glob("test_*.py") if path.name != "test_promises.py"]
    used = rf"\b{option}=|\b{option}\b.*parametrize|parametrize.*\"{option}\"|\.{option}\b|mp\.(StepFormat|Window)\("
    assert any(re.search(used, path.read_text()) for path in tests), f"no test uses {option}= of {owner}"
