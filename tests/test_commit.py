# SPDX-License-Identifier: Apache-2.0
"""How a step comes to exist on a real file system, what stays when something fails, and what one may do by hand."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
from milepost.errors import CommitUnknownError, StorageError
from milepost.model.format import StepFormat
from milepost.testing.recorder import Call, Recorder

FROZEN = np.arange(5_000.0)


def tree(step: int) -> dict[str, Any]:
    return {"w": np.full(7, float(step)), "frozen": FROZEN, "step": step}


def fill(root: Path, *steps: int, **options: Any) -> None:
    with mp.Checkpointer(root, save="every step", **options) as saver:
        for step in steps:
            saver.save(step, tree(step)).result()


def whole(root: Path) -> list[int]:
    """The steps of a root, each of which was read in full and compared."""
    catalog = mp.open(root)
    for checkpoint in catalog.values():
        checkpoint.verify()
        loaded = checkpoint.load()
        assert loaded["step"] == checkpoint.step
        np.testing.assert_array_equal(loaded["w"], tree(checkpoint.step)["w"])
        np.testing.assert_array_equal(loaded["frozen"], FROZEN)
    return list(catalog)


class Fails:
    """Lets every call of a name fail whose path matches, once `when` says so."""

    def __init__(self, name: str, path: str, *, when: Callable[[], bool] = lambda: True) -> None:
        self.name, self.path, self.when = name, path, when
        self.count = 0

    def __call__(self, call: Call) -> None:
        if call.name == self.name and re.fullmatch(self.path, call.path) and self.when():
            self.count += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


# --- when a checkpoint exists


def test_a_checkpoint_exists_exactly_when_its_manifest_does(root: Path) -> None:
    fill(root, 1)
    seen: list[bool] = []

    def look(call: Call) -> None:
        there = (root / "2" / "manifest.json").exists()
        assert list(mp.open(root)) == ([1, 2] if there else [1])
        seen.append(there)

    with Recorder(root, before=look):
        fill(root, 2)
    (root / "2" / "manifest.json").rename(root / "2" / "away")
    without = list(mp.open(root))
    (root / "2" / "away").rename(root / "2" / "manifest.json")

    assert seen == sorted(seen)  # first it is not there, then it is
    assert {False, True} == set(seen)
    assert without == [1]
    assert whole(root) == [1, 2]


def test_a_manifest_is_put_create_only(root: Path) -> None:
    fill(root, 1)
    before = (root / "1" / "manifest.json").read_bytes()

    def another_is_first(call: Call) -> None:
        if call.name == "link" and call.target.endswith("2/manifest.json"):
            (root / "2" / "manifest.json").write_bytes(before)

    with Recorder(root, before=another_is_first), pytest.raises(mp.ConflictError) as caught:
        fill(root, 2)

    assert caught.value.code == "exists"
    assert (root / "2" / "manifest.json").read_bytes() == before


def test_every_byte_is_durable_before_the_manifest(root: Path) -> None:
    for step in (1, 2):  # the second one links what is unchanged
        with Recorder(root) as recorder:
            fill(root, step)
        calls = recorder.calls
        made = next(i for i, call in enumerate(calls) if call.target == f"{step}/manifest.json")
        slot = made_durable(calls, made, f"{step}/")
        names = {file.name for file in (root / f"{step}").iterdir()}

        assert slot == names - {"manifest.json"}
        assert len(slot) == step + 1
        # The manifest's own bytes before its name, its name before the save returns; then nothing changes any more.
        assert durable(calls, calls[made].inode, made)
        after = [str(call) for call in calls[made + 1 :] if call.name != "open" and call.path.startswith(f"{step}/")]
        assert [text.partition(".tmp-")[0] for text in after] == [f"unlink {step}/", f"fsync {step}/"]


def made_durable(calls: list[Call], until: int, slot: str) -> set[str]:
    """The names in a slot that a power cut before a call would leave, with all their bytes."""
    found: set[str] = set()
    for index, call in enumerate(calls[:until]):
        name = call.target.removeprefix(slot)
        if call.name == "link" and call.target.startswith(slot):
            assert durable(calls, call.inode, index), f"{name} was given its name before its bytes were durable"
            assert any(each.name == "fsync" and each.path == slot for each in calls[index:until]), name
            found.add(name)
    folder = next(i for i, call in enumerate(calls) if call.name == "mkdir" and call.path == slot)
    assert any(call.name == "fsync" and call.path == "." for call in calls[folder:until])
    return found


def durable(calls: list[Call], inode: int, until: int) -> bool:
    """Whether whatever was written to a file before a call was synced before it."""
    about = [call.name for call in calls[:until] if call.inode == inode and call.name in ("write", "fsync")]
    return not about or about[-1] == "fsync"


# --- what others do not notice


def test_a_step_that_is_overwritten_is_there_at_every_system_call(root: Path) -> None:
    fill(root, 1, 2)
    seen: list[int] = []

    def look(call: Call) -> None:
        latest = mp.open(root).latest()
        assert latest is not None
        seen.append(latest.load()["again"] if "again" in latest.leaves else 0)

    with Recorder(root, before=look), mp.Checkpointer(root, save="every step") as saver:
        saver.save(2, {**tree(2), "again": 1}, overwrite=True).result()

    assert seen == sorted(seen)
    assert set(seen) == {0, 1}
    assert sorted(path.name for path in root.iterdir() if path.name.startswith("2")) == ["2.g2"]
    assert mp.open(root)[2].load()["again"] == 1


def test_a_reader_at_any_system_call_of_retention_is_given_all_or_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fill(root, 1, 2)
    checkpoint = mp.open(root)[1]
    seen: list[str] = []

    def read(call: Call) -> None:
        try:
            assert checkpoint.load()["step"] == 1
            seen.append("read")
        except mp.NotFoundError as error:
            seen.append(error.code)
        except mp.ConflictError as error:
            seen.append(error.code)

    with Recorder(root, before=read):
        assert mp.open(root).prune("last 1").dropped.keys() == {1}

    assert list(dict.fromkeys(seen)) == ["read", "busy", "deleted"]


def test_removing_a_step_leaves_those_that_share_its_packs_whole(root: Path) -> None:
    fill(root, 1, 2, 3, 4, 5)
    packs = {path.stat().st_ino for path in root.glob("[1-5]/*.safetensors")}
    assert len(packs) == 5  # the first is in all of them

    shutil.rmtree(root / "1")
    assert whole(root) == [2, 3, 4, 5]
    mp.open(root).delete(3)
    assert whole(root) == [2, 4, 5]
    mp.open(root).prune("last 1")
    assert whole(root) == [5]
    fill(root, 6)
    assert whole(root) == [5, 6]


# --- failures


def test_a_manifest_that_may_not_survive_is_an_outcome_of_its_own(root: Path) -> None:
    fill(root, 1)
    fails = Fails("fsync", "2/", when=(root / "2" / "manifest.json").exists)

    with mp.Checkpointer(root, save="every step") as saver:
        with Recorder(root, before=fails):
            pending = saver.save(2, tree(2))
            with pytest.raises(CommitUnknownError, match=r"2/manifest.json .*\n.*recheck") as caught:
                pending.result()
        checkpoint = saver.catalog.recheck(2)
        saver.save(3, tree(3)).result()

    assert (fails.count, caught.value.code) == (1, "commit_unknown")
    assert checkpoint is not None
    assert saver.catalog.recheck(4) is None
    assert whole(root) == [1, 2, 3]


def test_whether_another_writer_took_over_may_be_unknown_too(root: Path) -> None:
    fill(root, 1)
    fails = Fails("open", "writers/", when=(root / "2" / "manifest.json").exists)

    with Recorder(root, before=fails), pytest.raises(CommitUnknownError, match="cannot be told"):
        fill(root, 2)

    assert fails.count
    assert mp.open(root).recheck(2) is not None


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("mkdir", "2/"),
        ("fsync", r"\."),
        ("write", r"2/\.tmp-.*"),
        ("fsync", r"2/\.tmp-.*"),
        ("link", r"2/\.tmp-.*"),
        ("link", r"1/p00000-.*"),
        ("fsync", "2/"),
        ("fsync", "writers/"),
        ("link", r"writers/\.tmp-.*"),
    ],
)
def test_what_fails_before_the_manifest_is_no_unknown_outcome_and_leaves_nothing(
    root: Path, call: str, path: str
) -> None:
    fill(root, 1)
    before = sorted(path.name for path in root.iterdir())
    broken = [True]
    fails = Fails(call, path, when=lambda: broken[0] and not (root / "2" / "manifest.json").exists())

    with mp.Checkpointer(root, save="every step") as saver:
        with Recorder(root, before=fails), pytest.raises(StorageError) as caught:
            saver.save(2, tree(2)).result()
        left = sorted(path.name for path in root.iterdir())
        broken[0] = False
        saver.save(2, tree(2)).result()

    assert fails.count
    assert not isinstance(caught.value, CommitUnknownError)
    assert left == before or path == r"\."  # without the root's own sync nothing can be removed for certain
    assert whole(root) == [1, 2]


def test_a_step_is_saved_though_the_one_it_replaces_cannot_be_removed(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(root, 1)

    with mp.Checkpointer(root, save="every step") as saver:
        with Recorder(root, before=Fails("rename", "1/")):
            saver.save(1, tree(1), overwrite=True).result()
        assert "step 1 is saved, but 1 could not be removed" in caplog.text
        assert mp.open(root)[1].info.slot == "1.g2"
        saver.catalog.prune("all")

    assert whole(root) == [1]
    assert [path.name for path in root.glob("1*")] == ["1.g2"]


def test_an_interrupt_of_a_save_in_the_foreground_ends_it(root: Path) -> None:
    fill(root, 1)

    def interrupt(call: Call) -> None:
        if call.name == "write" and call.path.startswith("2/"):
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        mp.Checkpointer(root, save="every step", limits=mp.Limits(memory_bytes=1)) as saver,
        Recorder(root, before=interrupt),
    ):
        saver.save(2, tree(2))

    assert not (root / "2").exists()
    fill(root, 2)
    assert whole(root) == [1, 2]


# --- damaged records


def test_a_damaged_writer_record_says_what_to_do_and_that_helps(root: Path) -> None:
    fill(root, 1)
    fill(root, 2)
    flip(root / "writers" / "2.json", 20)

    for touch in (lambda: mp.open(root), lambda: fill(root, 3)):
        with pytest.raises(
            mp.CorruptionError, match=r"writers/2.json is damaged.*\n[^\0]*delete\s+that file"
        ) as caught:
            touch()
        assert caught.value.damaged[0].file.endswith("writers/2.json")
    assert mp.open(root / "2").latest() is not None  # each step still opens by itself
    (root / "writers" / "2.json").unlink()

    assert whole(root) == [1, 2]
    fill(root, 3)
    assert whole(root) == [1, 2, 3]
    assert mp.load(root)["step"] == 3


def test_a_damaged_root_record_says_what_to_do_and_that_helps(root: Path) -> None:
    fill(root, 1, 2, step_format=StepFormat("step_", 6), metadata={"model": "small"})
    flip(root / "milepost.json", 20)

    for touch in (lambda: mp.open(root), lambda: fill(root, 3)):
        with pytest.raises(mp.CorruptionError, match=r"milepost.json is damaged.*\n[^\0]*move that file away"):
            touch()
    (root / "milepost.json").rename(root.parent / "away")

    assert whole(root) == [1, 2]
    fill(root, 3)
    assert whole(root) == [1, 2, 3]
    assert sorted(path.name for path in root.glob("step_*")) == ["step_000001", "step_000002", "step_000003"]


def test_a_writer_does_not_go_on_from_a_damaged_step_in_silence(root: Path) -> None:
    fill(root, 1, 2)
    flip(root / "2" / "manifest.json", 20)

    with pytest.raises(mp.CorruptionError, match=r"2/manifest.json is damaged.*\n  It is the latest.*\n.*resume_from"):
        fill(root, 3)
    assert sorted(path.name for path in (root / "writers").iterdir()) == ["1.json"]
    fill(root, 2, resume_from=mp.open(root)[1])

    latest = mp.open(root).latest()
    assert latest is not None
    assert (latest.step, latest.info.slot) == (2, "2.g2")


def test_a_folder_that_was_renamed_to_another_step_is_told(root: Path) -> None:
    fill(root, 1, 2)
    (root / "2").rename(root / "3")

    with pytest.raises(mp.FormatError, match=r"3/manifest.json is the manifest of step 2\n.*name again"):
        mp.open(root).latest()
    (root / "3").rename(root / "2")
    assert whole(root) == [1, 2]


# --- names


def test_slots_are_named_as_the_root_says(root: Path) -> None:
    fill(root, 5, 70, step_format=StepFormat("step_", 4))
    (root / "6").mkdir()
    (root / "step_7").mkdir()
    fill(root, 71)

    assert whole(root) == [5, 70, 71]
    assert {path.name for path in root.iterdir()} >= {"step_0005", "step_0070", "step_0071", "6", "step_7"}
    with pytest.raises(mp.FormatError, match="names its steps otherwise"):
        fill(root, 72, step_format=StepFormat())


def test_what_is_not_ours_in_a_root_stays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(root, 1)
    (root / "config.yaml").write_text("lr: 0.1")
    (root / "logs").mkdir()
    (root / "1-copy").mkdir()
    (root / "2024").mkdir()
    (root / "2024" / "photo.jpg").write_text("holiday")
    (root / "7").mkdir()  # empty, as a killed save may leave it
    (root / "8").mkdir()
    (root / "8" / "p00000-0123abcd.safetensors").write_text("half a pack")
    (root / "9").symlink_to(root.parent)
    fill(root, 2, keep="last 1")

    assert whole(root) == [2]
    assert {path.name for path in root.iterdir()} == {
        "milepost.json", "writers", "writer.lock", "2", "config.yaml", "logs", "1-copy", "2024", "9",
    }  # fmt: skip
    assert (root / "2024" / "photo.jpg").read_text() == "holiday"
    assert "2024 is no step of this root" in caplog.text
    fill(root, 2024)
    assert mp.open(root)[2024].info.slot == "2024.g2"


# --- copies


COPIERS = ["copytree", "cp -r", "cp -a", *(["rsync -a", "rsync -aH"] if shutil.which("rsync") else [])]


@pytest.mark.parametrize("command", COPIERS)
def test_a_copied_root_is_a_root(root: Path, tmp_path: Path, command: str) -> None:
    fill(root, 1, 2)
    fill(root, 2, 3, resume_from=mp.open(root)[1])
    copy = tmp_path / "copy"
    if command == "copytree":
        shutil.copytree(root, copy)
    else:
        subprocess.run([*command.split(), f"{root}/", copy], check=True)

    assert whole(copy) == whole(root) == [1, 2, 3]
    assert mp.load(copy)["step"] == 3
    fill(copy, 4)
    shutil.rmtree(root)
    assert whole(copy) == [1, 2, 3, 4]


def test_copied_steps_open_under_any_name_alone_and_together(root: Path, tmp_path: Path) -> None:
    fill(root, 1, 2)
    fill(root, 2, 3, resume_from=mp.open(root)[1])
    folder = tmp_path / "exported"
    for name, slot in {"best": "2.g2", "000003": "3", "first of all": "1", "3": "3"}.items():
        shutil.copytree(root / slot, folder / name)
    (folder / "notes.txt").write_text("for the paper")
    (folder / "plots").mkdir()
    shutil.rmtree(root)

    assert whole(folder) == [1, 2, 3]
    assert whole(folder / "best") == [2]
    assert mp.load(folder)["step"] == 3
    for place in (folder, folder / "best"):
        with pytest.raises(StorageError, match="copied step, not a root") as caught:
            mp.open(place).delete(2)
        assert caught.value.code == "unsupported"


def test_a_root_with_a_stray_manifest_is_still_a_root(root: Path) -> None:
    fill(root, 1, 2)
    shutil.copy(root / "1" / "manifest.json", root)

    assert whole(root) == [1, 2]


def test_one_damaged_copy_does_not_hide_the_others(root: Path, tmp_path: Path) -> None:
    fill(root, 1, 2)
    folder = tmp_path / "exported"
    shutil.copytree(root / "1", folder / "good")
    shutil.copytree(root / "2", folder / "2")
    flip(folder / "2" / "manifest.json", 20)

    assert mp.open(folder)[1].load()["step"] == 1
    with pytest.raises(mp.CorruptionError, match="2/manifest.json"):
        mp.open(folder).latest()


# --- latest


def test_latest_is_the_same_for_every_handle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, 1)
    early = mp.open(root)
    monkeypatch.chdir(root.parent)
    script = "import sys, milepost; print(milepost.open(sys.argv[1]).latest().info.slot)"

    def all_say(expected: str) -> None:
        for catalog in (early, mp.open(root), mp.open("root"), mp.open(f"file://{root}")):
            latest = catalog.latest()
            assert latest is not None
            assert latest.info.slot == expected
        done = subprocess.run(["python", "-c", script, root], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected

    fill(root, 2, 3)
    all_say("3")
    fill(root, 2, resume_from=mp.open(root)[1])
    all_say("2.g2")  # and not 3, which was left behind
    with mp.Checkpointer(root, save="every step", resume_from=mp.open(root)[1]) as saver:
        with pytest.raises(mp.UnsupportedLeafError):
            saver.save(2, object())
        all_say("2.g2")
        with Recorder(root, before=Fails("mkdir", "9/")), pytest.raises(StorageError):
            saver.save(9, tree(9)).result()
        all_say("1")  # declared, though nothing is saved yet
    mp.open(root).delete(1)
    all_say("2.g2")  # nothing is left of the line: the newest of what is there


def test_a_step_to_go_on_from_must_be_there(root: Path) -> None:
    fill(root, 1, 2)
    start = mp.open(root)[1]
    mp.open(root).delete(1)

    with pytest.raises(mp.NotFoundError, match="no 1 any more") as caught:
        fill(root, 3, resume_from=start)

    assert caught.value.code == "deleted"
    assert mp.load(root)["step"] == 2
