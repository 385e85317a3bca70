# SPDX-License-Identifier: Apache-2.0
"""Save and restore a model, its optimizer and the train state."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

import milepost as mp
from milepost.compat.kempnerforge.config import AsyncCheckpointMode, CheckpointConfig, Schedule
from milepost.compat.kempnerforge.export import write_safetensors
from milepost.compat.kempnerforge.resume import catalog_at, newest_first, resolve_resume_path, say_skipped
from milepost.compat.kempnerforge.staging import STEPS, PageLocked, refuse_many
from milepost.compat.kempnerforge.train_state import build_train_state, restore_train_state

_log = logging.getLogger("milepost")


@final
class CheckpointManager:
    """Saves and restores a model, its optimizer and the train state.

    From its first save until `wait` it holds the folder's lock, so that no second run writes there.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        model: Any,
        optimizer: Any,
        process_group: Any = None,
        pp_rank: int | None = None,
    ) -> None:
        refuse_many(process_group)
        self._config, self._model, self._optimizer = config, model, optimizer
        self._dir = Path(config.dir).absolute()
        self._at = "" if pp_rank is None else f"pp{pp_rank}"
        self._mode = AsyncCheckpointMode(config.async_mode)
        self._staging = PageLocked() if self._mode == AsyncCheckpointMode.async_pinned else None
        self._saver: mp.Checkpointer | None = None
        self._resumed: mp.Checkpoint | None = None
        self._loader_state: Any = None

    # --- save

    def save(
        self,
        step: int,
        tokens_seen: int = 0,
        scheduler: Any = None,
        dataloader: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a step; one that is there stays until all of the new one is. `load` compares `extra["vlm_freeze"]`."""
        train = build_train_state(step, tokens_seen, scheduler, dataloader, extra)
        version, words, gauss = train["rng"]["python"]
        train["rng"]["python"] = (version, np.array(words, np.uint32), gauss)
        for name in ("rng", "dataloader"):  # of each process its own
            if name in train:
                train[name] = mp.PerProcess(train[name])
        parts = {"model": self._model, "optimizer": self._optimizer}
        if self._staging is not None:
            parts = self._staging.staged(parts)
        metadata: dict[str, Any] = {"step": step, "tokens_seen": tokens_seen}
        if freeze := (extra or {}).get("vlm_freeze"):
            metadata["vlm_freeze"] = [{"module": name, "frozen": is_} for name, is_ in sorted(_frozen(freeze).items())]
        saver = self._opened()
        saver.due(step)  # so that the reason is stored
        tree = {**({self._at: parts} if self._at else parts), "train": train}
        saver.save(step, tree, metadata=metadata, overwrite=True).add_done_callback(self._point_latest)
        if self._mode == AsyncCheckpointMode.disabled:
            saver.wait()

    def wait(self) -> None:
        """Wait until everything is durable and committed; raises a failure once, and goes on working."""
        saver, self._saver = self._saver, None
        if saver is not None:
            saver.close()

    def flush_pending_save(self) -> None:
        """As `wait`: the fence before the model is changed."""
        self.wait()

    def _opened(self) -> mp.Checkpointer:
        if self._saver is None:
            n = self._config.keep_last_n
            self._saver = mp.Checkpointer(
                self._dir, save=Schedule(self._config), keep=mp.Latest(n) if n > 0 else mp.All(), step_format=STEPS,
                resume_from=self._resumed, shared=True,
            )  # fmt: skip
            self._resumed = None
        return self._saver

    def _point_latest(self, pending: mp.PendingSave) -> None:
        """Swap the link `latest`, which scripts read; nothing here depends on it."""
        if not pending.failed:
            (link := self._dir / "latest.tmp").unlink(missing_ok=True)
            link.symlink_to(pending.result().info.slot)
            link.replace(self._dir / "latest")

    def export(self, folder: str | Path) -> Path:
        """Write the model's weights to `folder/model.safetensors`, floating ones as `export_dtype`."""
        path = Path(folder) / "model.safetensors"
        return write_safetensors(path, self._model.state_dict(), self._config.export_dtype)

    # --- load

    def peek_saved_step(self, path: str | Path | None = None) -> int | None:
        """Return the step of the checkpoint that `load` would take, None when there is none to be read."""
        try:
            newest = next(iter(self._candidates(path)[0]), None)
            return None if newest is None else newest.metadata.get("step", newest.step)
        except (mp.CheckpointError, OSError):
            return None

    def load(
        self,
        path: str | Path | None = None,
        scheduler: Any = None,
        dataloader: Any = None,
        exclude_keys: Iterable[str] | None = None,
        vlm_freeze_expected: Iterable[Mapping[str, Any]] | None = None,
    ) -> tuple[int, int, dict[str, Any]]:
        """Restore from a path, else `load_path`, else the newest; `(0, 0, {})` when there is nothing yet.

        The newest of this folder, also when its path was given, is left for the one before when it is damaged, with
        a warning.

        Raises:
            FileNotFoundError: the path that was given does not exist.
            ValueError: frozen modules differ; nothing was changed.
            StructureError: the model differs (a ValueError, too); nothing was changed.
        """
        self.wait()
        damaged: mp.CorruptionError | None = None
        candidates, own = self._candidates(path)
        for checkpoint in candidates:
            try:
                self._check_freeze(checkpoint, vlm_freeze_expected)
                train = self._restored(checkpoint, set(exclude_keys or ()))
            except mp.CorruptionError as error:
                damaged = error
                say_skipped(error)
                continue
            self._resumed = checkpoint if own else None  # what is newer here is then superseded by the next save
            if train is None:
                return checkpoint.step, 0, {}
            self._loader_state = None if dataloader is not None else train.get("dataloader")
            return restore_train_state(train, scheduler, dataloader)
        if damaged is not None:
            raise damaged
        return 0, 0, {}

    def apply_dataloader_state(self, loader: Any) -> None:
        """Give a loader that was made after `load` its saved position, once."""
        state, self._loader_state = self._loader_state, None
        if state is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(state)

    def _candidates(self, path: str | Path | None) -> tuple[Iterable[mp.Checkpoint], bool]:
        """Return the checkpoints to try in turn, and whether they are those of this manager's own folder."""
        given = path or self._config.load_path
        own = catalog_at(self._dir)
        line = () if own is None else newest_first(own)
        if not given:
            return line, True
        where = Path(given)
        if own is not None and where.parent.resolve() == self._dir.resolve():
            newest = resolve_resume_path(self._dir)
            if newest is not None and where.name in ("latest", newest.name):
                return line, True  # what a program that resumes by itself passes
            named = re.fullmatch(r"step_(\d+)(\.g\d+)?", where.name)
            found = own.get(int(named[1])) if named else None
            if found is not None and found.info.slot == where.name:
                return [found], True
        there = catalog_at(where)
        found = None if there is None else there.latest()
        if found is None:
            raise FileNotFoundError(f"{where} holds no checkpoint: check `load_path`, or the path that was given")
        return [found], False

    def _restored(self, checkpoint: mp.Checkpoint, excluded: set[str]) -> dict[str, Any] | None:
        """Restore model and optimizer; return the train state, which was read before anything changed."""
        prefixes = [prefix.rstrip(".") for prefix in self._config.exclude_from_loading if prefix.rstrip(".")]
        excluded |= {prefix for prefix in prefixes if prefix in ("model", "optimizer")}
        parts = {"model": self._model, "optimizer": self._optimizer}
        wanted: dict[str, Any] = {name: mp.SKIP if name in excluded else part for name, part in parts.items()}
        train = None
        if any(name.startswith("train/") for name in checkpoint.leaves):
            train = checkpoint.at("train").load(frameworks="saved")
        saved = checkpoint.at(self._at) if self._at else checkpoint
        names = [name for name in self._model.state_dict() if _begins(name, "model", prefixes)]
        kept = self._optimizer_states(prefixes) if wanted["optimizer"] is self._optimizer else {}
        saved.load_into(wanted | ({} if self._at else {"train": mp.SKIP}), exclude=[f"model/{name}" for name in names])
        for parameter, state in kept.items():
            self._optimizer.state.pop(parameter, None)
            if state is not None:
                self._optimizer.state[parameter] = state
        return train

    def _optimizer_states(self, prefixes: list[str]) -> dict[Any, Any]:
        """Return the present states of the parameters that are excluded, None where there is none yet."""
        return {
            parameter: self._optimizer.state.get(parameter)
            for name, parameter in self._model.named_parameters()
            if _begins(name, "optimizer", prefixes) or _begins(name, "optimizer.state", prefixes)
        }

    def _check_freeze(self, checkpoint: mp.Checkpoint, expected: Iterable[Mapping[str, Any]] | None) -> None:
        try:
            saved = _frozen(checkpoint.metadata.get("vlm_freeze") or ())
        except (KeyError, TypeError):
            _log.warning("step %d: its vlm_freeze cannot be read, and is not checked", checkpoint.step)
            return
        current = _frozen(expected or ())
        differ = {name: (saved[name], current[name]) for name in sorted(saved.keys() & current.keys())}
        differ = {name: both for name, both in differ.items() if both[0] != both[1]}
        if not differ:
            return
        text = f"VLM freeze mismatch at step {checkpoint.step}: " + "; ".join(
            [f"{name}: saved {old}, now {new}" for name, (old, new) in differ.items()]
            + [f"only saved: {name}" for name in sorted(saved.keys() - current.keys())]
            + [f"only now: {name}" for name in sorted(current.keys() - saved.keys())]
        )
        if not self._config.ignore_freeze_mismatch:
            raise ValueError(f"{text}\n  Set checkpoint.ignore_freeze_mismatch to load it all the same.")
        _log.warning("%s", text)


def _frozen(entries: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    return {str(entry["module"]): bool(entry["frozen"]) for entry in entries}


def _begins(name: str, part: str, prefixes: Iterable[str]) -> bool:
    """Return whether a key of a part begins with a prefix, whole names at a time: `layers.1` is not `layers.10`."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes for key in (name, f"{part}.{name}"))
