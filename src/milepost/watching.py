# SPDX-License-Identifier: Apache-2.0
"""Follow a run: each new checkpoint as it appears, held against retention while it is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable

from milepost.checkpoint import Checkpoint
from milepost.errors import ConflictError, NotFoundError


def watched(
    look: Callable[[], Iterable[Checkpoint]], *, poll_s: float, timeout_s: float | None
) -> Generator[Checkpoint, None, None]:
    """Yield what `look` finds, each checkpoint once, and hold it until the next one is asked for.

    Args:
        look: lists anew, and yields in the order in which they are to be handed out.
        poll_s: seconds between two looks that find nothing.
        timeout_s: stop when nothing new has come for so long; None: never.
    """
    seen: set[str] = set()
    since = time.monotonic()
    while True:
        found = False
        for checkpoint in look():
            if checkpoint.info.id in seen:
                continue
            try:
                hold = checkpoint.lease()
            except NotFoundError:
                continue  # retired since it was listed
            except ConflictError:
                continue  # retention has its hand on it: if it stays, the next look finds it
            seen.add(checkpoint.info.id)
            with hold:
                yield checkpoint
            found, since = True, time.monotonic()
        if found:
            continue  # more may have come while it was in use
        waited = time.monotonic() - since
        if timeout_s is not None and waited >= timeout_s:
            return
        time.sleep(poll_s if timeout_s is None else max(0.0, min(poll_s, timeout_s - waited)))
