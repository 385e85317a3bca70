# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE.md tells the truth: its table of modules is the order of imports, its invariants name tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SOURCE = PROJECT / "src" / "milepost"
FILES = sorted(SOURCE.rglob("*.py"))

PLUGIN, TOP = 1_000, 2_000
LAST_FOR_PLUGINS = "group.py"
REGISTRIES = {"stores/__init__.py", "adapters/__init__.py", "group.py"}
FRAMEWORKS = {
    "equinox",
    "flax",
    "grain",
    "haiku",
    "jax",
    "jaxlib",
    "mpi4py",
    "optax",
    "tensorflow",
    "torch",
    "torchdata",
}
MAY_TOUCH_FRAMEWORKS = ("adapters/", "groups/", "integrations/", "testing/", "demo/")
PUBLIC_MODULES = {
    "milepost.group", "milepost.interop.orbax", "milepost.interop.orbax.beside", "milepost.policy", "milepost.state",
}  # fmt: skip
EXECUTES = {"cloudpickle", "dill", "marshal", "pickle", "pickletools", "runpy", "shelve"}
# Besides the shell face: doors whose originals promise to look there, each in one file of its own.
MAY_READ_THE_ENVIRONMENT = ("cli/", "demo/", "compat/earth2studio/__init__.py")
VAGUE_NAMES = {"base", "common", "core", "helpers", "manager", "misc", "shared", "tools", "utils"}

# Hard limits, a little above what is aimed at (450, 50, 12): past these a module, function or class does two things.
MODULE_LINES = 500
FUNCTION_LINES = 60
PUBLIC_METHODS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One module of the table: a file, or a folder ending in `/`."""

    name: str
    level: int
    to_come: bool


def table(heading: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table below a heading of ARCHITECTURE.md."""
    text = (PROJECT / "ARCHITECTURE.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if line.startswith("|") and cells[0] not in ("#", "---"):
            yield cells


def rows() -> list[Row]:
    levels = {"P": PLUGIN, "top": TOP}
    return [
        Row(name, levels.get(number) or int(number), "*to come*" in text)
        for number, names, text in table("Modules")
        for name in re.findall(r"`([\w/.]+)`", names)
    ]


ROWS = rows()
LEVEL_OF_PLUGINS = next(row.level for row in ROWS if row.name == LAST_FOR_PLUGINS)


def row_of(file: str) -> Row | None:
    return next((row for row in ROWS if file == row.name or (row.name[-1] == "/" and file.startswith(row.name))), None)


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def file_of(module: str) -> str | None:
    """Return the file of a dotted name within milepost, or None when there is none."""
    inside = "/".join(module.split(".")[1:])
    candidates = [f"{inside}.py", f"{inside}/__init__.py"] if inside else ["__init__.py"]
    return next((name for name in candidates if (SOURCE / name).is_file()), None)


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line, dotted name and whether it is only named in a string, of every import at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield node.lineno, submodule if file_of(submodule) else node.module, False
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value), True


def may_import(importer: str, imported: str, by_name: bool) -> bool:
    source, target = row_of(importer), row_of(imported)
    if source is None or target is None or source == target:
        return True  # a file that is not in the table is another test's failure
    if target.level == PLUGIN:
        return by_name and importer in REGISTRIES
    if source.level == PLUGIN:
        return target.level <= LEVEL_OF_PLUGINS
    if source.level == TOP:
        return target.level < TOP
    return target.level < source.level


def test_every_file_is_in_the_table_and_every_row_has_its_file() -> None:
    files = {relative(path) for path in FILES}
    markers = {name for name in files if name.endswith("/__init__.py") and row_of(name) is None}
    there = {row.name for row in ROWS if any(row_of(name) == row for name in files)}

    assert {name for name in files - markers if row_of(name) is None} == set()
    assert {row.name for row in ROWS if not row.to_come} == there
    for name in markers:  # a folder's `__init__.py` holds nothing
        body = parsed(SOURCE / name).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), name


def test_a_module_imports_only_modules_above_it_in_the_table() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in FILES
        for line, name, by_name in imported_names(parsed(path))
        if name.split(".")[0] == "milepost" and not may_import(relative(path), file_of(name) or "", by_name)
    ]

    assert not wrong, "\n".join(wrong)


