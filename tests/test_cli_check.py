# SPDX-License-Identifier: Apache-2.0
"""`milepost verify` and `doctor`: what is damaged, what is missing, what this disk can do."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from cli_runs import as_json, flip_a_byte, leave_unfinished, make_run, milepost, own_pack, state
from milepost.cli.probe import disk_checks, file_system_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "gpt")
    return tmp_path / "gpt"


# --- verify


def test_verify_reads_every_byte_of_every_step(root: Path) -> None:
    result = milepost("verify", root)

    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[:3]] == [
        ["300", "ok"],
        ["200", "ok"],
        ["100", "ok"],
    ]
    assert result.stdout.endswith("all 3 steps are whole\n")
    assert as_json("verify", root)["steps"][0]["bytes"] == mp.open(root)[300].nbytes


def test_a_flipped_byte_is_found_and_the_leaf_and_the_last_good_step_are_named(root: Path) -> None:
    flip_a_byte(own_pack(root, 300), 4096 + 1024 * 3 + 7)

    result = milepost("verify", root)

    newest, *others, verdict = result.stdout.splitlines()
    assert result.exit_code == 4
    assert newest.startswith("300  DAMAGED  params/layers/3/w, bytes 7 168–8 192 of p00000-")
    assert [line.split()[:2] for line in others] == [["200", "ok"], ["100", "ok"]]
    assert verdict == "last good step: 200.  exit 4"
    assert milepost("verify", f"{root}@200").exit_code == 0
    one = milepost("verify", f"{root}@latest")
    assert (one.exit_code, one.stdout.splitlines()[-1]) == (4, "step 300 is damaged.  exit 4")


def test_a_byte_that_several_steps_share_damages_all_of_them(root: Path) -> None:
    shared = next(name for name, _, linked in mp.open(root)[300].info.files if linked)
    flip_a_byte(root / "300" / shared, 300_000)

    document = as_json("verify", root)

    assert document["whole"] is False
    assert document["last_good_step"] is None
    assert [step["damaged"][0]["leaf"] for step in document["steps"]] == ["frozen"] * 3


def test_verify_json_names_leaf_file_range_and_digests(root: Path) -> None:
    pack = own_pack(root, 300)
    flip_a_byte(pack, 4096)

    document = as_json("verify", root)

    assert (document["schema"], document["deep"], document["last_good_step"]) == ("milepost.verify/1", True, 200)
    damaged = document["steps"][0]
    assert (damaged["step"], damaged["state"]) == (300, "damaged")
    (place,) = damaged["damaged"]
    assert (place["leaf"], place["file"]) == ("params/layers/0/w", pack.name)
    assert (place["start"], place["stop"]) == (4096, 5120)
    assert place["expected"].startswith("xxh3-128 ")
    assert place["expected"] != f"xxh3-128 {place['found']}"


def test_shallow_looks_at_records_and_sizes_only(root: Path) -> None:
    flip_a_byte(own_pack(root, 300), 5000)
    assert milepost("verify", root, "--shallow").exit_code == 0

    pack = own_pack(root, 200)
    pack.chmod(0o644)
    os.truncate(pack, 100)
    result = milepost("verify", root, "--shallow")

    assert result.exit_code == 4
    assert f"200  DAMAGED  {pack.name}: 100 bytes" in result.stdout


def test_a_record_that_is_damaged_or_gone_is_a_damaged_step(root: Path) -> None:
    flip_a_byte(root / "300" / "manifest.json", 30)
    flip_a_byte(root / "200" / "leaves.json", 30)
    (root / "100" / "leaves.json").unlink()

    result = milepost("verify", root)

    assert result.exit_code == 4
    assert result.stdout.count("DAMAGED") == 3
    assert "300  DAMAGED  300/manifest.json is damaged" in result.stdout
    assert "last good step" not in result.stdout
    assert "no good step among them.  exit 4" in result.stdout
    assert milepost("verify", f"{root}@300").exit_code == 4


def test_the_last_good_step_is_one_that_resume_would_take(root: Path) -> None:
    with mp.Checkpointer(root, resume_from=mp.open(root)[200]) as saver:
        saver.save(250, state(250))
    flip_a_byte(own_pack(root, 250), 5000)

    assert as_json("verify", root)["last_good_step"] == 200  # not 300, which was superseded


def test_a_step_that_was_never_finished_is_incomplete(root: Path) -> None:
    leave_unfinished(root, 350)

    named = milepost("verify", f"{root}@350")

    assert milepost("verify", root).exit_code == 0
    assert (named.exit_code, named.stdout) == (3, "")
    assert "step 350" in named.stderr
    assert "never finished" in named.stderr


def test_verifying_nothing_is_no_success(tmp_path: Path) -> None:
    mp.Checkpointer(tmp_path / "new").close()
    nothing = milepost("verify", tmp_path / "new")
    leave_unfinished(tmp_path / "new", 3)
    unfinished = milepost("verify", tmp_path / "new")

    assert (nothing.exit_code, unfinished.exit_code) == (12, 3)
    assert "Never finished: 3." in unfinished.stderr


def test_verify_tells_its_progress_in_bytes(root: Path) -> None:
    told: list[int] = []

    report = mp.open(root)[300].verify(progress=told.append)

    assert sum(told) == report.nbytes > 0


PROGRESS = """
from milepost.cli.progress import Progress
with Progress("step 7", 4 << 20, after_s={after_s}) as progress:
    progress(1 << 20)
    progress.line("100 ok")
    progress(2 << 20)
