# SPDX-License-Identifier: Apache-2.0
"""Runs on disk for the tests of the command, and ways to call it: in this process, as a child, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

import milepost as mp
from milepost.cli import main

COMMAND = [sys.executable, "-c", "from milepost.cli import main; main(prog_name='milepost')"]
LAYERS = 12


def milepost(*args: object) -> Result:
    """Call the command in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def as_json(*args: object) -> dict[str, Any]:
    """Call the command with `--json`; return what it printed."""
    result = milepost(*args, "--json")
    return json.loads(result.stdout)


def child(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Call the command as a program of its own."""
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


# prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH): after the exec, root may no longer do what a mode
# forbids. For anybody else it fails, and changes nothing.
_OBEY_MODES = (
    "import ctypes, os, sys; prctl = ctypes.CDLL(None).prctl; prctl(24, 1, 0, 0, 0); prctl(24, 2, 0, 0, 0);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


def obedient_child(*args: object) -> subprocess.CompletedProcess[str]:
    """Call the command as a program that the modes of files bind, even if root runs it."""
    command = [sys.executable, "-c", _OBEY_MODES, *COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# Makes the terminal its own, so that Ctrl-C reaches it, and becomes the command.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def on_terminal(*args: object, prompt: str = "", typed: str = "") -> tuple[int, str]:
    """Call the command on a terminal; type something once it shows the prompt; return exit code and what it showed."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", _TAKE_TERMINAL, *COMMAND, *map(str, args)]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        os.close(follower)
        shown, deadline = "", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 1.0)[0]:
                try:
                    shown += os.read(leader, 1 << 16).decode()
                except OSError:  # the other side is closed
                    break
            if typed and prompt in shown:
                os.write(leader, typed.encode())
                typed = ""
        code = process.wait(10)
    os.close(leader)
    return code, shown


def state(step: int, *, odd: int | None = None) -> dict[str, Any]:
    """Return the tree of a small training run at a step; the layer `odd` moves ten times as far as the others."""
    rng = np.random.default_rng(7)
    layers = [
        {
            "w": rng.normal(size=(16, 16)).astype("f4") * np.float32(1 + step * (1e-3 if i == odd else 1e-4)),
            "b": np.zeros(16, "f4"),
        }
        for i in range(LAYERS)
    ]
    return {
        "params": {"layers": layers, "head": np.ones((16, 4), "f4")},
        "frozen": np.ones(50_000),
        "rng": np.random.default_rng(step),
        "loader": {"position": 6400 * step, "shuffle": True},
    }


def make_run(root: Path, steps: tuple[int, ...] = (100, 200, 300), keep: str = "last 2, best 1 loss") -> mp.Catalog:
    """Save a run; the first step is its best."""
    with mp.Checkpointer(root, save="every step", keep=keep) as saver:
        for step in steps:
            saver.save(step, state(step, odd=5), metrics={"loss": step / 1000, "acc": {"top1": step / 500}})
    return mp.open(root)


def flip_a_byte(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def own_pack(root: Path, step: int) -> Path:
    """Return the pack that a step itself wrote."""
    files = mp.open(root)[step].info.files
    return next(root / str(step) / name for name, _, linked in files if name.endswith(".safetensors") and not linked)


def leave_unfinished(root: Path, step: int) -> None:
    """Make what a writer leaves that is killed during a save."""
    (root / str(step)).mkdir()
    (root / str(step) / "p00000-0123abcd.safetensors").write_bytes(b"half")
