# SPDX-License-Identifier: Apache-2.0
"""The root's record of notes: which slots have got one, in order, so that a writer need not look at all of them."""

from __future__ import annotations

from contextlib import suppress

from milepost.errors import ConflictError, CorruptionError, FormatError, NotFoundError
from milepost.model import format as fmt
from milepost.model.format import Noted, Slot
from milepost.stores import Store


def say(store: Store, slot: Slot, checkpoint: str) -> None:
    """Tell the writer, which remembers what it has read, that a slot has got a note."""
    record = fmt.seal(Noted(format=fmt.FORMAT, slot=slot.name, checkpoint=checkpoint))
    number = last(store)
    while True:
        number += 1
        # Needs to survive no crash: a writer that begins anew reads all notes.
        with suppress(ConflictError):
            store.put(_key(number), [record], flush=False)
            return


def last(store: Store) -> int:
    """Return the number of the last record, 0 when there is none. Cost: one listing."""
    names = (info.key.removeprefix(fmt.NOTED).removesuffix(".json") for info in store.list(fmt.NOTED))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def after(store: Store, number: int) -> tuple[int, list[str] | None]:
    """Return the number of the last record, and the slots that those after a number tell of.

    None instead of the slots when one is damaged, so that it may have been any. Cost: one request, and one for each.
    """
    found: list[str] = []
    whole = True
    while True:
        key = _key(number + 1)
        try:
            found.append(fmt.unseal(store.get(key, limit=fmt.MAX_RECORD), Noted, f"{store.url}/{key}").slot)
        except NotFoundError:
            return number, found if whole else None
        except (CorruptionError, FormatError):
            whole = False
        number += 1


def _key(number: int) -> str:
    return f"{fmt.NOTED}{number}.json"
