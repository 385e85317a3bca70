# SPDX-License-Identifier: Apache-2.0
"""`milepost bench`: what is measured, what it says of a save, and that nothing stays behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from cli_runs import COMMAND, as_json, milepost

RATES = {"copy", "digest", "write_direct", "read_direct", "write_cached", "read_cached"}
SMALL = ("--probe", "8MiB")


def test_bench_measures_the_disk_of_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    document = as_json("bench", tmp_path / "runs" / "gpt", *SMALL, "--size", "10GiB")

    assert (document["schema"], document["folder"]) == ("milepost.bench/1", str(tmp_path))
    assert set(document["rates"]) | set(document["refused"]) <= RATES
    assert {"copy", "digest", "write_cached", "read_cached"} <= set(document["rates"])
    assert all(rate is None or rate > 0 for rate in document["rates"].values())
    assert document["milepost"]["nbytes"] == document["probe_nbytes"] == 8 << 20
    assert (document["estimate"]["nbytes"], document["estimate"]["of"]) == (10 << 30, "given")
    assert list(tmp_path.iterdir()) == []


def test_bench_leaves_a_root_as_it_was_and_takes_the_size_of_its_latest_step(tmp_path: Path) -> None:
    root = tmp_path / "gpt"
    mp.save(root, {"w": np.ones(1000)}, step=1)
    mp.save(root, {"w": np.ones(3000)}, step=2)
    before = sorted(root.rglob("*"))

    document = as_json("bench", root, *SMALL)

    assert (document["estimate"]["nbytes"], document["estimate"]["of"]) == (24_000, "latest")
    assert sorted(root.rglob("*")) == before


def test_the_estimate_grows_with_the_size_and_is_never_below_a_small_save(tmp_path: Path) -> None:
    document = as_json("bench", tmp_path, *SMALL, "--size", "8MiB")
    costs, estimate = document["milepost"], document["estimate"]

    assert estimate["blocked_s"] == pytest.approx(costs["blocked_s"])
    assert estimate["durable_s"] == pytest.approx(max(costs["durable_s"], costs["commit_s"]))
    assert estimate["load_s"] == pytest.approx(costs["load_s"])


def test_bench_says_it_in_words(tmp_path: Path) -> None:
    result = milepost("bench", tmp_path, *SMALL)

    assert result.exit_code == 0
    for line in ("copy in memory", "write and sync, through the page cache", "a save of 8.00 MiB: blocked"):
        assert f"  {line}" in result.stdout
    assert "A save of 1.00 GiB costs about:" in result.stdout


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("10GiB", 10 << 30), ("500MB", 500_000_000), ("1.5T", 3 << 39), ("64 kib", 1 << 16), ("4096", 4096), ("12b", 12)],
)
def test_a_size_is_a_number_with_or_without_a_unit(tmp_path: Path, text: str, nbytes: int) -> None:
    assert as_json("bench", tmp_path, *SMALL, "--size", text)["estimate"]["nbytes"] == nbytes


@pytest.mark.parametrize("text", ["", "0", "much", "-1", "10 XB", "1e3"])
def test_what_is_no_size_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    result = milepost("bench", tmp_path, "--size", text)

    assert result.exit_code == 2
    assert "write 10GiB, 500MB or a number of bytes" in result.stderr


def test_bench_refuses_to_fill_the_disk(tmp_path: Path) -> None:
    result = milepost("bench", tmp_path, "--probe", "1000TiB")

    assert result.exit_code == 1
    assert "Pass a smaller --probe." in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bench_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "bench", str(tmp_path), "--probe", "1GiB"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not any(tmp_path.rglob("direct")):  # it is writing
            assert process.poll() is None
        process.terminate()
        code = process.wait(60)

    assert code == 130
    assert list(tmp_path.iterdir()) == []


def test_bench_has_nothing_to_measure_where_there_is_no_disk() -> None:
    result = milepost("bench", "memory://nowhere")

    assert result.exit_code == 1
    assert "not on a disk of this machine" in result.stderr


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="a folder in memory that takes no direct writes")
def test_what_the_disk_cannot_do_is_named_with_the_systems_words() -> None:
    document = as_json("bench", "/dev/shm/milepost-none", *SMALL)

    for name, why in document["refused"].items():
        assert name == "write_direct"
        assert why
        assert document["rates"][name] is None
