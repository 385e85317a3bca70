# SPDX-License-Identifier: Apache-2.0
"""Take away one check or one order at a time, and see that a test turns red.

    python tests/fault/saboteur.py            # all of them; the last column is the test that found it
    python tests/fault/saboteur.py --list

Syncs are taken away by `python -m milepost.testing.faults syncs`, which needs no change of the program.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent
SOURCE = PROJECT / "src" / "milepost"


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One line that is changed.

    Attributes:
        what: is no longer so.
        file: below `src/milepost`.
        old, new: the text, which is there once, and what takes its place.
        tests: files and names of tests, of which one must find it.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str


COMMIT, ROOT, LOCAL = "engine/commit.py", "engine/root.py", "stores/local.py"
FORMAT, TRANSFER = "model/format.py", "engine/transfer.py"
SCHEDULES = "tests/test_schedules.py tests/test_takeover.py"

SABOTAGES = (
    Sabotage(
        "a commit looks for a newer writer after it has published",
        COMMIT,
        "        try:\n            epochs.check(self._root.store, manifest.epoch)\n",
        "        try:\n            pass\n",
        SCHEDULES,
    ),
    Sabotage(
        "a commit looks for a newer writer before it publishes",
        COMMIT,
        "        epochs.check(self._root.store, manifest.epoch)\n        claim.put(",
        "        claim.put(",
        SCHEDULES,
    ),
    Sabotage(
        "who sweeps makes sure that nobody newer has begun",
        COMMIT,
        "        slots = root.slots()\n        self.check()\n",
        "        slots = root.slots()\n",
        SCHEDULES,
    ),
    Sabotage(
        "retention asks once more when nobody can come in between",
        COMMIT,
        "if still is not None and not still():",
        "if False:",
        SCHEDULES,
    ),
    Sabotage(
        "retention passes a step that is being read",
        COMMIT,
        "            return False  # a reader holds it\n",
        "            self._root.store.retire(f'{slot.name}/')\n            return True\n",
        "tests/test_schedules.py tests/test_commit.py tests/test_checkpointer.py tests/test_catalog.py",
    ),
    Sabotage(
        "a slot is what its claim made, not another of that name",
        LOCAL,
        "            if not _is_in_place(self._folder):\n",
        "            if False:\n",
        "tests/test_stores.py tests/test_takeover.py",
    ),
    Sabotage(
        "a folder is out of sight for good before its files go",
        LOCAL,
        "                self._sync(root, ())\n                if len(parts) > 1:\n",
        "                if len(parts) > 1:\n",
        "tests/test_stores.py",
    ),
    Sabotage(
        "a folder whose sync failed takes nothing more",
        LOCAL,
        "            if parts in self._waiting:\n                self._lost.add(parts)\n",
        "            pass\n",
        "tests/test_stores.py",
    ),
    Sabotage(
        "a record has the digest that it ends with",
        FORMAT,
        "if digest is None or f",
        "if digest is None or False and f",
        "tests/test_bad_input.py",
    ),
    Sabotage(
        "a record has no member twice",
        FORMAT,
        "    if len(names) < len(members):\n",
        "    if False:\n",
        "tests/attacks/test_attacks.py",
    ),
    Sabotage(
        "the leaf table is the one that the manifest names",
        ROOT,
        "if fmt.digest_of(data) != manifest.leaves:",
        "if False:",
        "tests/attacks/test_attacks.py",
    ),
    Sabotage(
        "a manifest is of the step of its folder",
        ROOT,
        "if (manifest.step, manifest.generation) != (slot.step, slot.generation) or not",
        "if not",
        "tests/attacks/test_attacks.py",
    ),
    Sabotage(
        "every chunk has its digest",
        TRANSFER,
        "        if found != expected:\n",
        "        if False:\n",
        "tests/test_bad_input.py tests/fault/test_bit_rot.py",
    ),
    Sabotage(
        "names of packs have the form of ours",
        TRANSFER,
        "if not is_pack_name(name):",
        "if False:",
        "tests/attacks/test_lies.py",
    ),
)


def caught_by(sabotage: Sabotage, folder: Path) -> str:
    """Return the test that turns red, empty when none does.

    Raises:
        RuntimeError: one is red without any sabotage, so that nothing can be told.
    """
    changed = folder / "src" / "milepost"
    if red := _red_as_it_is(sabotage.tests):
        raise RuntimeError(f"{red} is red before anything is taken away")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCE, changed)
    path = changed / sabotage.file
    path.write_text(path.read_text().replace(sabotage.old, sabotage.new))
    return _red(sabotage.tests, folder)


@cache
def _red_as_it_is(tests: str) -> str:
    return _red(tests, PROJECT)


def _red(tests: str, folder: Path) -> str:
    """Return the first test that fails on the source below a folder, empty when none does."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    red = re.search(r"^(?:FAILED|ERROR) \S+?(?:::(\S+))?(?: |$)", done.stdout, re.MULTILINE)
    return (red[1] or red[0]) if red is not None and done.returncode == 1 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    parser.add_argument("only", nargs="*", type=int, help="numbers from the list")
    asked = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, sabotage in enumerate(SABOTAGES):
            if asked.list or (asked.only and number not in asked.only):
                print(f"{number:2} {sabotage.what}")
                continue
            try:
                found = caught_by(sabotage, Path(folder) / "changed")
            except RuntimeError as error:
                sys.exit(str(error))
            missed += not found
            print(f"| {sabotage.what} | {f'`{found}`' if found else '**not found**'} |", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
