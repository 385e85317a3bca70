# SPDX-License-Identifier: Apache-2.0
"""Run several processes in every order of their store calls, and look at the store after each call.

A process is a function that works with a store. It runs up to its next call of the store, and no further until it is
its turn: then the call is made, and answered. There are no threads in this: to go on, the function is run again from
its beginning, with the answers that it has had so far, up to the call after them. So one process needs to be run once
for each series of answers that it can get, whatever the others do in between; and the orders, of which there are many
more, are tried on the store's content alone.

A state is that content and the answers of each process, which is all that what follows can depend on. No state is
followed twice, and every state that can be reached is.

    def writer(process):
        with mp.Checkpointer(process.store, limits=IN_THE_FOREGROUND) as saver:
            saver.save(1, {"w": w}).result()
        process.say("saved", 1)

    explored = explore(content, {"writer": writer, "reader": reader}, check)

What a process does must depend on nothing but its answers: no clock, no thread, no random number (those of `secrets`
are given out the same each time). Sleeping is waiting for the others to change something.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

from milepost.errors import CheckpointError
from milepost.stores import ObjectInfo, Store
from milepost.testing.model import Call, Content, Disk, Grip, ModelStore, performed


@final
@dataclass(frozen=True, slots=True)
class World:
    """What a check may look at.

    Attributes:
        content: of the store as it is now.
        said: what the processes said, in order: who, and what.
    """

    content: Content
    said: tuple[tuple[str, tuple[Any, ...]], ...]

    @property
    def store(self) -> Store:
        """A store with a copy of that content."""
        return ModelStore(Disk(self.content).perform)

    def saying(self, word: str) -> list[tuple[Any, ...]]:
        """Return what was said after a first word, whoever said it."""
        return [what[1:] for _, what in self.said if what[0] == word]


@final
@dataclass(frozen=True, slots=True)
class Explored:
    """What was tried.

    Attributes:
        states: different states.
        orders: how many orders, from the beginning to the end, they stand for.
        runs: how often the function of a process was run.
        looks: how often the store was looked at.
    """

    states: int
    orders: int
    runs: int
    looks: int


class TooManyStatesError(Exception):
    """The exploration is larger than its limit."""


def explore(
    content: Content,
    processes: Mapping[str, Callable[[Process], object]],
    check: Callable[[World], None],
    *,
    at_end: Callable[[World], None] | None = None,
    locks: bool = True,
    kill: Collection[str] = (),
    settled: tuple[str, ...] = (),
    limit: int = 200_000,
) -> Explored:
    """Try all orders.

    Args:
        content: what is in the store at the beginning.
        processes: by name. What one raises is a failure: it catches what it expects.
        check: looks at the store after every call; raises when something is wrong.
        at_end: looks at it when all processes have ended.
        locks: whether the store can lock; without, `hold` says that it cannot.
        kill: processes that may be killed before any call: it is not made, and their locks are free.
        settled: how the keys begin of files that are never changed or removed. Reading one that is there is no move of
            its own: it comes out the same at any time, and nobody can notice it.
        limit: of states.

    Raises:
        TooManyStatesError: there are more states.
        Exception: what a check or a process raised, with a note of the order that led to it.
    """
    exploration = _Exploration(processes, locks, frozenset(kill), settled, limit)
    with _repeatable():
        return exploration.run(content, check, at_end)


def filled(*steps: Callable[[Store], object]) -> Content:
    """Return the content of a store after some work on it."""
    disk = Disk()
    for step in steps:
        step(ModelStore(disk.perform))
    return disk.content


@final
class Process:
    """What a process gets to work with.

    Attributes:
        name, store: its name, and its handle.
    """

    def __init__(self, name: str, past: list[tuple[Call, _Answer]]) -> None:
        self.name, self._past = name, past
        self._names = itertools.count()
        self._free = 0  # how many `alone` it is in
        self._enters = False  # whether its next call is the first of one
        self._made = 0
        self.said: list[tuple[Any, ...]] = []
        self.next: Call | None = None
        self.next_is_free = False
        # Another URL in each run: nothing that is kept by URL may outlive it, as nothing outlives a process.
        self.store: Store = ModelStore(self._perform, f"model://{next(_runs)}-{name}")

    def say(self, *what: Any) -> None:
        """Tell the checks something, such as that a save was acknowledged."""
        if self.next is None:
            self.said.append(what)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Let nobody else move in here. At the beginning of a process, it comes before the others begin."""
        self._enters = not self._free and self._made > 0
        self._free += 1
        try:
            yield
        finally:
            self._free -= 1

    def sleep(self) -> None:
        self._perform(Call("sleep"))

    def token(self, nbytes: int) -> str:
        """Return the next name that is random in a real process."""
        return hashlib.blake2b(f"{self.name}/{next(self._names)}".encode(), digest_size=nbytes).hexdigest()

    def _perform(self, call: Call) -> Any:
        if self.next is not None:
            raise _Stop
        if self._made == len(self._past):
            self.next, self.next_is_free = call, self._free > 0 and not self._enters
            raise _Stop
        before, answer = self._past[self._made]
        if (before.verb, before.key) != (call.verb, call.key):
            raise RuntimeError(f"{self.name} did not do the same when it was run again: {call} instead of {before}")
        self._made += 1
        self._enters = False
        return answer.given()


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any = None
    error: type[CheckpointError] | None = None
    text: str = ""
    code: str = ""

    @classmethod
    def of(cls, error: CheckpointError) -> _Answer:
        return cls(None, type(error), str(error), error.code)

    def given(self) -> Any:
        if self.error is not None:
            raise self.error(self.text, code=self.code)
        return self.value

    def __str__(self) -> str:
        if self.error is not None:
            return self.code
        match self.value:
            case None:
                return "done"
            case bytes():
                return f"{len(self.value)} bytes"
            case Grip():
                return "held"
            case _:
                return " ".join(item.key if isinstance(item, ObjectInfo) else str(item) for item in self.value)


