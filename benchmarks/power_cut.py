# SPDX-License-Identifier: Apache-2.0
"""Cut the power of a disk while libraries save, and see what is left of what they said was saved.

    python3 -m venv peers && . peers/bin/activate
    pip install -e . torch safetensors orbax-checkpoint zarr icechunk torchsnapshot lazy-importer
    sudo env PATH=$PATH python benchmarks/power_cut.py --cuts 20

Each library saves three states, in its usual way and waiting for each, on an ext4 in a file; then the power is cut:
when the third is saved, and before system calls on the way there. After the next mount a new process looks for what was
acknowledged. Libraries that are not installed are left out. SQLite shows that the harness does not lose what is
durable.

It needs Linux on x86-64, root and loop devices; `milepost.testing.faults` does the cutting.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milepost.testing.faults import disks, ptrace
from milepost.testing.faults.disks import Disk
from milepost.testing.faults.tracer import CHANGING, Fate, Kill, traced
from milepost.testing.recorder import Call

STEPS = (1, 2, 3)
KEEP = {"w": 60_000, "b": 1_000}


def state(step: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(step)
    return {name: random.random(size, np.float32) for name, size in KEEP.items()}


def same(found: Any, step: int) -> bool:
    return all(np.asarray(found[name]).tobytes() == array.tobytes() for name, array in state(step).items())


@dataclass(frozen=True)
class Peer:
    """A library: what it is called, how it saves, whether a step is listed, and how it is loaded."""

    package: str
    save: Callable[[Path, int], object]
    listed: Callable[[Path, int], bool]
    load: Callable[[Path, int], Any]


def exists(suffix: str, inside: str = "") -> Callable[[Path, int], bool]:
    return lambda root, step: (root / f"{step}{suffix}" / inside).exists()


def torch_save(root: Path, step: int) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in state(step).items()}, root / f"{step}.pt")


def torch_load(root: Path, step: int) -> Any:
    import torch

    return torch.load(root / f"{step}.pt", weights_only=True)


def dcp_save(root: Path, step: int) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    dcp.save({name: torch.from_numpy(array) for name, array in state(step).items()}, checkpoint_id=root / f"{step}.dcp")


def dcp_load(root: Path, step: int) -> Any:
    import torch
    import torch.distributed.checkpoint as dcp

    found = {name: torch.zeros(size) for name, size in KEEP.items()}
    dcp.load(found, checkpoint_id=root / f"{step}.dcp")
    return found


def safetensors_save(root: Path, step: int) -> None:
    from safetensors.numpy import save_file

    save_file(state(step), root / f"{step}.safetensors")


def safetensors_load(root: Path, step: int) -> Any:
    from safetensors.numpy import load_file

    return load_file(root / f"{step}.safetensors")


def zarr_save(root: Path, step: int) -> None:
    import zarr

    zarr.save(str(root / f"{step}.zarr"), **state(step))


def zarr_load(root: Path, step: int) -> Any:
    import zarr

    group = zarr.open_group(str(root / f"{step}.zarr"), mode="r")
    return {name: group[name][:] for name in KEEP}


def icechunk_repo(root: Path) -> Any:
    import icechunk

    return icechunk.Repository.open_or_create(icechunk.local_filesystem_storage(str(root / "repo")))


def icechunk_save(root: Path, step: int) -> None:
    import zarr

    session = icechunk_repo(root).writable_session("main")
    group = zarr.open_group(session.store, mode="a")
    for name, array in state(step).items():
        group.create_array(f"{step}_{name}", data=array)
    session.commit(f"step {step}")


def icechunk_listed(root: Path, step: int) -> bool:
    try:
        messages = [snapshot.message for snapshot in icechunk_repo(root).ancestry(branch="main")]
    except Exception:  # noqa: BLE001 a repository that cannot be opened lists nothing
        return (root / "repo").exists()
    return f"step {step}" in messages


def icechunk_load(root: Path, step: int) -> Any:
    import zarr

    group = zarr.open_group(icechunk_repo(root).readonly_session("main").store, mode="r")
    return {name: group[f"{step}_{name}"][:] for name in KEEP}


def orbax_manager(root: Path) -> Any:
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(root / "orbax")


def orbax_save(root: Path, step: int) -> None:
    import orbax.checkpoint as ocp

    with orbax_manager(root) as manager:
        manager.save(step, args=ocp.args.StandardSave(state(step)))
        manager.wait_until_finished()


def orbax_load(root: Path, step: int) -> Any:
    import orbax.checkpoint as ocp

    with orbax_manager(root) as manager:
        return manager.restore(step, args=ocp.args.StandardRestore(state(0)))


def orbax_listed(root: Path, step: int) -> bool:
    with orbax_manager(root) as manager:
        return step in manager.all_steps()


def snapshot_save(root: Path, step: int) -> None:
    import torch
    import torchsnapshot

    tensors = {name: torch.from_numpy(array) for name, array in state(step).items()}
    torchsnapshot.Snapshot.take(str(root / f"{step}.snapshot"), {"state": torchsnapshot.StateDict(**tensors)})


def snapshot_load(root: Path, step: int) -> Any:
    import torch
    import torchsnapshot

    found = torchsnapshot.StateDict(**{name: torch.zeros(size) for name, size in KEEP.items()})
    torchsnapshot.Snapshot(str(root / f"{step}.snapshot")).restore({"state": found})
    return found


def sqlite_at(root: Path) -> Any:
    import sqlite3

    connection = sqlite3.connect(root / "states.db")
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("CREATE TABLE IF NOT EXISTS states (step INTEGER PRIMARY KEY, w BLOB, b BLOB)")
    return connection


def sqlite_save(root: Path, step: int) -> None:
    connection = sqlite_at(root)
    with connection:
        connection.execute("INSERT INTO states VALUES (?, ?, ?)", (step, *(a.tobytes() for a in state(step).values())))
    connection.close()


def sqlite_row(root: Path, step: int) -> Any:
    return sqlite_at(root).execute("SELECT w, b FROM states WHERE step = ?", (step,)).fetchone()


def sqlite_load(root: Path, step: int) -> Any:
    return dict(zip(KEEP, (np.frombuffer(blob, np.float32) for blob in sqlite_row(root, step)), strict=True))


def milepost_save(root: Path, step: int) -> None:
    import milepost as mp

    mp.save(root / "milepost", state(step), step=step)


def milepost_listed(root: Path, step: int) -> bool:
    import milepost as mp

    return (root / "milepost").exists() and step in mp.open(root / "milepost")


def milepost_load(root: Path, step: int) -> Any:
    import milepost as mp

    return mp.load(root / "milepost", step=step)


PEERS = {
    "milepost": Peer("milepost", milepost_save, milepost_listed, milepost_load),
    "SQLite, synchronous=EXTRA": Peer("", sqlite_save, lambda root, step: bool(sqlite_row(root, step)), sqlite_load),
    "torch.save": Peer("torch", torch_save, exists(".pt"), torch_load),
    "torch DCP": Peer("torch", dcp_save, exists(".dcp", ".metadata"), dcp_load),
    "safetensors": Peer("safetensors", safetensors_save, exists(".safetensors"), safetensors_load),
    "np.savez": Peer(
        "numpy",
        lambda root, step: np.savez(root / f"{step}.npz", **state(step)),  # pyright: ignore[reportArgumentType]
        exists(".npz"),
        lambda root, step: np.load(root / f"{step}.npz"),
    ),
    "zarr": Peer("zarr", zarr_save, exists(".zarr"), zarr_load),
    "icechunk, local": Peer("icechunk", icechunk_save, icechunk_listed, icechunk_load),
    "Orbax": Peer("orbax-checkpoint", orbax_save, orbax_listed, orbax_load),
    "torchsnapshot": Peer("torchsnapshot", snapshot_save, exists(".snapshot", ".snapshot_metadata"), snapshot_load),
}


def version(peer: Peer) -> str | None:
    """Return the version of a library, None when it is not there."""
    if not peer.package:
        import sqlite3

        return sqlite3.sqlite_version
    try:
        return importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the processes that save, and that look


def work(peer: Peer, root: Path, fd: int) -> None:
    for step in STEPS:
        peer.save(root, step)
        os.write(fd, b"%d\n" % step)


def look(peer: Peer, root: Path) -> dict[int, str]:
    """Return for each step: whole, torn (it is listed, and cannot be read back as it was saved), or gone."""
    found: dict[int, str] = {}
    for step in STEPS:
        try:
            if not peer.listed(root, step):
                found[step] = "gone"
                continue
            found[step] = "whole" if same(peer.load(root, step), step) else "torn"
        except BaseException:  # noqa: BLE001 whatever a library raises (DCP: a BaseException), the step cannot be read
            found[step] = "torn"
    return found


# --- the cuts


@dataclass
class Result:
    """What was left.

    Attributes:
        at_the_end: for cuts when all three were acknowledged: how many of them were whole.
        cuts: how many cuts in all.
        lost: how many lost something that was acknowledged.
        torn: how many left something that was listed and could not be read.
    """

    at_the_end: list[int] = field(default_factory=list)
    cuts: int = 0
    lost: int = 0
    torn: int = 0


def child(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), *arguments]


def run(name: str, root: Path, last: int | None) -> tuple[int, list[int]]:
    """Let a library save until it is killed before its call of that number; return how many it made, what it said."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    count = 0

    def decide(call: Call) -> Fate:
        nonlocal count
        count += call.name in CHANGING
        return Kill() if count == last else None

    def begin() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execv(sys.executable, child("--work", name, str(root), str(writing)))  # noqa: S606

    ended = traced(root, begin, decide, names=CHANGING, timeout_s=300)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = [int(line) for line in file]
    if last is None and (ended.how != "returned" or len(said) < len(STEPS)):
        raise RuntimeError(f"{name} cannot save here: it {ended.how} after {said}")
    return count, said


