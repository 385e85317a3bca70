# SPDX-License-Identifier: Apache-2.0
"""The checkpoints under one root: what is there, which is best, what stays, what comes, what is damaged."""

from __future__ import annotations

import itertools
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import milepost as mp
from milepost.catalog import rows
from milepost.model import format as fmt


def tree(value: float = 1.0) -> dict[str, Any]:
    return {"model": {"w": np.full((8, 4), float(value)), "b": np.zeros(3)}, "step": int(value)}


def fill(root: Any, *steps: int, **options: Any) -> mp.Catalog:
    with mp.Checkpointer(root, **options) as saver:
        for step in steps:
            saver.save(step, tree(step), metrics={"loss": float(step % 7), "eval": {"acc": step / 100}})
    return mp.open(root)


def flip(path: Path, offset: int = -1) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def pack_of(root: Path, step: int) -> Path:
    """The pack that holds `model/w`, which every save of `tree` writes anew."""
    return next(path for path in root.glob(f"{step}/*.safetensors") if path.stat().st_nlink == 1)


# --- a mapping


def test_a_catalog_is_a_mapping_of_steps(root: Path) -> None:
    catalog = fill(root, 1, 5, 9)

    assert list(catalog) == [1, 5, 9]
    assert len(catalog) == 3
    assert 5 in catalog and 6 not in catalog and "5" not in catalog
    assert catalog[5].step == 5
    assert catalog.get(6) is None
    assert [checkpoint.step for checkpoint in catalog.values()] == [1, 5, 9]


def test_a_step_that_is_not_there_names_what_is_and_the_nearest(root: Path) -> None:
    catalog = fill(root, 1, 5, 9)
    with pytest.raises(mp.NotFoundError, match="no step 6\n  Its steps: 1, 5, 9; the nearest is 5"):
        catalog[6]


def test_a_catalog_is_a_snapshot_and_refresh_lists_anew(root: Path) -> None:
    catalog = fill(root, 1)
    fill(root, 2)
    assert list(catalog) == [1]
    catalog.refresh()
    assert list(catalog) == [1, 2]


def test_opening_nothing_is_not_found(root: Path) -> None:
    with pytest.raises(mp.NotFoundError, match="does not exist\n  Check the path"):
        mp.open(root)
    root.mkdir()
    with pytest.raises(mp.NotFoundError, match="is empty"):
        mp.open(root)


