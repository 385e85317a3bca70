# SPDX-License-Identifier: Apache-2.0
"""One trial: a program runs on a folder, a fault strikes, and what is there afterwards is compared with the promise."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, final

from milepost.testing.faults.subject import TORN, Event, Journal, Script, Subject, Things, events, wrong
from milepost.testing.faults.tracer import ALL, CHANGING, Ended, Fate, Kill, traced
from milepost.testing.recorder import Call

_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that broke a promise.

    Attributes:
        script: the program.
        fault: what was done to it, and where.
        wrong: what was found.
    """

    script: str
    fault: str
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.script}, {self.fault}:\n    " + "\n    ".join(self.wrong)


@dataclass(slots=True)
class Tally:
    """What a harness found.

    Attributes:
        faults: how many struck.
        outcomes: how often each outcome came: done, failed (by code), killed and so on.
        findings: what was wrong.
    """

    faults: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    findings: list[Finding] = field(default_factory=list[Finding])

    def add(self, script: str, fault: str, outcomes: Mapping[str, int], faults: list[str]) -> None:
        self.faults += 1
        self.outcomes.update(outcomes)
        if faults:
            self.findings.append(Finding(script, fault, tuple(faults)))

    def __str__(self) -> str:
        rows = [f"{count:8,} {name}" for name, count in sorted(self.outcomes.items())]
        found = [str(finding) for finding in self.findings]
        return "\n".join([f"{self.faults:,} faults, {len(found)} broken promises", *rows, *found])