class _Stop(BaseException):
    """Ends the run of a process at its next call."""


_Check = Callable[[World], None]
_runs = itertools.count()
_running: list[Process] = []  # one at most


@contextmanager
def _repeatable() -> Generator[None]:
    """Give random names out the same each time, make sleeping a call, and log nothing: it would be logged too often."""
    token, sleep, logged = secrets.token_hex, time.sleep, logging.root.manager.disable
    secrets.token_hex = lambda nbytes=None: _running[0].token(nbytes or 32) if _running else token(nbytes)
    time.sleep = lambda seconds: _running[0].sleep() if _running else sleep(seconds)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        secrets.token_hex, time.sleep = token, sleep
        logging.disable(logged)


@final
@dataclass(slots=True, eq=False)
class _Node:
    """A process after some answers.

    Attributes:
        number: its identity.
        before: the node before the last answer.
        answer: the last one.
        call: the next call; None when the process has ended.
        free: whether that call is made before anybody else moves.
        said: what it said so far.
        after: the node after each answer to the next call.
    """

    number: int
    before: _Node | None
    answer: _Answer | None
    call: Call | None
    free: bool
    said: tuple[tuple[Any, ...], ...]
    after: dict[Any, _Node] = field(default_factory=dict[Any, "_Node"])


@final
@dataclass(frozen=True, eq=False)
class _State:
    """Where all processes stand. `idle` are those that sleep, and have nothing new to see; `dead` were killed."""

    content: Content
    nodes: tuple[_Node, ...]
    idle: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()
    said: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    before: _State | None = None
    moved: int = 0
    depth: int = 0

    def seen_by_checks(self) -> tuple[int, Any]:
        return self.content.digest, self.said

    @cached_property
    def key(self) -> int:
        return hash((*self.seen_by_checks(), tuple(node.number for node in self.nodes), self.idle, self.dead))