def test_the_files_of_one_row_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        source = relative(path)
        targets = {file_of(name) for _, name, _ in imported_names(parsed(path)) if name.split(".")[0] == "milepost"}
        graph[source] = {name for name in targets if name and row_of(name) == row_of(source) and name != source}

    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_the_front_doors_use_the_public_names_only() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in FILES
        for line, name, _ in imported_names(parsed(path))
        if relative(path).startswith("compat/")
        and name.startswith("milepost.")
        and "compat" not in name
        and name not in PUBLIC_MODULES
    ]

    assert not wrong, "\n".join(wrong)


def test_only_plugins_touch_a_framework() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in FILES
        for line, name, _ in imported_names(parsed(path))
        if name.split(".")[0] in FRAMEWORKS and not relative(path).startswith(MAY_TOUCH_FRAMEWORKS)
    ]

    assert not wrong, "\n".join(wrong)


def test_no_module_can_execute_what_it_reads() -> None:
    wrong: list[str] = []
    for path in FILES:
        tree = parsed(path)
        wrong += [f"{relative(path)}:{n} imports {name}" for n, name, _ in imported_names(tree) if name in EXECUTES]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"eval", "exec", "compile", "__import__"}:
                wrong.append(f"{relative(path)}:{node.lineno} calls {ast.unparse(node.func)}")

    assert not wrong, "\n".join(wrong)


def test_only_the_shell_face_reads_the_environment() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in FILES
        if not relative(path).startswith(MAY_READ_THE_ENVIRONMENT)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.environb", "os.getenv"}
    ]

    assert not wrong, "\n".join(wrong)


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [relative(path) for path in FILES if VAGUE_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)]


def test_every_file_names_its_licence() -> None:
    ours = [*FILES, *(PROJECT / "tests").rglob("*.py"), *(PROJECT / "examples").rglob("*.py")]

    assert not [str(path) for path in ours if not path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0")]


def test_modules_functions_and_classes_stay_small() -> None:
    too_big: list[tuple[int, str]] = []
    for path in FILES:
        name, length = relative(path), len(path.read_text().splitlines())
        if length > MODULE_LINES:
            too_big.append((length, f"{name} has {length} lines"))
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = code_lines(node)
                if length > FUNCTION_LINES:
                    too_big.append((length, f"{name}:{node.lineno} {node.name} has {length} lines"))
            elif isinstance(node, ast.ClassDef) and not name.startswith("compat/"):  # a door has the original's methods
                count = len(public_methods(node))
                if count > PUBLIC_METHODS:
                    too_big.append((count, f"{name}:{node.lineno} {node.name} has {count} public methods"))

    assert not too_big, "\n".join(text for _, text in sorted(too_big, reverse=True))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def public_methods(node: ast.ClassDef) -> list[str]:
    """Return the verbs of a class: its methods without a leading underscore, apart from properties and a mapping's."""
    return [
        member.name
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
        and not member.name.startswith("_")
        and not hasattr(Mapping, member.name)
        and not any(ast.unparse(mark).endswith(("property", ".setter", "overload")) for mark in member.decorator_list)
    ]


def test_every_invariant_is_named_by_a_test() -> None:
    existing = {
        node.name
        for path in (PROJECT / "tests").rglob("test_*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    }
    for number, _, cell in table("Invariants"):
        names = re.findall(r"`(test_\w+)`", cell)
        assert names, f"invariant {number} names no test"
        for name in names:
            assert (name in existing) != ("*to come*" in cell), f"invariant {number}: {name}"


@pytest.mark.parametrize(
    ("importer", "imported", "by_name", "allowed"),
    [
        ("checkpoint.py", "errors.py", False, True),
        ("errors.py", "checkpoint.py", False, False),
        ("errors.py", "__init__.py", False, False),
        ("stores/__init__.py", "stores/local.py", False, False),
        ("stores/__init__.py", "stores/local.py", True, True),
        ("catalog.py", "stores/local.py", True, False),
        ("stores/local.py", "stores/__init__.py", False, True),
        ("stores/local.py", "engine/plan.py", False, False),
        ("adapters/jax.py", "adapters/numpy.py", False, False),
        ("policy/save.py", "policy/family.py", False, True),
        ("compat/orbax.py", "__init__.py", False, True),
        ("catalog.py", "compat/orbax.py", False, False),
    ],
)
def test_the_rule_of_layers(importer: str, imported: str, by_name: bool, allowed: bool) -> None:
    assert may_import(importer, imported, by_name) is allowed
