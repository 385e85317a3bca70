# SPDX-License-Identifier: Apache-2.0
"""Every Python block of README and docs runs, and every link between files leads somewhere.

The blocks of a file run in order in one namespace, in an empty folder. A block whose fence follows the comment
`<!-- not run: reason -->` is left out. The `$ milepost` lines of console blocks run afterwards, in the same folder.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import milepost as mp

PROJECT = Path(__file__).parent.parent
PAGES = sorted(PROJECT.glob("*.md")) + sorted((PROJECT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)")
_NOT_RUN = re.compile(r"^ *<!-- not run: \S.*-->$")
_COMMAND = re.compile(r"^\$ milepost (?P<arguments>.*)$", re.MULTILINE)
_CLI = "from milepost.cli import main; main()"
_LINK = re.compile(r"\]\((?!\w+:)(?P<target>[^)#\s]+)(?:#[^)]*)?\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def program(text: str) -> str:
    """Return a page's Python blocks as a program whose line numbers are those of the page."""
    lines: list[str] = []
    block: list[str] | None = None
    runs, before = False, ""
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if block is None:
            if fence:
                block, runs = [], fence["language"] == "python" and not _NOT_RUN.match(before)
            lines.append("")
        elif fence:
            code = textwrap.dedent("\n".join(block)).split("\n") if block else []
            lines += [*(code if runs else [""] * len(code)), ""]
            block = None
        else:
            block.append(line)
        before = line if line.strip() else before
    assert block is None, "a code block is not closed"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [page for page in PAGES if program(page.read_text()).strip()], ids=page_id)
def test_the_python_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{page.name}.py"
    script.write_text(program(page.read_text()))
    (tmp_path / "cwd").mkdir()

    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path / "cwd", capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, f"{page_id(page)}, same line numbers:\n{done.stdout}\n{done.stderr}"
    for match in _COMMAND.finditer(page.read_text()):
        command = [sys.executable, "-c", _CLI, *shlex.split(match["arguments"])]
        done = subprocess.run(command, cwd=tmp_path / "cwd", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{match[0]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_between_files_leads_somewhere(page: Path) -> None:
    broken = [m["target"] for m in _LINK.finditer(page.read_text()) if not (page.parent / m["target"]).exists()]

    assert not broken


def test_the_page_of_errors_lists_every_class_and_code(project: Path) -> None:
    page = (project / "docs" / "guide" / "errors.md").read_text()
    classes = {kind.__name__ for kind in vars(mp).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    sources = "".join(path.read_text() for path in (project / "src" / "milepost").rglob("*.py"))
    codes = set(re.findall(r'\bcode ?= ?"(\w+)"', sources))

    assert set(re.findall(r"^#+ (\w+Error)$", page, re.MULTILINE)) == classes - {"CheckpointError"}
    assert sorted(code for code in codes - {"error"} if f"`{code}`" not in page) == []


def test_ci_runs_what_readme_tells_people_to_run(project: Path) -> None:
    readme = (project / "README.md").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv ")]
    ci = (project / ".ci" / "run").read_text()

    assert len(commands) == 2
    for command in commands:
        _venv, _activate, install, run = command.split(" && ")
        assert install.removeprefix("pip install ") in ci
        assert f"\n{run}\n" in ci


def test_a_program_keeps_the_line_numbers_of_its_page() -> None:
    page = """\
Title
```python
a = 1
```
<!-- not run: shows an idea -->
```python
b = 2
```
1. In a list:
   ```python
   c = 3
   ```
"""

    assert program(page) == "\n\na = 1\n" + "\n" * 7 + "c = 3\n\n"
