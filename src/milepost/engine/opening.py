# SPDX-License-Identifier: Apache-2.0
"""Find the root in a store: its record, or what can be read without one (steps that were copied elsewhere)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from milepost.engine.epochs import now
from milepost.engine.identity import check_metadata
from milepost.engine.root import Root, copied_slot
from milepost.errors import ConflictError, CorruptionError, FormatError, NotFoundError, message
from milepost.model import format as fmt
from milepost.model.format import Manifest, RootRecord, StepFormat
from milepost.model.value import decode
from milepost.stores import Store

# What may lie in a folder that is about to become a root.
_IGNORED = (fmt.WRITERS, fmt.NOTED, fmt.LOCK, ".", "lost+found/")


def open_root(
    store: Store,
    *,
    create: bool = False,
    steps: StepFormat | None = None,
    metadata: Any = None,
    read_only: bool = False,
    shared: bool = False,
) -> Root:
    """Open a root: the records of a store.

    Args:
        store: where it is.
        create: make the root record when there is nothing yet.
        steps: how new slots are named; an existing root keeps its own.
        metadata: for a new root's record, as `value.encode` gives it.
        read_only: never create.
        shared: create it among other things too, as long as none is named like a slot.

    Raises:
        NotFoundError: there is no root, and it is not to be made.
        FormatError: the folder holds something else, or the root names its slots otherwise.
        CorruptionError: the root record is damaged.
    """
    while True:
        record = _record(store)
        if record is not None:
            break
        root = _open_without_record(store, create and not read_only, steps, metadata, shared)
        if root is not None:
            return root
    try:
        own = StepFormat(record.prefix, record.width)
    except ValueError as error:
        raise FormatError(f"{store.url}/{fmt.ROOT}: {error}") from error
    if steps is not None and steps != own:
        raise FormatError(
            message(
                f"{store.url} names its steps otherwise", expected=steps, found=own, remedy="Leave step_format out."
            )
        )
    return Root(store, record, own)


def opened_slot(store: Store) -> Root | None:
    """Open a folder that is itself a slot, copied away from its root; None when it is none."""
    try:
        data = store.get(fmt.MANIFEST, limit=fmt.MAX_RECORD)
    except NotFoundError:
        return None
    if any(info.key == fmt.ROOT for info in store.list("", delimiter="/")):
        return None
    manifest = fmt.unseal(data, Manifest, f"{store.url}/{fmt.MANIFEST}")
    return Root(store, None, StepFormat(), copied_slot("", manifest, store.url))


def _record(store: Store) -> RootRecord | None:
    try:
        data = store.get(fmt.ROOT, limit=fmt.MAX_RECORD)
    except NotFoundError:
        return None
    try:
        return fmt.unseal(data, RootRecord, f"{store.url}/{fmt.ROOT}")
    except CorruptionError as error:
        raise CorruptionError(
            f"{str(error).partition(chr(10))[0]}\n"
            "  The steps are not concerned: move that file away, and they can be read. The next save makes a new one,\n"
            "  which lacks the metadata that `Checkpointer(metadata=...)` had given.",
            damaged=error.damaged,
        ) from error


def _open_without_record(
    store: Store, create: bool, steps: StepFormat | None, metadata: Any, shared: bool
) -> Root | None:
    """Open or make what has no root record; None when another process makes one at this moment."""
    names = [info.key for info in store.list("", delimiter="/")]
    if fmt.ROOT in names:
        return None
    copied = Root(store, None, StepFormat())
    if not create:
        if copied.slots():
            return copied
        what = "is empty" if not names else f"holds no checkpoints (but {len(names)} other entries)"
        raise NotFoundError(
            f"{store.url} {what if _exists(store, names) else 'does not exist'}\n  {_way_out(store, names)}"
        )
    others = [name for name in names if not name.startswith(_IGNORED)]
    if shared:  # but a folder named like a slot would be swept as an unfinished one
        others = [name for name in others if (steps or StepFormat()).parse(name.rstrip("/")) is not None]
    known = next((found for name in others if (found := _format_of(name.rstrip("/"), copied)) is not None), None)
    if others and known is None:
        raise FormatError(
            message(
                f"{store.url} is not empty and not a root of milepost",
                expected=f"{fmt.ROOT}, or nothing",
                found=", ".join(others[:5]),
                remedy="Give a folder of its own, such as `runs/7/checkpoints`.",
            )
        )
    steps = known or steps or StepFormat()
    record = RootRecord(
        format=fmt.FORMAT, id=fmt.new_id(), created=now(), prefix=steps.prefix, width=steps.width, metadata=metadata
    )
    try:
        store.put(fmt.ROOT, [fmt.seal(record)])
    except ConflictError:
        return None
    return Root(store, record, steps)


def _way_out(store: Store, names: list[str]) -> str:
    folders = ["", *(name for name in names[:100] if name.endswith("/"))]
    entries = (info.key for folder in folders for info in store.list(folder, delimiter="/"))
    if any(key.rpartition("/")[2] == "_CHECKPOINT_METADATA" for key in entries):
        return f"Orbax wrote what is there: `milepost import {store.url} STORE` brings it along."
    return "Check the path; a root holds `milepost.json`. `Checkpointer` and `Session` create one."


def _exists(store: Store, names: list[str]) -> bool:
    path = getattr(store, "path", None)
    return bool(names) or (isinstance(path, Path) and path.exists())


def _format_of(name: str, root: Root) -> StepFormat | None:
    """Return the format that gives a committed slot its name, for a root whose record was lost."""
    digits = name.partition(".g")[0]
    number = digits[len(digits.rstrip("0123456789")) :]
    prefix = digits[: len(digits) - len(number)]
    if not number:
        return None
    try:
        steps = StepFormat(prefix, len(number) if number.startswith("0") and number != "0" else 0)
    except ValueError:
        return None
    slot = steps.parse(name)
    return steps if slot is not None and root.committed(slot) else None


def check_identity(root: Root, identity: Any) -> None:
    """Refuse a root whose metadata says that it is another run."""
    saved = None if root.record is None else root.record.metadata
    if identity is None or saved == identity:
        return
    check_metadata(
        f"{root.url} belongs to another run, by its metadata", decode(saved or {}), decode(identity),
        "Give this run a root of its own, or the same metadata.",
    )  # fmt: skip
