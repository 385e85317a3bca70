# SPDX-License-Identifier: Apache-2.0
"""How steps are named, and which are there."""

from __future__ import annotations

import datetime as dt
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import milepost as mp
from milepost.compat.orbax import places
from milepost.compat.orbax.record import ALONE
from milepost.interop.orbax import beside

TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"
"""The end of the name of a folder that is not finished."""

_NAME = re.compile(r"(?:.*_)?(\d+)")


def checked(step: Any) -> int:
    """Return a step as an int.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is negative.
    """
    if isinstance(step, bool):
        raise TypeError(f"step: expected a whole number, found {step!r}")
    number = operator.index(step)
    if number < 0:
        raise ValueError(f"step: expected 0 or more, found {number}")
    return number


@dataclass(frozen=True)
class Metadata:
    """A step, and where it is."""

    step: int
    path: Path

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When its save began, in nanoseconds since 1970."""
        return places.find(self.path).begun_ns

    @property
    def commit_timestamp_nsecs(self) -> int:
        """When it was committed, in nanoseconds since 1970."""
        return places.find(self.path).committed_ns

    @property
    def commit_timestamp(self) -> dt.datetime:
        """When it was committed."""
        return places.find(self.path).checkpoint.created


class NameFormat(Protocol):
    """Names the folders of steps, and finds them."""

    def build_name(self, step: int) -> str:
        """Return the name of a step's folder."""
        ...

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        """Yield the steps under a folder."""
        ...

    def find_step(self, base_path: Any, step: int) -> Metadata:
        """Return one step.

        Raises:
            ValueError: it is not there.
        """
        ...


@dataclass(frozen=True)
class _Standard(NameFormat):
    """A prefix with an underscore, and the number, filled up with zeros."""

    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    single_host_load_and_broadcast: bool = False
    temporary_path_cls: Any = None
    atomicity_options: Any = None

    def build_name(self, step: int) -> str:
        width = self.step_format_fixed_length or 0
        return f"{step_prefix_with_underscore(self.step_prefix)}{step:0{width}d}"

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        for folder, step in folders(places.absolute(base_path)):
            if folder.name == self.build_name(step):
                yield Metadata(step, folder)

    def find_step(self, base_path: Any, step: int) -> Metadata:
        found = next((metadata for metadata in self.find_all(base_path) if metadata.step == step), None)
        if found is None:
            raise ValueError(f"there is no step {step} named {self.build_name(step)} under {base_path}")
        return found

    def __str__(self) -> str:
        return f'StandardNameFormat("{self.build_name(1234)}")'


@dataclass(frozen=True)
class _Composite(NameFormat):
    """One format to write, several to read."""

    write_name_format: NameFormat
    read_name_formats: Sequence[NameFormat]

    def __post_init__(self) -> None:
        if self.write_name_format not in self.read_name_formats:
            raise ValueError(f"write_name_format {self.write_name_format} must be one of read_name_formats")

    def build_name(self, step: int) -> str:
        return self.write_name_format.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        seen: set[Path] = set()
        for each in self.read_name_formats:
            for metadata in each.find_all(base_path):
                if metadata.path not in seen:
                    seen.add(metadata.path)
                    yield metadata

    def find_step(self, base_path: Any, step: int) -> Metadata:
        errors: list[str] = []
        for each in self.read_name_formats:
            try:
                return each.find_step(base_path, step)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError("\n".join(errors))


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
    temporary_path_cls: Any = None,
    atomicity_options: Any = None,
) -> NameFormat:
    """Return the format `prefix_0012`, each part of it as asked for."""
    return _Standard(
        step_prefix, step_format_fixed_length, single_host_load_and_broadcast, temporary_path_cls, atomicity_options
    )


def composite_name_format(write_name_format: NameFormat, read_name_formats: Sequence[NameFormat]) -> NameFormat:
    """Return a format that writes one way and reads several.

    Raises:
        ValueError: the one to write is not among those to read.
    """
    return _Composite(write_name_format, read_name_formats)


def single_host_load_and_broadcast_name_format(name_format: NameFormat) -> NameFormat:
    """Return the format with that flag.

    Raises:
        ValueError: it is none that `standard_name_format` made.
    """
    if not isinstance(name_format, _Standard):
        raise ValueError(f"only a standard name format has single_host_load_and_broadcast, not {name_format}")
    return replace(name_format, single_host_load_and_broadcast=True)


def is_standard_name_format(name_format: NameFormat) -> bool:
    """Return whether `standard_name_format` made it."""
    return isinstance(name_format, _Standard)


def step_prefix_with_underscore(step_prefix: str | None) -> str:
    """Return what comes before the number."""
    return "" if step_prefix is None else f"{step_prefix}_"


def accepts(name_format: NameFormat | None, name: str, step: int) -> bool:
    """Return whether a folder's name is that of a step; without a format, the number alone."""
    chosen = name_format or standard_name_format()
    formats: Sequence[NameFormat] = getattr(chosen, "read_name_formats", None) or [chosen]
    return any(each.build_name(step) == name for each in formats)


