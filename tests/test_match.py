# SPDX-License-Identifier: Apache-2.0
"""What is saved against what `like` asks for: every difference at once, folded, with the way out."""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from milepost.errors import StructureError
from milepost.model.keypath import matcher, under
from milepost.model.leaf import LeafSpec, dtype_info
from milepost.model.match import Match, Mismatch, castable, compare, difference

Specs = dict[str, LeafSpec]


def array(dtype: str, *shape: int) -> LeafSpec:
    return LeafSpec("array", dtype, shape)


def value(name: str) -> LeafSpec:
    return LeafSpec("value", name)


def key(dtype: str, *shape: int) -> LeafSpec:
    return LeafSpec("key", dtype, shape)


F32 = array("float32", 3)
SKIP = LeafSpec("skip", "skip")


def arrays(*paths: str, spec: LeafSpec = F32) -> Specs:
    return dict.fromkeys(paths, spec)


def kinds(match: Match) -> dict[str, str]:
    return {mismatch.path: mismatch.kind for mismatch in match.mismatches}


def message(match: Match) -> str:
    with pytest.raises(StructureError) as caught:
        match.raise_for("step 7 of runs/1")
    assert caught.value.mismatches == match.mismatches
    return str(caught.value)


def way_out(match: Match) -> str:
    return message(match).split("  To load it all the same:\n")[1]


def pasted(text: str) -> dict[str, Any]:
    """Return the arguments that a way out offers, as someone who pastes them all would pass them."""
    options = r"^    (rename|missing|unexpected|dtype)=(\{\n(?:     .*\n)*    \}|\{.*?\}|\S+)(?:   .*)?$"
    return {name: ast.literal_eval(source) for name, source in re.findall(options, text, re.MULTILINE)}


# What fits


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (F32, F32),
        (array(">float32", 3), F32),
        (F32, array(">float32", 3)),
        (array("bfloat16", 2, 3), array("bfloat16", 2, 3)),
        (value("int"), value("str")),
        (value("datetime"), value("none")),
        (value("bool"), array("bool")),
        (value("int"), array("int8")),
        (value("int"), array("uint64")),
        (value("int"), array("float32")),
        (value("int"), array("bfloat16")),
        (value("float"), array("float64")),
        (value("float"), array(">float32")),
        (value("float"), array("float8_e4m3fn")),
        (value("complex"), array("complex64")),
        (value("float32"), array("float32")),
        (value("datetime64[ns]"), array("datetime64[ns]")),
        (array("bool"), value("bool")),
        (array("int32"), value("int")),
        (array("int32"), value("float")),
        (array("bfloat16"), value("float")),
        (array("complex128"), value("complex")),
        (array("float32"), value("float32")),
        (key("key<threefry2x32>", 2), key("key<threefry2x32>", 2)),
    ],
)
def test_a_saved_leaf_fills_a_wanted_one(saved: LeafSpec, wanted: LeafSpec) -> None:
    assert difference(saved, wanted) is None
    assert compare({"a": saved}, {"a": wanted}) == Match({"a": "a"})


