# SPDX-License-Identifier: Apache-2.0
"""Runs the workloads: one process for each peer, the peers in turn in every round, one line of results an operation."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks import measure, states
from benchmarks.managers import MANAGERS
from benchmarks.peers import PEERS

Order = tuple[str, dict[str, Any]]
LIMIT_S, STOP_S = 25.0, 90.0

_ALL = tuple(name for name in PEERS if name != "floor-reuse")
_OURS = ("floor-", "milepost")
_NEEDED = ("first", "save", "base", "partly", "steps", "opening")  # without it there is nothing to go on with


@dataclass(frozen=True, slots=True)
class Workload:
    """One way of saving and loading.

    Attributes:
        title: what it is, for people.
        peers: who takes part.
        operations: what each does in every round, in this order; `cold` first drops the page cache.
        rounds: at most as many; None: as many as are asked for.
    """

    title: str
    peers: tuple[str, ...]
    operations: tuple[str, ...]
    rounds: int | None = None


_WHOLE = ("first", "save", "cold", "warm", "mapped", "lazy", "leaf", "into", "asynchronous")
WORKLOADS: dict[str, Workload] = {
    "transformer": Workload("a transformer of 1 GiB with Adam, bfloat16 and float32", _ALL, _WHOLE),
    "many": Workload(
        "20,000 arrays of 1 to 16 KiB", tuple(name for name in _ALL if name != "milepost-donated"), _WHOLE
    ),
    "big": Workload(
        "one array of 2 GiB",
        (
            "floor-direct", "milepost-numpy", "milepost-jax", "safetensors-numpy", "safetensors-torch", "torch.save",
            "dcp", "torchsnapshot", "orbax-v0", "orbax-v1", "tensorstore-ocdbt", "tensorstore-zarr3",
        ),
        tuple(name for name in _WHOLE if name not in ("leaf", "into")),
    ),
    "frozen": Workload(
        "the transformer, of which 2 % of the arrays change from save to save",
        (
            "floor-reuse", "milepost-numpy", "milepost-jax", "safetensors-numpy", "torch.save", "dcp", "orbax-v0",
            "orbax-v1", "tensorstore-ocdbt",
        ),
        ("base", "partly", "partly", "partly", "unchanged"),
    ),
    "loop": Workload(
        "20 steps of 0.1 s on one CPU, with a save of the transformer in the background every 5",
        (
            "floor-direct", "milepost-numpy", "milepost-torch", "milepost-jax", "safetensors-numpy", "torch.save",
            "dcp", "dcp-process", "orbax-v0", "orbax-v1", "tensorstore-ocdbt",
        ),
        ("first", "loop"),
    ),
    "tiny": Workload("5,000 saves of 1 KiB through the manager, with retention", tuple(MANAGERS), ("steps",), 1),
    "open": Workload(
        "opening a root of 5,000 steps, and asking for the latest",
        tuple(name for name in MANAGERS if name != "milepost-keeping-all"), ("opening",),
    ),
    "sparse": Workload(
        "one leaf of 3 KiB out of a checkpoint of 100 GB (a sparse file)", ("milepost-numpy", "safetensors-numpy"),
        ("leaf",),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How the suite runs.

    Attributes:
        folder: on the disk that is measured; a folder of its own is made in it, and removed.
        results: the file to which lines are appended.
        rounds: how often each peer does everything.
        limit_s: seconds after which a peer begins no further round of a workload.
        stop_s: seconds after which one operation counts as failed, and its process is ended.
        quick: small states: whether it works, not how fast.
        back_memory: touch free memory before operations that need much, see `measure.back_memory`.
    """

    folder: Path
    results: Path
    rounds: int = 5
    limit_s: float = LIMIT_S
    stop_s: float = STOP_S
    quick: bool = False
    back_memory: bool = True


