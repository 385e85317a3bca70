# SPDX-License-Identifier: Apache-2.0
"""Weights as one safetensors file, for other programs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milepost.compat.kempnerforge.train_state import torch_module

_FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_safetensors(path: Path, weights: Mapping[str, Any], dtype: str) -> Path:
    """Write tensors to a file, floating ones converted to `dtype`; what was there stays until all of it is written."""
    torch = torch_module()
    if dtype not in _FLOATS:
        raise ValueError(f"export_dtype={dtype!r}: expected one of {', '.join(_FLOATS)}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data: list[memoryview] = []
    stop = 0
    for key, value in weights.items():
        floating = value.is_floating_point()
        tensor = (value.to(getattr(torch, dtype)) if floating else value).detach().cpu().contiguous()
        name = _FLOATS[dtype] if floating else _integer_name(str(tensor.dtype))
        start, stop = stop, stop + tensor.numel() * tensor.itemsize
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        data.append(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, *data])
        file.flush()
        os.fsync(file.fileno())
    return partial.replace(path)


def _integer_name(dtype: str) -> str:
    found = re.fullmatch(r"torch\.(bool|int|uint)(\d*)", dtype)
    if found is None:
        raise ValueError(f"{dtype} cannot be exported to safetensors")
    return "BOOL" if found[1] == "bool" else f"{'U' if found[1] == 'uint' else 'I'}{found[2]}"