@pytest.mark.parametrize(
    ("saved", "wanted", "kind"),
    [
        (F32, array("float32", 4), "shape"),
        (F32, array("bfloat16", 3, 1), "shape"),
        (array("float32"), array("float32", 1), "shape"),
        (array("float64", 3), F32, "dtype"),
        (array("int32"), array("int64"), "dtype"),
        (array("str3", 2), array("str4", 2), "dtype"),
        (value("float64"), array("float32"), "dtype"),
        (array("float64"), value("float32"), "dtype"),
        (key("key<threefry2x32>"), key("key<rbg>"), "dtype"),
        (key("key<rbg>"), key("key<rbg>", 2), "shape"),
        (key("key<rbg>"), value("int"), "kind"),
        (array("uint32", 2), key("key<threefry2x32>", 2), "kind"),
        (key("key<rbg>"), array("uint32"), "kind"),
        (value("float"), array("int32"), "kind"),
        (value("float"), array("float32", 1), "kind"),
        (value("bool"), array("float32"), "kind"),
        (value("int"), array("bool"), "kind"),
        (value("int"), array("complex64"), "kind"),
        (value("str"), array("float32"), "kind"),
        (value("float"), array("datetime64[ns]"), "kind"),
        (value("float"), array("complex32"), "kind"),
        (array("float32"), value("int"), "kind"),
        (array("float32"), value("none"), "kind"),
        (F32, value("float"), "kind"),
    ],
)
def test_a_saved_leaf_that_does_not_fit_says_why(saved: LeafSpec, wanted: LeafSpec, kind: str) -> None:
    assert difference(saved, wanted) == kind
    assert compare({"a": saved}, {"a": wanted}).mismatches == (Mismatch(kind, "a", saved, wanted),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("saved", "wanted", "allowed"),
    [
        ("float64", "float32", True),
        ("float32", "bfloat16", True),
        ("int64", "float16", True),
        ("float32", "int8", True),
        ("bool", "float32", True),
        ("int4", "float8_e5m2", True),
        ("float32", "complex64", True),
        ("complex128", "complex64", True),
        ("complex64", "float32", False),
        ("complex32", "complex64", False),
        ("float4_e2m1fn_x2", "float32", False),
        ("float32", "str4", False),
        ("str3", "str4", False),
        ("datetime64[s]", "datetime64[ns]", False),
        ("datetime64[s]", "int64", False),
        ("void4", "int32", False),
        ('{"names":["a"],"formats":["float32"],"offsets":[0],"itemsize":4}', "float32", False),
    ],
)
def test_only_numbers_are_cast_and_complex_ones_stay_complex(saved: str, wanted: str, allowed: bool) -> None:
    match = compare({"a": array(saved, 2)}, {"a": array(wanted, 2)}, dtype="cast")

    assert castable(saved, wanted) == allowed
    assert kinds(match) == ({} if allowed else {"a": "dtype"})


@pytest.mark.parametrize("dtype", ["bool", "int4", "uint64", ">float32", "bfloat16", "float8_e4m3fn", "complex64"])
def test_what_is_called_castable_numpy_can_convert(dtype: str) -> None:
    zeros = np.zeros(2, dtype_info(dtype).numpy)

    assert castable(dtype, "complex128")
    assert zeros.astype(np.complex128).tolist() == [0, 0]


def test_a_key_is_never_cast() -> None:
    saved, wanted = {"a": key("key<rbg>")}, {"a": key("key<threefry2x32>")}

    assert kinds(compare(saved, wanted, dtype="cast")) == {"a": "dtype"}


# What is asked for


def test_every_difference_is_listed_in_the_order_of_like_and_then_of_what_is_saved() -> None:
    saved = {"z": F32, "x": F32, "b": F32, "c": array("int8", 3)}
    wanted = {"d": F32, "c": F32, "b": array("float32", 4)}

    assert compare(saved, wanted).mismatches == (
        Mismatch("missing", "d", None, F32),
        Mismatch("dtype", "c", array("int8", 3), F32),
        Mismatch("shape", "b", F32, array("float32", 4)),
        Mismatch("unexpected", "z", F32, None),
        Mismatch("unexpected", "x", F32, None),
    )


def test_nothing_is_raised_when_everything_fits() -> None:
    compare(arrays("a"), arrays("a")).raise_for("step 7 of runs/1")


def test_pairs_come_in_the_order_of_like() -> None:
    assert list(compare(arrays("a", "b"), arrays("b", "a")).pairs) == ["b", "a"]


def test_a_missing_leaf_keeps_its_value_only_if_it_has_one() -> None:
    match = compare(arrays("a"), arrays("a", "b", "c"), missing="keep", keepable={"b"})

    assert match.kept == ("b",)
    assert kinds(match) == {"c": "missing"}


def test_unexpected_leaves_can_be_left_unread() -> None:
    match = compare(arrays("a", "b"), arrays("a"), unexpected="ignore")

    assert match == Match({"a": "a"})


