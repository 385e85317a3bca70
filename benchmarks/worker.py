# SPDX-License-Identifier: Apache-2.0
"""The process of one peer in one workload: reads one operation a line as JSON, and answers with what it cost."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Do what the lines of standard input ask for."""
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cell: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        operation = order.pop("operation")
        try:
            if operation == "make":
                cell = _cell(**order)
                answer: dict[str, Any] = {}
            else:
                answer = getattr(cell, operation)(**order)
        except Exception as error:  # noqa: BLE001 a peer that fails is a result
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _cell(peer: str, workload: str, memory: str, *, quick: bool) -> Any:
    if workload in ("tiny", "open"):
        from benchmarks.managers import ManagerCell

        return ManagerCell(peer, quick=quick)
    if workload == "sparse":
        from benchmarks.sparse import SparseCell

        return SparseCell(peer, quick=quick)
    from benchmarks.cells import Cell

    return Cell(peer, workload, Path(memory), quick=quick)


if __name__ == "__main__":
    main()
