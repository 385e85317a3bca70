# SPDX-License-Identifier: Apache-2.0
"""A root whose records can be made to lie: changed, and sealed again, so that their digests are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp

Record = dict[str, Any]
NOTHING: Record = {}


def sealed(record: Record | str) -> bytes:
    """Return a record's bytes with the digest that they should have; text is taken as it is, less its last brace."""
    if not isinstance(record, str):
        record = json.dumps({name: value for name, value in record.items() if name != "digest"})
    body = record.encode("utf-8", "surrogatepass").removesuffix(b"}")
    return body + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


@pytest.fixture
def forge(root: Path) -> Callable[..., mp.Checkpoint]:
    """Save a step, let its records be changed, and seal them again."""
    mp.save(root, {"w": np.arange(8.0), "s": "text"}, step=1, metrics={"loss": 1.0})
    mp.open(root).annotate(1, metrics={"eval": 2.0})
    files = [root / "1" / "leaves.json", root / "1" / "manifest.json", *root.glob("1/notes/*.json")]

    def forged(table: Record = NOTHING, manifest: Record = NOTHING, note: Record = NOTHING) -> mp.Checkpoint:
        leaves = sealed(json.loads(files[0].read_bytes()) | table)
        named = {"leaves": json.loads(leaves)["digest"]}
        records = [leaves, *(sealed(json.loads(file.read_bytes()) | lie) for file, lie in
                             zip(files[1:], (named | manifest, note), strict=True))]  # fmt: skip
        for file, data in zip(files, records, strict=True):
            file.chmod(0o644)
            file.write_bytes(data)
        return mp.open(root)[1]

    return forged
