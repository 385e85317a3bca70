# SPDX-License-Identifier: Apache-2.0
"""PyTorch: dense tensors of every dtype with bytes, modules matched by parameter name, optimizers bit for bit.

Run here on CPU tensors only; other devices go through `Tensor.copy_`, by PyTorch's public contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast, final

import numpy as np
import torch

from milepost.adapters import Array, Nature, Piece, Read, flat_bytes, register_provider
from milepost.errors import StructureError, UnsupportedLeafError
from milepost.model.leaf import Box, LeafSpec, array_spec, dtype_info

_NAMES: dict[torch.dtype, str] = {
    getattr(torch, name): name
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "bfloat16", "complex32", "complex64", "complex128",
        "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    )
    if hasattr(torch, name)
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# What NumPy has no dtype for is moved as integers of the same size.
_MOVERS: dict[int, tuple[torch.dtype, Any]] = {
    1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64),
    16: (torch.complex128, np.complex128),
}  # fmt: skip


_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _movable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_MOVERS[tensor.element_size()][0])


def _refusal(tensor: torch.Tensor) -> str:
    """Return why the tensor cannot be stored and what to do, empty when it can."""
    if type(tensor).__name__ == "DTensor":
        return "a DTensor\n  Save `tensor.full_tensor()`; sharded saves need a group of processes."
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}\n  Save its `indices()` and `values()`, or `to_dense()`."
    if tensor.is_quantized:
        return "a quantized tensor\n  Save its `int_repr()`, `q_scale()` and `q_zero_point()`, or `dequantize()`."
    if tensor.is_nested:
        return "a nested tensor\n  Save the list from `unbind()`."
    if type(tensor) not in _TYPES:
        if isinstance(tensor, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer):
            return "a parameter without a shape yet\n  Run the lazy module once before."
        return f"a tensor subclass {type(tensor).__name__}\n  Save the plain tensors that it is made of."
    if tensor.dtype not in _NAMES:
        return f"a tensor of {tensor.dtype}\n  Convert it to one of {', '.join(_DTYPES)}."
    if _address(tensor) is None:
        return "a tensor of a transform such as `torch.func.vmap`\n  Save outside of the transform."
    return ""


def _address(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a wrapper without memory of its own
        return None


@final
class TorchAdapter:
    """Dense tensors of `torch.Tensor`, `Parameter` and `Buffer`."""

    name = "torch"
    immutable = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def spec(self, array: torch.Tensor) -> LeafSpec:
        if refusal := _refusal(array):
            what, _, remedy = refusal.partition("\n")
            raise UnsupportedLeafError(f"{what} cannot be stored\n{remedy}")
        return array_spec(_NAMES[array.dtype], tuple(array.shape))

    def identity(self, array: torch.Tensor) -> Hashable | None:
        if type(array) not in _TYPES or array.layout != torch.strided or array.is_nested or array.is_meta:
            return None
        if not array.numel():
            return None
        if (address := _address(array)) is None:
            return None
        bits = array.is_conj(), array.is_neg()
        return address, array.storage_offset(), array.shape, array.stride(), array.dtype, array.device, bits

    def likeness(self, array: torch.Tensor) -> Hashable | None:
        if type(array) not in _TYPES or array.is_nested or _address(array) is None:
            return None
        return array.dtype, array.shape, array.layout, array.device

    def pieces(self, array: torch.Tensor) -> Sequence[Piece]:
        return [Piece(Box.whole(tuple(array.shape)), array)]

    def start(self, pieces: Sequence[Piece]) -> None:
        pass

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        source = _movable(piece.handle.detach().resolve_conj().resolve_neg())
        if out is None:
            return flat_bytes(source.cpu().contiguous().numpy())
        if source.numel():
            torch.frombuffer(out, dtype=source.dtype).view(source.shape).copy_(source)
        return out

    def place(self, like: Any, spec: LeafSpec, read: Read) -> torch.Tensor:
        tensor = _tensor(read(Box.whole(spec.shape)), _DTYPES[spec.dtype])
        if like is None:
            return tensor
        if not like.is_meta:
            if not like.is_contiguous():
                memory = _movable(tensor)
                dense = torch.empty_like(like, dtype=memory.dtype, device="cpu", requires_grad=False)
                tensor = dense.copy_(memory).view(tensor.dtype)
            tensor = tensor.to(like.device)
        if isinstance(like, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=like.requires_grad)
        if isinstance(like, torch.nn.Buffer):
            return torch.nn.Buffer(tensor, persistent=getattr(like, "persistent", True))
        return tensor.requires_grad_(like.requires_grad)

    def check_like(self, like: Any, spec: LeafSpec) -> None:
        if spec.dtype not in _DTYPES:
            raise StructureError(f"PyTorch has no {spec.dtype}\n  Give a NumPy `like` there.")

    def fill(self, target: torch.Tensor, spec: LeafSpec, read: Read) -> None:
        plain = target.detach()
        if (memory := self.memory(plain)) is not None:
            read(Box.whole(spec.shape), memory)
        elif plain.is_conj() or plain.is_neg():
            plain.copy_(_tensor(read(Box.whole(spec.shape)), _DTYPES[spec.dtype]))
        else:
            _movable(plain).copy_(_movable(_tensor(read(Box.whole(spec.shape)), _DTYPES[spec.dtype])))

    def memory(self, target: torch.Tensor) -> Array | None:
        plain = target.detach()
        if plain.is_conj() or plain.is_neg() or plain.device.type != "cpu" or not plain.is_contiguous():
            return None
        dtype = dtype_info(_NAMES[plain.dtype]).numpy
        return _movable(plain).numpy().view(dtype).reshape(tuple(plain.shape))

    def nature(self, value: Any) -> Nature:
        return "abstract" if value.is_meta else "variable"


def _tensor(data: Array, dtype: torch.dtype) -> torch.Tensor:
    if not data.size:
        return torch.empty(data.shape, dtype=_MOVERS[dtype.itemsize][0]).view(dtype)
    memory: Any = data.view(_MOVERS[data.itemsize][1]).reshape(data.shape)
    tensor: torch.Tensor = torch.from_numpy(memory)  # pyright: ignore[reportUnknownMemberType]
    return tensor.view(dtype)


ADAPTER = TorchAdapter()


@final
class _Module:
    """Modules: compared by parameter name, tied parameters stay tied."""

    by_leaf = True
    by_value = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.nn.Module)

    def tree(self, value: torch.nn.Module) -> Any:
        return value.state_dict()

    def restore(self, value: torch.nn.Module, tree: Any) -> None:
        value.load_state_dict(tree)


@final
class _Optimizer:
    """Optimizers: `load_state_dict` casts moments to the parameter's dtype; here they keep the saved one."""

    by_leaf = False
    by_value = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.optim.Optimizer)

    def tree(self, value: torch.optim.Optimizer) -> Any:
        return value.state_dict()

    def restore(self, value: torch.optim.Optimizer, tree: Any) -> None:
        value.load_state_dict(tree)
        parameters = [parameter for group in value.param_groups for parameter in group["params"]]
        indices = [index for group in tree["param_groups"] for index in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):
            if index in tree["state"]:
                value.state[parameter] = _as_saved(value.state[parameter], tree["state"][index])


