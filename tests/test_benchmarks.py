# SPDX-License-Identifier: Apache-2.0
"""The benchmarks work, and count what they should; no time is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent
LARGE = ("transformer", "many", "big")
PEERS = "floor-direct,floor-reuse,floor-protocol,milepost,milepost-numpy,safetensors-numpy,np.savez"


def benchmarks(results: Path, *args: object) -> str:
    """Run `python -m benchmarks` in the project's folder."""
    command = [sys.executable, "-m", "benchmarks", "--results", results, *args]
    done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One quick run of everything; the results file and its lines."""
    results = tmp_path_factory.mktemp("results") / "results.jsonl"
    folder = tmp_path_factory.mktemp("disk")
    benchmarks(results, "run", "--quick", "--rounds", 1, "--peers", PEERS, "--folder", folder)
    assert list(folder.iterdir()) == []  # it has removed what it wrote
    return results, [json.loads(line) for line in results.read_text().splitlines()]


def row(lines: list[dict[str, Any]], workload: str, peer: str, operation: str) -> dict[str, Any]:
    asked = (workload, peer, operation)
    return next(line for line in lines if (line.get("workload"), line.get("peer"), line["operation"]) == asked)


def test_no_peer_fails_and_every_loaded_value_is_what_was_saved(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, lines = run

    assert [line for line in lines if "failed" in line or line.get("differ")] == []
    for workload in LARGE:
        for peer in ("floor-direct", "milepost-numpy", "safetensors-numpy"):
            for operation in ("save", "cold", "warm", "asynchronous"):
                assert row(lines, workload, peer, operation)["seconds"] > 0


def test_bytes_and_files_are_those_of_the_peer_on_disk(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, lines = run

    for workload in LARGE:
        size = next(
            line["nbytes"] for line in lines if line["operation"] == "workload" and line["workload"] == workload
        )
        for peer, files in (("floor-direct", 1), ("safetensors-numpy", 1), ("milepost-numpy", 3)):
            for operation in ("save", "asynchronous"):
                saved = row(lines, workload, peer, operation)
                assert saved["files"] == files
                assert size <= saved["bytes"] <= 1.1 * size


def test_what_has_not_changed_counts_as_no_new_bytes(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, lines = run
    first = row(lines, "frozen", "milepost-numpy", "base")["bytes"]

    assert row(lines, "frozen", "milepost-numpy", "partly")["bytes"] < first / 10
    assert row(lines, "frozen", "milepost-numpy", "unchanged")["bytes"] < first / 100
    assert row(lines, "frozen", "safetensors-numpy", "unchanged")["bytes"] == row(
        lines, "frozen", "safetensors-numpy", "base"
    )["bytes"]  # fmt: skip


def test_who_takes_part_without_a_sync_of_its_own_is_marked(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, lines = run

    assert row(lines, "big", "milepost-numpy", "save")["syncs"] == "all"
    assert row(lines, "big", "safetensors-numpy", "save")["syncs"] == "none"
    assert row(lines, "big", "safetensors-numpy", "asynchronous")["own"] is False


def test_the_report_has_all_goals_and_rectangular_tables(
    run: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    results, lines = run

    benchmarks(results, "report", "--output", tmp_path / "RESULTS.md")

    page = (tmp_path / "RESULTS.md").read_text()
    assert "Small states" in page
    for described in (line for line in lines if line["operation"] == "workload"):
        assert f"## {described['title'][0].upper()}{described['title'][1:]}\n" in page
        for peer in described["peers"]:
            assert f"\n| {peer} |" in page
    for table in (part for part in page.split("\n\n") if part.startswith("|")):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    goals = page.split("## Goals\n\n")[1].split("\n\n")[0].splitlines()[2:]
    assert len(goals) > 30
    measured = [goal for goal in goals if "not measured" not in goal]
    assert all(goal.endswith(("| met |", "| **not met** |")) for goal in measured)


def test_the_report_tells_who_failed_and_why(tmp_path: Path) -> None:
    described = {"operation": "workload", "workload": "big", "title": "one array", "peers": ["zarr"], "leaves": 1}
    lines = [
        {"operation": "machine", "quick": False, "cpus": 2, "processor": "x", "memory": 1 << 30, "system": "y",
         "python": "3", "versions": {"zarr": "3"}},
        {**described, "nbytes": 4},
        {"workload": "big", "peer": "zarr", "round": 0, "operation": "save", "failed": "OSError: no room"},
        {"workload": "big", "peer": "zarr", "round": 0, "operation": "cold", "seconds": 1.0, "differ": 3, "load": 0.5,
         "cold": False},
    ]  # fmt: skip
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps({"run": "20260101T000000", **line}) + "\n" for line in lines))

    benchmarks(results, "report", "--output", tmp_path / "RESULTS.md")

    page = (tmp_path / "RESULTS.md").read_text()
    assert "- zarr failed, save: OSError: no room" in page
    assert "- zarr, cold: 3 arrays came back with other bytes" in page
    assert "was not dropped" in page
    assert "| 1 (failed) |" in page


def test_the_report_is_of_the_last_run_of_each_workload(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    machine = {"operation": "machine", "quick": False, "cpus": 2, "processor": "x", "memory": 1, "system": "y",
               "python": "3", "versions": {}}  # fmt: skip
    with open(results, "w") as file:
        for run_id, seconds in (("20260101T000000", 1.25), ("20260102T000000", 2.5)):
            described = {"workload": "big", "title": "one array", "peers": ["zarr"], "leaves": 1, "nbytes": 4}
            cold = {"workload": "big", "peer": "zarr", "round": 0, "operation": "cold", "seconds": seconds}
            run_lines = (machine, {"operation": "workload", **described}, cold)
            file.writelines(json.dumps({"run": run_id, **line}) + "\n" for line in run_lines)

    benchmarks(results, "report", "--output", tmp_path / "RESULTS.md")

    page = (tmp_path / "RESULTS.md").read_text()
    assert "| zarr | 2.5 |" in page
    assert "1.25" not in page


def test_plots_are_drawn_of_what_was_run(run: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws, and is no dependency")
    results, _ = run

    shown = benchmarks(results, "plot", "--output", tmp_path).split()

    assert [Path(name).name for name in shown if name.endswith("transformer.png")] == ["transformer.png"]
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in shown)
