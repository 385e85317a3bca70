# SPDX-License-Identifier: Apache-2.0
"""The v0 door beside Orbax itself: every name and argument, and programs of users, with one import changed.

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

import milepost.compat.orbax as ocp

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "doors" / "orbax.md"
PROGRAMS = sorted(path.name for path in (HERE / "programs").glob("orbax_v0_*.py"))

# The members of AbstractCheckpointManager in the documentation, with their arguments.
DOCUMENTED = {
    "directory": None,
    "all_steps": ["read=False"],
    "latest_step": [],
    "best_step": [],
    "reload": [],
    "reached_preemption": ["step"],
    "should_save": ["step"],
    "restore": ["step", "*args", "**kwargs"],
    "item_metadata": ["step"],
    "metadata": ["step=None"],
    "metrics": ["step"],
    "wait_until_finished": [],
    "check_for_errors": [],
    "close": [],
    "__subclasshook__": ["other"],
}
# Arguments that differ; the page says what they are here.
_OTHER = {
    "save", "restore", "async_save",  # of handlers: the fields of their arguments
    "is_checkpoint_finalized", "is_path_finalized", "is_path_temporary", "is_tmp_checkpoint", "tmp_checkpoints",
    "log_entry",
}  # fmt: skip


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("orbax") is None:
        pytest.skip("orbax-checkpoint is not installed")
    running = {
        side: subprocess.Popen(
            [sys.executable, HERE / "orbax_v0_side.py", side, tmp_path_factory.mktemp(side)],
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
def page() -> str:
    return PAGE.read_text()


def owner(name: str, ours: dict[str, Any]) -> str:
    """Return the first part of a dotted name that is not here: its module, its class, or itself."""
    parts = name.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next(prefix for prefix in prefixes if prefix not in ours)


def _whole_modules(page: str) -> set[str]:
    """Return the modules that are not here, or of which the page says that the rest is not."""
    table = page.split("### Not here\n")[1]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(rows))) | set(re.findall(r"he rest of `(\w+)`", page))


def test_every_public_name_is_here_or_the_page_says_why_not(sides: dict[str, Any], page: str) -> None:
    real, ours = sides["real"]["names"], sides["ours"]["names"]
    top = {name for name in ours if "." not in name}
    missing = {owner(name, ours) for name in real if name not in ours}
    named = set(re.findall(r"`([\w.]+)`", page))
    elsewhere = {name for name in missing if name.count(".") == 1 and name.split(".")[1] in top}
    of_the_rest = {name for name in missing if name.split(".")[0] in _whole_modules(page)}

    unexplained = missing - elsewhere - of_the_rest
    assert sorted(name for name in unexplained if not {name, name.split(".")[-1]} & named) == []


def test_what_is_not_here_says_where_to_read_why() -> None:
    with pytest.raises(AttributeError, match=r"docs/doors/orbax\.md"):
        ocp.msgpack_utils  # noqa: B018


def test_the_page_lists_every_public_name(sides: dict[str, Any], page: str) -> None:
    named = set(re.findall(r"`([\w.]+)`", page))
    names = {
        name for name in sides["real"]["names"] if not any(part in _whole_modules(page) for part in name.split("."))
    }
    members = {name for name in names if name.rpartition(".")[0] in names and name.split(".")[-2][0].isupper()}

    assert sorted({name.split(".")[-1] for name in names - members} - named) == []
    assert sorted({name.split(".")[-1] for name in members if name.startswith("CheckpointManager.")} - named) == []


def test_arguments_and_defaults_are_those_of_orbax(sides: dict[str, Any]) -> None:
    real, ours = sides["real"]["names"], sides["ours"]["names"]
    different = {
        name
        for name, arguments in real.items()
        if name in ours and arguments and _comparable(arguments) != _comparable(ours[name] or [])
    }

    assert {name.split(".")[-1] for name in different} <= _OTHER
    assert not {name for name in different if re.search(r"(Manager|Checkpointer)\.", name)}


def _comparable(arguments: list[list[str]]) -> list[list[str]]:
    # Where Orbax makes an object when it is imported, None stands here.
    return [[name, "<made>" if default == "None" else default] for name, default in arguments]


def test_the_abstract_manager_has_the_members_of_its_documentation() -> None:
    for name, arguments in DOCUMENTED.items():
        member = inspect.getattr_static(ocp.AbstractCheckpointManager, name)
        if arguments is None:
            assert isinstance(member, property), name
            continue
        function = getattr(member, "__func__", member)
        found = [str(each).partition(":")[0] for each in inspect.signature(function).parameters.values()][1:]
        defaults = [
            f"{each.name}={each.default}"
            for each in inspect.signature(function).parameters.values()
            if each.default is not each.empty
        ]
        assert [
            next((d for d in defaults if d.startswith(f"{each}=")), each) for each in found if each != "/"
        ] == arguments


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_the_same_as_with_orbax(program: str, sides: dict[str, Any]) -> None:
    real, ours = sides["real"]["outputs"][program], sides["ours"]["outputs"][program]

    assert ours.splitlines() == real.splitlines()
    assert len(ours.splitlines()) > 10
