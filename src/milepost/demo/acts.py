# SPDX-License-Identifier: Apache-2.0
"""The story that `milepost demo` tells, act by act. Everything in it really happens, in child processes and files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

import milepost as mp
from milepost.demo.ensemble import MEMBERS, MONTHS, temperatures
from milepost.demo.model import FRAMEWORKS, LAYERS
from milepost.items import ItemRow, item_row, item_where

STEPS, KILL_AT = 600, 350
# Slow enough that a save takes a third of a second, in which it can be killed.
_BYTES_PER_S = 2_700_000
_CALM, _KILLED = "uninterrupted", "interrupted"
_SAVE_EVERY = 50
_ENSEMBLE_CALM, _ENSEMBLE = "ensemble-uninterrupted", "ensemble"
_KILL_MEMBER = 5


class Broken(Exception):
    """Something did not happen as promised."""


def run(framework: str = "numpy", keep: str | None = None) -> int:
    """Play all acts; return 0 when everything was as promised, else 1.

    Args:
        framework: `numpy`, `torch` or `jax`, which must be installed.
        keep: a new folder for the runs; by default a temporary one that is deleted at the end.
    """
    if framework not in FRAMEWORKS:
        _say(f"There is no demo for {framework!r}: choose one of {', '.join(FRAMEWORKS)}.")
        return 1
    if find_spec(framework) is None:
        _say(f"{framework} is not installed here. Install it, `pip install 'milepost[{framework}]'`, or choose numpy.")
        return 1
    if keep is not None and os.path.lexists(keep) and (not os.path.isdir(keep) or os.listdir(keep)):
        _say(f"{keep} is there already. Name a new folder.")
        return 1
    try:
        with _folder(keep) as folder:
            _play(Stage(folder, framework, kept=keep is not None))
    except Broken as error:
        _say(f"\nNOT AS PROMISED: {error}")
        return 1
    return 0


@contextmanager
def _folder(keep: str | None) -> Generator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="milepost-demo-") as name:
            yield Path(name)
        return
    Path(keep).mkdir(parents=True, exist_ok=True)
    yield Path(keep).resolve()


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays: a folder for the roots of both runs, what the model is made with, whether files stay."""

    folder: Path
    framework: str
    kept: bool

    @property
    def killed(self) -> Path:
        """The root of the run that is killed and damaged."""
        return self.folder / _KILLED

    @contextmanager
    def training(self, root: str) -> Generator[subprocess.Popen[str]]:
        """Start the training run; the command is the same every time."""
        _say("")
        words = ["train", root, "--framework", self.framework]
        with self._program(*words, "--steps", str(STEPS), "--bandwidth", str(_BYTES_PER_S)) as process:
            yield process

    @contextmanager
    def forecast(self, root: str) -> Generator[subprocess.Popen[str]]:
        """Start the ensemble; its output is in a folder next to its root."""
        _say("")
        with self._program("ensemble", root, f"{root}-output") as process:
            yield process

    @contextmanager
    def _program(self, name: str, *words: str) -> Generator[subprocess.Popen[str]]:
        with subprocess.Popen(  # noqa: S603 our own program
            [sys.executable, "-m", f"milepost.demo.{name}", *words], cwd=self.folder, env=_environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()  # no run outlives the demo, whatever happened

    def trained(self, root: str) -> list[str]:
        """Let the training run go to its end; return what it printed.

        Raises:
            Broken: it failed.
        """
        with self.training(root) as process:
            return _finished(process)

    def forecast_finished(self, root: str) -> list[str]:
        """Let the ensemble go to its end; return what it printed.

        Raises:
            Broken: it failed.
        """
        with self.forecast(root) as process:
            return _finished(process)

    def shell(self, *words: str, code: int = 0) -> None:
        """Run a `milepost` command as a user would, and show what it prints.

        Raises:
            Broken: its exit code is another.
        """
        _say(f"\n   $ milepost {shlex.join(words)}")
        command = [sys.executable, "-c", "import sys; from milepost.cli import main; sys.exit(main())", *words]
        done = subprocess.run(  # noqa: S603 our own program
            command, cwd=self.folder, env=_environment(), capture_output=True, encoding="utf-8", check=False
        )
        _say(textwrap.indent((done.stdout + done.stderr).rstrip(), "   "))
        if done.returncode != code:
            raise Broken(f"`milepost {words[0]}` ended with exit code {done.returncode}, not {code}.")


def _environment() -> dict[str, str]:
    """Return the environment of the children.

    One thread for linear algebra, set before anything loads it: with another number it adds in another order, and
    being equal to the last bit would be luck. What the run skipped it says itself, so the warning is not shown too.
    """
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    quiet = {"PYTHONWARNINGS": "ignore::RuntimeWarning", "PYTHONUTF8": "1", "COLUMNS": "110"}
    return {**os.environ, **dict.fromkeys(threads, "1"), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **quiet}


def _echoed(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of a run as they come, shown."""
    assert process.stdout is not None
    for line in process.stdout:
        _say(f"   | {line.rstrip()}")
        yield line.rstrip()


def _finished(process: subprocess.Popen[str]) -> list[str]:
    lines = list(_echoed(process))
    if code := process.wait():
        raise Broken(f"the run ended with exit code {code}.")
    return lines


def _play(stage: Stage) -> None:
    start = time.monotonic()
    layers = "-".join(map(str, LAYERS))
    _say(
        f"milepost demo, {stage.framework}: a training run is killed and damaged, and ends with the same numbers.\n\n"
        f"A perceptron of {layers} with dropout and Adam learns to read 1,797 handwritten digits (UCI, CC BY 4.0).\n"
        "Its state is weights, moments, losses, the order and position of a shuffled loader, and random states.\n"
        f"Files are in {stage.folder}{'' if stage.kept else ', deleted at the end: --keep DIR keeps them'}."
    )
    expected = _train(stage)
    _kill(stage)
    _resume(stage, expected)
    _damage(stage, expected)
    _ensemble(stage)
    _look(stage)
    _say(f"\nAll as promised, in {time.monotonic() - start:.0f} seconds.")
    if stage.kept:
        _say(f"To play on: cd {shlex.quote(str(stage.folder))} && milepost tree {_KILLED}@latest")


def _train(stage: Stage) -> list[str]:
    _act(1, f"Train for {STEPS} steps without interruption, saving every {_SAVE_EVERY}: this is what must come out.")
    return _digests(stage.trained(_CALM))


def _kill(stage: Stage) -> None:
    _act(2, "The same program with a root of its own, and SIGKILL while a save is half written.")
    for step in range(KILL_AT, STEPS + 1, _SAVE_EVERY):
        found = _killed_while_saving(stage, step)
        if found is not None:
            break
        _say(f"   (step {step} was whole before the signal came; once more)")
    else:
        raise Broken("no save could be killed half-way: every one was too fast.")
    _say(f"\n   Killed. What is in {_KILLED}/{step}/:")
    for name, nbytes in found.items():
        _say(f"      {name:<40} {nbytes:>9,} bytes")
    _say(f"   A checkpoint is there when its manifest.json is, which is written last. So step {step} is not:")
    stage.shell("ls", _KILLED)
    runs = mp.open(stage.killed)
    latest = runs.latest()
    if step in runs or latest is None or latest.step != step - _SAVE_EVERY:
        raise Broken(f"the newest step is {latest}, where step {step} was killed.")


def _killed_while_saving(stage: Stage, step: int) -> dict[str, int] | None:
    """Kill the run while it writes a step; return the files it left, None when the step was committed before."""
    slot = stage.killed / str(step)
    with stage.training(_KILLED) as process:
        for line in _echoed(process):
            if line.startswith(f"step {step:4} "):  # printed just before the save
                break
        while process.poll() is None and not any(_files(slot).values()):
            time.sleep(0.001)
        process.kill()
        process.wait()
    found = _files(slot)
    return None if "manifest.json" in found or not found else found


def _files(folder: Path) -> dict[str, int]:
    try:
        return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    except FileNotFoundError:  # no folder yet, or a temporary name that has just gone
        return {}


def _resume(stage: Stage, expected: list[str]) -> None:
    _act(3, "The same command again. It finds its newest whole step by itself, and goes on from there.")
    _compare(stage.trained(_KILLED), expected)


def _damage(stage: Stage, expected: list[str]) -> None:
    _act(4, "Flip one byte in the newest step, in the middle of its largest leaf.")
    newest = mp.open(stage.killed).latest()
    if newest is None or newest.step != STEPS:
        raise Broken(f"the newest step is {newest}, not {STEPS}.")
    weights = [ref for path, ref in newest.leaves.items() if path.startswith("model/weights/")]
    leaf = max(weights, key=lambda ref: ref.nbytes).path
    pack, place = _flip(stage.killed / str(STEPS), leaf)
    _say(f"\n   Byte {place:,} of {_KILLED}/{STEPS}/{pack} is another now: a byte of {leaf}.")
    stage.shell("verify", _KILLED, code=4)
    try:
        newest.verify()
    except mp.CorruptionError as error:
        if [damage.path for damage in error.damaged] != [leaf]:
            raise Broken(f"verify names {error.damaged}, not {leaf}.") from error
    else:
        raise Broken("verify did not see it.")
    _say("\n   The same command again. A damaged step is never taken in silence: the run goes one step further back.")
    lines = stage.trained(_KILLED)
    if f"resumed from step {STEPS - _SAVE_EVERY}" not in lines or leaf not in lines[0]:
        raise Broken("the run did not say that it went back to the step before.")
    _compare(lines, expected)


def _flip(slot: Path, leaf: str) -> tuple[str, int]:
    """Flip a byte in the middle of a leaf; return the file's name and the byte's place in it."""
    for pack in sorted(slot.glob("*.safetensors")):
        data = bytearray(pack.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        if leaf in header:
            place = start + sum(header[leaf]["data_offsets"]) // 2
            data[place] ^= 0xFF
            pack.chmod(0o644)  # packs are read-only
            pack.write_bytes(data)
            return pack.name, place
    raise Broken(f"no pack of {slot} holds {leaf}.")


def _ensemble(stage: Stage) -> None:
    _act(
        5, f"An ensemble: El Nino in {MEMBERS} members of {MONTHS} months, saved every 6 months, as items of a session."
    )
    stage.forecast_finished(_ENSEMBLE_CALM)
    _say("\n   The same with a root of its own, and SIGKILL in the middle of a member.")
    for member in range(_KILL_MEMBER, MEMBERS):
        row = _killed_in_member(stage, member)
        if row is not None:
            break
        _say(f"   (member {member} was finished before the signal came; once more)")
    else:
        raise Broken("no member could be killed half-way: every one was too fast.")
    member, lead = row.labels["member"], row.progress["lead"]
    _say(f"\n   Killed. Member {member} is saved up to month {lead}, the next have not begun:")
    stage.shell("ls", _ENSEMBLE)
    _say("\n   The same command again.")
    lines = stage.forecast_finished(_ENSEMBLE)
    first = f"member {member:2}   goes on with month {lead + 1}"
    if lines[:1] != [first]:
        raise Broken(f"the ensemble went on with {lines[:1]}, not with {first!r}.")
    calm, killed = (temperatures(stage.folder / f"{root}-output") for root in (_ENSEMBLE_CALM, _ENSEMBLE))
    if calm.shape != (MEMBERS, MONTHS) or calm.tobytes() != killed.tobytes():
        raise Broken("the temperatures of the two ensembles differ.")
    _say(f"\n   BIT-EXACT: all {MEMBERS} x {MONTHS} temperatures are those of the ensemble that was left alone.")
    stage.shell("ls", _ENSEMBLE)


def _killed_in_member(stage: Stage, member: int) -> ItemRow | None:
    """Kill the ensemble in a member; return how far that is saved, None when it was finished before."""
    where = item_where(str(stage.folder / _ENSEMBLE), {"member": member})
    with stage.forecast(_ENSEMBLE) as process:
        while process.poll() is None and ((row := item_row(where)) is None or not row.progress):
            time.sleep(0.001)
        process.kill()
        for _ in _echoed(process):
            pass  # what it said before
    row = item_row(where)
    return row if row is not None and 0 < row.marks < MONTHS else None


def _look(stage: Stage) -> None:
    _act(6, "Look at what is there: the steps and why they stay, what differs, and what a policy would delete.")
    stage.shell("ls", _KILLED)
    stage.shell("diff", f"{_KILLED}@-2", f"{_KILLED}@latest")
    stage.shell("diff", f"{_CALM}@latest", f"{_KILLED}@latest")
    stage.shell("prune", _KILLED, "--keep", "last 1, best 1 accuracy", "--dry-run")
    calm, killed = mp.open(stage.folder / _CALM).latest(), mp.open(stage.killed).latest()
    if calm is None or killed is None or calm.diff(killed):
        raise Broken("the newest steps of the two runs differ.")


def _digests(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("weights ", "losses "))]


def _compare(lines: list[str], expected: list[str]) -> None:
    if _digests(lines) != expected or len(expected) != 2:
        raise Broken(f"the weights or losses differ from those of act 1, which were {', '.join(expected)}.")
    _say(f"\n   BIT-EXACT: the weights and all {STEPS} losses are those of act 1, to the last bit.")


def _act(number: int, text: str) -> None:
    _say(f"\n{number}. {text}")


def _say(text: str) -> None:
    print(text, flush=True)
