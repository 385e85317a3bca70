# SPDX-License-Identifier: Apache-2.0
"""What is put to the test: programs that say what they were promised, and what must then be there after any fault.

Whoever has another store gives a `Subject` of their own, and every harness here runs over it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, final

import msgspec

# What is there: the name of a thing (a step) and its content (the seed of its bytes).
Things = Mapping[str, str]
# A thing that is listed, but cannot be read back as it was saved.
TORN = "torn"

_PIPE_BYTES = 4_000  # a write of up to PIPE_BUF is one piece


@dataclass(frozen=True, slots=True)
class Event:
    """What a program said.

    Attributes:
        what: begun, done, or failed with an error of the subject's own; stopped, when the program gave up with such an
            error; broke, when an exception came out that is none of the subject's.
        action: which of the program's actions, by number.
        makes: what is there once it is done, with its content.
        removes: what may be gone once it is done.
        may: what may be there from its beginning on, with that content, until it is done.
        code: of the error.
        text: of the error.
    """

    what: Literal["begun", "done", "failed", "stopped", "broke"]
    action: int = -1
    makes: Things = field(default_factory=dict[str, str])
    removes: tuple[str, ...] = ()
    may: Things = field(default_factory=dict[str, str])
    code: str = ""
    text: str = ""


class Subject(Protocol):
    """Something that saves states to a folder."""

    @property
    def scripts(self) -> Mapping[str, Script]: ...

    def read(self, root: Path) -> Things:
        """Return what is there, read in full and compared with what was saved; a content that begins with `torn` is
        listed but not whole. What it raises means that the folder cannot be opened.
        """
        ...

    @property
    def fresh(self) -> Things:
        """What `again` makes."""
        ...

    def again(self, root: Path) -> None:
        """Save something new, as the next program does after the fault. What it raises is a failure."""
        ...

    def strays(self, root: Path) -> Collection[str]:
        """Return what lies there and belongs to nothing, after the next program has saved."""
        ...

    def code_of(self, error: BaseException) -> str | None:
        """Return the code of an error of the subject's own, `unknown` when the outcome is; None for any other."""
        ...


@dataclass(frozen=True, slots=True)
class Script:
    """One program.

    Attributes:
        prepare: what is there before, saved without faults.
        run: what is done while faults strike; it says so in the journal.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path, Journal], object]


@final
class Journal:
    """Where a program says what it was promised. It is a pipe: what was said before a kill has been said."""

    def __init__(self, subject: Subject, fd: int, *, first: int = 0) -> None:
        self._subject, self._fd = subject, fd
        self._count = first

    @contextmanager
    def doing(
        self, makes: Things | None = None, removes: Collection[str] = (), may: Things | None = None
    ) -> Generator[None]:
        """One action: it is done when the block ends; an error of the subject's own is noted, and the program goes on.

        Args:
            makes: what is there afterwards, with its content.
            removes: what may be gone afterwards.
            may: what may be there instead until it is done.
        """
        action = self.begin(makes, removes, may)
        try:
            yield
        except BaseException as error:
            if not self.failed(action, error):
                raise
        else:
            self.done(action)

    def begin(self, makes: Things | None = None, removes: Collection[str] = (), may: Things | None = None) -> int:
        """Say that an action begins; return its number, for `done` or `failed`."""
        self._count += 1
        self._say(what="begun", action=self._count, makes=makes or {}, removes=sorted(removes), may=may or {})
        return self._count

    def done(self, action: int) -> None:
        """Say that an action was acknowledged."""
        self._say(what="done", action=action)

    def failed(self, action: int, error: BaseException) -> bool:
        """Say that an action failed; return False when the error is none of the subject's own."""
        code = self._subject.code_of(error)
        if code is not None:
            self._say(what="failed", action=action, code=code, text=str(error))
        return code is not None

    def run(self, script: Script, root: Path) -> None:
        """Run a program to its end, whatever comes out of it."""
        try:
            script.run(root, self)
        except Exception as error:  # noqa: BLE001 what came out is the finding
            code = self._subject.code_of(error)
            what = "broke" if code is None else "stopped"
            self._say(what=what, code=code or "", text=f"{type(error).__name__}: {error}")

    def _say(self, **said: Any) -> None:
        if "text" in said:
            said["text"] = said["text"][:1_000]
        line = json.dumps(said).encode() + b"\n"
        assert len(line) < _PIPE_BYTES
        os.write(self._fd, line)


def events(lines: bytes) -> list[Event]:
    """Return what was said."""
    decoder = msgspec.json.Decoder(Event)
    return [decoder.decode(line) for line in lines.splitlines()]


def possible(before: Things, said: Collection[Event]) -> dict[str, set[str | None]]:
    """Return what each thing's content may be after these events; None means that it is not there.

    What was acknowledged must be there. What failed must have changed nothing, unless its outcome was said to be
    unknown; an action that only removes may have removed before it failed.
    """
    state: dict[str, set[str | None]] = {name: {content} for name, content in before.items()}
    ended = {event.action: event for event in said if event.what in ("done", "failed")}
    for event in said:
        if event.what != "begun":
            continue
        end = ended.get(event.action)
        sure = end is not None and end.what == "done"
        unknown = end is None or end.code == "unknown"
        if not sure:
            for name, content in event.may.items():
                state.setdefault(name, {None}).add(content)
        for name, content in event.makes.items():
            if sure:
                state[name] = {content}
            elif unknown:
                state.setdefault(name, {None}).add(content)
        if sure or unknown or not event.makes:
            for name in event.removes:
                state.setdefault(name, {None}).add(None)
    return state


def wrong(before: Things, said: Collection[Event], found: Things) -> list[str]:
    """Return what is wrong with what was found; nothing when all is as it was promised."""
    state = possible(before, said)
    faults = [f"{name}: {content}" for name, content in found.items() if content.startswith(TORN)]
    for name, contents in state.items():
        content = found.get(name)
        if content in contents or (content or "").startswith(TORN):
            continue
        faults.append(f"{name} is lost" if content is None else f"{name} holds {content}, not {contents}")
    faults += [f"{name} is there, and nobody made it" for name in found if name not in state]
    faults += [f"broke: {event.text}" for event in said if event.what == "broke"]
    return faults
