# SPDX-License-Identifier: Apache-2.0
"""What `import milepost` loads. Modules are counted instead of seconds, so that a busy machine changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# msgspec takes typing_extensions where it is installed.
CORE = {"milepost", "ml_dtypes", "msgspec", "numpy", "typing_extensions", "xxhash"}
# Modules of ours and of the standard library beyond what the dependencies load anyway: each costs 0.2 to 1 ms.
MOST_MODULES = 120


def modules_after(statement: str) -> set[str]:
    """Return the names of the modules that a new interpreter has loaded after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """What `import milepost` adds to an interpreter that has just started."""
    return modules_after("import milepost") - modules_after("pass")


def test_import_loads_no_framework_and_only_the_core_packages(loaded: set[str]) -> None:
    named = {name for name in packages(loaded) if not name.startswith("_")}

    assert named <= CORE  # click and rich only when something is printed


def test_import_loads_few_modules(loaded: set[str]) -> None:
    anyway = modules_after("import ml_dtypes, msgspec, numpy, xxhash")

    assert len(loaded - anyway) <= MOST_MODULES, sorted(loaded - anyway)


def test_import_starts_no_thread_and_installs_no_signal_handler() -> None:
    program = (
        "import signal, threading\n"
        "before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]\n"
        "import milepost\n"
        "assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]\n"
        "assert threading.active_count() == 1\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
