# SPDX-License-Identifier: Apache-2.0
"""What somebody may do who can write to a root, or give one away: each attack of SECURITY.md by its name."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
from milepost.model import format as fmt

HERE = Path(__file__).parent
SECURITY = (HERE.parent.parent / "SECURITY.md").read_text()
Forge = Callable[..., mp.Checkpoint]


def test_every_attack_of_the_page_is_tried() -> None:
    tests = {
        name for path in HERE.parent.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", SECURITY))

    assert named
    assert named <= tests
    ours = set(re.findall(r"def (test_\w+)", Path(__file__).read_text()))
    assert ours - named == {"test_every_attack_of_the_page_is_tried"}


# Records


def resealed(path: Path, text: str) -> None:
    import hashlib

    body = text.encode("utf-8", "surrogatepass").removesuffix(b"}")
    path.chmod(0o644)
    path.write_bytes(body + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode())


def without_digest(path: Path) -> str:
    return path.read_bytes().decode()[: -len(',"digest":"sha256:') - 64 - len('"}\n')] + "}"


def records_of(root: Path) -> list[Path]:
    """A root's records, one of each kind; the leaf table last."""
    names = ("milepost.json", "writers/1.json", "1/manifest.json", "1/notes/*.json", "1/leaves.json")
    return [next(root.glob(name)) for name in names]


def everything(root: Path) -> None:
    """Read all that there is in a root."""
    catalog = mp.open(root)
    for checkpoint in catalog.values():
        checkpoint.metrics, checkpoint.info, checkpoint.load(), checkpoint.verify()
    catalog.latest()


@pytest.fixture
def annotated(root: Path) -> Path:
    mp.save(root, {"w": np.arange(8.0), "s": "text"}, step=1, metrics={"loss": 1.0})
    mp.open(root).annotate(1, metrics={"eval": 2.0})
    return root


def test_a_member_that_is_there_twice_is_refused(annotated: Path) -> None:
    for path in records_of(annotated):
        before, text = path.read_bytes(), without_digest(path)
        twice = re.sub(r'^\{"format":"([^"]+)"', r'{"format":"\1","format":"\1"', text)
        resealed(path, twice)
        if path.name == "leaves.json":
            name_in_manifest(path)
        with pytest.raises((mp.FormatError, mp.CorruptionError), match="'format' is there twice"):
            everything(annotated)
        path.write_bytes(before)


def name_in_manifest(leaves: Path) -> None:
    """Let the manifest name the leaf table that is there."""
    manifest = leaves.parent / "manifest.json"
    digest = fmt.digest_of(leaves.read_bytes())
    resealed(manifest, re.sub(r'"leaves":"[^"]+"', f'"leaves":"{digest}"', without_digest(manifest)))


def test_a_member_twice_deep_in_a_table_is_refused(annotated: Path) -> None:
    leaves = annotated / "1" / "leaves.json"
    text = without_digest(leaves)
    resealed(leaves, text.replace('"arrays":{', '"arrays":{"w":{"dtype":"int8","shape":[0],"boxes":[]},', 1))
    name_in_manifest(leaves)

    with pytest.raises(mp.FormatError, match="'w' is there twice"):
        mp.load(annotated)


