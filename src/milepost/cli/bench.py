# SPDX-License-Identifier: Apache-2.0
"""`milepost bench`: how fast this machine and this disk are, and what a save of a given size costs here."""

from __future__ import annotations

import re
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import click

from milepost.cli.exits import FAILED, NO_STORE_CODE, Refusal
from milepost.cli.options import json_option
from milepost.cli.output import cell, columns, emit, say
from milepost.cli.probe import file_system_of, nearest_folder
from milepost.cli.rates import PIECE, Rate, disk_rates, forget, memory_rates, sync_seconds
from milepost.cli.target import Target, TargetType, open_target
from milepost.errors import NotFoundError
from milepost.stores import open_store
from milepost.table import size

_UNITS = {"": 1, "b": 1, "k": 10, "m": 20, "g": 30, "t": 40}
_COMMITS = 20
_ARRAYS = 16


@final
class _Size(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] generic since click 8.4 only
    """A number of bytes: `10GiB`, `500MB`, `1.5T` (which is TiB), `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", str(value).strip().lower())
        nbytes = 0
        if match is not None:
            power = _UNITS[match[2]]
            unit = 1000 ** (power // 10) if match[2] and match[3] == "b" else 1 << power if match[2] else 1
            nbytes = round(float(match[1]) * unit)
        if nbytes <= 0:
            self.fail(f"{value!r} is no size: write 10GiB, 500MB or a number of bytes", param, ctx)
        return nbytes


@dataclass(frozen=True, slots=True)
class Costs:
    """What saves and loads of milepost itself took here.

    Attributes:
        nbytes: size of the state, NumPy arrays.
        blocked_s: until the program may go on.
        durable_s: until the checkpoint exists.
        load_s: a cold load of all of it, checked.
        commit_s: a durable save of 1 KiB: what every save costs, however small.
    """

    nbytes: int
    blocked_s: float
    durable_s: float
    load_s: float
    commit_s: float

    def of(self, nbytes: int) -> dict[str, float]:
        """Return about what a save of another size costs: the time of a small one, and the rest by size."""
        scale = nbytes / self.nbytes
        beyond = max(0.0, self.durable_s - self.commit_s)
        return {
            "blocked_s": self.blocked_s * scale,
            "durable_s": self.commit_s + beyond * scale,
            "load_s": self.load_s * scale,
        }


@click.command(short_help="Measure machine and disk, and what a save costs here.")
@click.argument("target", type=TargetType(step="no"), metavar="STORE")
@click.option(
    "--size", "wanted", type=_Size(), metavar="SIZE",
    help="Of the save whose cost is asked for, as 10GiB; by default that of the latest checkpoint, else 1 GiB.",
)  # fmt: skip
@click.option(
    "--probe", type=_Size(), metavar="SIZE", default="256MiB", show_default=True,
    help="How much is written and read to find out.",
)  # fmt: skip
@json_option
def bench(target: Target, wanted: int | None, probe: int, as_json: bool) -> None:
    """Measure what this machine and the disk of a store can do, and what a save costs here.

    Writes into a folder of its own beside the steps, and removes it. A store that is not there yet is fine: the disk
    on which it would be is measured. Other programs that use the disk at the same time are measured with it.
    """
    path = getattr(open_store(target.store), "path", None)
    if not isinstance(path, Path):
        raise Refusal(f"{target.store} is not on a disk of this machine: nothing to measure", FAILED)
    folder = nearest_folder(path)
    probe = -(-probe // PIECE) * PIECE
    free = shutil.disk_usage(folder).free
    if free < 3 * probe:
        raise Refusal(
            f"{folder}: {size(free)} free, and trying out {size(probe)} needs three times as much\n"
            "  Pass a smaller --probe.",
            FAILED,
        )
    wanted, source = (wanted, "given") if wanted is not None else _size_of_latest(target)
    with _own_folder(folder) as own:
        rates = [*memory_rates(probe), *disk_rates(own, probe)]
        sync_s = sync_seconds(own)
        costs = _saved(own, probe)
    estimate = {"nbytes": wanted, "of": source, **costs.of(wanted)}
    kind = file_system_of(folder)
    if as_json:
        emit(
            "bench", store=target.store, folder=str(folder), file_system=kind, probe_nbytes=probe,
            rates={rate.name: rate.bytes_per_s for rate in rates},
            refused={rate.name: rate.why_not for rate in rates if rate.bytes_per_s is None},
            sync_s=sync_s, milepost=asdict(costs), estimate=estimate,
        )  # fmt: skip
        return
    say(f"{click.style(target.store, bold=True)}   the disk of {cell(str(folder))}, {kind or 'unknown file system'}")
    _print(rates, sync_s, costs)
    _print_estimate(wanted, source, costs.of(wanted))


@contextmanager
def _own_folder(folder: Path) -> Generator[Path]:
    """Make a folder of ours, and remove it whatever happens, as when the command is told to end."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    own = Path(tempfile.mkdtemp(prefix=".bench-", dir=folder))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _size_of_latest(target: Target) -> tuple[int, str]:
    """Return the size of the store's latest checkpoint, 1 GiB where there is none; and which it is."""
    try:
        latest = open_target(target).catalog.latest()
    except NotFoundError as error:
        if error.code != NO_STORE_CODE:
            raise
        latest = None
    return (1 << 30, "default") if latest is None or not latest.nbytes else (latest.nbytes, "latest")


