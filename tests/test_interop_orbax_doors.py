# SPDX-License-Identifier: Apache-2.0
"""The doors go on in a directory that Orbax itself wrote, and read what was imported from one as Orbax reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax as ocp
import milepost.compat.orbax_v1 as ocp_v1
from milepost.interop import orbax
from orbax_written import W, expected
from test_interop_orbax import theirs, written

__all__ = ["theirs", "written"]  # the fixtures
HERE = Path(__file__).parent
Options = ocp.CheckpointManagerOptions


def lines(*command: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def save(manager: Any, step: int, **options: Any) -> None:
    assert manager.save(step, args=ocp.args.StandardSave({"x": np.arange(3.0)}), **options)
    manager.wait_until_finished()


# --- beside Orbax itself


def test_what_orbax_wrote_is_restored_as_by_orbax(written: Path) -> None:
    assert lines(HERE / "orbax_compared.py", written, written) == ["compared 4"]


def test_what_was_imported_is_restored_as_by_orbax(written: Path, tmp_path: Path) -> None:
    for folder in written.iterdir():
        orbax.import_checkpoints(folder, tmp_path / folder.name)

    assert lines(HERE / "orbax_compared.py", written, tmp_path) == ["compared 4"]


@pytest.mark.parametrize("kind", ["v0", "v1"])
def test_a_program_that_began_with_orbax_goes_on_when_one_import_is_changed(kind: str, tmp_path: Path) -> None:
    program = HERE / "orbax_continued.py"
    assert lines(program, kind, "real", tmp_path / "a", 0, 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    for first in (4, 6):  # with steps of both, then with ours alone
        theirs = lines(program, kind, "real", tmp_path / "a", first, first + 2)
        assert lines(program, kind, "ours", tmp_path / "b", first, first + 2) == theirs
    # Orbax, opened there again, sees its own steps alone, none by now, and begins anew beside ours.
    assert "left [0, 1]" in lines(program, kind, "real", tmp_path / "b", 0, 2)[0]


# --- v0


def test_our_steps_lie_in_a_folder_of_their_own(theirs: Path) -> None:
    root = theirs / "single"
    with ocp.CheckpointManager(root) as manager:
        save(manager, 11)
        assert manager.all_steps() == [1, 2, 10, 11]
        assert manager.restore(11)["x"].tolist() == [0, 1, 2]
        assert manager.restore(10)["int"] == 3
    with ocp.CheckpointManager(root) as manager:
        assert manager.all_steps() == [1, 2, 10, 11] and manager.metadata().custom_metadata == {"run": "x"}
    assert names(root) == ["1", "10", "2", "metadata", "milepost"]
    assert mp.open(root / "milepost").metadata == {"run": "x"}


def test_a_step_that_orbax_wrote_is_not_saved_again(theirs: Path) -> None:
    with ocp.CheckpointManager(theirs / "single") as manager:
        assert not manager.should_save(10)
        with pytest.raises(ocp.checkpoint_manager.StepAlreadyExistsError):
            manager.save(10, args=ocp.args.StandardSave({"x": np.zeros(1)}), force=True)


def test_a_keep_policy_is_about_the_steps_of_both(theirs: Path) -> None:
    with ocp.CheckpointManager(theirs / "single", options=Options(max_to_keep=2)) as manager:
        assert names(theirs / "single") == ["1", "10", "2", "metadata", "milepost"]  # nothing goes before a save
        save(manager, 11)
        assert manager.all_steps() == [10, 11]
    assert names(theirs / "single") == ["10", "metadata", "milepost"]


def test_steps_of_orbax_stay_when_a_save_fails(theirs: Path) -> None:
    with ocp.CheckpointManager(theirs / "single", options=Options(max_to_keep=1)) as manager:
        with pytest.raises(ValueError, match="cannot be stored"):
            manager.save(11, args=ocp.args.StandardSave({"x": object()}))
        assert manager.all_steps() == [1, 2, 10]
    assert names(theirs / "single") == ["1", "10", "2", "metadata", "milepost"]


def test_a_reader_changes_nothing(theirs: Path) -> None:
    before = sorted(theirs.rglob("*"))
    with ocp.CheckpointManager(theirs / "single", options=Options(read_only=True, max_to_keep=1)) as manager:
        assert manager.best_step() == 10 and manager.metrics(2) == {"loss": 0.5}
        manager.delete(1)
    assert sorted(theirs.rglob("*")) == before


def test_a_deleted_step_of_orbax_may_be_put_aside(theirs: Path) -> None:
    with ocp.CheckpointManager(theirs / "single", options=Options(todelete_subdir="old")) as manager:
        manager.delete(1)
        manager.delete(2)
        assert manager.all_steps() == [10]
        with pytest.raises(FileNotFoundError):
            manager.delete(2)
    assert names(theirs / "single" / "old") == ["1", "2"]
    assert list(orbax.open(theirs / "single" / "old")) == [1, 2]


def test_the_metrics_of_orbax_count_for_the_best(theirs: Path) -> None:
    options = Options(max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="max")
    with ocp.CheckpointManager(theirs / "single", options=options) as manager:
        assert manager.best_step() == 1
        save(manager, 11, metrics={"loss": 0.7})
        assert manager.all_steps() == [1, 11]


def test_a_damaged_step_of_orbax_is_left_out_and_stops_nothing(theirs: Path) -> None:
    (theirs / "single" / "2" / "metrics" / "metrics").write_text("")
    (theirs / "single" / "1" / "_CHECKPOINT_METADATA").write_text("{")

    with (
        pytest.warns(RuntimeWarning, match="step 1 is left out"),
        pytest.warns(RuntimeWarning, match="metrics of step 2"),
    ):
        manager = ocp.CheckpointManager(theirs / "single")
    assert manager.all_steps() == [2, 10] and manager.restore(2)["int"] == 3
    manager.close()


def test_a_handler_of_the_user_restores_its_own_files(theirs: Path, tmp_path: Path) -> None:
    step = theirs / "named" / "ck_000004"
    (step / "loader").mkdir()
    (step / "loader" / "state.txt").write_text("at 7")
    orbax.import_checkpoints(theirs / "named", tmp_path / "store")

    class LoaderHandler(ocp.CheckpointHandler):
        def save(self, directory: Any, *args: Any, **kwargs: Any) -> None: ...

        def restore(self, directory: Any, *args: Any, **kwargs: Any) -> str:
            return (directory / "state.txt").read_text()

    options = Options(create=False, step_prefix="ck", step_format_fixed_length=6)
    for root in (theirs / "named", tmp_path / "store"):
        with ocp.CheckpointManager(root, options=options, item_handlers={"loader": LoaderHandler()}) as manager:
            assert manager.restore(4)["loader"] == "at 7"


def test_names_are_read_as_the_options_say(theirs: Path) -> None:
    (theirs / "named" / "7").mkdir()
    with ocp.CheckpointManager(theirs / "named", options=Options(create=False)) as manager:
        assert manager.all_steps() == []
    options = Options(step_prefix="ck", step_format_fixed_length=6)
    with ocp.CheckpointManager(theirs / "named", options=options) as manager:
        assert manager.all_steps() == [4]
        manager.save(5, args=ocp.args.Composite(config=ocp.args.JsonSave({"a": 1})))
    assert (theirs / "named" / "milepost" / "ck_000005").is_dir()


def test_an_evaluator_sees_the_steps_of_both(theirs: Path) -> None:
    seen = ocp.checkpoint_utils.checkpoints_iterator(theirs / "single", timeout=0)
    assert next(seen) == 10
    with ocp.CheckpointManager(theirs / "single") as manager:
        save(manager, 11)
    assert list(seen) == [11]
    assert ocp.path.step.checkpoint_steps(theirs / "single") == [1, 2, 10, 11]


def test_paths_of_steps_and_items_are_found_whoever_wrote_them(theirs: Path) -> None:
    with ocp.CheckpointManager(theirs / "single") as manager:
        save(manager, 11)
    restore = ocp.StandardCheckpointer().restore

    for path in ("10", "10/default"):
        assert np.array_equal(restore(theirs / "single" / path)["w"], W + 10)
    for path in ("11", "11/default"):
        assert restore(theirs / "single" / path)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="holds the steps of a CheckpointManager, 4"):
        restore(theirs / "named")


def test_what_orbax_saved_alone_is_not_written_over(theirs: Path) -> None:
    path = theirs / "cut"
    with pytest.raises(ValueError, match="already exists"):
        ocp.PyTreeCheckpointer().save(path, {"x": np.zeros(1)})
    assert ocp.PyTreeCheckpointer().restore(path)["large"].shape == (300, 300)


# --- v1


def test_v1_goes_on_beside_orbax(theirs: Path) -> None:
    policy = ocp_v1.training.preservation_policies.LatestN(2)
    with ocp_v1.training.Checkpointer(theirs / "v1", preservation_policy=policy, custom_metadata={"run": "z"}) as ckptr:
        assert [each.step for each in ckptr.checkpoints] == [1, 2]
        assert ckptr.root_metadata().custom_metadata == {"run": "y"}
        ckptr.save(3, {"x": np.arange(3.0)}, force=True)
        assert [each.step for each in ckptr.checkpoints] == [2, 3]
        assert [each.path.parent.name for each in ckptr.checkpoints] == ["v1", "milepost"]
        assert ocp_v1.load(ckptr.checkpoints[0].path)["int"] == 3
        assert ocp_v1.load(theirs / "v1" / "3")["x"].tolist() == [0, 1, 2]
    assert names(theirs / "v1") == ["2", "metadata", "milepost"]


def test_v1_replaces_a_step_of_orbax_when_its_own_is_there(theirs: Path) -> None:
    with ocp_v1.training.Checkpointer(theirs / "v1") as ckptr:
        ckptr.save(2, {"x": np.zeros(1)}, force=True, overwrite=True)
        assert set(ckptr.load(2)) == {"x"}
        ckptr.delete(2)
        ckptr.reload()
        assert [each.step for each in ckptr.checkpoints] == [1]


def test_v1_deletes_steps_of_orbax_whole_only(theirs: Path) -> None:
    with ocp_v1.training.Checkpointer(theirs / "v1") as ckptr:
        with pytest.raises(ocp_v1.errors.InvalidLayoutError, match="only deleted whole"):
            ckptr.delete(2, checkpointable_name="config")
        assert ckptr.delete(2) and [each.step for each in ckptr.checkpoints] == [1]
    with pytest.raises(ocp_v1.errors.InvalidLayoutError, match="only deleted whole"):
        ocp_v1.delete(theirs / "v1_alone", checkpointable_name="state")
    assert ocp_v1.delete(theirs / "v1_alone") and not (theirs / "v1_alone").exists()


def test_v1_step_names_find_the_steps_of_both(theirs: Path) -> None:
    with ocp_v1.training.Checkpointer(theirs / "v1") as ckptr:
        ckptr.save(5, {"x": np.zeros(1)}, force=True)
    found = ocp_v1.path.step.standard_name_format().find_all(theirs / "v1")
    assert [each.step for each in found] == [1, 2, 5]


def test_v1_tells_a_directory_of_orbax_from_a_checkpoint(theirs: Path) -> None:
    with pytest.raises(ocp_v1.errors.InvalidLayoutError, match=r"holds steps \(1, 2, 10"):
        ocp_v1.load(theirs / "single")
    assert ocp_v1.load(theirs / "v1_alone")["text"] == "hello"
    assert ocp_v1.load(theirs / "single" / "1")["int"] == expected(1)["int"]