@final
@dataclass(slots=True)
class Bench:
    """A folder in which trials of one program are made, each from the same beginning.

    Attributes:
        subject: what is put to the test.
        script: the name of its program.
        folder: a folder of ours, on the file system to test on.
        before: what is there before each trial.
    """

    subject: Subject
    script: str
    folder: Path
    before: Things = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._template.mkdir(parents=True)
        script = self.subject.scripts[self.script]
        apart(lambda: script.prepare(self._template / "root"))
        self.before = self.found(self._template / "root")
        self._warm_up()

    def _warm_up(self) -> None:
        """Import here what children would each import anew."""
        self.lay()

        def work() -> list[str]:
            Journal(self.subject, os.open(os.devnull, os.O_WRONLY)).run(self.subject.scripts[self.script], self.root)
            self.subject.again(self.root)
            self.subject.read(self.root)
            return [name for name in sys.modules if name != "__main__"]

        for name in cast("list[str]", apart(work)):
            with suppress(ImportError):
                importlib.import_module(name)

    @property
    def _template(self) -> Path:
        return self.folder / "template"

    @property
    def root(self) -> Path:
        """The root on which a trial is made; its parent is of this trial too."""
        return self.folder / "trial" / "root"

    def clear(self) -> None:
        """Remove all that was laid."""
        shutil.rmtree(self.folder)

    def lay(self) -> None:
        """Put what is there before a trial in its place."""
        shutil.rmtree(self.root.parent, ignore_errors=True)
        copied(self._template, self.root.parent)

    def run(self, decide: Callable[[Call], Fate], *, only: frozenset[str] = ALL) -> tuple[Ended, list[Event]]:
        """Run the program on what was laid; return how it ended and what it said."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            ended = self._traced(writing, decide, only=only, record=False)
            return ended, events(_drained(reading))
        finally:
            os.close(reading)
            os.close(writing)

    def recorded(self, *, killed_at: int | None = None) -> list[Call]:
        """Run the program on what was laid; return its changing calls below the root's parent.

        What it said is among them, as writes to a file named `journal`.

        Args:
            killed_at: before which changing call the program is killed, and the next one goes on, recorded too.
        """
        fd = os.open(self.root.parent / "journal", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        count = 0

        def decide(call: Call) -> Fate:
            nonlocal count
            count += call.path != "journal"
            return Kill() if count == killed_at else None

        try:
            ended = self._traced(fd, decide, only=CHANGING, record=True)
            if ended.how != "killed":
                return ended.calls
            again = Script(lambda _: None, self._again)
            return ended.calls + self._traced(fd, lambda _: None, only=CHANGING, record=True, script=again).calls
        finally:
            os.close(fd)

    def _again(self, root: Path, journal: Journal) -> None:
        with journal.doing(self.subject.fresh):
            self.subject.again(root)

    def _traced(
        self,
        journal: int,
        decide: Callable[[Call], Fate],
        *,
        only: frozenset[str],
        record: bool,
        script: Script | None = None,
    ) -> Ended:
        program = script or self.subject.scripts[self.script]

        def work() -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            # Numbers of actions apart from those of a program before.
            Journal(self.subject, journal, first=0 if script is None else 1_000).run(program, self.root)

        return traced(self.root.parent, work, decide, names=only, record=record, timeout_s=_PATIENCE_S)

    def found(self, root: Path) -> Things:
        return cast("Things", apart(lambda: dict(self.subject.read(root))))

    def judged(self, ended: Ended, said: list[Event]) -> list[str]:
        """Return what is wrong after a trial, now and after the next program has saved."""
        faults = [f"it {ended.how}"] if ended.how in ("hung", "died") else []
        try:
            found = self.found(self.root)
        except RuntimeError as error:
            return [*faults, f"it cannot be opened: {error}"]
        faults += wrong(self.before, said, found)
        try:
            apart(lambda: self.subject.again(self.root))
            later = self.found(self.root)
            strays = cast("list[str]", apart(lambda: list(self.subject.strays(self.root))))
        except RuntimeError as error:
            return [*faults, f"nothing can be saved again: {error}"]
        new = self.subject.fresh
        faults += [f"{name} is lost by the next save" for name, content in found.items()
                   if later.get(name) != content and name not in new and not content.startswith(TORN)]  # fmt: skip
        faults += [f"{name} is not there after the next save" for name in new if later.get(name) != new[name]]
        return faults + [f"{name} was left over" for name in strays]

    def baseline(self) -> Counter[str]:
        """Run without faults; return how often each call was made.

        Raises:
            AssertionError: the program itself does not keep its promises.
        """
        calls: Counter[str] = Counter()

        def decide(call: Call) -> Fate:
            calls[call.name] += 1
            calls["changing"] += call.name in CHANGING
            return None

        self.lay()
        ended, said = self.run(decide)
        faults = self.judged(ended, said)
        made = {event.action for event in said if event.what == "begun"}
        faults += [f"{event.what}: {event.text}" for event in said if event.what not in ("begun", "done")]
        if faults or ended.how != "returned" or not made:
            raise AssertionError(f"{self.script} fails without any fault: {faults or ended.how}")
        return calls


def copied(source: Path, target: Path) -> None:
    """Copy a folder, hard links, modes and all."""
    subprocess.run(["cp", "-a", source, target], check=True)  # noqa: S603, S607


def apart(work: Callable[[], Any]) -> Any:
    """Do something in a child process, so that it starts from the same beginning each time; return what it returned.

    Raises:
        RuntimeError: it raised, hung, or died, which the text says.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        _answer(writing, work)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        data = file.read()
    _, status = os.waitpid(process, 0)
    if not data:
        raise RuntimeError(f"the process died of {os.waitstatus_to_exitcode(status)}")
    kind, answer = json.loads(data)
    if kind != "answer":
        raise RuntimeError(answer)
    return answer


def _answer(writing: int, work: Callable[[], Any]) -> None:
    answer: tuple[Literal["answer", "error"], Any]
    try:
        signal.alarm(_PATIENCE_S)
        answer = ("answer", work())
    except BaseException as error:  # noqa: BLE001 it is told to the parent
        answer = ("error", f"{type(error).__name__}: {error}")
    with suppress(BaseException), os.fdopen(writing, "wb") as file:
        file.write(json.dumps(answer, default=str).encode())
    os._exit(0)


def _drained(fd: int) -> bytes:
    data = b""
    with suppress(BlockingIOError):
        while piece := os.read(fd, 1 << 16):
            data += piece
    return data


def outcomes(ended: Ended, said: list[Event]) -> Counter[str]:
    """Return what a program was told, counted."""
    found: Counter[str] = Counter(
        f"{event.what} {event.code}".strip() for event in said if event.what not in ("begun", "done")
    )
    found["acknowledged"] += sum(event.what == "done" for event in said)
    found[ended.how] += 1
    return +found
