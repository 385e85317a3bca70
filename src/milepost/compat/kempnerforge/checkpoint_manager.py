# SPDX-License-Identifier: Apache-2.0
"""Save and restore a model, its optimizer and the train state."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np

import milepost as mp
from milepost.compat.kempnerforge.async_checkpointer import STEPS, check_alone, checked_mode, staged
from milepost.compat.kempnerforge.config import AsyncCheckpointMode, CheckpointConfig
from milepost.compat.kempnerforge.train_state import build_train_state, restore_train_state, torch_module

_log = logging.getLogger("milepost")
_WRAPPER = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into the names of parameters, but not into those of `state_dict`."""


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
        check_alone(process_group)
        self.config, self.model, self.optimizer, self.base_dir = config, model, optimizer, Path(config.dir).absolute()
        self._module = getattr(model, "_orig_mod", model)  # what `torch.compile` wraps: names are those without it
        self._at = "" if pp_rank is None else f"pp{pp_rank}"
        self._mode = checked_mode(config.async_mode)
        self._saver: mp.Checkpointer | None = None
        self._resumed: mp.Checkpoint | None = None
        self._loader_state: Any = None

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
        # Random states and positions are those of each process.
        train |= {name: mp.PerProcess(train[name]) for name in ("rng", "dataloader") if name in train}
        metadata: dict[str, Any] = {"step": step, "tokens_seen": tokens_seen}
        if freeze := (extra or {}).get("vlm_freeze"):
            metadata["vlm_freeze"] = [{"module": name, "frozen": is_} for name, is_ in sorted(_frozen(freeze).items())]
        parts: dict[str, Any] = {"model": self._module, "optimizer": self.optimizer}
        if self._mode == AsyncCheckpointMode.async_pinned:
            parts = staged(parts)
        tree = {**({self._at: parts} if self._at else parts), "train": train}
        pin = "milestone" if self.config.is_dynamic_milestone(step) else None
        reason = pin or (f"every {self.config.interval} steps" if self.config.should_save(step) else None)
        saver = self._opened()
        saver.save(
            step, tree, metadata=metadata, reason=reason, pin=pin, overwrite=True
        ).add_done_callback(self._point_latest)  # fmt: skip
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
            keep = mp.Latest(self.config.keep_last_n) if self.config.keep_last_n > 0 else mp.All()
            self._saver = mp.Checkpointer(
                self.base_dir, save="first", keep=keep, step_format=STEPS, resume_from=self._resumed, shared=True
            )
            self._resumed = None
        return self._saver

    def _point_latest(self, pending: mp.PendingSave) -> None:
        """Swap the link `latest`, which scripts read; nothing here depends on it."""
        if not pending.failed:
            (link := self.base_dir / "latest.tmp").unlink(missing_ok=True)
            link.symlink_to(pending.result().info.slot)
            link.replace(self.base_dir / "latest")

    def export(self, folder: str | Path) -> Path:
        """Write the model's weights to `folder/model.safetensors`, floating ones as `export_dtype`.

        Raises:
            ModuleNotFoundError: the package `safetensors` is not installed.
        """
        if (name := self.config.export_dtype) not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"export_dtype={name!r}: expected float32, bfloat16 or float16")
        dtype = getattr(torch_module(), name)
        weights = {
            key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
            for key, value in self._module.state_dict().items()
        }
        data: bytes = import_module("safetensors.torch").save(weights, metadata={"format": "pt"})
        path = Path(folder) / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (partial := path.with_suffix(".tmp")).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(path)

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
                _say_skipped(error)
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
        given, own = path or self.config.load_path, _catalog(self.base_dir)
        line = () if own is None else _newest_first(own)
        if not given:
            return line, True
        where = Path(given)
        if own is not None and where.parent.resolve() == self.base_dir.resolve():
            newest = resolve_resume_path(self.base_dir)
            if newest is not None and where.name in ("latest", newest.name):
                return line, True  # what a program that resumes by itself passes
            named = re.fullmatch(r"step_(\d+)(\.g\d+)?", where.name)
            found = own.get(int(named[1])) if named else None
            if found is not None and found.info.slot == where.name:
                return [found], True
        there = _catalog(where)
        found = None if there is None else there.latest()
        if found is None:
            raise FileNotFoundError(f"{where} holds no checkpoint: check `load_path`, or the path that was given")
        return [found], False

    def _restored(self, checkpoint: mp.Checkpoint, excluded: set[str]) -> dict[str, Any] | None:
        """Restore model and optimizer; return the train state, which was read before anything changed."""
        prefixes = [prefix.rstrip(".") for prefix in self.config.exclude_from_loading if prefix.rstrip(".")]
        excluded |= {"model", "optimizer"}.intersection(prefixes)
        parts = {"model": self._module, "optimizer": self.optimizer}
        wanted: dict[str, Any] = {name: mp.SKIP if name in excluded else part for name, part in parts.items()}
        train = None
        if any(name.startswith("train/") for name in checkpoint.leaves):
            train = checkpoint.at("train").load(frameworks="saved")
        names = [f"model/{name}" for name in self._module.state_dict() if _begins(name, "model", prefixes)]
        kept = {} if "optimizer" in excluded else self._optimizer_states(prefixes)
        saved = checkpoint.at(self._at) if self._at else checkpoint
        saved.load_into(wanted if self._at else wanted | {"train": mp.SKIP}, exclude=names)
        for parameter, state in kept.items():
            self.optimizer.state.pop(parameter, None)
            if state is not None:
                self.optimizer.state[parameter] = state
        return train

    def _optimizer_states(self, prefixes: list[str]) -> dict[Any, Any]:
        """Return the present states of the parameters that are excluded, None where there is none yet."""
        named = [(name.replace(_WRAPPER, ""), parameter) for name, parameter in self._module.named_parameters()]
        return {
            parameter: self.optimizer.state.get(parameter)
            for name, parameter in named
            if _begins(name, "optimizer", prefixes) or _begins(name, "optimizer.state", prefixes)
        }

    def _check_freeze(self, checkpoint: mp.Checkpoint, expected: Iterable[Mapping[str, Any]] | None) -> None:
        try:
            saved = _frozen(checkpoint.metadata.get("vlm_freeze") or ())
        except (KeyError, TypeError):
            _log.warning("step %d: its vlm_freeze cannot be read, and is not checked", checkpoint.step)
            return
        now = _frozen(expected or ())
        differ = [name for name in sorted(saved.keys() & now.keys()) if saved[name] != now[name]]
        if not differ:
            return
        text = f"VLM freeze mismatch at step {checkpoint.step}: " + "; ".join(
            [f"{name}: saved {saved[name]}, now {now[name]}" for name in differ]
            + [f"only saved: {name}" for name in sorted(saved.keys() - now.keys())]
            + [f"only now: {name}" for name in sorted(now.keys() - saved.keys())]
        )
        if not self.config.ignore_freeze_mismatch:
            raise ValueError(f"{text}\n  Set checkpoint.ignore_freeze_mismatch to load it all the same.")
        _log.warning("%s", text)