def test_a_skip_leaves_what_is_saved_there_and_below_unread() -> None:
    saved = arrays("a", "opt/mu/w", "opt/nu/w", "optics/w")
    match = compare(saved, {"a": F32, "opt": SKIP, "nothing/there": SKIP})

    assert match.pairs == {"a": "a"}
    assert match.skipped == ("opt", "nothing/there")
    assert kinds(match) == {"optics/w": "unexpected"}


def test_a_skip_in_place_of_the_whole_tree_reads_nothing() -> None:
    assert compare(arrays("a", "b/c"), {"": SKIP}) == Match({}, skipped=("",))


def test_only_reads_what_it_names_and_leaves_the_rest_as_it_is() -> None:
    saved = arrays("a/w", "a/extra", "b/w", "c/extra")
    match = compare(saved, arrays("a/w", "a/new", "b/w", "d/w"), only="a", keepable={"b/w"})

    assert match.pairs == {"a/w": "a/w"}
    assert match.kept == ("b/w",)
    assert match.skipped == ("d/w",)
    assert kinds(match) == {"a/new": "missing", "a/extra": "unexpected"}


def test_exclude_leaves_what_it_names_as_it_is() -> None:
    saved = arrays("a/w", "b/w", "b/extra")
    match = compare(saved, arrays("a/w", "b/w", "b/new"), exclude=["b"], keepable={"b/w"})

    assert match == Match({"a/w": "a/w"}, kept=("b/w",), skipped=("b/new",))


def test_only_and_exclude_take_globs_once_from_any_iterable() -> None:
    match = compare(arrays("a", "b", "c"), arrays("a", "b", "c"), only=iter(["a", "b"]), exclude=iter(["b"]))

    assert match == Match({"a": "a"}, skipped=("b", "c"))


def test_an_only_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(StructureError, match=r"only: 'modle/\*\*' matches no leaf .*\n  `like` has: model, step"):
        compare(arrays("model/w", "step"), arrays("model/w", "step"), only=["model", "modle/**"])


@pytest.mark.parametrize("option", ["missing", "unexpected", "dtype"])
def test_an_option_with_an_unknown_value_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}='strict': expected 'error' or "):
        compare({}, {}, **{option: "strict"})  # type: ignore[arg-type]


# Renames


def test_a_rename_moves_saved_nodes_to_their_names_in_like() -> None:
    saved = arrays("model/layers/0/wi/kernel", "model/layers/1/wi/kernel", "old/w", "step")
    wanted = arrays("model/layers/0/gate/kernel", "model/layers/1/gate/kernel", "new/w", "step")
    match = compare(saved, wanted, rename={"**/wi": "**/gate", "old": "new"})

    assert match.pairs == dict(zip(wanted, saved, strict=True))
    assert not match.mismatches


def test_two_names_can_be_swapped_for_each_path_is_renamed_once() -> None:
    match = compare(arrays("a", "b"), arrays("a", "b"), rename={"a": "b", "b": "a"})

    assert match.pairs == {"a": "b", "b": "a"}


def test_the_first_glob_that_matches_renames() -> None:
    match = compare(arrays("a/x", "a/y"), arrays("x", "b/y"), rename={"a/x": "x", "a": "b"})

    assert match.pairs == {"x": "a/x", "b/y": "a/y"}


def test_only_and_exclude_see_the_names_in_like() -> None:
    match = compare(arrays("old/w", "b"), arrays("new/w", "b"), rename={"old": "new"}, only="new", keepable={"b"})

    assert match == Match({"new/w": "old/w"}, kept=("b",))


