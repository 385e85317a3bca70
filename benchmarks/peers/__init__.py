# SPDX-License-Identifier: Apache-2.0
"""The libraries that are compared, each behind the same few verbs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

State = dict[str, Any]
"""Arrays of the peer's framework by path."""

Wait = Callable[[], object]
"""Waits until an asynchronous save is over."""

PEERS = {
    "floor-direct": "floors:Direct",
    "floor-buffered": "floors:Buffered",
    "floor-reuse": "floors:Reuse",
    "milepost-numpy": "milepost:OfNumPy",
    "milepost-torch": "milepost:OfTorch",
    "milepost-jax": "milepost:OfJax",
    "milepost-donated": "milepost:OfDonatedJax",
    "safetensors-numpy": "files:SafetensorsNumPy",
    "safetensors-torch": "of_torch:SafetensorsTorch",
    "torch.save": "of_torch:TorchSave",
    "dcp": "of_torch:Dcp",
    "dcp-process": "of_torch:DcpProcess",
    "torchsnapshot": "of_torch:Torchsnapshot",
    "orbax-v0": "of_jax:OrbaxV0",
    "orbax-v1": "of_jax:OrbaxV1",
    "tensorstore-ocdbt": "files:Ocdbt",
    "tensorstore-zarr3": "files:Zarr3",
    "zarr": "files:Zarr",
    "np.savez": "files:Savez",
}
"""Where the class of each peer is."""


def peer_class(name: str) -> type[Peer]:
    """Import a peer; ImportError when its library is not installed."""
    module, _, attribute = PEERS[name].partition(":")
    return getattr(import_module(f"benchmarks.peers.{module}"), attribute)


class Peer:
    """One way of saving and loading a state.

    Attributes:
        framework: of the arrays it is given.
        syncs: whether it makes durable what it writes: all of it, some of it, or nothing. Where it is not all, a sync
            of the file system is added within the time that is measured.
        rehearses: it keeps memory or plans from one save to the next, so that a later save says more than the first;
            the first one is reported beside it.
        processes: it saves in processes of its own, whose memory is watched.
        asynchronous: the library's own; otherwise a copy, and a save in a thread.
        asynchronous_only: there is no other form.
        saves_only: it neither loads nor saves in the background.
    """

    framework: Literal["numpy", "torch", "jax"] = "numpy"
    syncs: Literal["all", "some", "none"] = "none"
    rehearses = False
    processes = False
    asynchronous = True
    asynchronous_only = False
    saves_only = False

    folder: Path

    def open(self, folder: Path) -> None:
        """Begin in an empty folder."""
        self.folder = folder

    def close(self) -> None:
        """End what `open` began."""

    def save(self, step: int, state: State) -> None:
        """Save, and return when the library says that it is done."""
        raise NotImplementedError

    def start(self, step: int, state: State) -> Wait:
        """Begin to save; return when the arrays may be changed."""
        raise NotImplementedError

    def load(self, step: int, state: State) -> State:
        """Load all into new memory. `state` says paths, dtypes and shapes, as a program that resumes knows them."""
        raise NotImplementedError

    def load_leaf(self, step: int, path: str, state: State) -> Any:
        """Load one leaf."""
        raise NotImplementedError

    # Where a library has no such way, the verb is None.
    load_mapped: Callable[[int, State], State] | None = None
    load_into: Callable[[int, State], None] | None = None

    def path(self, step: int) -> str:
        """Return where a step is put, for libraries that leave that to the program."""
        return str(self.folder / str(step))


class CopyThenThread(Peer):
    """A library without an asynchronous save: the program copies, and saves the copy in a thread."""

    asynchronous = False

    def start(self, step: int, state: State) -> Wait:
        copies = {path: self.copied(value) for path, value in state.items()}
        thread = threading.Thread(target=self.save, args=(step, copies))
        thread.start()
        return thread.join

    def copied(self, value: Any) -> Any:
        """Return a copy of an array."""
        return value.copy()
