# SPDX-License-Identifier: Apache-2.0
"""A reader of format 1-dev, written from docs/reference/format.md alone; values stay tagged JSON."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import xxhash


def record(file: Path) -> Any:
    data = file.read_bytes()
    assert data[-85:] == b',"digest":"sha256:%s"}\n' % hashlib.sha256(data[:-85]).hexdigest().encode(), "damaged"
    found = json.loads(data)
    assert found["format"] == "1-dev"
    return found


def checkpoint(slot: Path) -> Any:
    manifest, table = record(slot / "manifest.json"), record(slot / "leaves.json")
    assert table["digest"] == manifest["leaves"]
    arrays = {path: array(slot, table["packs"], leaf) for path, leaf in table["arrays"].items()}
    return tree(table["tree"], "", arrays | table["values"])


def array(slot: Path, packs: list[Any], leaf: dict[str, Any]) -> Any:
    shape, boxes, big = leaf["shape"], leaf["boxes"], leaf["dtype"].startswith(">")
    kind = dtype(leaf["dtype"]) or np.dtype(("V", sum(box[2] for box in boxes) // (math.prod(shape) or 1) or 1))
    whole = np.empty(shape, ("V", kind.itemsize))
    for pack, offset, nbytes, digest, _, start, size in boxes:
        with open(slot / packs[pack][0], "rb") as file:
            file.seek(offset)
            data = file.read(nbytes)
        chunks = [xxhash.xxh3_128_digest(data[i : i + 2**22]) for i in range(0, nbytes, 2**22)]
        assert digest == (chunks[0].hex() if len(chunks) == 1 else xxhash.xxh3_128_hexdigest(b"".join(chunks)))
        place = ... if start is None else tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        whole[place] = np.frombuffer(data, whole.dtype).reshape(size or shape)
    return whole.view(kind.newbyteorder("<")).astype(kind) if big else whole.view(kind)


def dtype(name: str) -> Any:
    """Return NumPy's dtype, None where it has none: the bits of the elements are then opaque."""
    if name.startswith("{"):
        of = json.loads(name)
        of["formats"] = [dtype(f) if isinstance(f, str) else (dtype(f[0]), tuple(f[1])) for f in of["formats"]]
        return np.dtype(of)
    order, base = (">", name[1:]) if name.startswith(">") else ("<", name)
    if sized := re.fullmatch(r"(str|bytes|void)(\d+)", base):
        return np.dtype(order + {"str": "U", "bytes": "S", "void": "V"}[sized[1]] + sized[2])
    plain = r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)|(datetime|timedelta)64(\[\w+\])?"
    return np.dtype(base).newbyteorder(order) if re.fullmatch(plain, base) else None


def tree(node: Any, path: str, leaves: dict[str, Any]) -> Any:
    while isinstance(node, dict) and "state" in node:
        node = node["state"]
    if not isinstance(node, dict):
        return leaves[node or path]  # a shared node was built under the path that it names
    [(kind, body)] = node.items()
    named = body.items() if isinstance(body, dict) else ((str(i), item) for i, item in enumerate(body))
    parts = {key(name): tree(item, f"{path}/{name}".lstrip("/"), leaves) for name, item in named}
    built = {"list": list, "tuple": tuple, "namedtuple": tuple}.get(kind)
    leaves[path] = parts if built is None else built(parts.values())
    return leaves[path]


def key(segment: str) -> Any:
    tag, colon, text = segment.partition(":")
    kinds = {"%int": int, "%float": float, "%bytes": bytes.fromhex, "%str": str, "%bool": "true".__eq__}
    return None if tag == "%none" else kinds[tag](text) if colon and tag in kinds else unquote(segment)