@pytest.mark.parametrize(
    ("rename", "text"),
    [
        ({"c": "d"}, "rename: 'c' matches nothing saved\n  Globs match saved key paths; at the top: a, b"),
        ({"a": "x", "a/w": "y"}, "rename: all that 'a/w' matches was renamed by an earlier glob\n  Put it first."),
        (
            {"*/w": "w"},
            "rename gives one name to several saved leaves: a/w and b/w -> w\n  Make the glob match fewer",
        ),
        (
            {"a": "b"},
            "rename gives one name to several saved leaves: a/w and b/w -> b/w\n  Make the glob match fewer",
        ),
    ],
)
def test_a_rename_that_cannot_be_meant_is_an_error(rename: dict[str, str], text: str) -> None:
    with pytest.raises(StructureError) as caught:
        compare(arrays("a/w", "b/w"), arrays("a/w", "b/w"), rename=rename)
    assert str(caught.value).startswith(text)


# Messages


def example() -> tuple[Specs, Specs]:
    attention = [f"model/layers/{i}/attention/{name}" for i in range(32) for name in "qkv"]
    wide = array("bfloat16", 4096, 11008)
    saved = arrays(*attention, spec=array("bfloat16", 4096, 4096))
    wanted = dict(saved)
    saved |= arrays(*(f"model/layers/{i}/mlp/wi" for i in range(32)), spec=wide)
    wanted |= arrays(*(f"model/layers/{i}/mlp/gate" for i in range(32)), spec=wide)
    wanted["model/value_head/kernel"] = array("float32", 4096, 1)
    saved["model/embed/table"] = array("bfloat16", 50257, 4096)
    wanted["model/embed/table"] = array("bfloat16", 50304, 4096)
    saved["optimizer/mu/embed/table"] = array("float32", 50304, 4096)
    wanted["optimizer/mu/embed/table"] = array("bfloat16", 50304, 4096)
    return saved, wanted


def test_the_message_says_everything_at_once_folded_and_what_to_do() -> None:
    saved, wanted = example()
    match = compare(saved, wanted, keepable=wanted)

    assert message(match) == (
        "step 7 of runs/1 does not fit `like`: 33 not saved, 32 not wanted, 1 other shape, 1 other dtype;"
        " 96 of 131 leaves fit.\n"
        "  in `like`, not saved:\n"
        "    model/layers/{0..31}/mlp/gate  bfloat16[4096, 11008]  x32\n"
        "    model/value_head/kernel        float32[4096, 1]\n"
        "  saved, not in `like`:\n"
        "    model/layers/{0..31}/mlp/wi    bfloat16[4096, 11008]  x32\n"
        "  another shape:\n"
        "    model/embed/table              saved bfloat16[50257, 4096], `like` bfloat16[50304, 4096]\n"
        "  another dtype:\n"
        "    optimizer/mu/embed/table       saved float32, `like` bfloat16\n"
        "  To load it all the same:\n"
        "    rename={\"**/wi\": \"**/gate\"}   if 'wi' became 'gate' (the specs agree)\n"
        '    missing="keep"                keep `like`\'s own value for 1 leaf\n'
        '    dtype="cast"                  convert to the dtypes of `like`\n'
        "    Shapes are never changed: pass a `like` with the saved shape, or `mp.SKIP` there."
    )
    assert len(match.mismatches) == 33 + 32 + 1 + 1


def test_when_nothing_fits_the_message_shows_what_is_at_the_top_of_either_side() -> None:
    saved = {"encoder/w": array("float32", 4, 2), "step": value("int")}

    assert message(compare(saved, {"params/w": F32, "params/b": F32})) == (
        "step 7 of runs/1 does not fit `like`: 2 not saved, 2 not wanted; nothing fits.\n"
        "  at the top level:\n"
        "    saved   encoder, step\n"
        "    `like`  params\n"
        "  in `like`, not saved:\n"
        "    params/w   float32[3]\n"
        "    params/b   float32[3]\n"
        "  saved, not in `like`:\n"
        "    encoder/w  float32[4, 2]\n"
        "    step       int\n"
        "  To load it all the same:\n"
        '    unexpected="ignore"   leave 2 saved leaves unread\n'
        "    No value to keep for 2 leaves: pass a `like` with values, or `mp.SKIP` there."
    )


