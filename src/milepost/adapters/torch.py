# SPDX-License-Identifier: Apache-2.0
"""PyTorch: dense tensors of every dtype with bytes, modules matched by parameter name, optimizers bit for bit.

Run here on CPU tensors only; other devices go through `Tensor.copy_`, by PyTorch's public contract.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, final

import numpy as np
import torch

from milepost.adapters import Array, Piece, Read, flat_bytes, register_provider
from milepost.errors import UnsupportedLeafError
from milepost.model.leaf import Box, LeafSpec, dtype_info

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
_MOVERS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64)}


def _movable(tensor: torch.Tensor) -> tuple[torch.Tensor, type[Any]]:
    if tensor.dtype == torch.complex128:
        return tensor, np.complex128
    mover, dtype = _MOVERS[tensor.element_size()]
    return tensor.view(mover), dtype


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
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"a tensor subclass {type(tensor).__name__}\n  Save the plain tensors that it is made of."
    if tensor.dtype not in _NAMES:
        return f"a tensor of {tensor.dtype}\n  Convert it to one of {', '.join(_DTYPES)}."
    return ""


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
        return LeafSpec("array", _NAMES[array.dtype], tuple(array.shape))

    def identity(self, array: torch.Tensor) -> Hashable | None:
        if _refusal(array) or array.is_meta or not array.numel():
            return None
        address = array.untyped_storage().data_ptr()
        return address, array.storage_offset(), array.shape, array.stride(), array.dtype, array.device, array.is_conj()

    def pieces(self, array: torch.Tensor) -> Sequence[Piece]:
        return [Piece(Box.whole(tuple(array.shape)), array)]

    def start(self, pieces: Sequence[Piece]) -> None:
        pass

    def capture(self, piece: Piece, out: memoryview | None) -> memoryview:
        tensor: torch.Tensor = piece.handle.detach().resolve_conj().resolve_neg()
        if out is None:
            source, _ = _movable(tensor.cpu().contiguous())
            return flat_bytes(source.numpy())
        if tensor.numel():
            source, _ = _movable(tensor)
            torch.frombuffer(out, dtype=source.dtype).view(source.shape).copy_(source)
        return out

    def place(self, like: Any, spec: LeafSpec, read: Read) -> torch.Tensor:
        data = read(Box.whole(spec.shape))
        tensor = _tensor(data, _DTYPES[spec.dtype])
        if like is None:
            return tensor
        if not like.is_meta and not like.is_contiguous():
            tensor = torch.empty_like(like, dtype=tensor.dtype, device="cpu", requires_grad=False).copy_(tensor)
        if not like.is_meta:
            tensor = tensor.to(like.device)
        if isinstance(like, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=like.requires_grad)
        return tensor.requires_grad_(like.requires_grad)

    def fill(self, target: torch.Tensor, spec: LeafSpec, read: Read) -> bool:
        plain = target.detach()
        if plain.device.type == "cpu" and plain.is_contiguous() and not plain.is_conj() and not plain.is_neg():
            info = dtype_info(spec.dtype)
            movable, _ = _movable(plain)
            read(Box.whole(spec.shape), movable.numpy().view(info.numpy).reshape(spec.shape))
        else:
            plain.copy_(_tensor(read(Box.whole(spec.shape)), _DTYPES[spec.dtype]))
        return True

    def abstract(self, value: Any) -> bool:
        return value.is_meta


def _tensor(data: Array, dtype: torch.dtype) -> torch.Tensor:
    if not data.size:
        return torch.empty(data.shape, dtype=dtype)
    if dtype == torch.complex128:
        return torch.from_numpy(data)
    _, mover = _MOVERS[data.itemsize]
    return torch.from_numpy(data.view(mover).reshape(data.shape)).view(dtype)


ADAPTER = TorchAdapter()


@final
class _Module:
    """Modules: compared by parameter name, tied parameters stay tied."""

    by_leaf = True
    by_value = False

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.nn.Module)

    def tree(self, value: torch.nn.Module) -> Any:
        return dict(value.state_dict())

    def restore(self, value: torch.nn.Module, tree: Any) -> None:
        state = value.state_dict()
        metadata = getattr(state, "_metadata", None)
        state.update(tree)
        if metadata is not None:
            state._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue] what load_state_dict looks for
        value.load_state_dict(state)


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
            for name, saved in tree["state"].get(index, {}).items():
                now = value.state[parameter].get(name)
                if isinstance(now, torch.Tensor) and isinstance(saved, torch.Tensor) and now.dtype != saved.dtype:
                    value.state[parameter][name] = saved.to(now.device)


register_provider(_Optimizer())
register_provider(_Module())
