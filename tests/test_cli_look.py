# SPDX-License-Identifier: Apache-2.0
"""`milepost ls`, `tree` and `diff`: what people see, and what programs read."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import milepost as mp
from cli_runs import LAYERS, as_json, flip_a_byte, leave_unfinished, make_run, milepost, own_pack
from milepost.cli.output import plain
from milepost.cli.tree import folded_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "gpt")
    return tmp_path / "gpt"


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# --- ls


def test_ls_says_why_each_step_is_kept_newest_first(root: Path) -> None:
    result = milepost("ls", root)

    title, head, *rows = result.stdout.splitlines()
    assert result.exit_code == 0
    assert title.startswith(f"{root}   3 steps · ")
    assert title.endswith("ago · no writer")
    assert head.split() == ["STEP", "AGE", "SIZE", "NEW", "loss", "acc.top1", *["SAVED", "BECAUSE", "KEPT", "BECAUSE"]]
    assert [row.split()[0] for row in rows] == ["300", "200", "100"]
    assert rows[0].endswith("latest · last 2")
    assert rows[2].endswith("best 1 loss")


def test_ls_counts_files_that_steps_share_once(root: Path) -> None:
    document = as_json("ls", root)

    assert document["logical_bytes"] > 3 * 400_000
    assert document["stored_bytes"] < 2 * 400_000
    assert document["stored_bytes"] == sum({f.stat().st_ino: f.stat().st_size for f in packs_and_tables(root)}.values())


def packs_and_tables(root: Path) -> list[Path]:
    return [*root.glob("*/*.safetensors"), *root.glob("*/leaves.json")]


def test_ls_shows_what_is_unfinished_damaged_superseded_and_pinned(root: Path) -> None:
    catalog = mp.open(root)
    catalog.pin(100, "before-lr-drop")
    with mp.Checkpointer(root, resume_from=catalog[200], keep="last 9") as saver:
        saver.save(250, {"w": np.ones(3)})
    leave_unfinished(root, 350)
    flip_a_byte(root / "200" / "manifest.json", 40)

    result = milepost("ls", root)

    assert result.exit_code == 0
    assert result.stderr == ""
    why = {row[0]: " ".join(row[4:]) for row in lines(result.stdout)[2:]}
    assert list(why) == ["300", "250", "200", "100", "350"]
    assert "superseded · last 9" in why["300"]
    assert "latest · last 9" in why["250"]
    assert "DAMAGED" in why["200"]
    assert 'pinned "before-lr-drop"' in why["100"]
    assert why["350"].endswith("incomplete – ignored by resume")


def test_ls_json_has_a_schema_bytes_and_times_in_utc(root: Path) -> None:
    mp.open(root).pin(100, "first")
    leave_unfinished(root, 350)

    document = as_json("ls", root)

    assert document["schema"] == "milepost.ls/1"
    assert document["store"] == str(root)
    assert document["writer"]["alive"] is False
    newest, _, oldest, unfinished = document["steps"]
    assert (newest["step"], newest["state"], newest["kept_because"]) == (300, "committed", "latest · last 2")
    assert newest["created"].endswith("Z")
    assert dt.datetime.fromisoformat(newest["created"]) <= dt.datetime.now(dt.UTC)
    assert newest["bytes"] == mp.open(root)[300].nbytes
    assert newest["metrics"] == {"loss": 0.3, "acc": {"top1": 0.6}}
    assert oldest["pins"] == ["first"]
    assert unfinished == {"step": 350, "state": "incomplete"}


def test_ls_of_one_step_shows_that_step_only(root: Path) -> None:
    assert [row[0] for row in lines(milepost("ls", f"{root}@-2").stdout)] == ["STEP", "200"]
    assert [step["step"] for step in as_json("ls", f"{root}@best")["steps"]] == [100]


def test_ls_of_a_store_without_steps_is_no_error(tmp_path: Path) -> None:
    mp.Checkpointer(tmp_path / "new").close()

    result = milepost("ls", tmp_path / "new")

    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'new'}   0 steps · no writer yet\n")


def test_a_metric_that_is_not_a_number_is_json_all_the_same(tmp_path: Path) -> None:
    mp.save(tmp_path / "run", {"w": np.ones(2)}, metrics={"loss": float("nan")})

    assert as_json("ls", tmp_path / "run")["steps"][0]["metrics"] == {"loss": {"$float": "nan"}}
    assert " nan " in milepost("ls", tmp_path / "run").stdout


def test_text_from_a_store_cannot_move_the_cursor(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07"
    mp.save(tmp_path / "run", {evil: np.ones(2), "text": evil}, step=1, metrics={evil: 1.0})
    mp.open(tmp_path / "run").pin(1, evil)

    shown = [milepost(verb, tmp_path / "run").output for verb in ("ls", "tree", "verify", "doctor")]
    shown.append(milepost("watch", tmp_path / "run", "--timeout", 0).output)

    assert not [text for text in shown if "\x1b" in text or "\x07" in text]
    assert "\\x1b[2J" in shown[0]


def make_forecast(root: Path) -> None:
    """Make a session with three items: 9 is done, 10 was interrupted after two marks, 2 is damaged."""
    with mp.Session(root) as session:
        for member, leads in {9: 3, 10: 2, 2: 1}.items():
            with suppress(InterruptedError), session.item(member=member, run="\x1b[2J"):
                for lead in range(leads):
                    session.mark(lead=np.timedelta64(6 * lead, "h"), file=f"{member}.npy")
                if member != 9:
                    raise InterruptedError
    (manifest,) = (root / "items").glob("member=2,*/1/manifest.json")
    flip_a_byte(manifest, 60)


def test_ls_shows_how_far_the_items_of_a_session_are(tmp_path: Path) -> None:
    make_forecast(tmp_path / "run")

    result = milepost("ls", tmp_path / "run")

    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    title, counts, head, *rows = lines(result.stdout)
    assert title[1:3] == ["0", "steps"]
    assert " ".join(counts) == "3 items · 1 done"
    assert head == ["MEMBER", "RUN", "MARKS", "STATE", "LAST", "MARK"]
    assert sorted(rows) == [
        ["10", "\\x1b[2J", "2", "##.", "begun", "lead", "6", "hours,", "file", "10.npy"],
        ["2", "\\x1b[2J", "–", "DAMAGED", "–"],
        ["9", "\\x1b[2J", "3", "###", "done", "lead", "12", "hours,", "file", "9.npy"],
    ]
    assert [row[0] for row in rows if "DAMAGED" not in row] == ["9", "10"]


def test_ls_json_lists_the_items_of_a_session(tmp_path: Path, root: Path) -> None:
    make_forecast(tmp_path / "run")

    items = {item["labels"]["member"]: item for item in as_json("ls", tmp_path / "run")["items"]}

    assert items[9]["state"] == "done"
    assert items[9]["marks"] == 3
    assert items[10]["progress"] == {"lead": plain(np.timedelta64(6, "h")), "file": "10.npy"}
    assert items["2"] == {
        "labels": {"member": "2", "run": "\x1b[2J"},
        "state": "damaged",
        "marks": None,
        "progress": None,
    }
    assert as_json("ls", root)["items"] == []
    assert "MARKS" not in milepost("ls", root).stdout


# --- tree


def test_tree_folds_parts_that_are_alike_and_sums_what_is_in_them(root: Path) -> None:
    result = milepost("tree", root)

    rows = lines(result.stdout)
    assert rows[0][1:4] == [str(2 * LAYERS + 1 + 1 + 8 + 2), "leaves", "·"]
    assert [f"layers/{{0..{LAYERS - 1}}}", "24", "leaves", "12.75", "KiB"] in rows
    assert ["w", "float32[16,", "16]", "x12", "12.00", "KiB"] in rows
    assert ["frozen", "float64[50000]", "390.62", "KiB"] in rows
    assert ["position", "int", "1", "920", "000"] in rows
    assert ["shuffle", "bool", "True"] in rows


def test_tree_shows_the_part_that_a_glob_names_down_to_a_depth(root: Path) -> None:
    part = milepost("tree", f"{root}@100:params/layers/{{0,3}}/w").stdout
    shallow = milepost("tree", f"{root}@100", "--depth", 1).stdout

    assert lines(part)[1] == ["params/layers/{0,3}/w", "float32[16,", "16]", "x2", "2.00", "KiB"]
    assert len(lines(part)) == 2
    assert [row[0] for row in lines(shallow)[1:]] == ["params", "frozen", "rng", "loader"]


def test_tree_json_lists_every_leaf_with_its_spec_and_value(root: Path) -> None:
    document = as_json("tree", f"{root}:{{params,loader}}/**")

    assert (document["schema"], document["step"], document["glob"]) == ("milepost.tree/1", 300, "{params,loader}/**")
    by_path = {leaf["path"]: leaf for leaf in document["leaves"]}
    assert len(by_path) == 2 * LAYERS + 1 + 2
    assert by_path["params/layers/3/w"] == {
        "path": "params/layers/3/w", "kind": "array", "dtype": "float32", "shape": [16, 16], "bytes": 1024,
    }  # fmt: skip
    assert by_path["loader/position"]["value"] == 1_920_000
    assert document["bytes"] == sum(leaf["bytes"] for leaf in document["leaves"])


def test_a_tree_that_is_one_leaf_is_shown(tmp_path: Path) -> None:
    mp.save(tmp_path / "run", np.ones((2, 3)), step=0)

    assert lines(milepost("tree", tmp_path / "run").stdout)[1] == ["the", "root", "float64[2,", "3]", "48", "B"]


NAMES = st.sampled_from(["a", "b", "w0", "w1", "w12", "layer.0.w", "layer.1.w"])
TREES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([np.ones(2, "f4"), np.ones(3, "f8"), 5, "text", None]),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4) | st.lists(inner, min_size=1, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60)
@given(st.dictionaries(NAMES, TREES, min_size=1))
def test_folding_loses_no_leaf_and_no_byte(tree: dict[str, Any]) -> None:
    leaves = mp.save("memory://", tree).leaves

    folded = folded_tree(leaves)

    assert folded.leaves == len(leaves)
    assert folded.nbytes == sum(leaf.nbytes for leaf in leaves.values())


# --- diff


def test_diff_tells_how_far_each_part_moved_and_which_leaf_stands_out(root: Path) -> None:
    result = milepost("diff", f"{root}@100", "@200")

    assert result.exit_code == 0
    params, outlier, frozen, rng, loader = lines(result.stdout)
    assert params[:7] == ["params", "25", "leaves", "12", "changed", "13", "same"]
    assert params[7] == "|d|/|w|"
    assert 0.009 < float(params[8]) < 0.1
    assert outlier[:4] == ["layers/5/w", "[16,", "16]", "f32"]
    assert " ".join(outlier[-4:]) == "<- 9.2x the median"
    assert frozen == ["frozen", "1", "leaf", "same"]
    assert rng == ["rng", "changed"]
    assert " ".join(loader) == "loader position 640 000 -> 1 280 000"


def test_diff_without_stats_reads_no_array(root: Path) -> None:
    flip_a_byte(own_pack(root, 200), 5000)

    without = milepost("diff", f"{root}@100", "@200", "--no-stats")
    reading = milepost("diff", f"{root}@100", "@200")

    assert (without.exit_code, reading.exit_code) == (0, 4)
    assert lines(without.stdout)[0] == ["params", "25", "leaves", "12", "changed", "13", "same"]
    assert "damaged at params/layers/" in reading.stderr


def test_diff_exits_with_3_only_when_asked_and_only_when_they_differ(root: Path) -> None:
    assert milepost("diff", f"{root}@100", "@200").exit_code == 0
    assert milepost("diff", f"{root}@100", "@200", "--exit-code").exit_code == 3
    assert milepost("diff", f"{root}@100:frozen", "@200", "--exit-code").exit_code == 0
    same = milepost("diff", f"{root}@100", "@100", "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "no difference in 36 leaves\n")


def test_diff_shows_every_changed_leaf_when_asked(root: Path) -> None:
    result = milepost("diff", f"{root}@100:params", "@200", "--all")

    assert {row[0] for row in lines(result.stdout)[1:]} == {f"layers/{i}/w" for i in range(LAYERS)}


def test_diff_of_other_trees_folds_what_came_and_went(tmp_path: Path) -> None:
    shapes = {"a": np.ones(2), "b": np.ones(3), "z": np.ones(1)}
    mp.save(tmp_path / "one", {"m": {**shapes, "old": [np.ones(2, "f4")] * 3}, "n": 1}, step=1)
    mp.save(tmp_path / "two", {"m": {**shapes, "b": np.ones(4), "new": [np.zeros(5)] * 2}, "n": 2}, step=7)

    result = milepost("diff", tmp_path / "one", tmp_path / "two", "--exit-code")

    assert result.exit_code == 3
    text = [" ".join(row) for row in lines(result.stdout)]
    assert text == [
        "m 8 leaves 2 same 2 added 3 removed 1 of another kind",
        "+ new/{0..1} x2 float64[5]",
        "- old/{0..2} x3 float32[2]",
        "! b float64[3] -> float64[4]",
        "n 1 -> 2",
    ]


def test_diff_marks_leaves_that_became_nan_or_grew_from_zero(tmp_path: Path) -> None:
    mp.save(tmp_path / "run", {"m": {"a": np.ones(4), "b": np.zeros(4), "c": np.ones(2, "c16")}}, step=1)
    mp.save(tmp_path / "run", {"m": {"a": np.full(4, np.nan), "b": np.ones(4), "c": np.full(2, 1 + 1j)}}, step=2)

    remarks = {row[0]: " ".join(row[3:]) for row in lines(milepost("diff", f"{tmp_path}/run@1", "@2").stdout)[1:]}

    assert remarks["a"] == "max|d| nan rel nan <- not a number"
    assert remarks["b"] == "max|d| 1.0e+00 rel inf <- was all zero"
    assert remarks["c"] == "max|d| 1.0e+00 rel 1.00"


def test_of_two_kinds_of_leaves_that_move_differently_neither_stands_out(tmp_path: Path) -> None:
    for step in (1, 2):
        weights = {f"w{i}": np.full(4, 1 + step * (0.010 + i / 1000)) for i in range(6)}
        moments = {f"m{i}": np.full(4, step * (1.0 + i / 10)) for i in range(6)}
        mp.save(tmp_path / "run", {"model": weights | moments}, step=step)

    assert len(milepost("diff", f"{tmp_path}/run@1", "@2").stdout.splitlines()) == 1


def test_diff_shows_no_numbers_of_random_states_but_those_of_an_attention_key(tmp_path: Path) -> None:
    for step in (1, 2):
        net = {"dropout": np.random.default_rng(step), "attention": {"key": np.full(4, step, "f4")}}
        mp.save(tmp_path / "run", {"net": net}, step=step)

    text = milepost("diff", f"{tmp_path}/run@1", "@2").stdout

    assert [row[0] for row in lines(text)] == ["net", "attention/key"]


def test_diff_json_has_numbers_and_values(root: Path) -> None:
    document = as_json("diff", f"{root}@100", f"{root}@latest")

    assert document["schema"] == "milepost.diff/1"
    assert (document["before"]["step"], document["after"]["step"], document["same"]) == (100, 300, False)
    assert document["counts"]["changed"] == len(document["leaves"])
    by_path = {leaf["path"]: leaf for leaf in document["leaves"]}
    assert by_path["loader/position"]["value_before"] == 640_000
    layer = by_path["params/layers/5/w"]
    old, new = (mp.open(root)[step].leaf("params/layers/5/w").read().astype("f8") for step in (100, 300))
    assert layer["difference"] == pytest.approx(np.linalg.norm(new - old))
    assert layer["relative"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
    assert layer["largest"] == pytest.approx(np.abs(new - old).max())
