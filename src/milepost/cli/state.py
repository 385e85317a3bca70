# SPDX-License-Identifier: Apache-2.0
"""Which leaves look like the state of a random generator, and which like a position in the data.

By their names, as nothing else tells: a torch generator is an array of bytes, a legacy JAX key two integers. Floats
are neither, so that the `key` of an attention layer or a table of positions is not taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from milepost.model.leaf import LeafSpec

_RANDOM = re.compile(r"(^|[/.])(\w+_)?(p?rngs?|random|rand|generator|noise|seeds?|keys?)(_state)?(?=[/.]|$)")
_POSITION = re.compile(
    r"(^|[/.])(\w+_)?(data|data_?set|data_?loader|loader|iter|iterator|batches|sampler|shuffle|epochs?|position|cursor"
    r"|offset|index|stream|seen)(_state)?(?=[/.]|$)"
)
# A leaf that the states of NumPy's and Python's generators have, whatever the user calls them.
_MARKS = ("bit_generator", "gauss_next")
_FLOATS = ("float", "bfloat", "complex")


def is_float(spec: LeafSpec) -> bool:
    """Return whether a leaf is an array of floats."""
    return spec.kind == "array" and spec.dtype.lstrip(">").startswith(_FLOATS)


def random_paths(specs: Mapping[str, LeafSpec]) -> frozenset[str]:
    """Return the leaves that look like parts of random states."""
    generators = {path.rpartition("/")[0] for path in specs if path.rpartition("/")[2] in _MARKS}
    return frozenset(
        path
        for path, spec in specs.items()
        if spec.kind == "key"
        or any(parent in generators for parent in _parents(path))
        or (not is_float(spec) and _RANDOM.search(path.lower()))
    )


def position_paths(specs: Mapping[str, LeafSpec]) -> frozenset[str]:
    """Return the leaves that look like parts of an iterator's state."""
    found = (path for path, spec in specs.items() if not is_float(spec) and _POSITION.search(path.lower()))
    return frozenset(found) - random_paths(specs)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(len(parts))]
