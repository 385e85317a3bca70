# SPDX-License-Identifier: Apache-2.0
"""Checkpointers of a trainer."""

from __future__ import annotations

import datetime as dt
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import milepost as mp
from milepost.compat.kauldron.items import DEFAULT, restored, saved
from milepost.compat.orbax.options import MultiprocessingOptions
from milepost.compat.orbax.preservation_policy import EveryNSteps

_T = TypeVar("_T")
_WORKDIR: Any = None


class BaseCheckpointer(ABC):
    """What a trainer asks of a checkpointer; a context manager that closes it."""

    latest_step: Any = None
    all_steps: Any = ()

    @abstractmethod
    def restore(self, state: Any, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> Any: ...
    @abstractmethod
    def should_save(self, step: int) -> bool: ...
    @abstractmethod
    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool: ...
    @abstractmethod
    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool: ...

    def iter_new_checkpoints(self, *_: Any, **__: Any) -> Iterator[int]:
        yield from ()

    def reload(self) -> None: ...  # noqa: B027 what a checkpointer need not do
    def wait_until_finished(self) -> None: ...  # noqa: B027 what a checkpointer need not do
    def close(self) -> None: ...  # noqa: B027 what a checkpointer need not do

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_original: Any = import_module("kauldron.checkpoints") if find_spec("kauldron") else None
if not TYPE_CHECKING and _original:
    # A Trainer takes only checkpointers of Kauldron's own base class, and puts its `workdir` where this mark is.
    BaseCheckpointer, _WORKDIR = _original.BaseCheckpointer, _original.Checkpointer.workdir


@final
@dataclass(frozen=True, kw_only=True)
class Checkpointer(BaseCheckpointer):
    """Saves the states of one run below `workdir/checkpoints`; a value that can be compared, until it is used.

    docs/doors/kauldron.md says of each field what it does here.
    """

    workdir: Any = _WORKDIR
    save_interval_steps: int
    max_to_keep: int | None = 3
    keep_time_interval: dt.timedelta | None = None
    keep_period: int | None = None
    save_on_steps: Sequence[int] | None = None
    best_metric_path: str | None = None
    preservation_policy: Any = None
    best_mode: Literal["max", "min"] = "max"
    multiprocessing_options: Any = field(default_factory=MultiprocessingOptions)
    never_save_step_zero: bool = False
    lightweight_initialize: bool = False
    cleanup_orphaned_snapshots: bool = False
    fast: bool = True
    create: bool = True
    _open: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False, compare=False)

    def restore(self, state: _T, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> _T:
        """Return the state of a step, -1 for the latest. With `donate`, the arrays of `state` are freed afterwards.

        Raises:
            FileNotFoundError: there is no checkpoint, or not that one.
            ValueError: the state differs from what was saved; nothing was freed.
        """
        self._finished()
        if noop_if_missing and self.latest_step is None:
            return state
        checkpoint = find(self._directory, step)
        with checkpoint.lease():
            result = restored(checkpoint, state)
        if donate:
            _freed(state, result)
        return result

    def should_save(self, step: int) -> bool:
        """Return whether a step is due; every step is as long as there is no checkpoint."""
        latest = self.latest_step
        if (step == 0 and self.never_save_step_zero) or (latest is not None and step <= latest):
            return False
        return latest is None or step % self.save_interval_steps == 0 or step in (self.save_on_steps or ())

    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool:
        """Begin to save a step that is due, any step with `force`; returns whether it did.

        Raises:
            ValueError: the step is there already; or the state or a metric cannot be stored.
        """
        if not isinstance(metrics or {}, Mapping):
            raise ValueError(f"metrics: expected a dict, found a {type(metrics).__name__}")
        if not force and not self.should_save(step):
            return False
        reason = "forced" if force else f"every {self.save_interval_steps} steps"
        try:
            self._open["pending"] = self._saver().save(step, saved(state), metrics=metrics, reason=reason, behind=True)
        except mp.ConflictError as error:
            if error.code == "exists":
                raise ValueError(f"step {step} is in {self._directory} already") from error
            raise
        except mp.UnsupportedLeafError as error:
            raise ValueError(str(error)) from error
        return True

    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool:
        """Save a step when it is due; `force` does not change that (use `save`)."""
        return self.should_save(step) and self.save(state, step=step, force=force)

    def delete(self, step: int) -> None:
        """Remove a step; FileNotFoundError when it is not there."""
        self._finished()
        find(self._directory, step)
        mp.open(self._directory).delete(step)

    def wait_until_finished(self) -> None:
        """Wait for the save in flight, and let others write until the next; raises its error, once."""
        self.close()

    def close(self) -> None:
        """As `wait_until_finished`; a later save opens it again."""
        self._open.pop("pending", None)
        if (saver := self._open.pop("saver", None)) is not None:
            saver.close()

    @property
    def latest_step(self) -> int | None:
        """The highest step in the run's line, the same for everybody; one in flight counts."""
        return max(self.all_steps, default=None)

    @property
    def all_steps(self) -> Sequence[int]:
        """The steps that are there, rising; one in flight counts."""
        pending = self._open.get("pending")  # asked before looking: none is missed
        in_flight = set[int]() if pending is None or pending.done() else {pending.step}
        return sorted(in_flight.union(_catalog(self._directory) or ()))

    def reload(self) -> None:
        """Look again; here every look does."""

    def item_metadata(self, step: int = -1) -> dict[str, Any]:
        """Return the tree of a step, unread leaves with shape and dtype: of its only item, or of each by name."""
        self._finished()
        tree = find(self._directory, step).tree
        return tree[DEFAULT] if list(tree) == [DEFAULT] else tree

    def iter_new_checkpoints(
        self,
        *,
        min_interval_secs: float = 0,
        seconds_to_sleep: float = 1,
        timeout: float | None = None,
        timeout_fn: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        """Yield the newest step each time there is a newer one; it cannot be deleted until the next is asked for.

        Two come at least `min_interval_secs` apart. When there was none for `timeout` seconds it ends, unless
        `timeout_fn` says False then.
        """
        last, idle = -1, time.monotonic()
        while True:
            catalog = _catalog(self._directory)
            if catalog is None:
                time.sleep(seconds_to_sleep)
            new = (
                ()
                if catalog is None
                else catalog.watch(which="newest", after=last, poll_s=seconds_to_sleep, timeout_s=timeout)
            )
            for checkpoint in new:
                since, last = time.monotonic(), checkpoint.step
                yield last
                time.sleep(max(0.0, since + min_interval_secs - time.monotonic()))
                idle = time.monotonic()
            if timeout is not None and time.monotonic() - idle >= timeout:
                if timeout_fn is None or timeout_fn():
                    return
                idle = time.monotonic()

    @property
    def _directory(self) -> Path:
        return Path(self.workdir) / "checkpoints"  # a TypeError as long as `workdir` is not set

    def _finished(self) -> None:
        if (saver := self._open.get("saver")) is not None:
            saver.wait()

    def _saver(self) -> mp.Checkpointer:
        if "saver" not in self._open:
            options, where = self.multiprocessing_options, self._directory
            if options.primary_host or len(options.active_processes or ()) > 1:
                raise ValueError(f"{options}: only its defaults are supported, one process saves")
            if self.create:
                where.mkdir(0o770, parents=True, exist_ok=True)  # not for everybody to read
            elif not where.exists():
                raise FileNotFoundError(f"{where} does not exist, and create=False")
            steps = mp.StepFormat(prefix="ckpt_")
            self._open["saver"] = mp.Checkpointer(
                where, save="first", keep=self._keep(), step_format=steps, shared=True
            )
        return self._open["saver"]

    def _keep(self) -> Any:
        if (policy := self.preservation_policy) is not None:
            return policy if hasattr(policy, "keep") else _Preserved(policy)
        if self.max_to_keep is None:
            return "all"
        path, n = self.best_metric_path, self.max_to_keep
        keep: Any = mp.Latest(n) if path is None else mp.Best(path, n, self.best_mode)
        if self.keep_time_interval is not None:
            keep |= mp.Every(seconds=self.keep_time_interval.total_seconds())
        return keep if self.keep_period is None else keep | _Preserved(EveryNSteps(self.keep_period))


@dataclass(frozen=True)
class _Preserved:
    """Keeps what a policy of Orbax says."""

    policy: Any

    def keep(self, history: Sequence[Any]) -> dict[int, str]:
        at = [dt.datetime.fromtimestamp(each.created_s, dt.UTC) for each in history]
        seen = [SimpleNamespace(step=s.step, time=time, metrics=s.metrics) for s, time in zip(history, at, strict=True)]
        flags = self.policy.should_preserve(seen, context=None)
        return {each.step: str(self.policy) for each, flag in zip(history, flags, strict=True) if flag}


def _catalog(directory: Path) -> mp.Catalog | None:
    """Return the checkpoints in a folder, None when there are none; those of Kauldron itself are a FormatError."""
    try:
        return mp.open(directory)
    except mp.NotFoundError:
        if any(directory.glob("ckpt_*/_CHECKPOINT_METADATA")):
            raise mp.FormatError(
                f"{directory} holds checkpoints of Kauldron itself\n"
                "  `milepost import` brings them along, into a workdir of its own."
            ) from None
        return None


def find(directory: Path, step: int) -> mp.Checkpoint:
    """Return the checkpoint of a step, -1 for the latest; FileNotFoundError when there is none."""
    catalog = _catalog(directory)
    found = None if catalog is None else catalog.latest() if step == -1 else catalog.get(step)
    if found is None:
        which = "" if step == -1 else f" of step {step}"
        raise FileNotFoundError(f"no checkpoint{which} in {directory}: {sorted(catalog or ())}")
    return found


def _freed(state: Any, result: Any) -> None:
    """Free the JAX arrays of a state that was replaced: only now that the new one is there."""
    jax: Any = sys.modules.get("jax")
    if jax is not None:
        kept = {id(leaf) for leaf in jax.tree.leaves(result)}
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array) and id(leaf) not in kept and not leaf.is_deleted():
                leaf.delete()


if _original:
    _original.Checkpointer.register(Checkpointer)  # its evaluation jobs take no other


@final
@dataclass(frozen=True, kw_only=True)
class NoopCheckpointer(BaseCheckpointer):
    """Saves nothing, and restores what it is given."""

    def restore(self, state: Any, *, step: int = -1, noop_if_missing: bool = False, donate: bool = True) -> Any:
        if state is None:
            raise ValueError("NoopCheckpointer has nothing to restore: give it a state")
        return state

    def should_save(self, step: int) -> bool:
        return False

    def save(self, state: Any, *, step: int, force: bool = False, metrics: Any | None = None) -> bool:
        return False

    def maybe_save(self, state: Any, *, step: int, force: bool = False) -> bool:
        if force:
            raise ValueError("NoopCheckpointer cannot be forced to save")
        return False
