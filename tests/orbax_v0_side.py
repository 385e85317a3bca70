# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison with Orbax v0, in a process of its own: `python orbax_v0_side.py real|ours folder`.

Prints JSON: every public name with its arguments, and what the programs of `programs/orbax_v0_*.py` print. The
programs import Orbax; for our side that one line is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import logging
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("orbax_v0_*.py"))
THEIR_IMPORT = "import orbax.checkpoint as ocp"
OUR_IMPORT = "import milepost.compat.orbax as ocp"


def names_of(door: Any) -> dict[str, Any]:
    """Return name -> parameters of each function, class and method; None for modules and everything else."""
    found: dict[str, Any] = {}
    for name in _public(door):
        value = getattr(door, name)
        if isinstance(value, types.ModuleType):
            found[name] = None
            if name not in ("v1", "experimental"):
                found |= _of(value, f"{name}.")
        else:
            found |= _entry(name, value)
    return found


def _of(module: Any, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _public(module):
        value = getattr(module, name)
        if not isinstance(value, types.ModuleType) and _is_own(value):
            found |= _entry(f"{prefix}{name}", value)
    return found


def _public(module: Any) -> list[str]:
    return [
        name for name in dir(module) if not name.startswith("_") and name not in ("annotations", "Any", "import_module")
    ]


def _is_own(value: Any) -> bool:
    home = getattr(value, "__module__", None) or ""
    return home.startswith(("orbax.checkpoint", "milepost")) or isinstance(value, str | types.EllipsisType)


def _entry(name: str, value: Any) -> dict[str, Any]:
    if not inspect.isclass(value):
        return {name: _parameters(value) if inspect.isfunction(value) else None}
    found: dict[str, Any] = {name: None}
    if dataclasses.is_dataclass(value):
        found[name] = [[field.name, _default(field)] for field in dataclasses.fields(value) if field.init]
    elif not issubclass(value, Exception) and "__init__" in {key for base in value.__mro__ for key in _own(base)}:
        found[name] = _parameters(value.__init__)[1:]
    for base in value.__mro__:
        for member in _own(base):
            static = inspect.getattr_static(value, member)
            if member.startswith("_") or not callable(getattr(value, member, None)):
                continue
            if not inspect.isclass(static) and not isinstance(static, property):
                function = getattr(static, "__func__", static)
                found.setdefault(
                    f"{name}.{member}", _parameters(function)[1:] if inspect.isfunction(function) else None
                )
    return found


def _own(cls: type) -> dict[str, Any]:
    return dict(vars(cls)) if cls.__module__.startswith(("orbax.checkpoint", "milepost")) else {}


def _parameters(function: Any) -> list[list[str]]:
    values = inspect.signature(function).parameters.values()
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        [marks.get(p.kind, "") + p.name, "" if p.default is p.empty else _text(p.default)] for p in values
    ]  # fmt: skip


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "<made>"
    return "" if field.default is dataclasses.MISSING else _text(field.default)


def _text(value: object) -> str:
    """Return a default as text; objects of Orbax are made anew by the door where it says None."""
    return repr(value) if isinstance(value, str | int | float | tuple | None) else "<made>"


def run(program: Path, folder: Path, ours: bool) -> str:
    """Return what a program prints."""
    text = program.read_text()
    assert text.count(THEIR_IMPORT) == 1
    if ours:
        text = text.replace(THEIR_IMPORT, OUR_IMPORT)
    printed = io.StringIO()
    arguments, sys.argv = sys.argv, [str(program), str(folder)]
    with contextlib.redirect_stdout(printed):
        exec(compile(text, program.name, "exec"), {"__name__": "__main__"})
    sys.argv = arguments
    return printed.getvalue()


def main(side: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    if side == "real":
        logging.disable(logging.CRITICAL)
    door = importlib.import_module("milepost.compat.orbax" if side == "ours" else "orbax.checkpoint")
    outputs = {program.name: run(program, folder, side == "ours") for program in PROGRAMS}
    json.dump({"names": names_of(door), "outputs": outputs}, sys.stdout)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(sys.argv[1], Path(sys.argv[2]))
