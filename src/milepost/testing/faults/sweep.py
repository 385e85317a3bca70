# SPDX-License-Identifier: Apache-2.0
"""Kill a program before each of its system calls; let each of them fail with each error; cut each write short."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, final

from milepost.testing.faults.subject import Subject
from milepost.testing.faults.tracer import ALL, CHANGING, Fail, Fate, Kill, Short
from milepost.testing.faults.trial import Bench, Tally, outcomes
from milepost.testing.recorder import Call

Kind: TypeAlias = Literal["kill", "errors", "short"]

# Errors that the calls have by their manual pages and by experience with full, broken and remote disks.
ERRORS: Mapping[str, tuple[int, ...]] = {
    "create": (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EIO),
    "open": (errno.EMFILE, errno.EACCES, errno.EIO),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
    "allocate": (errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP),
    "truncate": (errno.EIO,),
    "copy": (errno.ENOSPC, errno.EIO, errno.EOPNOTSUPP),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "chmod": (errno.EPERM, errno.EIO),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "link": (errno.EPERM, errno.EMLINK, errno.ENOSPC, errno.EIO),
    "rename": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EACCES, errno.EIO),
    "rmdir": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO),
    "lock": (errno.ENOLCK, errno.EAGAIN, errno.EIO),
}


@dataclass(frozen=True, slots=True)
class Point:
    """Where and how a fault strikes.

    Attributes:
        name: of the calls that count; `changing` for all that change something.
        ordinal: which of them, from 1.
        fate: what becomes of it.
        for_good: whether the later ones of that name get the same.
    """

    name: str
    ordinal: int
    fate: Fate
    for_good: bool = False

    def __str__(self) -> str:
        what = "killed"
        if isinstance(self.fate, Fail):
            what = f"{errno.errorcode[self.fate.errno]}{' for good' if self.for_good else ''}"
        elif isinstance(self.fate, Short):
            what = f"short write of {self.fate.nbytes}"
        return f"{what} at {self.name} {self.ordinal}"


@final
@dataclass(slots=True)
class Strike:
    """Lets a fault strike once its point is reached, and sees to what is done with a file whose sync has failed."""

    point: Point
    count: int = 0
    at: str = ""
    spoilt: str = ""
    misused: list[str] = field(default_factory=list[str])

    def __call__(self, call: Call) -> Fate:
        if call.path == self.spoilt and call.name in ("fsync", "link", "rename"):
            self.misused.append(f"{call} although its fsync had failed")
        counts = call.name in CHANGING if self.point.name == "changing" else call.name == self.point.name
        if not counts:
            return None
        self.count += 1
        if self.count < self.point.ordinal or (self.at and not self.point.for_good):
            return None
        if not self.at:
            self.at = str(call)
        if call.name == "fsync" and isinstance(self.point.fate, Fail) and not call.path.endswith(("/", ".")):
            self.spoilt = call.path
        return self.point.fate


def points(kind: Kind, calls: Mapping[str, int]) -> Iterator[Point]:
    """Yield every fault of a kind, for a program that makes so many calls of each name."""
    if kind == "kill":
        yield from (Point("changing", n, Kill()) for n in range(1, calls["changing"] + 1))
    elif kind == "short":
        yield from (Point("write", n, Short(nbytes)) for n in range(1, calls["write"] + 1) for nbytes in (1, 100, 4096))
    else:
        for name, numbers in ERRORS.items():
            for n in range(1, calls.get(name, 0) + 1):
                for number in numbers:
                    yield Point(name, n, Fail(number))
                    yield Point(name, n, Fail(number), for_good=True)


def sweep(
    subject: Subject,
    kind: Kind,
    folder: str | os.PathLike[str],
    *,
    scripts: tuple[str, ...] = (),
    share: tuple[int, int] = (0, 1),
    told: Callable[[str], object] = lambda _: None,
) -> Tally:
    """Let every fault of a kind strike every program; return what was found.

    Args:
        subject: what is put to the test.
        kind: of the faults.
        folder: scratch space.
        scripts: the programs; none for all.
        share: (i, n): of the faults, taken in turn, only the i-th of n.
        told: is told how far it is, now and then.
    """
    tally = Tally()
    for script in scripts or tuple(subject.scripts):
        bench = Bench(subject, script, Path(folder) / script)
        calls = bench.baseline()
        all_points = [point for i, point in enumerate(points(kind, calls)) if i % share[1] == share[0]]
        told(f"{script}: {len(all_points)} faults, {calls['changing']} changing calls of {sum(calls.values())}")
        for point in all_points:
            _strike(bench, point, tally)
    return tally


def _strike(bench: Bench, point: Point, tally: Tally) -> None:
    strike = Strike(point)
    bench.lay()
    ended, said = bench.run(strike, only=CHANGING | ALL & {point.name})
    if not strike.at:  # another order of the threads, in which there are fewer such calls
        tally.outcomes["not reached"] += 1
        return
    faults = bench.judged(ended, said) + strike.misused
    tally.add(bench.script, f"{point}, {strike.at}", outcomes(ended, said), faults)