"""


@pytest.mark.parametrize(("after_s", "shown"), [(0.0, True), (3600.0, False)])
def test_progress_is_shown_on_a_terminal_once_it_has_lasted(after_s: float, shown: bool) -> None:
    leader, follower = pty.openpty()
    program = PROGRESS.format(after_s=after_s)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=follower, text=True, check=True
    )
    os.close(follower)
    terminal = os.read(leader, 1 << 16).decode() if shown else ""
    os.close(leader)

    assert done.stdout == "100 ok\n"
    assert ("3.0/4.0 MiB" in terminal) is shown


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    program = PROGRESS.format(after_s=0.0)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("100 ok\n", "")


# --- doctor


def test_doctor_finds_nothing_wrong_with_a_complete_run_and_leaves_nothing_behind(root: Path) -> None:
    before = sorted(root.rglob("*"))

    result = milepost("doctor", root)

    assert result.exit_code == 0
    assert "problem" not in result.stdout
    for name in ("hard links", "fsync of folders", "locks (flock)", "direct writes (O_DIRECT)", "space", "versions"):
        assert name in result.stdout
    assert "random states" in result.stdout
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("tree", "warnings"),
    [
        ({"w": np.ones(2)}, ["what is saved"]),
        ({"w": np.ones(2), "rng": np.random.default_rng(0)}, ["position in the data"]),
        ({"w": np.ones(2), "loader": {"index": 3}}, ["random states"]),
        ({"w": np.ones(2), "rng": np.random.default_rng(0), "data": {"epoch": 3}}, []),
    ],
)
def test_doctor_warns_of_a_resume_that_would_not_be_exact(
    tmp_path: Path, tree: dict[str, object], warnings: list[str]
) -> None:
    mp.save(tmp_path / "run", tree)

    checks = as_json("doctor", tmp_path / "run")["checks"]

    about = {"what is saved", "random states", "position in the data"}
    assert [c["name"] for c in checks if c["name"] in about and c["status"] == "warning"] == warnings


def test_doctor_knows_random_states_whatever_they_are_called(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    generators = {"a": np.random.default_rng(1), "generator": torch.Generator(), "b": jax.random.key(1)}
    for step, (name, generator) in enumerate(generators.items()):
        mp.save(tmp_path / name, {name: generator, "position": step})

        assert "none in" not in milepost("doctor", tmp_path / name).stdout


def test_doctor_tells_of_the_memory_that_jax_shares_with_numpy(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    mp.save(tmp_path / "run", {"w": jax.numpy.ones(3)})

    result = milepost("doctor", tmp_path / "run")

    assert "JAX on CPU" in result.stdout
    assert 'copy="always"' in result.stdout


def test_doctor_json_has_a_status_for_everything_it_looked_at(root: Path) -> None:
    document = as_json("doctor", root)

    assert (document["schema"], document["exists"]) == ("milepost.doctor/1", True)
    assert document["writer"]["alive"] is False
    assert {check["status"] for check in document["checks"]} <= {"ok", "note", "warning", "problem"}
    assert all(check["found"] for check in document["checks"])


def test_doctor_tries_the_disk_of_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    result = milepost("doctor", tmp_path / "runs" / "new")

    assert result.exit_code == 0
    assert "no store yet" in result.stdout
    assert f"the disk of {tmp_path} is tried out" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_what_a_killed_writer_left(root: Path) -> None:
    leave_unfinished(root, 350)
    (root / ".trash-0123456789abcdef").mkdir()

    checks = {check["name"]: check for check in as_json("doctor", root)["checks"]}

    assert checks["unfinished"]["found"] == "step 350"
    assert "the next one removes it" in checks["unfinished"]["means"]
    assert checks["leftovers"]["found"].startswith("1 retired")


def test_doctor_fails_when_the_latest_step_is_damaged(root: Path) -> None:
    flip_a_byte(root / "300" / "manifest.json", 30)

    result = milepost("doctor", root)

    assert result.exit_code == 4
    assert "problem  latest step" in result.stdout


def test_doctor_of_a_store_in_memory_has_no_disk_to_try() -> None:
    mp.save("memory://doctor", {"w": np.ones(2)})

    assert "not on a disk of this machine" in milepost("doctor", "memory://doctor").stdout


def test_too_little_space_for_one_more_step_is_a_problem(tmp_path: Path) -> None:
    def status(needed: int) -> str:
        return next(check.status for check in disk_checks(tmp_path, needed) if check.name == "space")

    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert (status(0), status(1), status(free // 2), status(2 * free)) == ("ok", "ok", "warning", "problem")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_file_system_is_the_one_of_the_nearest_mount() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/")) is not None
