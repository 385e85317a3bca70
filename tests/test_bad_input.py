# SPDX-License-Identifier: Apache-2.0
"""What bad input gets: a typed error that names the place and the remedy, and nothing is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import milepost as mp
from milepost.model import format as fmt

TREE = {"model": {"w": np.arange(100.0), "b": np.zeros(4, np.float32)}, "step": 3}


@pytest.fixture
def saved(root: Path) -> Path:
    """A root with step 3."""
    mp.save(root, TREE, step=3)
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("this sandbox does not let a tmpfs be mounted")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(mp.NotFoundError, match=r"holds no checkpoints \(but 1 other entries\)\n  Check the path"):
        mp.open(tmp_path)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for use in (mp.open, lambda path: mp.save(path, TREE)):
        with pytest.raises(mp.CheckpointError, match="file"):
            use(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["milepost.json", "3/manifest.json", "3/leaves.json"])
def test_a_record_of_a_newer_format(saved: Path, name: str) -> None:
    path = saved / name
    kind = {"milepost.json": fmt.RootRecord, "3/manifest.json": fmt.Manifest, "3/leaves.json": fmt.LeafTable}[name]
    record = fmt.unseal(path.read_bytes(), kind, name)
    path.unlink()
    path.write_bytes(fmt.seal(msgspec.structs.replace(record, format="7")))

    with pytest.raises(mp.CheckpointError) as caught:
        mp.load(saved)
    if name != "3/leaves.json":  # a leaf table with another digest is not the one that the manifest names
        assert caught.value.code == "newer"
    assert "expected 1-dev, found 7" in str(caught.value)
    assert "or a newer one" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"null", b"[1,2", b"\xff" * 100, b'{"format":"1-dev"}\n'])
@pytest.mark.parametrize("name", ["milepost.json", "3/manifest.json", "3/leaves.json"])
def test_a_record_that_is_no_record(saved: Path, name: str, content: bytes) -> None:
    (saved / name).unlink()
    (saved / name).write_bytes(content)
    with pytest.raises(mp.CorruptionError, match=f"{name} is damaged"):
        mp.load(saved)


def test_every_truncation_of_a_record_is_told(saved: Path) -> None:
    for name in ("3/manifest.json", "3/leaves.json"):
        data = (saved / name).read_bytes()
        (saved / name).unlink()
        for length in range(len(data)):
            (saved / name).write_bytes(data[:length])
            with pytest.raises(mp.CorruptionError, match=name):
                mp.load(saved)
        (saved / name).write_bytes(data)
        mp.load(saved)


def test_every_flipped_bit_of_a_record_is_told(saved: Path) -> None:
    for name in ("3/manifest.json", "3/leaves.json"):
        data = bytearray((saved / name).read_bytes())
        (saved / name).unlink()
        for bit in range(0, 8 * len(data), 3):
            data[bit // 8] ^= 1 << bit % 8
            (saved / name).write_bytes(data)
            with pytest.raises((mp.CorruptionError, mp.FormatError)):
                mp.load(saved)
            data[bit // 8] ^= 1 << bit % 8
        (saved / name).write_bytes(data)


def test_a_pack_that_is_short_or_gone(saved: Path) -> None:
    pack = next(saved.glob("3/*.safetensors"))
    data = pack.read_bytes()
    pack.unlink()
    with pytest.raises(mp.CorruptionError, match="damaged at model/w.*expected 800 bytes, found no such file"):
        mp.load(saved)
    for length in (0, 4095, 4096, len(data) - 1):
        pack.write_bytes(data[:length])
        with pytest.raises(mp.CorruptionError, match="step 3 is damaged at model/"):
            mp.load(saved)


def test_a_manifest_that_names_a_foreign_file_opens_nothing(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(10_000))
    path = saved / "3/leaves.json"
    table = fmt.unseal(path.read_bytes(), fmt.LeafTable, "")
    packs = [fmt.PackRecord("../../secret", 10_000, 4096, "")]
    sealed = fmt.seal(msgspec.structs.replace(table, packs=packs))
    path.unlink()
    path.write_bytes(sealed)
    manifest = fmt.unseal((saved / "3/manifest.json").read_bytes(), fmt.Manifest, "")
    (saved / "3/manifest.json").unlink()
    replaced = msgspec.structs.replace(manifest, leaves=fmt.digest_of(sealed) or "")
    (saved / "3/manifest.json").write_bytes(fmt.seal(replaced))

    with pytest.raises(mp.FormatError, match="is no name of a pack"):
        mp.load(saved)


def test_a_step_that_is_not_there(saved: Path) -> None:
    with pytest.raises(mp.NotFoundError, match="no step 4\n  Its steps: 3; the nearest is 3"):
        mp.load(saved, step=4)


def test_a_leaf_that_is_not_there_names_the_nearest(saved: Path) -> None:
    checkpoint = mp.open(saved)[3]
    with pytest.raises(mp.NotFoundError, match=r"has no 'model/wi'\n  Near it: model/w.* At the top: model, step"):
        checkpoint.leaf("model/wi")
    with pytest.raises(mp.NotFoundError, match="has no 'modell'"):
        checkpoint.at("modell")


def test_a_tree_that_does_not_fit_changes_nothing(saved: Path) -> None:
    target = {"model": {"w": np.zeros(100), "bias": np.zeros(4, np.float32)}, "step": 0}
    with pytest.raises(mp.StructureError, match=r'rename=\{"\*\*/b": "\*\*/bias"\}') as caught:
        mp.open(saved)[3].load_into(target)
    assert {mismatch.kind for mismatch in caught.value.mismatches} == {"missing", "unexpected"}
    assert not target["model"]["w"].any() and target["step"] == 0


def test_a_full_disk_loses_nothing_and_the_run_goes_on(small_disk: Path) -> None:
    with mp.Checkpointer(small_disk / "run") as saver:
        saver.save(1, {"w": np.ones(1_000)}).result()
        with pytest.raises(mp.StorageError, match=r"No space left on device\n  Free space") as caught:
            saver.save(2, {"w": np.ones(1_000_000)}).result()
        assert (caught.value.code, caught.value.errno) == ("exhausted", 28)
        saver.save(3, {"w": np.ones(1_001)}).result()

    catalog = mp.open(small_disk / "run")
    assert list(catalog) == [1, 3]
    for step in catalog:
        catalog[step].verify()


def test_a_read_only_disk_is_read_but_not_written(small_disk: Path) -> None:
    mp.save(small_disk / "run", TREE)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    np.testing.assert_array_equal(mp.load(small_disk / "run")["model"]["w"], TREE["model"]["w"])
    mp.open(small_disk / "run")[0].verify()
    with pytest.raises(mp.StorageError, match=r"Read-only file system\n  The file system is mounted rea") as caught:
        mp.save(small_disk / "run", TREE)
    assert caught.value.code == "denied"


def test_a_file_size_limit_is_a_typed_error(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(1, {"w": np.ones(100)}).result()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(mp.StorageError) as caught:
                saver.save(2, {"w": np.ones(100_000)}).result()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert caught.value.code == "exhausted"
        saver.save(2, {"w": np.ones(100_000)}).result().verify()


def test_too_little_memory_to_copy_the_state_is_a_typed_error_and_the_run_goes_on(root: Path) -> None:
    program = f"""
import resource, numpy as np, milepost as mp
state = {{"w": np.zeros(30_000_000)}}
with mp.Checkpointer({str(root)!r}) as saver:
    saver.save(0, {{"w": np.zeros(10)}}).result()
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
    try:
        saver.save(1, state)
    except mp.StorageError as error:
        print(error.code, error)
    saver.save(2, {{"w": np.ones(10)}})
with mp.Checkpointer({str(root)!r}, limits=mp.Limits(memory_bytes=1_000_000)) as saver:
    saver.save(3, state)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.startswith("exhausted not enough memory to copy 240,000,000 bytes"), done.stderr
    assert "Limits(memory_bytes=...)" in done.stdout
    assert list(mp.open(root)) == [0, 2, 3]