def native(name_format: NameFormat) -> mp.StepFormat:
    """Return the native format that gives the same names.

    Raises:
        ValueError: names are not a prefix and the number.
    """
    name = name_format.build_name(7)
    digits = len(name) - len(name.rstrip("0123456789"))
    try:
        found = mp.StepFormat(name[: len(name) - digits], digits if digits > 1 else 0)
        if all(name_format.build_name(step) == found.slot(step).name for step in (0, 7, 12, 345, 123456789)):
            return found
        reason = ""
    except ValueError as error:
        reason = f"\n  {error}"
    raise ValueError(
        f"steps cannot be named {name!r}, {name_format.build_name(12)!r}: a name is a prefix and the number, maybe"
        f" filled up with zeros{reason}"
    )


def build_step_path(base_path: Any, name_format: NameFormat, step: int) -> Path:
    """Return the path of a step."""
    return places.absolute(base_path) / name_format.build_name(step)


def get_save_directory(
    step: int,
    directory: Any,
    name: str | None = None,
    step_prefix: str | None = None,
    override_directory: Any = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat | None = None,
) -> Path:
    """Return the path of a step, or of an item of it."""
    if directory is None:
        raise ValueError("Directory cannot be None.")
    chosen = step_name_format or standard_name_format(
        step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length
    )
    whole = (
        build_step_path(directory, chosen, step) if override_directory is None else places.absolute(override_directory)
    )
    return whole if name is None else whole / name


def folders(directory: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the steps under one: of a manager, or each saved alone."""
    catalog = places.catalog_at(directory)
    theirs = {step.path: number for number, step in beside.theirs(directory).items()}
    if catalog is not None and catalog.metadata != ALONE:
        home = beside.home(directory)
        ours = {home / catalog[step].info.slot.partition(".g")[0]: step for step in catalog}
        there = {path: step for path, step in theirs.items() if step not in catalog}
        yield from sorted({**there, **ours}.items(), key=lambda item: item[1])
    elif directory.is_dir():
        for folder in sorted(directory.iterdir()):
            match = _NAME.fullmatch(folder.name)
            if match is not None and (folder in theirs or _is_whole(folder)):
                yield folder, int(match[1])


def _is_whole(folder: Path) -> bool:
    catalog = places.catalog_at(folder)
    return catalog is not None and len(catalog) > 0


def checkpoint_steps_paths(checkpoint_dir: Any) -> list[Path]:
    """Return the folders of finished steps."""
    return [folder for folder, _ in folders(places.absolute(checkpoint_dir))]


def checkpoint_steps(checkpoint_dir: Any) -> list[int]:
    """Return the finished steps."""
    return [step for _, step in folders(places.absolute(checkpoint_dir))]


def any_checkpoint_step(checkpoint_dir: Any) -> int | None:
    """Return one finished step, None when there is none."""
    return next((step for _, step in folders(places.absolute(checkpoint_dir))), None)


def step_from_checkpoint_name(name: str) -> int:
    """Return the step that a folder's name says, also of an unfinished one.

    Raises:
        ValueError: it says none.
    """
    match = _NAME.fullmatch(name.partition(TMP_DIR_SUFFIX)[0])
    if match is None:
        raise ValueError(f"Unrecognized name format: {name}.")
    return int(match[1])


def is_checkpoint_finalized(path: Any) -> bool:
    """Return whether there is a whole checkpoint at a path."""
    try:
        places.find(path)
    except (FileNotFoundError, ValueError, mp.FormatError):
        return False
    return True


def is_tmp_checkpoint(path: Any) -> bool:
    """Return whether a path is that of an unfinished checkpoint."""
    where = places.absolute(path)
    return where.exists() and (where.name.endswith(TMP_DIR_SUFFIX) or not is_checkpoint_finalized(where))


is_path_finalized = is_checkpoint_finalized
is_path_temporary = is_tmp_checkpoint


def tmp_checkpoints(checkpoint_dir: Any) -> list[str]:
    """Return the names of what is not finished under a folder: saves beside it, and slots without a manifest."""
    where = places.absolute(checkpoint_dir)
    whole = {folder.name for folder in checkpoint_steps_paths(where)}
    return [
        folder.name
        for folder in sorted(where.iterdir() if where.is_dir() else [])
        if folder.name.endswith(TMP_DIR_SUFFIX)
        or (_NAME.fullmatch(folder.name) is not None and folder.is_dir() and folder.name not in whole)
    ]


def find_step_path(base_path: Any, name_format: NameFormat, *, step: int, include_uncommitted: bool = False) -> Path:
    """Return the path of a step.

    Raises:
        ValueError: it is not there.
    """
    path = build_step_path(base_path, name_format, step)
    if include_uncommitted and path.exists():
        return path
    return name_format.find_step(base_path, step).path


def latest_step_metadata(root_path: Any, name_format: NameFormat) -> Metadata | None:
    """Return the highest step, None when there is none."""
    return max(name_format.find_all(root_path), key=lambda metadata: metadata.step, default=None)


def maybe_find_step_metadata(base_path: Any, name_format: NameFormat, *, step: int) -> Metadata | None:
    """Return a step, None when it is not there."""
    try:
        return name_format.find_step(base_path, step)
    except ValueError:
        return None


def step_metadata_of_checkpoint_path(checkpoint_path: Any, name_format: NameFormat) -> Metadata:
    """Return the step whose folder a path is.

    Raises:
        ValueError: it is none.
    """
    where = places.absolute(checkpoint_path)
    found = next((metadata for metadata in name_format.find_all(where.parent) if metadata.path == where), None)
    if found is None:
        raise ValueError(f"{where} is no step named as {name_format}")
    return found