def looked(name: str, root: Path) -> dict[int, str]:
    """Look in a new process; one that is aborted (icechunk) has found nothing that can be read."""
    done = subprocess.run(child("--look", name, str(root)), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return dict.fromkeys(STEPS, "torn")
    return {int(step): what for step, what in json.loads(done.stdout.splitlines()[-1]).items()}


def cut(name: str, disk: Disk, cuts: int) -> Result:
    root = disk.path / "root"
    result = Result()
    root.mkdir()
    calls, _ = run(name, root, None)
    places = [None, None, *(1 + i * calls // cuts for i in range(max(0, cuts - 2)))]
    for i, last in enumerate(places):
        shutil.rmtree(root)
        root.mkdir()
        disk.sync()
        _, said = run(name, root, last)
        disk.cut(keep_log=i % 2 == 1)
        found = looked(name, root)
        result.cuts += 1
        result.lost += any(found[step] != "whole" for step in said)
        result.torn += "torn" in found.values()
        if len(said) == len(STEPS) and last is None:
            result.at_the_end.append(sum(what == "whole" for what in found.values()))
        root.mkdir(exist_ok=True)
    shutil.rmtree(root)
    return result


def row(name: str, result: Result) -> str:
    kept = " and ".join(f"{kept} of {len(STEPS)}" for kept in result.at_the_end)
    lost = f"{result.lost} of {result.cuts}"
    return f"| {name} {version(PEERS[name])} | {kept} | {lost} | {result.torn} of {result.cuts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--cuts", type=int, default=20, help="for each library")
    parser.add_argument("--file-system", choices=["ext4", "xfs"], default="ext4")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="NAME")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(PEERS[asked.work[0]], Path(asked.work[1]), int(asked.work[2]))
        return
    if asked.look:
        print(json.dumps(look(PEERS[asked.look[0]], Path(asked.look[1]))))
        return
    if reason := ptrace.why_not() or disks.why_not(asked.file_system):
        sys.exit(reason)
    memory = "/dev/shm" if os.path.ismount("/dev/shm") else None  # noqa: S108
    print(f"Linux {platform.release()}, {asked.file_system}, Python {platform.python_version()}")
    print("| library | whole of 3 acknowledged, cut at the end | lost an acknowledged one | left a torn one |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=memory) as folder, Disk(asked.file_system, folder) as disk:
        for name in asked.peers:
            if version(PEERS[name]) is None:
                print(f"{name} is not installed", file=sys.stderr)
                continue
            try:
                print(row(name, cut(name, disk, asked.cuts)), flush=True)
            except RuntimeError as error:
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
