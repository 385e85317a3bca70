# SPDX-License-Identifier: Apache-2.0
"""The records of a root's writers: `writers/<epoch>.json`, created once, in order, never deleted.

The next epoch is one more than the newest, so a record that exists was created after all with smaller numbers. That
is what lets a writer tell, without a clock, who came before it.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from milepost.errors import CommitUnknownError, ConflictError, CorruptionError, FormatError, NotFoundError, StorageError
from milepost.model import format as fmt
from milepost.model.format import WriterRecord
from milepost.stores import Store

_NUMBER = re.compile(r"[1-9]\d{0,17}")


def now() -> str:
    """Return the time in UTC, ISO 8601 with microseconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Head:
    """Where the line of checkpoints goes on: what the newest writer declared.

    Attributes:
        epoch: the newest writer's, 0 when nobody wrote.
        slot: the slot it started from.
        superseded: names of slots that are no longer in the line.
        line: checkpoints of this epoch and newer ones are in the line, older ones only up to `slot`.
    """

    epoch: int = 0
    slot: str | None = None
    superseded: frozenset[str] = frozenset()
    line: int = 0

    @property
    def decided(self) -> bool:
        """Whether the newest writer has found out where it goes on."""
        return self.line == self.epoch


@dataclass(frozen=True, slots=True)
class Writer:
    """The newest writer of a root.

    Attributes:
        record: who it is, and since when; None when it holds the lock but has not saved yet.
        alive: whether a process holds the writer's lock now; None where the store cannot tell.
    """

    record: WriterRecord | None
    alive: bool | None


def newest_epoch(store: Store) -> int:
    """Return the newest writer's epoch, 0 when nobody wrote. Cost: one listing."""
    return max(all_epochs(store), default=0)


def all_epochs(store: Store) -> list[int]:
    """Return the epochs of all writers. Cost: one listing."""
    numbers = (info.key.removeprefix(fmt.WRITERS).removesuffix(".json") for info in store.list(fmt.WRITERS))
    return [int(number) for number in numbers if _NUMBER.fullmatch(number)]


def newest_head(store: Store) -> Head:
    """Return what the newest writer declared. Cost: one listing and one record."""
    epoch = newest_epoch(store)
    return read_head(store, epoch) if epoch else Head()


def read_head(store: Store, epoch: int) -> Head:
    """Return what one writer declared.

    Raises:
        NotFoundError: there is no such record.
        CorruptionError: it is damaged.
    """
    record = _read(store, epoch)
    return Head(epoch, record.resumed_from, frozenset(record.superseded), record.line)


def create(store: Store, head: Head) -> WriterRecord | None:
    """Create the record of this process as a writer that begins now; return None when another one has that epoch."""
    record = WriterRecord(
        format=fmt.FORMAT, epoch=head.epoch, id=fmt.new_id(), user=_user(), host=_host(),
        pid=os.getpid(), boot=_boot_id(), start=now(), resumed_from=head.slot, superseded=sorted(head.superseded),
        line=head.line,
    )  # fmt: skip
    try:
        store.put(_key(head.epoch), [fmt.seal(record)])
    except ConflictError:
        return None
    except CommitUnknownError as error:  # no checkpoint is concerned yet: this is a save that failed
        raise StorageError(str(error).partition("\n")[0], errno=error.errno) from error
    return record


def check(store: Store, epoch: int) -> None:
    """Raise ConflictError `fenced` when there is a newer writer. Cost: one listing."""
    newest = newest_epoch(store)
    if newest > epoch:
        try:
            who = f"The other is {_described(_read(store, newest))}."
        except (NotFoundError, CorruptionError, FormatError):
            who = "The other's record cannot be read."
        raise ConflictError(
            f"{store.url}: another writer (epoch {newest}) took over from this one (epoch {epoch})\n"
            f"  {who} Let one job at a time write to a root.",
            code="fenced",
        )


def locked(store: Store) -> ConflictError:
    """Return the error for a writer's lock that another process holds.

    The lock does not say who holds it. The newest record does, once the holder has saved; before that, and when it
    only prunes, the record is that of the writer before it.
    """
    epoch = newest_epoch(store)
    try:
        record = _read(store, epoch) if epoch else None
    except (NotFoundError, CorruptionError, FormatError):
        record = None
    if record is None:
        who = "It has not saved yet."
    elif _has_ended(record):
        who = f"It has not saved yet; the writer before it was {_described(record)}, and has ended."
    else:
        who = f"The newest on record is {_described(record)}; if that has ended, the other has not saved yet."
    return ConflictError(
        f"{store.url} is locked: another process writes there\n"
        f"  {who}\n"
        "  Wait for it, or stop it; reading needs no lock.",
        code="locked",
    )


def writer_of(store: Store) -> Writer | None:
    """Return the newest writer, None when nobody ever wrote. Holds the lock for an instant, if it is free."""
    epoch = newest_epoch(store)
    try:
        with store.hold(fmt.LOCK, exclusive=False) as hold:
            alive = False if hold.supported else None
    except ConflictError:
        alive = True
    except NotFoundError:
        alive = False
    except StorageError:  # not for us to open
        alive = None
    if not epoch:
        return Writer(None, alive) if alive else None
    return Writer(_read(store, epoch), alive)


def _key(epoch: int) -> str:
    return f"{fmt.WRITERS}{epoch}.json"


def _read(store: Store, epoch: int) -> WriterRecord:
    where = f"{store.url}/{_key(epoch)}"
    data = store.get(_key(epoch), limit=fmt.MAX_RECORD)
    try:
        return fmt.unseal(data, WriterRecord, where)
    except CorruptionError as error:
        raise CorruptionError(
            f"{str(error).partition(chr(10))[0]}\n"
            "  It says where its writer went on from. Each step still opens by itself. To use the root again, delete\n"
            "  that file while no job writes there; if that run had branched, then name the step to go on from:\n"
            "  Checkpointer(..., resume_from=catalog[step]).",
            damaged=error.damaged,
        ) from error


def _described(record: WriterRecord) -> str:
    who = f"process {record.pid} on {record.host}, user {record.user}"
    try:
        age = (dt.datetime.now(dt.UTC) - fmt.time_of(record.start)).total_seconds()
    except FormatError:
        return who
    return f"{who}, started {max(0.0, age):.0f} s ago"


def _has_ended(record: WriterRecord) -> bool:
    """Return whether a writer is known to have ended: it ran on this machine, and its process is gone."""
    if os.name != "posix" or record.host != _host():
        return False
    if record.boot != _boot_id():
        return True
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _host() -> str:
    import socket  # not before somebody writes: importing milepost is quick

    return socket.gethostname()


@cache
def _user() -> str:
    try:
        import getpass

        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _host()
