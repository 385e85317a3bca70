# SPDX-License-Identifier: Apache-2.0
"""Wrong uses of the public names are refused by a type checker before the program runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

WRONG_USES = Path(__file__).parent / "typing" / "wrong_uses.py"


def test_pyright_reports_every_wrong_use_and_nothing_else(project: Path) -> None:
    lines = WRONG_USES.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if re.search(r"  # wrong: \S", line)}

    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(WRONG_USES)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)["generalDiagnostics"]
    reported = {entry["range"]["start"]["line"] + 1: entry["message"] for entry in report}

    accepted = [f"{number}: {lines[number - 1]}" for number in sorted(marked - set(reported))]
    refused = [f"{number}: {lines[number - 1]}\n    {reported[number]}" for number in sorted(set(reported) - marked)]
    assert not accepted, "accepted, though wrong:\n" + "\n".join(accepted)
    assert not refused, "refused, though right:\n" + "\n".join(refused)