def _as_saved(now: Any, saved: Any) -> Any:
    """Return the present state with each tensor that was cast replaced by the saved one."""
    if isinstance(now, torch.Tensor) and isinstance(saved, torch.Tensor):
        return saved.to(now.device) if now.dtype != saved.dtype else now
    return _merged(now, saved, _as_saved, default=now)


def _merged(shape: Any, other: Any, join: Callable[[Any, Any], Any], default: Any) -> Any:
    """Return two dicts, or lists of one length, joined item by item, like the first; else the default."""
    if isinstance(shape, dict) and isinstance(other, dict):
        items = cast("dict[Any, Any]", other)
        return {key: join(value, items.get(key)) for key, value in cast("dict[Any, Any]", shape).items()}
    if isinstance(shape, list) and isinstance(other, list):
        left, right = cast("list[Any]", shape), cast("list[Any]", other)
        return [join(*pair) for pair in zip(left, right, strict=True)] if len(left) == len(right) else default
    return default


@final
class _Scheduler:
    """Schedulers: their state holds a `Counter`, which is a dict in a checkpoint, and is to be one again."""

    by_leaf = False
    by_value = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.optim.lr_scheduler.LRScheduler)

    def tree(self, value: Any) -> Any:
        return value.state_dict()

    def restore(self, value: Any, tree: Any) -> None:
        value.load_state_dict(_counted(tree, value.state_dict()))


def _counted(saved: Any, present: Any) -> Any:
    """Return the saved state with a `Counter` wherever there is one at present."""
    if isinstance(present, Counter) and isinstance(saved, dict):
        return Counter(cast("dict[Any, int]", saved))
    return _merged(saved, present, _counted, default=saved)


@final
class _Generator:
    """`torch.Generator`: its state is one tensor of bytes."""

    by_leaf = False
    by_value = True

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Generator)

    def tree(self, value: torch.Generator) -> Any:
        return value.get_state()

    def restore(self, value: torch.Generator, tree: Any) -> None:
        value.set_state(tree)


for _provider in (_Generator(), _Scheduler(), _Optimizer(), _Module()):
    register_provider(_provider)
