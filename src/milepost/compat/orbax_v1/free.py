# SPDX-License-Identifier: Apache-2.0
"""The free functions: one checkpoint at a path of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import milepost as mp
from milepost.compat.orbax_v1 import items, places, tensors
from milepost.compat.orbax_v1.context import Context, get_context
from milepost.compat.orbax_v1.described import CheckpointMetadata, PyTreeMetadata
from milepost.compat.orbax_v1.errors import InvalidLayoutError
from milepost.compat.orbax_v1.items import AUTO, STATE
from milepost.compat.orbax_v1.options import CheckpointLayout
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.compat.orbax_v1.response import AsyncResponse, Response, started
from milepost.interop.orbax import beside


def save(
    path: PathLike,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> None:
    """Save a tree at a path and return when it is durable.

    Args:
        path: where nothing is yet, unless `overwrite`.
        state: dicts, lists, tuples, dataclasses, registered nodes of arrays and values.
        checkpointable_name: the name to save it under.
        overwrite: replace the checkpoint that is there; there is no moment without it.
        custom_metadata: anything that JSON can hold.

    Raises:
        ValueError: something is there, or the state holds nothing or what cannot be stored.
    """
    save_async(
        path, state, checkpointable_name=checkpointable_name, overwrite=overwrite, custom_metadata=custom_metadata
    ).result()


def save_async(
    path: PathLike,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Any = None,
) -> AsyncResponse[None]:
    """Save a tree in the background. When this returns, every array may be overwritten. Arguments as in `save`."""
    return save_checkpointables_async(
        path, {checkpointable_name: state}, overwrite=overwrite, custom_metadata=custom_metadata
    )


def save_checkpointables(
    path: PathLike, checkpointables: dict[str, Any], *, overwrite: bool = False, custom_metadata: Any = None
) -> None:
    """Save several named objects as one checkpoint. Other arguments as in `save`."""
    save_checkpointables_async(path, checkpointables, overwrite=overwrite, custom_metadata=custom_metadata).result()


def save_checkpointables_async(
    path: PathLike, checkpointables: dict[str, Any], *, overwrite: bool = False, custom_metadata: Any = None
) -> AsyncResponse[None]:
    """Save several named objects in the background. Arguments as in `save_checkpointables`."""
    context = get_context()
    if context.checkpoint_layout is CheckpointLayout.SAFETENSORS:
        raise NotImplementedError("saving has one layout; every pack in it is a safetensors file anyway")
    if not overwrite and places.exists(path):
        raise ValueError(f"Destination {path} already exists.\n  Choose another path, or pass overwrite=True.")
    tree, record = items.to_save(checkpointables, context)
    return write(path, tree, items.to_metadata(custom_metadata, record), context)


def write(path: PathLike, tree: dict[str, Any], metadata: dict[str, Any], context: Context) -> AsyncResponse[None]:
    """Begin to write a native tree as the checkpoint at a path, in place of the one that is there."""
    saver = places.saver_at(path, context)
    return begun(saver, 0, tree, metadata, f"the save at {path}", lambda: finished(Path(path), context))


def begun(
    saver: mp.Checkpointer,
    step: int,
    tree: dict[str, Any],
    metadata: dict[str, Any],
    what: str,
    after: Callable[[], None],
) -> AsyncResponse[None]:
    """Begin a save, after which the Checkpointer is closed."""
    try:
        pending = saver.save(step, tree, metadata=metadata, overwrite=True)
    except mp.UnsupportedLeafError as error:
        saver.close()
        raise items.refused(error) from error
    except BaseException:
        saver.close()
        raise
    response = Response[None](what)

    def over(done: mp.PendingSave) -> None:
        failure: BaseException | None = None
        try:
            done.result()
            after()
        except Exception as error:  # noqa: BLE001 raised by `result`
            failure = error
        finally:
            saver.close()
        response.finish(error=failure)

    pending.add_done_callback(over)
    return response


def finished(path: Path, context: Context) -> None:
    """Do what the options ask for after a commit."""
    mode = context.file.path_permission_mode
    if mode is not None:
        path.chmod(mode)
    if context.asynchronous.post_finalization_callback is not None:
        context.asynchronous.post_finalization_callback()


def load(path: PathLike, abstract_state: Any = None, *, checkpointable_name: str | None = AUTO) -> Any:
    """Return the tree that was saved at a path, every byte checked.

    Args:
        path: of a checkpoint, or of a step of a Checkpointer.
        abstract_state: a tree of shapes, dtypes and shardings, or of arrays: its containers, dtypes and shardings are
            those of the result. `...` leaves what is saved there unread. May be what `metadata` returned.
        checkpointable_name: by default `state`, or the first name that holds a tree.

    Raises:
        InvalidLayoutError: nothing is there, or nothing of that name.
        ValueError: the abstract tree does not fit; all differences at once, before anything is read.
    """
    if tensors.asked_for(path, get_context()):
        return tensors.load(path, abstract_of(abstract_state))
    checkpoint = places.opened(path)
    name = _name(checkpoint, checkpointable_name)
    return items.load_items(checkpoint, {name: abstract_of(abstract_state)}, get_context())[name]


def load_async(
    path: PathLike, abstract_state: Any = None, *, checkpointable_name: str | None = STATE
) -> AsyncResponse[Any]:
    """Load a tree in the background. Arguments as in `load`."""
    return started(f"the load of {path}", lambda: load(path, abstract_state, checkpointable_name=checkpointable_name))


def load_checkpointables(path: PathLike, abstract_checkpointables: Any = None) -> dict[str, Any]:
    """Return several named objects.

    Args:
        path: as in `load`.
        abstract_checkpointables: the names to load, each with its abstract object or None; by default all.

    Raises:
        KeyError: a name is not there.
    """
    abstract = abstract_of(abstract_checkpointables)
    if abstract is not None:
        items.check_names(abstract, "abstract_checkpointables")
    return items.load_items(places.opened(path), abstract, get_context())


def load_checkpointables_async(path: PathLike, abstract_checkpointables: Any = None) -> AsyncResponse[dict[str, Any]]:
    """Load several named objects in the background. Arguments as in `load_checkpointables`."""
    return started(f"the load of {path}", lambda: load_checkpointables(path, abstract_checkpointables))


def metadata(path: PathLike, checkpointable_name: str | None = AUTO) -> CheckpointMetadata[PyTreeMetadata]:
    """Describe the tree at a path; no array is read. Arguments as in `load`."""
    if tensors.asked_for(path, get_context()):
        return CheckpointMetadata(get_context().file.path_class(path), metadata=tensors.described(path))
    checkpoint = places.opened(path)
    name = _name(checkpoint, checkpointable_name)
    return _metadata(path, checkpoint, items.describe_items(checkpoint, [name])[name])


def checkpointables_metadata(path: PathLike) -> CheckpointMetadata[dict[str, Any]]:
    """Describe everything at a path, by name."""
    checkpoint = places.opened(path)
    return _metadata(path, checkpoint, items.describe_items(checkpoint))


def _metadata(path: PathLike, checkpoint: mp.Checkpoint, described: Any) -> CheckpointMetadata[Any]:
    return CheckpointMetadata(
        get_context().file.path_class(path),
        metadata=described,
        init_timestamp_nsecs=items.record_of(checkpoint).get("init_timestamp_nsecs"),
        commit_timestamp_nsecs=items.committed_ns(checkpoint),
        custom_metadata=items.custom_metadata(checkpoint.metadata),
    )


def delete(path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False) -> bool:
    """Delete a checkpoint, or one of its named objects; return whether there was anything to delete.

    Raises:
        FileNotFoundError: nothing is there, unless `missing_ok`.
        ValueError: it is the last named object.
        InvalidLayoutError: what is there is no checkpoint.
    """
    if checkpointable_name is not None:
        check_item_name(checkpointable_name)
    where = Path(path)
    if not where.exists():
        if missing_ok:
            return False
        raise FileNotFoundError(f"there is no checkpoint at {where}")
    checkpoint = places.opened(where)
    theirs = beside.at(where)
    if theirs is not None:
        if checkpointable_name is not None:
            raise InvalidLayoutError(items_of_orbax(checkpoint))
        beside.delete(theirs)
        return True
    if (where / "manifest.json").exists():
        root, step = where.parent, checkpoint.step
        if not (root / "milepost.json").exists():
            raise InvalidLayoutError(f"{where} is a step without its root: remove the folder")
    else:
        root, step = where, checkpoint.step
    if checkpointable_name is None:
        mp.open(root).delete(step)
        if root == where:
            places.removed(root)
        return True
    with mp.Checkpointer(root, save="every step", keep="all") as saver:
        return delete_item(saver, checkpoint, checkpointable_name, missing_ok=missing_ok)


def items_of_orbax(checkpoint: mp.Checkpoint) -> str:
    """Return why one object of a checkpoint of Orbax is not deleted."""
    return (
        f"{checkpoint!r} was written by Orbax, whose checkpoints are not changed, only deleted whole\n"
        "  Import it first (`milepost import`)."
    )


def delete_item(saver: mp.Checkpointer, checkpoint: mp.Checkpoint, name: str, *, missing_ok: bool) -> bool:
    """Save a step again without one of its objects, and return whether it had it. Unchanged files are linked."""
    if name not in items.saved_tree(checkpoint):
        if missing_ok:
            return False
        raise FileNotFoundError(f"{checkpoint!r} has no {name!r}")
    tree, metadata = items.without(checkpoint, name)
    saver.save(checkpoint.step, tree, metrics=checkpoint.metrics, metadata=metadata, overwrite=True).result()
    return True


def delete_async(
    path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> AsyncResponse[bool]:
    """Delete in the background. Arguments as in `delete`."""
    return started(
        f"the deletion of {path}",
        lambda: delete(path, checkpointable_name=checkpointable_name, missing_ok=missing_ok),
    )


def check_item_name(name: Any) -> None:
    """Refuse what cannot be the name of an object to delete."""
    if not isinstance(name, str):
        raise TypeError("checkpointable_name: expected text or None")
    items.check_name(name, "checkpointable_name")


def is_orbax_checkpoint(path: PathLike) -> bool:
    """Return whether a checkpoint lies at a path."""
    try:
        places.opened(path)
    except (InvalidLayoutError, OSError):
        return False
    except mp.CorruptionError:
        pass  # it is one, though a damaged one
    return True


def abstract_of(value: Any) -> Any:
    """Return the abstract tree that was given, also as what `metadata` returned."""
    return cast("Any", value).metadata if isinstance(value, CheckpointMetadata) else value


def _name(checkpoint: mp.Checkpoint, name: str | None) -> str:
    if name is None or name == AUTO:
        return items.auto_name(checkpoint)
    items.check_name(name, "checkpointable_name")
    saved = items.saved_tree(checkpoint)
    if name not in saved:
        raise InvalidLayoutError(f"{checkpoint!r} has no {name!r}; there are {', '.join(map(repr, saved))}")
    return name


def _deprecated(old: str, new: Any) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is deprecated: use {new.__name__}", DeprecationWarning, stacklevel=2)
        return new(*args, **kwargs)

    function.__name__ = function.__qualname__ = old
    function.__doc__ = f"The older name of `{new.__name__}`."
    return function


save_pytree = _deprecated("save_pytree", save)
save_pytree_async = _deprecated("save_pytree_async", save_async)
load_pytree = _deprecated("load_pytree", load)
load_pytree_async = _deprecated("load_pytree_async", load_async)
pytree_metadata = _deprecated("pytree_metadata", metadata)
