# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of 100 GB on a disk that has no room for it: its large arrays are holes in a sparse file.

It is what milepost would have written for zeros, made after the page of the format: a safetensors file, the leaf table
with its digests, and the manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import milepost as mp
from benchmarks.measure import drop_page_cache, resident

_CHUNK = 4 << 20
_LARGE = 256 << 20
_SMALL = 768


class SparseCell:
    """Reads one small leaf of it, with milepost or with safetensors alone."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self._name = name
        self._quick = quick
        self._count = 4 if quick else 400
        self._folder = Path()
        self._pack = Path()

    def begin(self, folder: str) -> dict[str, Any]:
        """Make the checkpoint, and read a leaf of a small one, so that everything is imported."""
        self._folder = Path(folder)
        warm = self._folder.with_name(self._folder.name + "-warm")
        self._pack = _made(warm, 2)
        self._read(warm)
        self._pack = _made(self._folder, self._count)
        return {}

    def end(self) -> dict[str, Any]:
        """Nothing is left to do: the suite removes the folders."""
        return {}

    def leaf(self) -> dict[str, Any]:
        """Open, find the latest, and read one leaf: with a cold cache, then with a warm one."""
        cold = not self._quick and drop_page_cache(self._folder)
        before = resident("VmRSS")
        first = self._read(self._folder)
        grown = resident("VmRSS") - before
        opening, reading = self._read(self._folder)
        return {
            "nbytes": self._pack.stat().st_size, "cold": sum(first) if cold else None, "opening": opening,
            "reading": reading, "memory": max(0, grown),
        }  # fmt: skip

    def _read(self, folder: Path) -> tuple[float, float]:
        start = time.perf_counter()
        if self._name == "safetensors-numpy":
            from safetensors import safe_open

            with safe_open(self._pack, "np") as file:
                opened = time.perf_counter()
                value = file.get_tensor("norm/1")
        else:
            checkpoint = mp.open(folder).latest()
            assert checkpoint is not None
            opened = time.perf_counter()
            value = checkpoint.leaf("norm/1").read()
        read = time.perf_counter()
        assert np.array_equal(value, np.full(_SMALL, 1, np.float32))
        return opened - start, read - opened


def _made(folder: Path, count: int) -> Path:
    """Make a root whose only step has as many arrays of 256 MiB, and a small one beside each; return its pack."""
    small = {str(i): np.full(_SMALL, i, np.float32) for i in range(count)}
    large = {str(i): np.zeros(1, np.float32) for i in range(count)}
    step = folder / mp.save(folder, {"norm": small, "w": large}).info.slot
    table, manifest = (json.loads((step / name).read_bytes()) for name in ("leaves.json", "manifest.json"))
    (pack,) = step.glob("*.safetensors")
    header = _written(pack, table["arrays"])
    table["packs"] = [[pack.name, pack.stat().st_size, len(header), xxhash.xxh3_128_hexdigest(header)]]
    sealed = _sealed(table)
    manifest |= {"nbytes": count * (_LARGE + 4 * _SMALL), "leaves": json.loads(sealed)["digest"]}
    manifest["files"] = [[pack.name, pack.stat().st_size, False], ["leaves.json", len(sealed), False]]
    (step / "leaves.json").write_bytes(sealed)
    (step / "manifest.json").write_bytes(_sealed(manifest))
    return pack


def _written(pack: Path, arrays: dict[str, Any]) -> bytes:
    """Write the pack anew with the large arrays as holes; set where the arrays lie; return the header."""
    zeros = xxhash.xxh3_128_digest(bytes(_CHUNK)) * (_LARGE // _CHUNK)
    old = pack.read_bytes()
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data, end = b"", 0
    for path, array in sorted(arrays.items()):  # the small ones first
        _, offset, nbytes, digest, *_ = array["boxes"][0]
        chunks = ""
        if path.startswith("w/"):
            nbytes, digest = _LARGE, xxhash.xxh3_128_hexdigest(zeros)
            chunks = base64.b64encode(zeros).decode()
            array["shape"] = [_LARGE // 4]
        else:
            data += old[offset : offset + nbytes]
        entries[path] = {"dtype": "F32", "shape": array["shape"], "data_offsets": [end, end + nbytes]}
        array["boxes"] = [[0, end, nbytes, digest, chunks]]
        end += nbytes
    text = json.dumps(entries).encode()
    length = -(-(8 + len(text)) // 4096) * 4096 - 8
    header = length.to_bytes(8, "little") + text.ljust(length)
    for array in arrays.values():
        array["boxes"][0][1] += len(header)
    pack.unlink()
    with open(pack, "xb") as file:
        file.write(header + data)
        file.truncate(len(header) + end)
        os.fsync(file.fileno())
    return header


def _sealed(record: dict[str, Any]) -> bytes:
    record.pop("digest", None)
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return body + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
