# SPDX-License-Identifier: Apache-2.0
"""The v1 door beside Orbax itself: every name and argument, and programs of users, with one import changed.

Orbax runs in a process of its own, and so does our side.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from milepost.compat.orbax_v1 import training

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "doors" / "orbax_v1.md"
PROGRAMS = sorted(path.name for path in (HERE / "programs").glob("orbax_v1_*.py"))

# Arguments that differ; the page says of each what it is here.
OTHER_ARGUMENTS = {"handlers.PyTreeHandler", "options.FileOptions", "options.ArrayOptions.Saving"}
# Names of the standard library, which a module of Orbax merely imports.
NO_NAMES = {"training.preservation_policies.Any", "training.preservation_policies.Dict"}
# Groups of options that have an effect only together; the page names the group.
GROUPS = {"LoadAndBroadcastOptions", "RegulatorOptions"}

STEP = "step: int | CheckpointMetadata | None = None"
SAVE = "force: bool = False, overwrite: bool = False, metrics = None, custom_metadata = None"
# The members of `Checkpointer` in the documentation of v1, with their arguments.
DOCUMENTED = {
    "__init__": "directory, *, context = None, save_decision_policy = None, preservation_policy = None,"
    " step_name_format = None, custom_metadata = None, cleanup_tmp_directories = False, lightweight_initialize = False",
    "directory": None,
    "latest": None,
    "checkpoints": None,
    "should_save": "step",
    "save": f"step, state, *, checkpointable_name = 'state', {SAVE}",
    "save_checkpointables": f"step, checkpointables, *, {SAVE}",
    "save_async": f"step, state, *, checkpointable_name = 'state', {SAVE}",
    "save_checkpointables_async": f"step, checkpointables, *, {SAVE}",
    "load": f"{STEP}, abstract_state = None, *, checkpointable_name = 'state'",
    "load_checkpointables": f"{STEP}, abstract_checkpointables = None",
    "load_async": f"{STEP}, abstract_state = None",
    "load_checkpointables_async": f"{STEP}, abstract_checkpointables = None",
    "metadata": STEP,
    "checkpointables_metadata": STEP,
    "root_metadata": "",
    "reload": "",
    "is_saving_in_progress": "",
    "wait": "",
    "close": "",
    "save_pytree": "*args, **kwargs",
    "save_pytree_async": "*args, **kwargs",
    "load_pytree": "*args, **kwargs",
    "load_pytree_async": "*args, **kwargs",
    "pytree_metadata": "*args, **kwargs",
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("orbax") is None:
        pytest.skip("orbax-checkpoint is not installed")
    running = {
        side: subprocess.Popen(
            [sys.executable, HERE / "orbax_v1_side.py", side, tmp_path_factory.mktemp(side)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for side in ("real", "ours")
    }
    found: dict[str, Any] = {}
    for side, process in running.items():
        output, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
        found[side] = json.loads(output)
    return found


@pytest.fixture(scope="module")
def page() -> set[str]:
    return set(re.findall(r"`([\w.]+)(?:\(\))?`", PAGE.read_text()))


def shown(name: str, page: set[str]) -> bool:
    """Return whether the page names it: whole, or as what stands after the module's or class's own name."""
    parts = name.split(".")
    return any(".".join(parts[i:]) in page for i in range(len(parts)))


def test_every_public_name_is_here_or_the_page_says_why_not(sides: dict[str, Any], page: set[str]) -> None:
    missing = [name for name in sides["real"]["names"] if name not in sides["ours"]["names"] and name not in NO_NAMES]

    assert [name for name in missing if not shown(name, page)] == []
    assert all(name.endswith((".v0", ".regulator", "_handleable")) for name in missing), missing


def test_arguments_and_defaults_are_those_of_orbax(sides: dict[str, Any], page: set[str]) -> None:
    real, ours = sides["real"]["names"], sides["ours"]["names"]
    different = {name for name in real if name in ours and real[name] != ours[name]}

    assert different <= OTHER_ARGUMENTS
    for name in different:
        assert [each[0] for each in real[name]] == [each[0] for each in ours[name]]
        assert shown(name, page) or shown(name.rpartition(".")[0], page)


def test_the_page_lists_every_public_name(sides: dict[str, Any], page: set[str]) -> None:
    names = sides["real"]["names"]
    classes = {name.rpartition(".")[0] for name in names} & names.keys()
    top = {name for name in names if name.rpartition(".")[0] not in classes} - NO_NAMES
    fields = [name for name in names if name.startswith("options.") and name.split(".")[-1].islower()]
    parts = {part for name in page for part in name.split(".")}

    assert sorted(top - page) == []
    assert [name for name in fields if name.split(".")[-1] not in parts and name.split(".")[-2] not in GROUPS] == []


def test_the_checkpointer_has_the_members_of_its_documentation() -> None:
    for name, arguments in DOCUMENTED.items():
        member = inspect.getattr_static(training.Checkpointer, name)
        if arguments is None:
            assert isinstance(member, property), name
            continue
        text = f"self, {arguments}" if arguments else "self"
        expected = [re.sub(r":[^=,]*", "", part).replace(" ", "") for part in text.split(",")]
        found = list(inspect.signature(member).parameters.values())
        assert [_text(each) for each in found][: len(expected) - expected.count("*")] == [
            each for each in expected if each != "*"
        ], name
        if "*" in expected:
            after = expected[expected.index("*") + 1].partition("=")[0]
            assert next(each for each in found if each.name == after).kind is inspect.Parameter.KEYWORD_ONLY


def _text(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_the_same_as_with_orbax(program: str, sides: dict[str, Any]) -> None:
    real, ours = sides["real"]["outputs"][program], sides["ours"]["outputs"][program]

    assert ours.splitlines() == real.splitlines()
    assert len(ours.splitlines()) > 10