@pytest.mark.parametrize(("saved", "wanted"), [({}, arrays("a")), (arrays("a"), {}), (arrays("a", "b"), {"": F32})])
def test_a_side_without_leaves_or_without_names_is_said_in_words(saved: Specs, wanted: Specs) -> None:
    words = {0: "nothing", 1: "the root" if "" in wanted else "a", 2: "a, b"}

    assert f"    saved   {words[len(saved)]}\n    `like`  {words[len(wanted)]}\n" in message(compare(saved, wanted))


def test_a_like_that_is_one_level_off_is_told_where_to_look() -> None:
    wanted = arrays("layers/0/w", "layers/1/w", "head/b")
    saved = {f"model/{path}": spec for path, spec in wanted.items()} | arrays("optimizer/mu", "step")

    assert way_out(compare(saved, wanted)) == (
        "    ckpt.at(\"model\")   all 3 leaves of `like` are saved below 'model'"
    )


def test_a_like_that_is_saved_twice_further_down_is_told_of_both() -> None:
    wanted = arrays("a", "b", "c")
    saved = arrays("train/model/a", "train/model/b", "ema/a", "ema/b")

    assert way_out(compare(saved, wanted)) == (
        "    ckpt.at(\"train/model\")   2 of 3 leaves of `like` are saved below 'train/model'\n"
        "    ckpt.at(\"ema\")           2 of 3 leaves of `like` are saved below 'ema'"
    )


def test_a_like_with_one_level_too_many_is_told_the_rename() -> None:
    saved = arrays("layers/0/w", "layers/1/w", "head/b")
    wanted = {f"model/{path}": spec for path, spec in saved.items()}

    assert way_out(compare(saved, wanted)) == (
        '    rename={"**": "model/**"}   if \'model\' was put in (the specs agree)'
    )


def test_each_kind_of_mismatch_that_no_option_mends_has_its_own_sentence() -> None:
    saved = {"a": F32, "b": array("complex64", 3), "c": array("float64", 3), "d": value("str"), "e": key("key<rbg>")}
    wanted = {"a": value("int"), "b": F32, "c": F32, "d": F32, "e": key("key<threefry2x32>")}

    assert message(compare(saved, wanted)) == (
        "step 7 of runs/1 does not fit `like`: 3 other dtypes, 2 other kinds; 0 of 5 leaves fit.\n"
        "  another dtype:\n"
        "    b  saved complex64, `like` float32\n"
        "    c  saved float64, `like` float32\n"
        "    e  saved key<rbg>, `like` key<threefry2x32>\n"
        "  another kind:\n"
        "    a  saved float32[3], `like` int value\n"
        "    d  saved str value, `like` float32[3]\n"
        "  To load it all the same:\n"
        '    dtype="cast"   convert to the dtypes of `like`, where numbers allow it (1 of 3)\n'
        "    Text, keys, dates and records are never converted, nor complex to real: pass a `like` with the saved"
        " dtype, or `mp.SKIP` there.\n"
        "    Kinds are never changed: pass a `like` with the saved kind, or `mp.SKIP` there."
    )


def test_several_renames_are_one_argument_that_holds_those_already_given() -> None:
    saved = {"old/w": F32} | {f"l/{i}/{n}": array("int8", s) for i in range(4) for n, s in (("wi", 1), ("wo", 2))}
    wanted = {"new/w": F32} | {f"l/{i}/{n}": array("int8", s) for i in range(4) for n, s in (("gate", 1), ("down", 2))}
    text = way_out(compare(saved, wanted, rename={"old": "new"}))

    assert text == (
        "    rename={\n"
        '        "old": "new",\n'
        "        \"**/wo\": \"**/down\",   # if 'wo' became 'down' (the specs agree)\n"
        "        \"**/wi\": \"**/gate\",   # if 'wi' became 'gate' (the specs agree)\n"
        "    }"
    )
    assert len(compare(saved, wanted, **pasted(text)).pairs) == len(wanted)


