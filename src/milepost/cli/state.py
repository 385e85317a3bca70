# SPDX-License-Identifier: Apache-2.0
"""Which leaves look like the state of a random generator, and which like a position in the data.

By their names, as nothing else tells: a torch generator is an array of bytes, a legacy JAX key two integers.
"""

from __future__ import annotations

import re

from milepost.model.leaf import LeafSpec

_RANDOM = re.compile(
    r"(^|[/._])(p?rngs?|random(_state)?|rand|generator|bit_generator|noise|seeds?|keys?|dropout_key|mt19937|pcg64)([/._]|$)"
)
_POSITION = re.compile(
    r"(^|[/._])(data(set|loader|_?iter(ator)?)?|(train|eval|val)_?(data|loader|iter)|loaders?|iter(ator)?s?|batch(es)?"
    r"|samplers?|epochs?|position|cursor|offset|next_index|samples_seen|tokens_seen|examples_seen|shards?|workers?"
    r"|stream|snapshot)([/._]|$)"
)
# The inside of NumPy's, Python's and torch's generators, whatever the user calls them.
_INSIDE = re.compile(r"(^|/)(bit_generator|has_uint32|seed_seq|gauss_next|words)(/|$)")


def is_random(path: str, spec: LeafSpec) -> bool:
    """Return whether a leaf looks like a part of a random state."""
    return spec.kind == "key" or bool(_RANDOM.search(path.lower()) or _INSIDE.search(path))


def is_position(path: str) -> bool:
    """Return whether a leaf looks like a part of an iterator's state."""
    return bool(_POSITION.search(path.lower()))