class Worker:
    """The process of one peer in one workload.

    Args:
        order: what makes its cell.
        log: where its messages go.
        stop_s: seconds that one operation may take.
    """

    def __init__(self, order: Mapping[str, Any], log: TextIO, stop_s: float) -> None:
        project = Path(__file__).parent.parent
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        quiet = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
        path = os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._stop_s = stop_s
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True, bufsize=1, start_new_session=True, env={**os.environ, **threads, **quiet, "PYTHONPATH": path},
        )  # fmt: skip
        self.failed = self.do("make", dict(order)).get("failed")

    def do(self, operation: str, arguments: Mapping[str, Any], *, patience: int = 1) -> dict[str, Any]:
        """Have one operation done; return its answer, with the reason under `failed` when there is none."""
        stop_s = patience * self._stop_s
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], stop_s)
            line = self._process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, line = True, ""
        if line:
            return json.loads(line)
        self.end(kill=True)
        return {"failed": "its process ended" if ready else f"not over after {stop_s:g} s"}

    def end(self, *, kill: bool = False) -> None:
        """End the process and all that it has started."""
        self.ended = True
        if not kill:
            with suppress(OSError, subprocess.TimeoutExpired):
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(5)
        with suppress(ProcessLookupError):  # helper processes are in the same group, and may outlive it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass(slots=True)
