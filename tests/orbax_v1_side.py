# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison with Orbax v1, in a process of its own: `python orbax_v1_side.py real|ours folder`.

Prints JSON: every public name with its arguments, and what the programs of `programs/orbax_v1_*.py` print. The
programs import Orbax; for our side that one line is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import inspect
import io
import json
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("orbax_v1_*.py"))
THEIR_IMPORT = "from orbax.checkpoint import v1 as ocp"
OUR_IMPORT = "import milepost.compat.orbax_v1 as ocp"
MODULES = (
    "arrays", "errors", "handlers", "multihost", "options", "partial", "path", "path.step", "training",
    "training.errors", "training.preservation_policies", "training.save_decision_policies", "tree",
)  # fmt: skip


def names_of(door: Any) -> dict[str, Any]:
    """Return name -> arguments of each function, and of each class with its members; None for everything else."""
    found: dict[str, Any] = {}
    for prefix in ("", *MODULES):
        module = door
        for part in filter(None, prefix.split(".")):
            module = getattr(module, part)
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, types.ModuleType) or _is_foreign(value):
                continue
            full = f"{prefix}.{name}".lstrip(".")
            if inspect.isclass(value) and _is_own(value):
                found |= _class_names(full, value)
            else:
                found[full] = _arguments(value) if inspect.isfunction(value) else None
    return found


def _is_own(cls: type) -> bool:
    return cls.__module__.startswith(("orbax.checkpoint", "milepost"))


def _is_foreign(value: Any) -> bool:
    """Return whether a name is only there because the module imports it from the standard library or NumPy."""
    if value is Any or value is np.dtype or value is Path:
        return False
    home = (getattr(value, "__module__", None) or "").partition(".")[0]
    return home in (
        "abc",
        "collections",
        "contextvars",
        "dataclasses",
        "importlib",
        "math",
        "numpy",
        "pathlib",
        "typing",
    )


def _class_names(full: str, cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {full: None}
    if issubclass(cls, enum.Enum):
        return found | {f"{full}.{member.name}": None for member in cls}
    if dataclasses.is_dataclass(cls):
        fields = [field for field in dataclasses.fields(cls) if field.init]
        found[full] = [[field.name, "", _default(field)] for field in fields]
        found |= {f"{full}.{field.name}": None for field in fields}
    elif not issubclass(cls, Exception) and not getattr(cls, "_is_protocol", False):
        found[full] = _arguments(cls)
    for name in {name for base in cls.__mro__ for name in vars(base) if base.__module__ == cls.__module__}:
        value = inspect.getattr_static(cls, name)
        if name.startswith("_"):
            continue
        if inspect.isclass(value) and _is_own(value):
            found |= _class_names(f"{full}.{name}", value)
        elif inspect.isfunction(value):
            found[f"{full}.{name}"] = _arguments(value)
        elif isinstance(value, property):
            found[f"{full}.{name}"] = None
    return found


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "<factory>"
    return "" if field.default is dataclasses.MISSING else _text(field.default)


def _arguments(function: Any) -> list[list[str]] | None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    return [[p.name, p.kind.name, "" if p.default is p.empty else _text(p.default)] for p in parameters]


def _text(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"<{type(value).__name__}>" if " at 0x" in repr(value) else repr(value)


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
    door = importlib.import_module("milepost.compat.orbax_v1" if side == "ours" else "orbax.checkpoint.experimental.v1")
    outputs = {program.name: run(program, folder, side == "ours") for program in PROGRAMS}
    json.dump({"names": names_of(door), "outputs": outputs}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