def _frozen(entries: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    return {str(entry["module"]): bool(entry["frozen"]) for entry in entries}


def _begins(name: str, part: str, prefixes: Iterable[str]) -> bool:
    """Return whether a key of a part begins with a prefix, whole names at a time: `layers.1` is not `layers.10`."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes for key in (name, f"{part}.{name}"))


def resolve_resume_path(dir: str | Path) -> Path | None:  # noqa: A002 the original's name
    """Return the folder of the newest checkpoint that is complete, None when there is none."""
    catalog = _catalog(Path(dir))
    newest = None if catalog is None else next(_newest_first(catalog), None)
    return None if newest is None else Path(dir) / newest.info.slot


def _newest_first(catalog: mp.Catalog) -> Iterator[mp.Checkpoint]:
    """Yield the checkpoints in the run's line, from the newest back; one with damaged records is said."""
    for step in sorted(catalog, reverse=True):
        try:
            checkpoint = catalog[step]
        except mp.CorruptionError as error:
            _say_skipped(error)
            continue
        if not checkpoint.info.superseded:
            yield checkpoint


def _say_skipped(error: mp.CorruptionError) -> None:
    what = str(error).partition("\n")[0]
    warnings.warn(f"{what}; going back to the checkpoint before", RuntimeWarning, stacklevel=3)


def _catalog(where: Path) -> mp.Catalog | None:
    """Return the checkpoints at a place, None when there are none; those of the original are a FormatError."""
    try:
        return mp.open(where)
    except mp.NotFoundError:
        if any(where.glob("step_*/**/.metadata")) or (where / ".metadata").exists():
            raise mp.FormatError(
                f"{where} holds checkpoints of KempnerForge itself, which milepost does not read\n"
                "  docs/doors/kempnerforge.md shows how to bring them along, into a folder of its own."
            ) from None
        return None
