# SPDX-License-Identifier: Apache-2.0
"""Key paths: every key has one segment and comes back from it; globs and renames name nodes."""

from __future__ import annotations

import enum
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import StructureError, UnsupportedLeafError
from milepost.model import keypath

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["__metadata__", "%", "%25", "%int:3", "%none:", "a/b", "a@0", "layers.0.weight", "*", "{a,b}", "é", "\x00", "\x9f"]
)
keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=8) | texts
segments = keys.map(keypath.segment)
paths = st.lists(segments, max_size=4).map("/".join)
# Few letters, so that globs and paths meet.
plain_paths = st.lists(st.text("ab1", min_size=1, max_size=3), max_size=4).map("/".join)
wildcards = st.sampled_from(["*", "?", "[ab]", "[!a]", "{a,b1}", "{0..12}", "{a*,b}"])
glob_parts = st.just("**") | st.lists(st.sampled_from(["a", "b", "1"]) | wildcards, min_size=1, max_size=3).map("".join)
globs = st.lists(glob_parts, max_size=4).map("/".join)


@given(keys)
def test_a_key_comes_back_from_its_segment_with_its_type(key: Any) -> None:
    found = keypath.key(keypath.segment(key))

    assert (found, type(found)) == (key, type(key))
    assert not isinstance(key, float) or math.copysign(1, found) == math.copysign(1, key)  # type: ignore[arg-type]


@given(keys, keys)
def test_two_keys_of_one_dict_never_share_a_segment(one: Any, other: Any) -> None:
    assert (keypath.segment(one) == keypath.segment(other)) <= (one == other)


@given(segments)
def test_a_segment_is_plain_text_that_no_glob_shard_or_header_can_mistake(segment: str) -> None:
    assert segment
    assert segment != "__metadata__"
    assert not re.search(r"[/@*?\[\]{}\x00-\x1f\x7f-\x9f]", segment)
    assert segment.encode().decode() == segment


@given(st.text(max_size=8) | segments | st.from_regex(r"%(int|float|bool|none|str|bytes|x):.{0,4}", fullmatch=True))
def test_text_is_read_as_a_segment_only_when_it_is_how_a_key_is_written(text: str) -> None:
    try:
        key = keypath.key(text)
    except StructureError:
        return
    assert keypath.segment(key) == text


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("w", "w"),
        ("", "%str:"),
        ("50%", "50%25"),
        ("a/b", "a%2Fb"),
        ("a@0", "a%400"),
        ("[*?]", "%5B%2A%3F%5D"),
        ("{é}", "%7Bé%7D"),
        ("a\n\x85", "a%0A%C2%85"),
        ("__metadata__", "%5F_metadata__"),
        ("layers.0.weight", "layers.0.weight"),
        (3, "%int:3"),
        (-3, "%int:-3"),
        (True, "%bool:true"),
        (False, "%bool:false"),
        (0.5, "%float:0.5"),
        (-math.inf, "%float:-inf"),
        (b"hi", "%bytes:6869"),
        (b"", "%bytes:"),
        (None, "%none:"),
        (np.int32(3), "%int:3"),
        (np.float64(0.5), "%float:0.5"),
        (np.str_("w"), "w"),
        (enum.Enum("Text", {"A": "a"}, type=str)["A"], "a"),
        (enum.IntEnum("Number", {"A": 1})["A"], "%int:1"),
    ],
)
def test_the_segment_of_a_key_is_the_documented_one(key: object, segment: str) -> None:
    assert keypath.segment(key) == segment


def test_nan_is_a_key_too() -> None:
    assert math.isnan(keypath.key(keypath.segment(math.nan)))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["\ud800", "a\udfff", (1, 2), 1j, np.bool_(True), frozenset[int](), object()])
def test_a_key_that_has_no_segment_is_refused(key: object) -> None:
    with pytest.raises(UnsupportedLeafError):
        keypath.segment(key)


def test_an_integer_too_long_to_be_written_out_is_refused_as_a_key() -> None:
    with pytest.raises(UnsupportedLeafError, match="an integer of 16610 bits"):
        keypath.segment(10**5_000)


@pytest.mark.parametrize(
    "text",
    [
        "", "%", "a%", "%2", "%41", "%2f", "%FF", "a%C3", "%int:", "%int: 3", "%int:03", "%int:1_0",
        "%int:" + "9" * 5_000, "%bool:True", "%bool:", "%float:1", "%float:.5", "%bytes:6", "%bytes:AB",
        "%bytes:61 62", "%none", "%none:x", "%str", "%str:x", "%set:1", "a/b", "a@0", "a*", "a\n", "__metadata__",
        "\ud800",
    ],
)  # fmt: skip
def test_a_segment_that_no_key_has_is_refused(text: str) -> None:
    with pytest.raises(StructureError, match="no segment"):
        keypath.key(text)