@final
class _Exploration:
    def __init__(
        self,
        processes: Mapping[str, Callable[[Process], object]],
        locks: bool,
        kill: frozenset[str],
        settled: tuple[str, ...],
        limit: int,
    ) -> None:
        self._names, self._work = list(processes), list(processes.values())
        self._locks, self._kill, self._settled, self._limit = locks, kill, settled, limit
        self._numbers = itertools.count(1)

    def run(self, content: Content, check: _Check, at_end: _Check | None) -> Explored:
        state = self._begun(content)
        states, looked = {state.key: state.depth}, set[Any]()
        orders: dict[int, list[int]] = {}
        todo = [state]
        while todo:
            state = todo.pop()
            try:
                following = self._following(state)
                for look in [check] if following or at_end is None else [check, at_end]:
                    seen = (look is at_end, *state.seen_by_checks())
                    if seen not in looked:
                        looked.add(seen)
                        look(World(state.content, state.said))
            except Exception as error:
                error.add_note(self._story(state))
                raise
            keys = [other.key for other in following]
            orders[state.key] = keys
            for other, key in zip(following, keys, strict=True):
                if key not in states:
                    states[key] = other.depth
                    todo.append(other)
            if len(states) > self._limit:
                raise TooManyStatesError(f"more than {self._limit} states, {len(todo)} of them not followed yet")
        return Explored(len(states), _count(states, orders), next(self._numbers) - 1, len(looked))

    def _begun(self, content: Content) -> _State:
        state = _State(content, ())
        for index in range(len(self._names)):
            node = self._node(index, None, None)
            state = replace(state, nodes=(*state.nodes, node))
            if node.free or self._is_settled(node.call, content):
                state = self._moved(state, index)
        return state

    def _is_settled(self, call: Call | None, content: Content) -> bool:
        if call is None or call.verb == "sweep":
            return True
        return call.verb == "get" and call.key.startswith(self._settled) and call.key in content.files

    def _following(self, state: _State) -> list[_State]:
        """Return the states after one move of each process that can move."""
        here = [index for index, node in enumerate(state.nodes) if node.call is not None and index not in state.dead]
        awake = [index for index in here if index not in state.idle] or here
        killed = [index for index in here if self._names[index] in self._kill]
        return [self._moved(state, index) for index in awake] + [self._killed(state, index) for index in killed]

    def _moved(self, state: _State, index: int) -> _State:
        """Let a process make its next call, and those that belong to it."""
        name, node, content, said = self._names[index], state.nodes[index], state.content, state.said
        while node.call is not None:
            try:
                content, value = performed(content, node.call, node.number, name, locks=self._locks)
                answer = _Answer(value)
            except CheckpointError as error:
                answer = _Answer.of(error)
            heard = len(node.said)
            node = self._after(index, node, answer)
            said += tuple((name, what) for what in node.said[heard:])
            if not node.free and not self._is_settled(node.call, content):
                break
        idle = state.idle if content is state.content else frozenset[int]()
        if node.call is not None and node.call.verb == "sleep":
            idle |= {index}
        nodes = (*state.nodes[:index], node, *state.nodes[index + 1 :])
        if node.call is None:
            idle -= {index}
        return _State(content, nodes, idle, state.dead, said, state, index, state.depth + 1)

    def _killed(self, state: _State, index: int) -> _State:
        name = self._names[index]
        grips = frozenset(grip for grip in state.content.grips if grip.owner != name)
        return replace(
            state, content=replace(state.content, grips=grips), dead=state.dead | {index}, idle=frozenset[int](),
            before=state, moved=index, depth=state.depth + 1,
        )  # fmt: skip

    def _story(self, state: _State) -> str:
        """Return all moves that led to a state, as text."""
        moves: list[str] = []
        while (before := state.before) is not None:
            name, node, lines = self._names[state.moved], state.nodes[state.moved], list[str]()
            while node is not before.nodes[state.moved]:
                assert node.before is not None
                lines += [f"{name} says {what}" for what in reversed(node.said[len(node.before.said) :])]
                lines.append(f"{name}: {node.before.call}  =  {node.answer}")
                node = node.before
            moves += lines or [f"{name} is killed"]
            state = before
        return "\n".join(["The order was:", *reversed(moves)])

    def _after(self, index: int, node: _Node, answer: _Answer) -> _Node:
        if answer not in node.after:
            node.after[answer] = self._node(index, node, answer)
        return node.after[answer]

    def _node(self, index: int, before: _Node | None, answer: _Answer | None) -> _Node:
        """Run a process up to the call after its last answer."""
        past: list[tuple[Call, _Answer]] = []
        at, last = before, answer
        while last is not None:
            assert at is not None
            assert at.call is not None
            past.append((at.call, last))
            at, last = at.before, at.answer
        process = Process(self._names[index], past[::-1])
        _running.append(process)
        try:
            self._work[index](process)
        except _Stop:
            pass
        except Exception:
            if process.next is None:
                raise
        finally:
            _running.pop()
        number = next(self._numbers)
        return _Node(number, before, answer, process.next, process.next_is_free, tuple(process.said))


def _count(depths: Mapping[int, int], following: Mapping[int, list[int]]) -> int:
    """Return how many ways lead from the first state to an end."""
    ways: dict[int, int] = {}
    for state in sorted(following, key=depths.__getitem__, reverse=True):
        ways[state] = sum(ways[other] for other in following[state]) or 1
    return ways[next(iter(depths))]