def test_a_group_shows_a_dozen_lines_and_counts_the_rest() -> None:
    names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
    wanted = arrays("ok", *names, *(f"m{i}" for i in range(5)), "n")
    lines = message(compare(arrays("ok"), wanted)).splitlines()

    assert lines[1:15] == [
        "  in `like`, not saved:",
        *(f"    {name}  float32[3]" for name in names),
        "    … and 6 more",
    ]


def test_a_very_long_path_is_shortened_and_pushes_no_column() -> None:
    lines = message(compare(arrays("ok"), arrays("ok", "a" * 500, "b"))).splitlines()

    assert lines[2:4] == [f"    {'a' * 60}…{'a' * 60}  float32[3]", f"    {'b':60}  float32[3]"]


def test_leaves_with_different_specs_do_not_share_a_line() -> None:
    wanted = {f"layers/{i}/w": array("float32", 1 + i // 2) for i in range(5)}

    assert message(compare(arrays("ok"), wanted | arrays("ok"))).splitlines()[2:5] == [
        "    layers/{0..1}/w  float32[1]  x2",
        "    layers/{2..3}/w  float32[2]  x2",
        "    layers/4/w       float32[3]",
    ]


# Hints for renames


@pytest.mark.parametrize(
    ("saved", "wanted", "rename"),
    [
        (["model/a/w", "model/b/w"], ["params/a/w", "params/b/w"], {"model": "params"}),
        (["m/x/a", "m/y/a", "m/b"], ["m/x/c", "m/y/c", "m/b"], {"**/a": "**/c"}),
        (["m/x/a", "n/a"], ["m/x/c", "n/a"], {"m/x/a": "m/x/c"}),
        (["m/0/a", "m/1/a", "n/0/a"], ["m/0/c", "m/1/c", "n/0/a"], {"m/*/a": "m/*/c"}),
        (["m/0/a", "m/1/a", "m/2/a"], ["m/0/c", "m/1/c", "m/2/a"], {"m/{0..1}/a": "m/{0..1}/c"}),
        (["m/Kernel", "m/Bias"], ["m/kernel", "m/bias"], {"**/Kernel": "**/kernel", "**/Bias": "**/bias"}),
        (["m/Dense_0/w", "m/k"], ["m/head/w", "m/k"], {"**/Dense_0": "**/head"}),
        (["m/self/attn/w", "m/k"], ["m/attention/w", "m/k"], {"**/self/attn": "**/attention"}),
        (["m/module.l.0.w", "m/module.l.1.w"], ["m/l.0.w", "m/l.1.w"], {"m/module.*": "m/*"}),
        (["m/l.0.w", "m/l.1.w"], ["m/_orig_mod.l.0.w", "m/_orig_mod.l.1.w"], {"m/*": "m/_orig_mod.*"}),
        (["m/l.0.wi.w", "m/l.1.wi.w"], ["m/l.0.up.w", "m/l.1.up.w"], {"**/*.wi.*": "**/*.up.*"}),
        (["m/a/value", "m/b/value"], ["m/a", "m/b"], {"**/value": "**"}),
        (["m/a", "m/b/c"], ["m/a/value", "m/b/c/value"], {"**": "**/value"}),
        (["m/x/w", "step"], ["m/inner/x/w", "step"], {"m": "m/inner"}),
        (["a/a/a", "a/a/b"], ["a/new/a", "a/new/b"], {"a/a": "a/new"}),
        (["x/a/y", "a/a/w", "k"], ["x/a/y", "a/c/w", "k"], {"a/a": "a/c"}),
    ],
)
def test_a_rename_is_suggested_where_one_explains_the_difference(
    saved: list[str], wanted: list[str], rename: dict[str, str]
) -> None:
    # Leaves in the same place of either list have a shape of their own, unless only numbers tell them apart.
    shapes = {re.sub(r"\d", "", path): place for place, path in enumerate(saved)}
    specs = [array("float32", shapes[re.sub(r"\d", "", path)]) for path in saved]
    match = compare(dict(zip(saved, specs, strict=True)), dict(zip(wanted, specs, strict=True)))

    assert pasted(way_out(match)) == {"rename": rename}


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (arrays("m/wi", "k"), arrays("m/gate", "m/up", "k")),
        (arrays("m/wi", "m/wo", "k"), arrays("m/gate", "m/up", "k")),
        (arrays("m/wi", "k"), {"m/gate": array("float32", 4), "k": F32}),
        (arrays("a/b/c/d", "k"), arrays("w/x/y/z", "k")),
        (arrays("m/0", "m/1"), arrays("m/1", "m/2")),
        (arrays("m/a1", "m/a2", "k"), arrays("m/b", "m/c", "k")),
        (arrays("k", *("m/" + "a" * i for i in range(40))), arrays("k", *("m/" + "b" * i for i in range(40)))),
    ],
)
def test_no_rename_is_suggested_where_several_are_as_likely_or_none_is(saved: Specs, wanted: Specs) -> None:
    assert "rename" not in way_out(compare(saved, wanted, keepable=wanted))