@given(st.lists(segments))
def test_a_path_splits_into_the_segments_it_was_joined_from(parts: list[str]) -> None:
    path = keypath.ROOT
    for part in parts:
        path = keypath.join(path, part)

    assert keypath.split(path) == parts


@given(paths, paths)
def test_what_is_under_a_node_is_seen_from_it_and_joins_back(parent: str, rest: str) -> None:
    path = keypath.join(parent, rest) if rest else parent

    assert keypath.under(path, parent)
    assert keypath.relative(path, parent) == rest
    assert not keypath.under(parent + "x", parent) or not parent


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("params", ["params", "params/w", "params/a/b"], ["params2", "a/params", ""]),
        ("params/**", ["params", "params/w", "params/a/b"], ["params2", "a/params", ""]),
        ("params/*", ["params/w", "params/a/b"], ["params"]),
        ("*", ["a", "a/b"], [""]),
        ("**", ["", "a", "a/b"], []),
        ("", ["", "a", "a/b"], []),
        ("/params/", ["params", "params/w"], ["a/params"]),
        ("**/wi", ["wi", "a/wi", "a/b/wi/c"], ["a/wi2", "a/xwi"]),
        ("a/**/w", ["a/w", "a/b/w", "a/b/c/w"], ["w", "a/b"]),
        ("layers.*.weight", ["layers.0.weight", "layers.0.mlp.weight"], ["layers/0/weight", "layersx0.weight"]),
        ("a?c", ["abc"], ["ac", "a/c", "abbc"]),
        ("[ab]", ["a", "b/c"], ["c", "ab"]),
        ("[!ab]", ["c"], ["a", "b"]),
        ("a[!b]c", ["axc"], ["abc", "a/c"]),
        ("a[+-9]c", ["a0c"], ["a/c"]),
        ("[a-cx-]", ["b", "x", "-"], ["d", "y"]),
        ("{a,b.*}/w", ["a/w", "b.c/w"], ["b/w", "c/w"]),
        ("layers/{0..2,5}", ["layers/0", "layers/2/w", "layers/5"], ["layers/3", "layers/15", "layers/00"]),
        ("part_{08..11}", ["part_08", "part_11"], ["part_8", "part_12"]),
        ("[[a]", ["a", "["], ["0"]),
        ("[a&&b||c~~d]", ["&", "|", "~", "d"], ["0"]),
        (r"[\d]", ["d", "\\"], ["0"]),
        ("[!^]", ["a"], ["^"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a%2Fb", ["a%2Fb"], ["a/b"]),
        ("a//b", [], ["a/b"]),
    ],
)
def test_a_glob_matches_a_node_and_all_below_it(glob: str, matching: list[str], others: list[str]) -> None:
    matches = keypath.matcher(glob)

    assert [path for path in [*matching, *others] if matches(path)] == matching


@given(paths, paths)
def test_a_path_is_a_glob_for_itself_and_what_is_below(parent: str, other: str) -> None:
    assert keypath.matcher(parent)(other) == keypath.under(other, parent)


def test_one_of_several_globs_is_enough_and_none_matches_nothing() -> None:
    assert keypath.matcher(["a", "b"])("b/c")
    assert not keypath.matcher([])("a")


def segment_matches(part: str, text: str) -> bool:
    """The meaning of a glob for one segment, spelled out choice by choice."""
    if not part:
        return not text
    head, rest = re.match(r"(\{.*?\}|\[.*?\]|.)(.*)", part).groups()  # type: ignore[union-attr]
    if head == "*":
        return any(segment_matches(rest, text[i:]) for i in range(len(text) + 1))
    if head == "{0..12}":
        head = "{" + ",".join(map(str, range(13))) + "}"
    if head[0] == "{":
        return any(segment_matches(choice + rest, text) for choice in head[1:-1].split(","))
    first = {"?": text[:1], "[ab]": text[:1] if text[:1] in "ab" else "", "[!a]": text[:1].replace("a", "")}.get(head)
    return bool(text) and (first or head if first != "" else None) == text[0] and segment_matches(rest, text[1:])


def node_matches(glob: list[str], path: list[str]) -> bool:
    """The meaning of a whole glob: some start of the path matches it segment by segment."""
    if not glob:
        return True
    if glob[0] == "**":
        return any(node_matches(glob[1:], path[i:]) for i in range(len(path) + 1))
    return bool(path) and segment_matches(glob[0], path[0]) and node_matches(glob[1:], path[1:])


@given(globs, plain_paths)
def test_a_glob_means_what_its_parts_mean(glob: str, path: str) -> None:
    assert keypath.matcher(glob)(path) == node_matches(keypath.split(glob), keypath.split(path))


