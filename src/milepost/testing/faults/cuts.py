# SPDX-License-Identifier: Apache-2.0
"""Cut the power before each of a program's system calls, and when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from milepost.testing.faults.disks import Disk, FileSystem
from milepost.testing.faults.subject import Subject
from milepost.testing.faults.sweep import Point, Strike
from milepost.testing.faults.tracer import CHANGING, Kill
from milepost.testing.faults.trial import Bench, Tally, outcomes


def cut(
    subject: Subject,
    kind: FileSystem,
    folder: str | Path,
    *,
    scripts: tuple[str, ...] = (),
    share: tuple[int, int] = (0, 1),
    options: str = "",
    told: Callable[[str], object] = lambda _: None,
) -> Tally:
    """Cut the power at every point of every program; return what was found after the file system came back.

    Args:
        subject: what is put to the test.
        kind: of file system.
        folder: scratch space, best on a tmpfs.
        scripts: the programs; none for all.
        share: (i, n): of the cuts, taken in turn, only the i-th of n.
        options: for mount.
        told: is told how far it is, now and then.
    """
    tally = Tally()
    with Disk(kind, folder, options=options) as disk:
        for script in scripts or tuple(subject.scripts):
            bench = Bench(subject, script, disk.path / script)
            last = bench.baseline()["changing"] + 1
            cuts = [(n, keep_log) for n in range(1, last + 1) for keep_log in (False, True)]
            chosen = [one for i, one in enumerate(cuts) if i % share[1] == share[0]]
            told(f"{script} on {kind}: {len(chosen)} cuts, {last - 1} changing calls")
            for n, keep_log in chosen:
                _cut(bench, disk, n, tally, keep_log=keep_log)
            bench.clear()
    return tally


def _cut(bench: Bench, disk: Disk, n: int, tally: Tally, *, keep_log: bool) -> None:
    strike = Strike(Point("changing", n, Kill()))
    bench.lay()
    disk.sync()
    ended, said = bench.run(strike, only=CHANGING)
    disk.cut(keep_log=keep_log)
    where = f"{strike.at}" if strike.at else "the end"
    fault = f"power cut on {disk.kind} before call {n}, {where}{', journal written' if keep_log else ''}"
    tally.add(bench.script, fault, outcomes(ended, said), bench.judged(ended, said))