def test_names_that_are_alike_settle_what_specs_leave_open() -> None:
    saved, wanted = arrays("m/Gate_Proj", "m/Up_Proj", "k"), arrays("m/gate_proj", "m/up_proj", "k")

    assert compare(saved, wanted, **pasted(way_out(compare(saved, wanted)))).pairs == {
        "m/gate_proj": "m/Gate_Proj",
        "m/up_proj": "m/Up_Proj",
        "k": "k",
    }


def test_a_suggested_rename_leaves_alone_what_would_take_a_name_that_is_not_free() -> None:
    match = compare(arrays("x/wi", "y/wi", "y/gate"), arrays("x/gate", "y/gate"))

    assert pasted(way_out(match)) == {"rename": {"x/wi": "x/gate"}, "unexpected": "ignore"}


def test_a_suggested_rename_never_gives_two_saved_leaves_one_name() -> None:
    match = compare(arrays("x/wi", "y/wi", "k") | {"y/gate": array("int8", 4)}, arrays("x/gate", "k"))

    assert pasted(way_out(match)) == {"rename": {"x/wi": "x/gate"}, "unexpected": "ignore"}


def test_a_suggested_rename_moves_no_leaf_onto_one_with_another_spec() -> None:
    saved, wanted = arrays("x/wi", "y/wi", "k"), arrays("x/gate", "k") | {"y/gate": array("float32", 4)}

    assert pasted(way_out(compare(saved, wanted)))["rename"] == {"x/wi": "x/gate"}


def test_ignored_leaves_are_suggested_as_the_source_of_missing_ones() -> None:
    match = compare(arrays("m/wi", "k"), arrays("m/gate", "k"), unexpected="ignore")

    assert pasted(way_out(match)) == {"rename": {"**/wi": "**/gate"}}


# Properties

names = st.sampled_from(["a", "b", "A", "w", "l0", "l1", "0", "1", "x.0.w", "x.1.w", "y.w"])
specs = st.sampled_from(
    [F32, array("int8", 3), array("complex64", 3), array("float32"), array("float32", 4), value("int"), key("key<rbg>")]
)


def flattened(tree: Any, path: str = "") -> Specs:
    if isinstance(tree, LeafSpec):
        return {path: tree}
    return {
        name: spec
        for segment, child in tree.items()
        for name, spec in flattened(child, f"{path}/{segment}" if path else segment).items()
    }


trees = st.dictionaries(
    names, st.recursive(specs, lambda child: st.dictionaries(names, child, max_size=3), max_leaves=8), max_size=4
)
saved_specs = trees.map(flattened)
wanted_specs = st.recursive(
    specs | st.just(SKIP), lambda child: st.dictionaries(names, child, max_size=3), max_leaves=12
).map(flattened)
options = st.fixed_dictionaries(
    {},
    optional={
        "missing": st.just("keep"),
        "unexpected": st.just("ignore"),
        "dtype": st.just("cast"),
        "exclude": st.lists(st.sampled_from(["a", "**/w", "*/b", "x.*"]), max_size=2),
    },
)


