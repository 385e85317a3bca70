# SPDX-License-Identifier: Apache-2.0
"""The public surface of `import milepost` is the one written down in `api.txt`.

A change of the surface is a line in a diff: run `python tests/test_public_api.py --write` and look at it.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import milepost

PINNED = Path(__file__).parent / "api.txt"
# Methods that users meet through syntax rather than by name.
_SYNTAX = {
    "__array__", "__call__", "__contains__", "__enter__", "__exit__", "__getitem__", "__init__", "__iter__", "__len__",
    "__or__",
}  # fmt: skip


def surface(module: ModuleType) -> str:
    """Return names, signatures and members of everything in `__all__`, one line each, sorted."""
    lines: list[str] = []
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value):
            lines += _class_lines(name, value)
        elif callable(value):
            lines.append(f"def {name}{_signature(value)}")
        elif inspect.ismodule(value):
            lines += _module_lines(name, value)
        else:
            lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def _module_lines(name: str, module: ModuleType) -> list[str]:
    """Return a public module's own functions with their signatures, and the names of all else."""
    lines = [f"module {name}"]
    for key in sorted(set(module.__all__) - set(milepost.__all__)):
        value = getattr(module, key)
        lines.append(f"    {name}.{key}{_signature(value) if inspect.isfunction(value) else ''}")
    return lines


def _class_lines(name: str, cls: type) -> list[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    lines = [f"class {name}({', '.join(bases)})" if bases else f"class {name}"]
    if issubclass(cls, enum.Enum):
        return lines + [f"    {name}.{member.name} = {member.value!r}" for member in cls]
    members = {key: value for base in reversed(cls.__mro__) if _ours(base) for key, value in vars(base).items()}
    fields = {key: str(kind) for base in reversed(cls.__mro__) if _ours(base) for key, kind in _annotations(base)}
    for key in sorted({*members, *fields}):
        if key.startswith("_") and key not in _SYNTAX:
            continue
        if key == "__init__" and getattr(cls, "_is_protocol", False):
            continue
        lines.append(f"    {_member_line(name, key, members.get(key), fields.get(key))}")
    return lines


def _member_line(owner: str, key: str, value: object, field: str | None) -> str:
    if isinstance(value, property):
        returns = inspect.signature(value.fget).return_annotation if value.fget else ""
        return f"{owner}.{key}: {returns}"
    if isinstance(value, classmethod | staticmethod):
        return f"{owner}.{key}{_signature(value.__func__)}  ({type(value).__name__})"
    if callable(value):
        return f"{owner}.{key}{_signature(value)}"
    return f"{owner}.{key}: {field or type(value).__name__}"


def _ours(base: type) -> bool:
    return base.__module__.partition(".")[0] == "milepost"


def _annotations(base: type) -> list[tuple[str, object]]:
    return list(inspect.get_annotations(base).items())


class _Plain:
    """An annotation that prints as it was written, without the quotes of a string."""

    def __init__(self, annotation: object) -> None:
        self.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self.text


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=_Plain(p.annotation))
        for p in signature.parameters.values()
    ]
    returns = signature.return_annotation
    plain = returns if returns is signature.empty else _Plain(returns)
    return re.sub(r" at 0x[0-9a-f]+", "", str(signature.replace(parameters=parameters, return_annotation=plain)))


def test_the_public_surface_is_the_one_written_down() -> None:
    assert surface(milepost).splitlines() == PINNED.read_text().splitlines(), (
        "look at the change, then run: python tests/test_public_api.py --write"
    )


def test_everything_public_is_documented() -> None:
    public = {name: getattr(milepost, name) for name in milepost.__all__}

    undocumented = [name for name, value in public.items() if callable(value) and not (value.__doc__ or "").strip()]

    assert not undocumented


def test_nothing_is_public_by_accident() -> None:
    extra = {
        name for name, value in vars(milepost).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    } - set(milepost.__all__)

    assert extra <= {"annotations"}  # left behind by `from __future__ import annotations`


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_public_api.py --write")
    PINNED.write_text(surface(milepost))