def test_a_folder_that_is_no_root_is_not_written_to(root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("do not touch")
    with pytest.raises(mp.FormatError, match=r"not a root of milepost: .*found thesis\.tex"):
        mp.Checkpointer(root)
    assert [path.name for path in root.iterdir()] == ["thesis.tex"]


def test_latest_reads_one_manifest_of_five_thousand(root: Path) -> None:
    from milepost.testing.recorder import Recorder

    fill(root, 1)
    manifest = fmt.unseal((root / "1/manifest.json").read_bytes(), fmt.Manifest, "")
    for step in range(2, 5_001):
        (root / str(step)).mkdir()
        (root / str(step) / "manifest.json").write_bytes(fmt.seal(msgspec.structs.replace(manifest, step=step)))
    fill(root, 5_001)

    with Recorder(root) as calls:
        latest = mp.open(root).latest()

    assert latest is not None and latest.step == 5_001
    opened = [call.path for call in calls.calls if call.name == "open" and call.path.endswith("manifest.json")]
    assert opened == ["5001/manifest.json"]


def test_print_shows_a_table(root: Path) -> None:
    text = str(fill(root, 1, 5, keep="last 3"))

    assert text.splitlines()[1].split() == ["STEP", "AGE", "SIZE", "NEW", "loss", "SAVED", "BECAUSE", "KEPT", "BECAUSE"]
    assert text.splitlines()[2].split()[0] == "5"
    assert "latest · last 3" in text
    assert fill(root, 9)._repr_html_().count("<tr>") == 4


def test_rows_show_what_is_unfinished_superseded_and_damaged(root: Path) -> None:
    fill(root, 1, 5, 9)
    fill(root, 6, resume_from=mp.open(root)[5])
    (root / "12").mkdir()
    flip(root / "1/manifest.json", 40)

    states = {row.step: row.state for row in rows(mp.open(root))}

    assert states == {12: "incomplete", 9: "superseded", 6: "committed", 5: "committed", 1: "damaged"}


# --- which one


def test_best_takes_the_newer_on_a_tie_and_never_counts_nan(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        for step, loss in enumerate([2.0, 1.0, 1.0, float("nan"), 3.0]):
            saver.save(step, tree(), metrics={"loss": loss})
        saver.save(9, tree())
    catalog = mp.open(root)

    assert catalog.best("loss").step == 2  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog.best("loss", "max").step == 4  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog.best("accuracy") is None
    assert catalog.best(lambda metrics: -metrics["loss"], "max").step == 2  # pyright: ignore[reportOptionalMemberAccess]


def test_best_reads_dotted_paths(root: Path) -> None:
    assert fill(root, 1, 5).best("eval.acc").step == 5  # pyright: ignore[reportOptionalMemberAccess]


def test_find_looks_for_metadata(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(1, tree(), metadata={"git": "a", "time": np.datetime64("2026-01-01")})
        saver.save(2, tree(), metadata={"git": "b"})
    catalog = mp.open(root)

    assert [c.step for c in catalog.find(git="a")] == [1]
    assert [c.step for c in catalog.find(time=np.datetime64("2026-01-01"))] == [1]
    assert catalog.find(git="c") == []


# --- what is said of one


def test_annotate_adds_metrics_and_metadata_after_the_commit(root: Path) -> None:
    catalog = fill(root, 1, 2)
    catalog.annotate(2, metrics={"eval_loss": 0.25})
    catalog.annotate(2, metrics={"eval_loss": 0.125}, metadata={"note": "good"})

    for each in (catalog, mp.open(root)):
        assert each[2].metrics["eval_loss"] == 0.125
        assert each[2].metrics["loss"] == 2.0
        assert each[2].metadata == {"note": "good"}
    with pytest.raises(mp.NotFoundError, match="no step 7"):
        catalog.annotate(7, metrics={})


def test_annotating_changes_no_byte_that_was_committed(root: Path) -> None:
    catalog = fill(root, 1)
    before = {path: path.read_bytes() for path in (root / "1").iterdir() if path.is_file()}
    catalog.annotate(1, metrics={"x": 1})
    catalog.pin(1, "good")
    assert {path: path.read_bytes() for path in (root / "1").iterdir() if path.is_file()} == before


def test_annotate_needs_no_lock(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(1, tree()).result()
        mp.open(root).annotate(1, metrics={"x": 1})
    assert mp.open(root)[1].metrics["x"] == 1


def test_a_pinned_step_stays_until_it_is_unpinned(root: Path) -> None:
    catalog = fill(root, 1, 2, 3)
    catalog.pin(1, "before-lr-drop")

    assert catalog.prune("last 1").kept == {1: 'pinned "before-lr-drop"', 3: "latest · last 1"}
    with pytest.raises(mp.NotFoundError, match=r"(?s)no pin .*There are: before-lr-drop"):
        catalog.unpin("other")
    catalog.unpin("before-lr-drop")
    assert list(catalog.prune("last 1").dropped) == [1]
    with pytest.raises(ValueError, match="needs a name"):
        catalog.pin(3, "")


# --- restore


def test_restore_of_nothing_is_none(root: Path) -> None:
    mp.Checkpointer(root).close()
    assert mp.open(root).restore() is None


def test_restore_gives_the_latest(root: Path) -> None:
    restored = fill(root, 1, 5).restore()
    assert restored is not None
    assert (restored.checkpoint.step, restored.tree["step"], restored.skipped) == (5, 5, ())


def test_a_damaged_latest_is_raised_or_walked_back_from_but_never_taken_in_silence(root: Path) -> None:
    catalog = fill(root, 1, 5, 9)
    flip(pack_of(root, 9))

    with pytest.raises(mp.CorruptionError, match="step 9 is damaged at model/w"):
        catalog.restore()
    with pytest.warns(RuntimeWarning, match="step 9 is damaged at model/w.*going back"):
        restored = catalog.restore(tree(), on_corrupt="previous")
    assert restored is not None
    assert (restored.checkpoint.step, [step for step, _ in restored.skipped]) == (5, [9])


def test_restore_into_restores_in_place_from_the_last_good_step(root: Path) -> None:
    catalog = fill(root, 1, 5, 9)
    flip(pack_of(root, 9))
    target = tree(0)
    with pytest.raises(ValueError, match="not both"):
        catalog.restore(target, into=target)
    with pytest.warns(RuntimeWarning, match="going back"):
        restored = catalog.restore(into=target, on_corrupt="previous")
    assert restored is not None
    assert restored.tree is target
    assert (target["step"], target["model"]["w"][0, 0]) == (5, 5.0)


def test_a_keep_policy_without_a_phrase_claims_no_reasons(root: Path) -> None:
    fill(root, 1, 2, keep=mp.Best(lambda metrics: metrics["loss"], mode="min"))
    assert [row.kept_because for row in rows(mp.open(root))] == ["latest", ""]


def test_a_damaged_manifest_is_walked_back_from_too(root: Path) -> None:
    catalog = fill(root, 1, 5)
    flip(root / "5/manifest.json", 30)
    with pytest.raises(mp.CorruptionError, match="manifest.json is damaged"):
        catalog.restore()
    with pytest.warns(RuntimeWarning, match="manifest.json is damaged"):
        assert catalog.restore(on_corrupt="previous").checkpoint.step == 1  # pyright: ignore[reportOptionalMemberAccess]


def test_when_no_step_is_whole_restore_says_so(root: Path) -> None:
    catalog = fill(root, 1, 5)
    for path in root.glob("*/*.safetensors"):
        flip(path)
    with (
        pytest.raises(mp.CorruptionError, match="none of its 2 steps is whole"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        catalog.restore(on_corrupt="previous")


def test_a_run_goes_on_from_the_step_that_it_fell_back_to(root: Path) -> None:
    fill(root, 1, 5, 9)
    flip(pack_of(root, 9))
    with mp.Checkpointer(root, save="every 4 steps") as saver, pytest.warns(RuntimeWarning):
        assert saver.catalog.restore(on_corrupt="previous").checkpoint.step == 5  # pyright: ignore[reportOptionalMemberAccess]
        assert saver.due(8) is not None
        saver.save(8, tree(8))
        saver.save(9, tree(90)).result()

    catalog = mp.open(root)
    assert catalog.latest().load()["step"] == 90  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog[8].info.parent == "5"


# --- what goes


def test_nothing_is_deleted_that_was_not_asked_for(root: Path) -> None:
    catalog = fill(root, *range(1, 9))
    catalog.pin(2, "p")
    plan = catalog.prune("last 2, best 1 loss", dry_run=True)

    assert list(catalog) == list(range(1, 9))
    assert plan.kept == {2: 'pinned "p"', 7: "last 2 · best 1 loss", 8: "latest · last 2"}
    done = catalog.prune("last 2, best 1 loss")
    assert done == plan
    assert list(mp.open(root)) == [2, 7, 8]


def test_the_latest_stays_whatever_the_policy_says(root: Path) -> None:
    assert fill(root, 1, 2).prune("steps 77").kept == {2: "latest"}


def test_a_damaged_step_is_shown_and_kept(root: Path) -> None:
    catalog = fill(root, 1, 2, 3)
    flip(root / "1/manifest.json", 30)
    assert catalog.prune("last 1").kept == {1: "damaged", 3: "latest · last 1"}
    assert (root / "1").is_dir()


def test_a_damaged_latest_is_shown_and_what_restore_falls_back_to_stays(root: Path) -> None:
    catalog = fill(root, 1, 2, 3)
    flip(root / "3/manifest.json", 30)
    assert "damaged" in str(catalog)
    assert catalog.prune("steps 77").kept == {2: "latest whole", 3: "damaged"}


def test_a_step_that_is_being_read_is_not_pruned(root: Path) -> None:
    catalog = fill(root, 1, 2)
    with catalog[1].lease():
        assert catalog.prune("last 1").busy == (1,)
        with pytest.raises(mp.ConflictError, match="is being read"):
            catalog.delete(1)
        np.testing.assert_array_equal(catalog[1].load()["model"]["w"], tree(1)["model"]["w"])
    assert list(catalog.prune("last 1").dropped) == [1]


def test_a_step_that_was_deleted_meanwhile_is_not_found_deleted(root: Path) -> None:
    checkpoint = fill(root, 1, 2)[1]
    mp.open(root).delete(1)
    with pytest.raises(mp.NotFoundError, match="was deleted while it was read") as caught:
        checkpoint.load()
    assert caught.value.code == "deleted"


def test_delete_removes_any_step(root: Path) -> None:
    catalog = fill(root, 1, 2)
    catalog.delete(2)
    assert list(catalog) == [1]
    assert catalog.latest().step == 1  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(mp.NotFoundError, match="no step 2"):
        catalog.delete(2)


def test_pruning_says_how_many_bytes_each_step_frees(root: Path) -> None:
    frozen = np.random.default_rng(0).random(10_000)
    with mp.Checkpointer(root) as saver:
        for step in range(3):
            saver.save(step, {"frozen": frozen, "head": np.full(1000, step)})
    dropped = saver.catalog.prune("last 1", dry_run=True).dropped

    assert list(dropped) == [0, 1]
    assert dropped[0] < 4_000  # its pack holds `frozen`, which step 2 still links
    assert 8_000 < dropped[1] < 20_000


def test_older_generations_under_a_branch_go_with_the_next_prune(root: Path) -> None:
    fill(root, 1, 2, 3)
    catalog = fill(root, 2, resume_from=mp.open(root)[1])
    assert (root / "2").is_dir() and (root / "2.g2").is_dir()
    catalog.prune("all")
    assert not (root / "2").exists()
    assert list(catalog) == [1, 2, 3]


# --- what comes


def test_watch_yields_what_is_there_and_what_comes(root: Path) -> None:
    fill(root, 1, 2)
    watcher = mp.open(root).watch(after=1, poll_s=0.01)
    assert next(watcher).step == 2
    thread = threading.Thread(target=fill, args=(root, 3, 4))
    thread.start()
    assert [checkpoint.step for checkpoint in itertools.islice(watcher, 2)] == [3, 4]
    thread.join()


def test_watch_ends_when_nothing_comes(root: Path) -> None:
    fill(root, 1)
    assert [checkpoint.step for checkpoint in mp.open(root).watch(poll_s=0.01, timeout_s=0.05)] == [1]


def test_watch_of_a_run_that_has_not_saved_yet_waits_for_it(root: Path) -> None:
    mp.Checkpointer(root).close()
    assert list(mp.open(root).watch(poll_s=0.01, timeout_s=0.03)) == []


def test_recheck_verifies_a_step(root: Path) -> None:
    catalog = fill(root, 1)
    assert catalog.recheck(1).step == 1  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog.recheck(2) is None
    flip(pack_of(root, 1))
    with pytest.raises(mp.CorruptionError):
        catalog.recheck(1)


# --- verify, diff


def test_verify_finds_everything_that_is_damaged(root: Path) -> None:
    catalog = fill(root, 1)
    report = catalog[1].verify()
    assert (report.step, report.leaves, report.nbytes, report.deep) == (1, 3, 8 * 4 * 8 + 3 * 8, True)
    assert catalog[1].verify(deep=False).nbytes == 0

    pack = pack_of(root, 1)
    flip(pack, -1)
    flip(pack, 4096)
    flip(pack, 20)
    with pytest.raises(mp.CorruptionError, match="damaged in 3 places") as caught:
        mp.open(root)[1].verify()
    assert {damage.path for damage in caught.value.damaged} == {"the pack's header", "model/b", "model/w"}
    mp.open(root)[1].verify(deep=False)  # no byte was added or lost


@pytest.mark.parametrize("change", ["truncate", "remove"])
def test_verify_finds_files_that_are_short_or_gone_without_reading_them(root: Path, change: str) -> None:
    checkpoint = fill(root, 1)[1]
    pack = pack_of(root, 1)
    if change == "truncate":
        pack.chmod(0o644)
        pack.write_bytes(pack.read_bytes()[:-5])
    else:
        pack.unlink()
    for deep in (False, True):
        with pytest.raises(mp.CorruptionError) as caught:
            checkpoint.verify(deep=deep)
        assert pack.name in {damage.file for damage in caught.value.damaged}


def test_a_damaged_leaf_table_is_told(root: Path) -> None:
    checkpoint = fill(root, 1)[1]
    flip(root / "1/leaves.json", 100)
    with pytest.raises(mp.CorruptionError, match="damaged in 1 place"):
        checkpoint.verify()
    with pytest.raises(mp.CorruptionError, match=r"leaves\.json is damaged"):
        mp.open(root)[1].load()


def test_an_eager_read_checks_every_byte(root: Path) -> None:
    fill(root, 1)
    pack = pack_of(root, 1)
    size = pack.stat().st_size
    for offset in range(4096, size, 7):
        flip(pack, offset)
        with pytest.raises(mp.CorruptionError, match="step 1 is damaged at model/"):
            mp.load(root)
        flip(pack, offset)
    mp.load(root)


def test_arrays_come_back_in_their_frameworks_when_asked_for(root: Path) -> None:
    import jax.numpy as jnp
    import torch

    mp.save(root, {"t": torch.arange(3), "j": jnp.arange(3), "n": np.arange(3)})
    checkpoint = mp.open(root)[0]

    loaded = checkpoint.load(frameworks="saved")
    assert [type(loaded[key]).__module__.partition(".")[0] for key in "tjn"] == ["torch", "jaxlib", "numpy"]
    assert {type(value) for value in checkpoint.load().values()} == {np.ndarray}
    with pytest.raises(mp.StructureError, match="cannot be lazy"):
        checkpoint.load(frameworks="saved", lazy=True)


def test_a_lazy_load_is_unchecked_until_verify(root: Path) -> None:
    fill(root, 1)
    flip(pack_of(root, 1), 4096)
    lazy = mp.open(root)[1].load(lazy=True)
    assert isinstance(lazy["model"]["w"], np.ndarray)
    with pytest.raises(mp.CorruptionError):
        mp.open(root)[1].verify()


def test_a_lazy_array_may_be_changed_without_changing_the_file(root: Path) -> None:
    fill(root, 1)
    lazy = mp.open(root)[1].load(lazy=True)
    lazy["model"]["w"][:] = -1
    mp.open(root)[1].verify()


def test_diff_tells_what_changed_without_reading_arrays(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(1, {"a": np.arange(4.0), "b": np.ones(3), "n": 1, "old": 1})
        saver.save(2, {"a": np.arange(4.0), "b": np.ones(3) * 2, "n": 2, "s": np.ones(2)})
    diff = saver.catalog[1].diff(saver.catalog[2])

    assert {leaf.path: leaf.change for leaf in diff.leaves} == {
        "a": "same", "b": "changed", "n": "changed", "old": "removed", "s": "added",
    }  # fmt: skip
    assert diff
    assert not saver.catalog[1].diff(saver.catalog[1])
    stats = diff.stats("b")
    assert stats is not None
    assert (stats.largest, stats.relative) == (1.0, pytest.approx(1.0))
    assert diff.stats("n") is None
    assert diff.values("n") == (1, 2)


# --- copies


def test_a_copied_step_opens_by_itself_under_any_name(root: Path, tmp_path: Path) -> None:
    fill(root, 1, 2)
    shutil.copytree(root / "2", tmp_path / "best-model")

    checkpoint = mp.open(tmp_path / "best-model").latest()
    assert checkpoint is not None
    assert checkpoint.load()["step"] == 2
    checkpoint.verify()
    with pytest.raises(mp.StorageError, match="is a copied step, not a root"):
        mp.open(tmp_path / "best-model").delete(2)


def test_a_folder_of_copied_steps_opens(root: Path, tmp_path: Path) -> None:
    fill(root, 1, 2, 3)
    for step in (1, 3):
        shutil.copytree(root / str(step), tmp_path / "copies" / str(step))
    assert list(mp.open(tmp_path / "copies")) == [1, 3]
    assert mp.load(tmp_path / "copies")["step"] == 3


def test_a_copied_root_opens(root: Path, tmp_path: Path) -> None:
    fill(root, 1, 2)
    shutil.copytree(root, tmp_path / "copy")
    fill(tmp_path / "copy", 3)
    assert list(mp.open(tmp_path / "copy")) == [1, 2, 3]
    for step in (1, 2, 3):
        mp.open(tmp_path / "copy")[step].verify()