@pytest.mark.parametrize("glob", ["[b-a]", "[a--]", "[!]", "{0..1000001}"])
def test_a_malformed_glob_is_a_value_error(glob: str) -> None:
    with pytest.raises(ValueError, match=r"glob|range"):
        keypath.matcher(glob)


@pytest.mark.parametrize(
    ("glob", "name", "path", "renamed"),
    [
        ("model/old", "model/new", "model/old/w", "model/new/w"),
        ("model/old", "model/new", "model/old", "model/new"),
        ("model/old", "model/new", "model/older", None),
        ("**/wi", "**/gate", "model/layers/3/wi/kernel", "model/layers/3/gate/kernel"),
        ("**/wi", "**/gate", "wi", "gate"),
        ("**/wi", "**/gate", "a/wi/b/wi/c", "a/wi/b/gate/c"),
        ("a/*/b/*/c", "x/*/y_*", "a/1/b/2/c/d", "x/1/y_2/d"),
        ("layers_*", "blocks/*", "layers_3/w", "blocks/3/w"),
        ("layers.*.wi.*", "layers.*.gate.*", "layers.0.mlp.wi.weight", "layers.0.mlp.gate.weight"),
        ("module/**", "**", "module/a/w", "a/w"),
        ("**/module/**", "**/**", "model/module/a", "model/a"),
        ("**", "model/**", "a/w", "model/a/w"),
        ("**", "model/**", "", "model"),
        ("**", "**/value", "a/w", "a/w/value"),
        ("**/value", "**", "a/w/value", "a/w"),
        ("model", "", "model/a", "a"),
        ("layers/{0..31}/wi", "layers/{0..31}/gate", "layers/7/wi", "layers/7/gate"),
        ("[ab]/{c,d}", "{,}_[]", "a/d", "a_[]"),
        ("a/*", "a", "a/b/c", "a/c"),
    ],
)
def test_a_rename_moves_a_node_with_all_below_it(glob: str, name: str, path: str, renamed: str | None) -> None:
    assert keypath.renamer(glob, name)(path) == renamed


@given(globs, plain_paths)
def test_a_glob_renamed_to_itself_changes_no_path(glob: str, path: str) -> None:
    expected = path if keypath.matcher(glob)(path) else None

    assert keypath.renamer(glob, glob)(path) == expected


def test_a_name_with_more_wildcards_than_its_glob_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\*\*/x_\*' has more wildcards \(2\) than '\*\*/x' \(1\)"):
        keypath.renamer("**/x", "**/x_*")


@pytest.mark.parametrize(
    ("paths", "globs"),
    [
        (["a/w"], [("a/w", 1)]),
        (["l/0/w", "l/1/w", "l/2/w"], [("l/{0..2}/w", 3)]),
        (["l/3", "l/1", "l/0", "l/9"], [("l/{0..1,3,9}", 4)]),
        (["l9.w", "l10.w"], [("l{9..10}.w", 2)]),
        (["p08", "p09", "p10"], [("p{08..10}", 3)]),
        (["p1", "p01"], [("p{01,1}", 2)]),
        ([f"l/{i}/e/{j}/w" for i in range(3) for j in range(2)], [("l/{0..2}/e/{0..1}/w", 6)]),
        (["l/0/e/0", "l/0/e/1", "l/1/e/0"], [("l/0/e/{0..1}", 2), ("l/1/e/0", 1)]),
        (["%int:1", "%int:2", "a%20", "a%21", "a%2Fb"], [("%int:{1..2}", 2), ("a%20", 1), ("a%21", 1), ("a%2Fb", 1)]),
        (["9" * 30, "8" * 30], [("9" * 30, 1), ("8" * 30, 1)]),
        ([], []),
    ],
)
def test_paths_that_differ_in_numbers_fold_into_globs(paths: list[str], globs: list[tuple[str, int]]) -> None:
    assert keypath.grouped(paths) == globs


numbered_paths = st.lists(st.integers(0, 5).map(str), min_size=1, max_size=3).map("/".join)


@given(st.sets(plain_paths.filter(bool) | numbered_paths))
def test_a_fold_matches_what_it_was_made_of_and_nothing_else(paths: set[str]) -> None:
    others = {f"{path}0" for path in paths} | {"0", "0/0", "1/0", "3/3", "5/5/5"}
    found: list[str] = []
    for glob, count in keypath.grouped(sorted(paths)):
        # `renamer` tells the node itself from what lies below it, which no fold can leave out.
        matched = [path for path in sorted(paths | others) if keypath.renamer(glob, "found")(path) == "found"]
        assert len(matched) == count
        found += matched

    assert sorted(found) == sorted(paths)