@given(saved_specs, wanted_specs, options, st.data())
def test_every_leaf_is_accounted_for_exactly_once(
    saved: Specs, wanted: Specs, options: Any, data: st.DataObject
) -> None:
    keepable = data.draw(st.sets(st.sampled_from(sorted(wanted)))) if wanted else set[str]()
    match = compare(saved, wanted, keepable=keepable, **options)
    of_wanted = [mismatch.path for mismatch in match.mismatches if mismatch.wanted is not None]
    differing = [mismatch.path for mismatch in match.mismatches if mismatch.saved and mismatch.wanted]
    unexpected = [mismatch.path for mismatch in match.mismatches if mismatch.kind == "unexpected"]
    excluded = matcher(options.get("exclude", ()))
    skips = [path for path in match.skipped if wanted[path].kind == "skip"]

    assert sorted([*match.pairs, *match.kept, *match.skipped, *of_wanted]) == sorted(wanted)
    read = [*match.pairs.values(), *differing, *unexpected]
    assert len(read) == len(set(read))
    for path in set(saved) - set(read):  # nothing is left out in silence but what was asked to be
        assert "unexpected" in options or excluded(path) or any(under(path, skip) for skip in skips)
    for path, source in match.pairs.items():
        assert difference(saved[source], wanted[path], cast="dtype" in options) is None
    for mismatch in match.mismatches:
        assert (mismatch.saved, mismatch.wanted) == (
            (saved[mismatch.path], None)
            if mismatch.kind == "unexpected"
            else (saved[mismatch.path] if mismatch.path in differing else None, wanted[mismatch.path])
        )
    assert set(match.kept) <= keepable


@given(saved_specs)
def test_a_tree_fits_itself(saved: Specs) -> None:
    assert compare(saved, dict(saved)) == Match({path: path for path in saved})


@given(saved_specs, wanted_specs)
def test_whatever_the_way_out_offers_does_what_it_says_when_pasted(saved: Specs, wanted: Specs) -> None:
    match = compare(saved, wanted, keepable=wanted)
    assume(match.mismatches)
    text = way_out(match)
    if "ckpt.at(" in text:
        for node in map(ast.literal_eval, re.findall(r"ckpt\.at\((.*?)\)   ", text)):
            below = {path[len(node) + 1 :]: spec for path, spec in saved.items() if under(path, node)}
            assert compare(below, wanted, dtype="cast", keepable=wanted).pairs
        return
    again = compare(saved, wanted, keepable=wanted, **pasted(text))

    mended = {"missing", "unexpected"}
    left = [m for m in match.mismatches if m.kind not in mended]
    left = [m for m in left if m.kind != "dtype" or not castable(m.saved.dtype, m.wanted.dtype)]  # type: ignore[union-attr]
    assert list(again.mismatches) == left
    assert ("Shapes are" in text, "Kinds are" in text) == tuple(
        any(m.kind == k for m in left) for k in ("shape", "kind")
    )
    assert ("own value for" in text) == bool(again.kept)
    counts = re.search(r"own value for (\d+)", text)
    assert len(again.kept) == (int(counts[1]) if counts else 0)


@given(st.data())
def test_one_renamed_node_is_found_and_the_suggested_rename_loads_it(data: st.DataObject) -> None:
    paths = sorted(data.draw(saved_specs.filter(lambda specs: len(specs) > 1)))
    saved = {path: array("float32", place) for place, path in enumerate(paths)}
    nodes = sorted({"/".join(path.split("/")[: i + 1]) for path in paths for i in range(path.count("/") + 1)})
    old = data.draw(st.sampled_from(nodes))
    parent, slash, _ = old.rpartition("/")
    new = parent + slash + "renamed"
    wanted = {new + path[len(old) :] if under(path, old) else path: spec for path, spec in saved.items()}
    arguments = pasted(way_out(compare(saved, wanted)))

    assert set(arguments) == {"rename"}
    assert list(compare(saved, wanted, **arguments).pairs.values()) == list(saved)
