# SPDX-License-Identifier: Apache-2.0
"""How steps are named: `12`, `0012`, `step_12`, `step_0012`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import milepost as mp
from milepost.compat.orbax_v1.described import StepCheckpointMetadata, nanoseconds
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.interop.orbax import beside

_M_co = TypeVar("_M_co", covariant=True)


class NameFormat(Protocol, Generic[_M_co]):
    """Names steps, and finds them."""

    def build_name(self, step: int) -> str:
        """Return the name of a step."""
        ...

    def find_all(self, base_path: PathLike) -> Iterator[_M_co]:
        """Yield what there is of each committed step under a root."""
        ...

    def find_step(self, base_path: PathLike, step: int) -> _M_co:
        """Return what there is of one step; ValueError when it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class _Standard:
    prefix: str
    width: int

    def build_name(self, step: int) -> str:
        return f"{self.prefix}{step:0{self.width}d}"

    def find_all(self, base_path: PathLike) -> Iterator[StepCheckpointMetadata[None]]:
        theirs = beside.theirs(Path(base_path), lambda name, step: name == self.build_name(step))
        home = beside.home(Path(base_path))
        try:
            catalog = mp.open(home)
        except (mp.NotFoundError, mp.FormatError):
            catalog = None
        for step in sorted({*(catalog or ()), *theirs}):
            if catalog is None or step not in catalog:
                path, commit = theirs[step].path, theirs[step].committed_ns
                yield StepCheckpointMetadata(step, path, metadata=None, commit_timestamp_nsecs=commit)
                continue
            checkpoint = catalog[step]
            if checkpoint.info.slot.partition(".g")[0] == self.build_name(step):
                path, commit = home / checkpoint.info.slot, nanoseconds(checkpoint.created)
                yield StepCheckpointMetadata(step, path, metadata=None, commit_timestamp_nsecs=commit)

    def find_step(self, base_path: PathLike, step: int) -> StepCheckpointMetadata[None]:
        for found in self.find_all(base_path):
            if found.step == step:
                return found
        raise ValueError(f"{base_path} has no step {step} that is named {self.build_name(step)}")


@dataclass(frozen=True, slots=True)
class _Composite:
    write: NameFormat[Any]
    read: tuple[NameFormat[Any], ...]

    def build_name(self, step: int) -> str:
        return self.write.build_name(step)

    def find_all(self, base_path: PathLike) -> Iterator[Any]:
        seen: set[int] = set()
        for names in self.read:
            for found in names.find_all(base_path):
                if found.step not in seen:
                    seen.add(found.step)
                    yield found

    def find_step(self, base_path: PathLike, step: int) -> Any:
        errors: list[str] = []
        for names in self.read:
            try:
                return names.find_step(base_path, step)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError("\n".join(errors))


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,  # noqa: ARG001 there is one process
) -> NameFormat[StepCheckpointMetadata[None]]:
    """Return the names `<prefix>_<step>`, the step filled up with zeros to a length.

    Args:
        step_prefix: put before the step, with an underscore.
        step_format_fixed_length: how many digits a step has at least.
        single_host_load_and_broadcast: no effect in one process.
    """
    return _Standard(f"{step_prefix}_" if step_prefix else "", step_format_fixed_length or 0)


def composite_name_format(
    write_name_format: NameFormat[Any], read_name_formats: Sequence[NameFormat[Any]]
) -> NameFormat[Any]:
    """Return names that are written in one way and read in several, the first that fits counting.

    Raises:
        ValueError: the one to write is not among those to read.
    """
    if write_name_format not in read_name_formats:
        raise ValueError("write_name_format: expected one of read_name_formats, or what is saved could not be found")
    return _Composite(write_name_format, tuple(read_name_formats))


def accepts(names: NameFormat[Any], name: str, step: int) -> bool:
    """Return whether a folder's name is that of a step."""
    read: Sequence[NameFormat[Any]] = names.read if isinstance(names, _Composite) else [names]
    return any(each.build_name(step) == name for each in read)


def step_format(names: NameFormat[Any]) -> mp.StepFormat:
    """Return the native form of names.

    Raises:
        ValueError: a name is something else than a prefix and the step's digits.
    """
    probes = {step: names.build_name(step) for step in (0, 7, 1234567890123456789)}
    match = re.fullmatch(r"(.*?)(0*)7", probes[7])
    if match is not None:
        prefix, width = match[1], len(match[2]) + 1
        try:
            found = mp.StepFormat(prefix, width if width > 1 else 0)
            if all(found.slot(step).name == name for step, name in probes.items()):
                return found
        except ValueError:
            pass
    raise ValueError(
        f"steps named {', '.join(probes.values())} cannot be\n"
        "  A name is letters, digits, `_` or `-`, then the step, filled up with zeros or not."
    )
