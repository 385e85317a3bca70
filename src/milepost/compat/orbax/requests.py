# SPDX-License-Identifier: Apache-2.0
"""What a program asks a manager to save or restore: arguments by item, also of the deprecated interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

from milepost.compat.orbax import args as args_lib
from milepost.compat.orbax import items
from milepost.compat.orbax.args import Composite
from milepost.compat.orbax.checkpointers import AsyncCheckpointer, Checkpointer
from milepost.compat.orbax.record import DEFAULT
from milepost.compat.orbax.registry import CheckpointHandlerRegistry, Handlers


@final
class Requests:
    """The items of a manager.

    Attributes:
        handlers: theirs.
        default: whether there is one item without a name; None until the first save or restore tells.
        in_background: whether the deprecated `checkpointers` save in the background; None without them.
    """

    def __init__(
        self,
        checkpointers: Any,
        item_names: Sequence[str] | None,
        item_handlers: Any,
        registry: CheckpointHandlerRegistry | None,
    ) -> None:
        given = {"checkpointers": checkpointers, "item_names": item_names, "item_handlers": item_handlers}
        said = [name for name, value in given.items() if value]
        if registry is not None and said:
            raise ValueError(f"handler_registry and {', '.join(said)} are mutually exclusive: use handler_registry")
        if checkpointers is not None and len(said) > 1:
            raise ValueError(f"{' and '.join(said)} are mutually exclusive")
        self.default: bool | None = None
        self.in_background: bool | None = None
        if checkpointers is not None:
            self.default = not isinstance(checkpointers, Mapping)
            self.handlers = self._of_checkpointers({DEFAULT: checkpointers} if self.default else checkpointers)
        elif item_handlers is not None and not isinstance(item_handlers, Mapping):
            if item_names:
                raise ValueError("item_names and a single item_handlers are mutually exclusive")
            self.default = True
            self.handlers = Handlers(given={DEFAULT: item_handlers}, closed=True)
        elif item_names is None and item_handlers is None:
            self.handlers = Handlers(registry)
        else:
            self.default = False
            own = cast("Mapping[str, Any]", item_handlers or {})
            self.handlers = Handlers(given={**dict.fromkeys(item_names or ()), **own}, closed=True)

    def _of_checkpointers(self, checkpointers: Mapping[str, Any]) -> Handlers:
        wrong = [name for name, each in checkpointers.items() if not isinstance(each, Checkpointer)]
        if wrong:
            raise ValueError(f"checkpointers: {', '.join(wrong)}: expected a Checkpointer for each item")
        self.in_background = any(isinstance(each, AsyncCheckpointer) for each in checkpointers.values())
        return Handlers(given={name: each.handler for name, each in checkpointers.items()}, closed=True)

    def to_save(self, given: Any, kwargs: Any, args: Any) -> tuple[Mapping[str, Any], bool]:
        """Return arguments by item, and whether there is one item without a name. Nothing is changed.

        Raises:
            ValueError: they do not fit this manager.
        """
        self._check_items(given)
        if args is None and given is None:
            raise ValueError("Must provide `args` for `save`.")
        if args is None:
            return self._deprecated(given, kwargs, 0), bool(self.default)
        return self._named(args, self.default)

    def to_restore(
        self, given: Any, kwargs: Any, args: Any, *, saved_default: bool
    ) -> tuple[Mapping[str, Any] | None, bool]:
        """Return arguments by item, None for all as they were saved, and whether there is one item without a name.

        Raises:
            ValueError: they do not fit this manager, or what was saved.
        """
        self._check_items(given)
        default = saved_default if self.default is None else self.default
        if args is not None:
            return self._named(args, default)
        if given is None and kwargs is None:
            return None, default
        return self._deprecated(given, kwargs, 1), default

    def _check_items(self, given: Any) -> None:
        if args_lib.is_args(given):
            raise ValueError(
                "Found an instance of `CheckpointArgs` provided for `items`: specify the argument keyword, `args=...`."
            )

    def _named(self, args: Any, default: bool | None) -> tuple[Mapping[str, Any], bool]:
        if not args_lib.is_args(args):
            raise ValueError(f"Expected args of type `CheckpointArgs`; found {type(args)}.")
        single = not isinstance(args, Composite)
        if default is not None and single != default:
            raise ValueError(
                "Cannot provide `args` of type `Composite` when dealing with a single, unnamed (default)"
                " checkpointable object."
                if default
                else "Must provide `args` of type `Composite` when dealing with multiple checkpointable objects."
            )
        return ({DEFAULT: args} if single else args), single

    def _deprecated(self, given: Any, kwargs: Any, which: int) -> dict[str, Any]:
        """Return arguments for items that the constructor was given checkpointers or handlers for."""
        if self.default:
            given = None if given is None else {DEFAULT: given}
            kwargs = None if kwargs is None else {DEFAULT: kwargs}
        given, kwargs = given or {}, kwargs or {}
        if not isinstance(given, Mapping) or not isinstance(kwargs, Mapping):
            raise ValueError("items and their keyword arguments are dicts by item")
        by_name, extra = cast("Mapping[str, Any]", given), cast("Mapping[str, Any]", kwargs)
        return {
            name: self._arguments(name, which, by_name.get(name), extra.get(name) or {})
            for name in dict.fromkeys([*by_name, *extra])
        }

    def _arguments(self, name: str, which: int, item: Any, kwargs: Mapping[str, Any]) -> Any:
        handler = self.handlers.named(name)
        if handler is None:
            raise ValueError(f'Unknown key "{name}": give the constructor a checkpointer for it, or use `args`')
        if args_lib.has_registered_args(handler):
            return args_lib.get_registered_args_cls(handler)[which](item, **kwargs)  # pyright: ignore[reportCallIssue]
        return items.Call(item, **kwargs)
