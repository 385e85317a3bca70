# SPDX-License-Identifier: Apache-2.0
"""What is done with one peer and one large state; runs in the peer's own process."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import states
from benchmarks.measure import Held, measured, release_memory, sync
from benchmarks.peers import Peer, State, peer_class

_MATRIX = 1024
_STEP_S = 0.1


class Cell:
    """One peer with one workload's state. Each public method is one operation that the suite asks for.

    Args:
        name: the peer's.
        workload: whose state is saved.
        memory: folder in memory where the state's bytes lie.
        quick: with a small state.
    """

    def __init__(self, name: str, workload: str, memory: Path, *, quick: bool) -> None:
        self._leaves = states.leaves_of(workload, quick=quick)
        self._source = states.Source(memory, f"{workload}{'-quick' * quick}", self._leaves)
        self._class = peer_class(name)
        self._peer: Peer = self._class()
        self._folder = Path()
        self._variants: dict[int, State] = {}
        self._last: State = {}
        self._kept: State = {}
        self._matrix = np.empty(0)
        self._repeats = 0

    # --- begin and end

    def begin(self, folder: str) -> dict[str, Any]:
        """Open the peer in an empty folder; the first time, do everything once with a tiny state."""
        self._folder = Path(folder)
        if not self._variants:
            self._warm(self._folder.with_name(self._folder.name + "-warm"))
            for number in range(3):
                self._state(number)
        self._folder.mkdir(parents=True)
        self._peer = self._class()
        self._peer.open(self._folder)
        return {}

    def _warm(self, folder: Path) -> None:
        """Pay for imports, thread pools and helper processes: they are not part of a save."""
        tiny = states.in_framework({"a/x": np.ones(70_000, "f4"), "a/y": np.ones(9, "f4")}, self._class.framework)
        folder.mkdir(parents=True)
        peer = self._class()
        peer.open(folder)
        if not peer.asynchronous_only:
            peer.save(0, tiny)
        if not peer.saves_only:
            peer.start(1, tiny)()
            peer.load(1, tiny)
        peer.close()
        shutil.rmtree(folder)

    def end(self) -> dict[str, Any]:
        """Close the peer, and remove what it wrote."""
        self._peer.close()
        self._peer = self._class()  # nothing is kept from one round to the next, and no memory from the peers meanwhile
        self._kept, self._last = {}, {}
        release_memory()
        shutil.rmtree(self._folder)
        return {}

    def _state(self, number: int) -> State:
        if number not in self._variants:
            self._variants[number] = states.in_framework(self._source.variant(number), self._class.framework)
        return self._variants[number]

    # --- saves

    def first(self) -> dict[str, Any]:
        """Save for the first time, into memory that nobody has touched."""
        return self._saved(0, self._state(0))

    def save(self) -> dict[str, Any]:
        """Save, and wait until it is durable."""
        return self._saved(1, self._state(1))

    def _saved(self, step: int, state: State) -> dict[str, Any]:
        before = Held.of(self._folder)
        returned = 0.0

        def operation() -> None:
            nonlocal returned
            start = time.perf_counter()
            self._peer.save(step, state)
            returned = time.perf_counter() - start
            self._sync()

        costs, _ = measured(operation, children=self._peer.processes)
        return costs | {"unsynced": returned, "syncs": self._peer.syncs} | Held.of(self._folder).beyond(before)

    def _sync(self) -> None:
        if self._peer.syncs != "all":
            sync(self._folder)

    def asynchronous(self) -> dict[str, Any]:
        """Begin to save, and wait until it is durable."""
        blocked = 0.0
        before = Held.of(self._folder)

        def operation() -> None:
            nonlocal blocked
            start = time.perf_counter()
            wait = self._peer.start(2, self._state(2))
            blocked = time.perf_counter() - start
            wait()
            self._sync()

        costs, _ = measured(operation, children=self._peer.processes)
        own = {"syncs": self._peer.syncs, "own": self._peer.asynchronous}
        return costs | {"blocked": blocked} | own | Held.of(self._folder).beyond(before)

    def partly(self, step: int) -> dict[str, Any]:
        """Save a state of which a few leaves have changed since the step before."""
        changed = states.changing(self._leaves)
        new = {path: value for path, value in self._source.variant(1 + step).items() if path in changed}
        self._last = self._state(0) | states.in_framework(new, self._class.framework)
        return self._saved(step, self._last) | {"changed": sum(value.nbytes for value in new.values())}

    def unchanged(self, step: int) -> dict[str, Any]:
        """Save what the step before saved, the same objects."""
        return self._saved(step, self._last)

    # --- loads

    def load(self) -> dict[str, Any]:
        """Load all, and read a byte of every page: a mapping is not yet there when it is made."""
        return self._loaded(self._peer.load)

    def mapped(self) -> dict[str, Any]:
        """The same as a mapping, where the library has one."""
        return self._loaded(self._peer.load_mapped) if self._peer.load_mapped is not None else {}

    def _loaded(self, how: Callable[[int, State], State]) -> dict[str, Any]:
        self._kept = {}

        def operation() -> State:
            found = how(1, self._state(1))
            states.touch(found)
            return found

        costs, found = measured(operation)
        return costs | {"differ": self._differing(found)}

    def _differing(self, found: State) -> int:
        """Return how many leaves are not, bit for bit, what was saved."""
        count = 0
        for path, value in self._state(1).items():
            data = states.as_bytes(found[path]) if path in found else np.empty(0, np.uint8)
            count += not np.array_equal(data, states.as_bytes(value))
        return count

    def lazy(self) -> dict[str, Any]:
        """Map without looking at anything: how much memory is taken by that alone."""
        if self._peer.load_mapped is None:
            return {}
        costs, self._kept = measured(lambda: self._peer.load_mapped(1, self._state(1)))  # pyright: ignore[reportOptionalCall]
        return costs

    def into(self) -> dict[str, Any]:
        """Load into arrays that are there already, and have been touched."""
        if self._peer.load_into is None:
            return {}
        raw = {path: np.ones_like(value) for path, value in self._source.variant(0).items()}
        target = states.in_framework(raw, self._class.framework)
        costs, _ = measured(lambda: self._peer.load_into(1, target))  # pyright: ignore[reportOptionalCall]
        return costs | {"differ": self._differing(target)}

    def leaf(self) -> dict[str, Any]:
        """Load one leaf of many."""
        path = states.one_leaf(self._leaves)
        costs, found = measured(lambda: self._peer.load_leaf(1, path, self._state(1)))
        same = np.array_equal(states.as_bytes(found), states.as_bytes(self._state(1)[path]))
        return costs | {"differ": int(not same)}

    # --- a program that computes

    def loop(self, steps: int, every: int) -> dict[str, Any]:
        """Compute some steps without saving, then as many with a save in the background each `every` of them."""
        alone, _ = measured(lambda: self._computed(steps, 0))
        costs, (blocked, after, others) = measured(lambda: self._computed(steps, every))
        nbytes = sum(leaf.nbytes for leaf in self._leaves) * (steps // every)
        return costs | {
            "alone": alone["seconds"],
            "blocked": blocked,
            "saved": nbytes,
            "saving_cpu": costs["cpu"] - alone["cpu"],
            "next_step": statistics.median(after) / statistics.median(others),
        }

    def _computed(self, steps: int, every: int) -> tuple[float, list[float], list[float]]:
        """Return the time blocked in saves, the times of the steps after a save, and those of the others."""
        blocked, wait, saves = 0.0, None, 0
        after: list[float] = []
        others: list[float] = []
        for step in range(1, steps + 1):
            start = time.perf_counter()
            self._compute()
            (after if every and step > every and step % every == 1 else others).append(time.perf_counter() - start)
            if every and step % every == 0:
                start = time.perf_counter()
                if wait is not None:
                    wait()
                saves += 1
                wait = self._peer.start(10 + saves, self._state(saves % 3))
                blocked += time.perf_counter() - start
        if wait is not None:
            wait()
            self._sync()
        return blocked, after or [0.0], others

    def _compute(self) -> None:
        """Do a step's work on one CPU: matrix products, as long as a tenth of a second here."""
        if not self._repeats:
            self._matrix = np.random.default_rng(1).standard_normal((_MATRIX, _MATRIX), dtype=np.float32)
            start = time.perf_counter()
            for _ in range(5):
                self._matrix @ self._matrix
            self._repeats = max(1, round(5 * _STEP_S / (time.perf_counter() - start)))
        for _ in range(self._repeats):
            self._matrix @ self._matrix