def test_a_record_in_another_spelling_is_read(annotated: Path) -> None:
    manifest = annotated / "1" / "manifest.json"
    resealed(manifest, without_digest(manifest).replace('"step":1', '"step" : 1').replace("}", ',"later":{"x":[]}}', 1))

    assert mp.open(annotated)[1].load()["s"] == "text"


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "1e999", "-0", "01", "1" * 400, '"\\ud800"', '"\x00"', '"\udcff"', "tru", "[1,]", ""]
)  # fmt: skip
def test_what_is_no_json_is_refused(annotated: Path, value: str) -> None:
    for path in records_of(annotated):
        before, text = path.read_bytes(), without_digest(path)
        resealed(path, text.replace("{", f'{{"added":{value},', 1))
        if path.name == "leaves.json":
            name_in_manifest(path)
        if value in ("-0", "1e999", "1" * 400):  # valid, and passed over
            mp.load(annotated)
            str(mp.open(annotated)[1].metrics)
        else:
            with pytest.raises((mp.FormatError, mp.CorruptionError)):
                everything(annotated)
        path.write_bytes(before)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"list":['])
def test_a_record_nested_without_end_is_refused(annotated: Path, opening: str) -> None:
    for path in records_of(annotated):
        before, text = path.read_bytes(), without_digest(path)
        depth = 200_000
        closing = {"[": "]", '{"a":': "}", '{"list":[': "]}"}[opening]
        resealed(path, text.replace("{", '{"added":' + opening * depth + "0" + closing * depth + ",", 1))
        if path.name == "leaves.json":
            name_in_manifest(path)
        with pytest.raises((mp.FormatError, mp.CorruptionError)):
            everything(annotated)
        path.write_bytes(before)


def test_a_record_larger_than_memory_is_not_read(annotated: Path) -> None:
    for path in records_of(annotated):
        before = path.read_bytes()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.truncate(1 << 40)  # a file with a hole: it takes no space
        with pytest.raises((mp.FormatError, mp.CorruptionError), match="too large"):
            everything(annotated)
        path.unlink()
        path.write_bytes(before)


def test_a_record_that_no_reader_would_accept_is_not_written(root: Path) -> None:
    with pytest.raises(mp.CheckpointError, match="too large for its readers"):
        mp.save(root, {"w": np.zeros(3)}, metadata={"text": "x" * fmt.MAX_RECORD})

    mp.save(root, {"w": np.zeros(3)}, step=1)
    assert list(mp.open(root)) == [1]


# Names and files


def test_a_record_that_is_a_link_is_not_followed(annotated: Path, tmp_path: Path) -> None:
    for path in records_of(annotated):
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        with pytest.raises(mp.CheckpointError):
            everything(annotated)
            raise mp.NotFoundError  # a note, or a writer's record, that is not there is none
        path.unlink()
        elsewhere.rename(path)


def test_a_slot_that_is_a_link_is_none(annotated: Path, tmp_path: Path) -> None:
    (annotated / "1").rename(tmp_path / "elsewhere")
    (annotated / "1").symlink_to(tmp_path / "elsewhere")

    assert list(mp.open(annotated)) == []


def test_a_fifo_or_a_device_in_place_of_a_file_stops_nobody(annotated: Path) -> None:
    pack = next(annotated.glob("1/*.safetensors"))
    for path in [*records_of(annotated), pack]:
        before = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(mp.CheckpointError):
            everything(annotated)
            raise mp.NotFoundError
        path.unlink()
        path.write_bytes(before)


def test_no_temporary_file_is_readable_by_others(root: Path) -> None:
    from milepost.testing.recorder import Call, Recorder

    modes: set[int] = set()

    def look(call: Call) -> None:
        modes.update(path.stat().st_mode & 0o077 for path in root.rglob(".tmp-*"))

    root.mkdir()
    old = os.umask(0)
    try:
        with Recorder(root, before=look):
            mp.save(root, {"w": np.arange(8.0)}, step=1)
    finally:
        os.umask(old)

    assert modes <= {0, 0o044}  # made read-only for all at the end, just before it gets its name


# Records that belong elsewhere


def test_a_leaf_table_of_another_step_is_told(root: Path) -> None:
    for step in (1, 2):
        mp.save(root, {"w": np.full(8, float(step))}, step=step)
    (root / "1" / "leaves.json").unlink()
    shutil.copy(root / "2" / "leaves.json", root / "1" / "leaves.json")

    with pytest.raises(mp.CorruptionError, match="is not the leaf table of this step"):
        mp.load(root, step=1)


def test_a_pack_of_another_step_is_told(root: Path) -> None:
    for step in (1, 2):
        mp.save(root, {"w": np.full(8, float(step))}, step=step)
    old, new = (next(root.glob(f"{step}/*.safetensors")) for step in (1, 2))
    old.unlink()
    shutil.copy(new, old)

    with pytest.raises(mp.CorruptionError, match="step 1 is damaged at w"):
        mp.load(root, step=1)


def test_a_manifest_of_another_step_or_generation_is_told(root: Path) -> None:
    mp.save(root, {"w": np.zeros(8)}, step=1)
    with mp.Checkpointer(root, save="every step") as saver:
        saver.save(2, {"w": np.ones(8)})
    shutil.copytree(root / "1", root / "3")
    shutil.copytree(root / "1", root / "1.g2")

    for step in (1, 3):
        with pytest.raises(mp.FormatError, match="is the manifest of step 1"):
            mp.open(root)[step].load()
    assert mp.open(root)[2].load()["w"].sum() == 8


# What is said, and what is done


def test_errors_and_logs_show_no_contents(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "correct-horse-battery"
    caplog.set_level("DEBUG")
    mp.save(root, {"w": np.frombuffer(secret.encode(), np.uint8), "token": secret}, step=1)
    pack = next(root.glob("1/*.safetensors"))
    data = bytearray(pack.read_bytes())
    data[4096] ^= 1
    pack.unlink()
    pack.write_bytes(data)

    with pytest.raises(mp.CorruptionError) as damaged:
        mp.load(root)
    with pytest.raises(mp.StructureError) as unlike:
        mp.load(root, like={"w": np.zeros(3), "token": 5})

    said = f"{damaged.value} {damaged.value.damaged} {unlike.value} {caplog.text}"
    assert secret not in said
    assert secret[1:] not in said


def test_no_forgery_executes_or_opens_anything_else(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "fuzz.py", "--count=1500", "--seed=1", f"--folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["executed"] == said["opened outside"] == said["untyped errors"] == said["wrong bytes"] == []
    assert said["tried"] == 1500
    assert said["refused"] > 700
    assert said["slowest s"] < 1
    assert said["memory MiB"] < 64


def test_a_forged_table_takes_no_memory(forge: Forge) -> None:
    checkpoint = forge(
        {"arrays": {"w": {"dtype": "uint8", "shape": [1 << 36], "boxes": [[0, 4096, 1 << 36, "0" * 32]]}}}
    )
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(mp.CheckpointError):
        checkpoint.load(only="w")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 64 << 10