def _saved(own: Path, nbytes: int) -> Costs:
    """Save and load a state of this size, as a program does; the second save is the one that counts."""
    import numpy as np

    import milepost as mp

    state = {str(i): np.full(nbytes // _ARRAYS, i, np.uint8) for i in range(_ARRAYS)}
    with mp.Checkpointer(own / "large", save="first", keep="last 1") as saver:
        saver.save(0, state).result()
        for array in state.values():
            np.add(array, 1, out=array)  # an array with the bytes of the step before would only be linked
        start = time.perf_counter()
        pending = saver.save(1, state)
        blocked_s = time.perf_counter() - start
        checkpoint = pending.result()
        durable_s = time.perf_counter() - start
        for path in (own / "large").rglob("*.safetensors"):
            forget(path)
        start = time.perf_counter()
        checkpoint.load()
        load_s = time.perf_counter() - start
    commits: list[float] = []
    small = {"x": np.zeros(256, np.float32)}
    with mp.Checkpointer(own / "small", save="first", keep="last 3") as saver:
        for step in range(_COMMITS):
            small["x"] += 1
            start = time.perf_counter()
            saver.save(step, small).result()
            commits.append(time.perf_counter() - start)
    return Costs(nbytes, blocked_s, durable_s, load_s, statistics.median(commits))


def _print(rates: Sequence[Rate], sync_s: float, costs: Costs) -> None:
    rows = [
        [rate.what, f"no: {rate.why_not}" if rate.bytes_per_s is None else f"{size(rate.bytes_per_s)}/s"]
        for rate in rates
    ]
    rows.append(["a file of 1 KiB, durable", _seconds(sync_s)])
    rows.append([f"a save of {size(costs.nbytes)}: blocked", _seconds(costs.blocked_s)])
    rows.append([f"a save of {size(costs.nbytes)}: durable", _seconds(costs.durable_s)])
    rows.append([f"a cold load of {size(costs.nbytes)}", _seconds(costs.load_s)])
    rows.append(["a save of 1 KiB, durable", _seconds(costs.commit_s)])
    for line in columns(rows, right=(1,), indent="  "):
        say(line)


def _print_estimate(nbytes: int, source: str, cost: dict[str, float]) -> None:
    of = ", as the latest step," if source == "latest" else ""
    say(f"A save of {size(nbytes)}{of} costs about:")
    blocked, durable, load = (_seconds(cost[name]) for name in ("blocked_s", "durable_s", "load_s"))
    say(f"  {blocked} until the program goes on, while its arrays are copied; JAX arrays are not, unless donated")
    say(f"  {durable} until it is durable, in the background")
    say(f"  {load} for a cold load, every byte checked")


def _seconds(value: float) -> str:
    """Return a time as people read it."""
    if value < 0.0995:
        return f"{1000 * value:.1f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"