class Suite:
    """One run of the suite."""

    options: Options
    run: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%S", time.gmtime()))
    spent: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    out: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])

    def do(self, names: Sequence[str], peers: Sequence[str] | None = None) -> None:
        """Run workloads, each with all its peers or with those named."""
        self.options.results.parent.mkdir(parents=True, exist_ok=True)
        data = self.options.folder / f"milepost-bench-{os.getpid()}"
        data.mkdir(parents=True)
        memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else data  # noqa: S108 memory is what is wanted
        memory /= f"milepost-bench-{os.getpid()}"
        memory.mkdir()
        self._put({"operation": "machine", "quick": self.options.quick, **measure.machine()})
        try:
            for name in names:
                self._workload(name, peers, data, memory)
        finally:
            shutil.rmtree(data, ignore_errors=True)
            shutil.rmtree(memory, ignore_errors=True)

    def _workload(self, name: str, peers: Sequence[str] | None, data: Path, memory: Path) -> None:
        workload = WORKLOADS[name]
        leaves = states.leaves_of(name, quick=self.options.quick)
        source = states.Source(memory, f"{name}{'-quick' * self.options.quick}", leaves)
        of_state = name not in ("tiny", "open", "sparse")
        if of_state:
            source.make()
        takes_part = [peer for peer in workload.peers if peers is None or peer in peers]
        size = {"leaves": len(leaves), "nbytes": sum(leaf.nbytes for leaf in leaves)} if of_state else {}
        described = {"title": workload.title, "peers": takes_part, **size}
        self._put({"operation": "workload", "workload": name, **described})
        workers: dict[str, Worker] = {}
        log = self.options.results.with_suffix(".log")
        try:
            with open(log, "a") as messages:
                for number in range(min(self.options.rounds, workload.rounds or self.options.rounds)):
                    for peer in takes_part:
                        if (name, peer) in self.out or self._over(name, peer):
                            continue
                        if peer not in workers:
                            order = {"peer": peer, "workload": name, "memory": str(memory), "quick": self.options.quick}
                            workers[peer] = Worker(order, messages, self.options.stop_s)
                        self._round(name, peer, workers[peer], number, data / f"{name}-{peer}-{number}")
        finally:
            for worker in workers.values():
                worker.end()
            source.path.unlink(missing_ok=True)

    def _over(self, workload: str, peer: str) -> bool:
        """Return whether a peer has used its time; the floors and milepost always do all rounds, being quick."""
        return not peer.startswith(_OURS) and self.spent.get((workload, peer), 0.0) > self.options.limit_s

    def _round(self, name: str, peer: str, worker: Worker, number: int, folder: Path) -> None:
        """Let one peer do a workload's operations once."""
        start = time.monotonic()
        if worker.failed is not None:
            self._failed(name, peer, number, "make", worker.failed)
            return
        opened = folder.with_name("kept") if name == "open" else folder
        if name != "open" or number == 0:
            answer = worker.do("begin", {"folder": str(opened / peer)})
            if name == "open" and "failed" not in answer:
                answer = worker.do("fill", self._order(name, peer, "opening", 0)[1], patience=5)
            if "failed" in answer:
                self._failed(name, peer, number, "begin", answer["failed"])
                return
        for place, what in enumerate(WORKLOADS[name].operations):
            operation, arguments = self._order(name, peer, what, place)
            if not operation:
                continue
            cold = self._prepare(what, name, folder.parent)
            load, began = os.getloadavg()[0], time.time()
            answer = worker.do(operation, arguments)
            if not answer:
                continue  # the library has no such way
            row = {"workload": name, "peer": peer, "round": number, "operation": what, "load": load, "at": began}
            self._put(row | answer | ({"cold": cold} if what == "cold" else {}))
            if "failed" in answer and (worker.ended or what in _NEEDED):
                self.out[name, peer] = answer["failed"]
                break
        if name != "open" and not worker.ended:
            worker.do("end", {})
            shutil.rmtree(folder, ignore_errors=True)
        self.spent[name, peer] = self.spent.get((name, peer), 0.0) + time.monotonic() - start

    def _order(self, name: str, peer: str, what: str, place: int) -> Order:
        """Return the worker's operation and its arguments; an empty one where the peer has none."""
        quick = self.options.quick
        if name == "tiny":
            seconds = 0.8 * self.options.stop_s if peer.startswith(_OURS) else self.options.limit_s
            return "steps", {"count": 20 if quick else 5000, "seconds": seconds}
        if name == "open":
            return "opening", {"count": 20 if quick else 5000}
        if name == "sparse":
            return "leaf", {}
        if what in ("base", "partly", "unchanged"):
            return "unchanged" if what == "unchanged" else "partly", {"step": place}
        if what == "first" and not _rehearses(peer):
            return "", {}
        if peer == "dcp-process" and what not in ("asynchronous", "loop"):
            return "", {}
        if what == "loop":
            return "loop", {"steps": 4 if quick else 20, "every": 2 if quick else 5}
        return {"cold": "load", "warm": "load"}.get(what, what), {}

    def _prepare(self, what: str, name: str, folder: Path) -> bool:
        """Do what an operation wants before it begins; return whether the page cache was dropped."""
        if self.options.quick:
            return False
        dropped = measure.drop_page_cache(folder) if what in ("cold", "leaf", "into") and name != "sparse" else False
        if self.options.back_memory and what in ("first", "cold", "asynchronous", "loop"):
            measure.back_memory(2 * sum(leaf.nbytes for leaf in states.leaves_of(name, quick=False)))
        return dropped

    def _failed(self, name: str, peer: str, number: int, operation: str, reason: str) -> None:
        self.out[name, peer] = reason
        self._put({"workload": name, "peer": peer, "round": number, "operation": operation, "failed": reason})

    def _put(self, row: dict[str, Any]) -> None:
        """Append a line to the results, and say what was done."""
        with open(self.options.results, "a") as file:
            file.write(json.dumps({"run": self.run, **row}) + "\n")
        if "peer" in row:
            shown = [f"{row['workload']:<11} {row['round']} {row['peer']:<18} {row['operation']:<12}"]
            shown += [f"{key} {row[key]:.3f}" for key in ("seconds", "blocked") if isinstance(row.get(key), float)]
            print("  ".join([*shown, row.get("failed", "")]), flush=True)


def _rehearses(peer: str) -> bool:
    """Return whether the first save is one of its own; asked without importing the peer's library."""
    return peer.startswith(_OURS)
