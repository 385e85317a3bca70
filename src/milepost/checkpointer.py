# SPDX-License-Identifier: Apache-2.0
"""Write one run: policy, plan, capture, hand over, report."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

from milepost.catalog import Catalog
from milepost.checkpoint import Checkpoint, Opened
from milepost.engine import save as saving
from milepost.engine.capture import Arena, borrowed, capture, copied_nbytes
from milepost.engine.commit import Lock
from milepost.engine.opening import check_identity, open_root
from milepost.engine.prepare import Base, Captured, Outline, base_of, prepare
from milepost.engine.save import Order, Written
from milepost.engine.transfer import Limits, give_way
from milepost.errors import (
    CheckpointError,
    ConflictError,
    CorruptionError,
    SaveFailedError,
    StorageError,
    UnsupportedLeafError,
)
from milepost.group import Group, Solo
from milepost.model.format import MAX_STEP, Slot, StepFormat
from milepost.model.value import encode
from milepost.pending import PendingSave
from milepost.policy import (
    DEFAULT_KEEP,
    DEFAULT_SAVE,
    All,
    KeepPolicy,
    Moment,
    OnPreemption,
    SavePolicy,
    keep_policy,
    pin_name,
    save_policy,
)
from milepost.policy.reason import checked_words, pin_names
from milepost.retention import prune
from milepost.signals import Signals
from milepost.stores import Store, open_store

_log = logging.getLogger("milepost")
Where = str | os.PathLike[str] | Store

EXIT_STOPPED = 75
"""The exit code of a run that saved and was interrupted: run the same command again (EX_TEMPFAIL, sysexits.h)."""


@final
class Checkpointer:
    """Writes one run: a root, its policies, and saves in the background.

    Opening takes no lock; the first save does, for this process. Use it in a `with`, or call `close`.

    Args:
        where: the root; made when it is not there.
        save: when a save is due, as a policy or a phrase; default `First() | Every(minutes=10) | OnPreemption()`.
        keep: which checkpoints stay, as a policy or a phrase; default all.
        group: the processes that save together; default this one alone.
        limits: memory, time and bandwidth.
        step_format: how new roots name their slots.
        metadata: what identifies the run (model, configuration); a root with other metadata is refused.
        busy: what `due` says while a save is being written: `wait` lets the next save wait for it, `skip` says no.
        donated: the program donates its JAX arrays to the next step, so they are copied instead of held.
        copy: `always` copies immutable arrays too (JAX arrays on CPU that alias a NumPy array which changes).
        resume_from: the checkpoint that this run goes on from, when that is not the latest; later ones of the older
            line are then superseded. `nothing` begins a new line beside all that is there, whole or damaged.
        read_only: never write anything.
        shared: the folder may hold other things too when the root is made, as long as none is named like a step.
    """

    def __init__(
        self,
        where: Where,
        *,
        save: SavePolicy | str | None = None,
        keep: KeepPolicy | str | None = None,
        group: Group | None = None,
        limits: Limits | None = None,
        step_format: StepFormat | None = None,
        metadata: Mapping[str, Any] | None = None,
        busy: Literal["wait", "skip"] = "wait",
        donated: bool = False,
        copy: Literal["auto", "always"] = "auto",
        resume_from: Checkpoint | Literal["nothing"] | None = None,
        read_only: bool = False,
        shared: bool = False,
    ) -> None:
        _choice("busy", busy, ("wait", "skip"))
        _choice("copy", copy, ("auto", "always"))
        self._save: SavePolicy = DEFAULT_SAVE if save is None else save_policy(save)
        self._keep: KeepPolicy = DEFAULT_KEEP if keep is None else keep_policy(keep)
        self._group = _alone(group)
        self._limits = limits or Limits()
        self._busy, self._copy, self._trusted = busy, donated or copy == "always", copy != "always"
        self._resume_from: Checkpoint | Literal["nothing"] | None = resume_from
        self._read_only = read_only
        self._defaults = ("save" if save is None else "", "keep" if keep is None else "")
        store = open_store(where, create=not read_only)
        identity = None if metadata is None else encode(dict(metadata))
        root = open_root(store, create=True, steps=step_format, metadata=identity, read_only=read_only, shared=shared)
        self._root = dataclasses.replace(root, concurrency=self._limits.concurrency)
        check_identity(self._root, identity)
        self.catalog = Catalog(self._root, keep=self._keep, rank=self._group.rank, fell_back=self._fell_back)
        """The checkpoints of this root."""
        self._arena, self._outline = Arena(), Outline()
        self._lock: Lock | None = None
        self._base: Base | None = None
        self._parent: str | None = None
        self._pending: PendingSave | None = None
        self._thread: threading.Thread | None = None
        self._last_step: int | None = None
        self._known = False
        self._reasons: dict[int, str] = {}
        self._opened_s = time.monotonic()
        self._last_s: float | None = None
        self._stopping = False
        self._closed = False
        self._signals = Signals()
        if not read_only and _listens(self._save):
            self._signals.install()

    # --- when

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop, and `due` has been asked since: save what is due, then leave the loop."""
        return self._stopping

    @property
    def exit_code(self) -> int:
        """75 when the run was interrupted and should be started again, else 0."""
        return EXIT_STOPPED if self._stopping else 0

    def due(self, step: int, *, last: bool = False) -> str | None:
        """Return why a save is due at this step, None when it is not; asking twice gives the same answer.

        Args:
            step: the step that was just done.
            last: it is the run's last one, which is a reason of its own.
        """
        if self._read_only:
            return None
        self._learn_last_step()
        received = self._signals.received
        self._stopping = self._stopping or self._signals.stop
        busy = self._pending is not None and not self._pending.done()
        moment = Moment(
            step=step, last_step=self._last_step, now_s=time.monotonic(), last_s=self._last_s,
            opened_s=self._opened_s, saving=busy, preempted=received,
        )  # fmt: skip
        reason = self._save.due(moment)
        if last and not moment.behind:
            reason = "last" if reason is None else f"{reason} · last"
        if reason is not None and busy and self._busy == "skip" and not last and received is None:
            return None
        if reason is not None:
            self._reasons = {step: reason}
        return reason

    def _fell_back(self, checkpoint: Checkpoint) -> None:
        # The catalog restored an older step because newer ones are damaged: this run goes on from there.
        self._resume_from, self._known, self._base = checkpoint, False, None

    def _learn_last_step(self) -> None:
        if self._known:
            return
        start = self._resume_from
        if start is None:
            try:
                start = self.catalog.latest()
            except CorruptionError:
                start = None  # told by whoever reads it, or by the save
        if isinstance(start, Checkpoint):
            self._last_step = start.step
        self._known = True

    # --- save

    def save(
        self,
        step: int,
        tree: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        behind: bool = False,
        reason: str | None = None,
        pin: str | Iterable[str] | None = None,
    ) -> PendingSave:
        """Save a tree as a step. When this returns, the caller may overwrite, donate or free every array.

        The write goes on in the background. A failure of the save before is raised here, once; this save is then
        not begun.

        Args:
            step: 0 to 2^63 - 1, above the latest unless `behind`.
            tree: dicts, lists, tuples, dataclasses, registered nodes of arrays, values and objects with state.
            metrics: what `Best` and the table look at.
            metadata: anything else to be found again.
            overwrite: replace the step when it is there; there is no moment without it.
            behind: let the step lie below the latest, which stays the latest.
            reason: why it is saved, instead of what `due` said: a few words, such as `policy.EMERGENCY`.
            pin: one or several names that keep it, from its first moment on, until `catalog.unpin(name)`.

        Raises:
            UnsupportedLeafError: something in the tree cannot be stored, with its path.
            ConflictError: `exists`, `behind`, `locked`, `fenced`, `forked`.
            StorageError: the disk or store failed.
        """
        if isinstance(step, bool) or not hasattr(step, "__index__") or not 0 <= int(step) <= MAX_STEP:
            raise ValueError(f"step {step!r}: a step is an integer from 0 to 2^63 - 1")
        step = int(step)
        reason, pins = None if reason is None else checked_words(reason, "reason"), pin_names(pin)
        if self._closed:
            raise ConflictError(f"{self._root.url}: this Checkpointer was closed\n  Make another one.", code="closed")
        if self._read_only:
            raise ConflictError(
                f"{self._root.url} was opened with read_only=True\n  Open it without.", code="read_only"
            )
        self.wait(timeout_s=self._limits.timeout_s)
        self._log_defaults()
        start = time.monotonic()
        if self._base is None and self._root.loaded and self._resume_from != "nothing":
            self._begin()  # arrays that were loaded are linked, now that it is known from where
        captured = prepare(
            tree, self._root, self._linkable() if self._trusted else None, self._outline, rank=self._group.rank
        )
        order = self._order(step, metrics, metadata, overwrite, behind)
        order = dataclasses.replace(order, reason=reason or order.reason, pins=list(dict.fromkeys(order.pins + pins)))
        pending = PendingSave(step)
        self._hand_over(pending, order, captured)
        pending.anatomy.captured_s = time.monotonic() - start
        if not behind or self._last_step is None or step > self._last_step:
            self._last_step = step
        self._last_s, self._known = time.monotonic(), True
        self._reasons.pop(step, None)
        self._signals.saved()
        return pending

    def _order(
        self,
        step: int,
        metrics: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        overwrite: bool,
        behind: bool,
    ) -> Order:
        anew = self._resume_from == "nothing"
        lock = self._begin()
        try:
            replaces = self._conflicts(step, overwrite, behind or anew)
        except ConflictError:
            lock.check()  # when another writer took over, that is why
            raise
        pin = pin_name(self._save, step)
        return Order(
            step, self._reasons.get(step, "asked for"), _encoded("metrics", metrics), _encoded("metadata", metadata),
            [pin] if pin else [], str(self._keep), self._parent, replaces,
        )  # fmt: skip

    def _begin(self) -> Lock:
        """Take the lock and the epoch, and learn which step this run goes on from."""
        self.reserve()
        assert self._lock is not None
        start = self._resume_from
        record = self._lock.epoch(self._root.steps.parse(start.info.slot) if isinstance(start, Checkpoint) else start)
        self._resume_from = None
        if start is not None or self._parent is None:
            self._parent = record.resumed_from
        return self._lock

    def _conflicts(self, step: int, overwrite: bool, behind: bool) -> list[Slot]:
        """Return the generations that this save replaces.

        Raises:
            ConflictError: `exists` or `behind`.
        """
        assert self._lock is not None
        head, slots = self._root.head(), self._lock.slots()
        there = [slot for slot in slots if slot.step == step and self._root.is_in_line(slot, head)]
        if there:
            if overwrite:
                return there
            raise ConflictError(
                f"{self._root.url} has step {step} already\n  Save the next step, or pass overwrite=True.",
                code="exists",
            )
        latest = None if behind else self._root.latest(slots, head)
        if latest is not None and step < latest[0].step:
            raise ConflictError(
                f"{self._root.url}: step {step} lies behind the latest, {latest[0].step}\n"
                "  To go on from an older checkpoint: Checkpointer(..., resume_from=catalog[step]). To keep the latest"
                " and add one behind it: save(..., behind=True).",
                code="behind",
            )
        return []

    def _hand_over(self, pending: PendingSave, order: Order, captured: Captured) -> None:
        budget, copied = self._limits.memory_bytes, copied_nbytes(captured.held, copy=self._copy)
        pending.anatomy.nbytes = captured.nbytes
        base = self._linkable()
        if budget is not None and copied > budget:
            # Too much to copy: write from the program's own memory, and return when that is done.
            self._pending = pending
            self._run(pending, order, captured, borrowed(captured.held), base)
            return
        pending.anatomy.copied_nbytes = copied
        arena, self._arena = self._arena, Arena()  # after a Ctrl-C here, a thread that nobody waits for may read it
        buffers = capture(captured.held, arena, copy=self._copy)
        captured = dataclasses.replace(captured, held=[])  # device memory is free again when `save` returns
        # Not a daemon, and started now: a thread that is started while the interpreter exits fails (3.12).
        thread = threading.Thread(
            target=self._run_apart, args=(pending, order, captured, buffers, base), name=f"milepost-save-{order.step}"
        )
        thread.start()
        self._pending, self._thread, self._arena = pending, thread, arena

    def _run_apart(self, *what: Any) -> None:
        if self._limits.background:
            give_way()
        self._run(*what)

    def _run(
        self, pending: PendingSave, order: Order, captured: Captured, buffers: list[memoryview], base: Base | None
    ) -> None:
        assert self._lock is not None
        checkpoint, failure = None, None
        try:
            written = saving.write(
                self._root,
                self._lock,
                order,
                captured,
                buffers,
                base=base,
                limits=self._limits,
                gate=pending.gate,
                anatomy=pending.anatomy,
            )
            self._base, self._parent = written.base, written.slot.name
            checkpoint = Checkpoint(Opened(self._root, written.slot, written.manifest, rank=self._group.rank))
            self._committed(order, written)
        except CheckpointError as error:
            failure = error
            if error.code == "deleted":  # what unchanged arrays are linked from
                self._base = None
        except Exception as error:  # noqa: BLE001 handed to whoever waits, with its cause
            failure = SaveFailedError(f"the save of step {order.step} failed: {type(error).__name__}: {error}")
            failure.__cause__ = ExceptionGroup("by process", [error])
        except BaseException:  # Ctrl-C while the caller itself writes: nobody must wait for this save for ever
            pending.finish(None, SaveFailedError(f"the save of step {order.step} was interrupted"))
            raise
        if failure is not None and failure.code == "cancelled":
            _log.info("step %d of %s was not saved, as its save was cancelled", order.step, self._root.url)
        elif failure is not None:
            _log.error("step %d of %s was not saved: %s", order.step, self._root.url, failure)
        pending.finish(checkpoint, failure)

    def _committed(self, order: Order, written: Written) -> None:
        _log.info(
            "saved step %d of %s (%s): %d bytes, %d new, in %.3f s",
            order.step, self._root.url, order.reason, written.manifest.nbytes,
            sum(file.nbytes for file in written.manifest.files if not file.linked), written.seconds,
        )  # fmt: skip
        if isinstance(self._keep, All):
            return
        try:
            prune(self._root, self._keep)
        except CheckpointError as error:  # the step is there: a failed deletion must not say otherwise
            _log.warning("step %d is saved, but pruning failed: %s", order.step, error)

    def _linkable(self) -> Base | None:
        """Return the step to link unchanged leaves from: the last one saved here, else the one it went on from."""
        if (
            self._base is None
            and self._parent is not None
            and (slot := self._root.steps.parse(self._parent)) is not None
        ):
            try:
                manifest = self._root.manifest(slot)
                if manifest is not None:
                    self._base = base_of(self._root, slot, manifest)
            except CheckpointError:
                return None  # a damaged step is no base
        return self._base

    def _log_defaults(self) -> None:
        for name, policy in zip(self._defaults, (self._save, self._keep), strict=True):
            if name:
                _log.info("%s: %s=%r, as none was given", self._root.url, name, str(policy))
        self._defaults = ("", "")

    # --- ends

    def reserve(self) -> None:
        """Take the writer's lock now, not at the first save; for programs that share work out by who gets a root.

        Raises:
            ConflictError: `locked`, another process writes to the root.
        """
        if self._lock is None:
            self._lock = Lock(self._root)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the save in flight; raises its error, if nobody was told yet.

        Raises:
            StorageError: `timeout`, it is not over after `timeout_s` seconds.
        """
        pending = self._pending
        if pending is None or pending.pid != os.getpid():
            return
        try:
            if not pending.reported:
                pending.result(timeout_s)
        except TimeoutError as error:
            raise StorageError(
                f"the save of step {pending.step} is not over after {timeout_s:g} s\n"
                "  Wait longer (`Limits(timeout_s=...)`), or check the disk.",
                code="timeout",
                transient=True,
            ) from error
        except SaveFailedError:
            if not pending.cancelled:
                raise
        finally:
            if pending.done():
                self._pending = None
                if self._thread is not None and self._thread is not threading.current_thread():
                    self._thread.join()
                try:
                    self.catalog._expire()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                except CheckpointError as error:  # how the save ended is known: a failed listing must not say otherwise
                    _log.warning("step %d is over, but %s cannot be listed: %s", pending.step, self._root.url, error)

    def close(self) -> None:
        """Wait for the save in flight, give back the lock and the signal handlers; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._closed = True
            if self._lock is not None:
                self._lock.close()
                self._lock = None
            self._signals.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(f"Besides, the save in flight failed: {failure}")

    def __repr__(self) -> str:
        return f"<Checkpointer of {self._root.url}, save {self._save}, keep {self._keep}>"


def _encoded(name: str, data: Mapping[str, Any] | None) -> Any:
    try:
        return encode(dict(data or {}))
    except UnsupportedLeafError as error:
        raise UnsupportedLeafError(f"{name}: {error}") from None


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def _alone(group: Group | None) -> Group:
    if group is not None and group.size != 1:
        raise StorageError(
            f"a group of {group.size} processes cannot save together yet\n"
            "  Let process 0 save, or give every process a root of its own.",
            code="unsupported",
        )
    return group or Solo()


def _listens(policy: SavePolicy) -> bool:
    return any(isinstance(part, OnPreemption) for part in getattr(policy, "policies", (policy,)))
