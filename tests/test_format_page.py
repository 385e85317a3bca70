# SPDX-License-Identifier: Apache-2.0
"""The format page suffices: a reader written from it alone reads what we write, and the page leaves nothing out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgspec
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import milepost as mp
import reader
from milepost.model import format as fmt
from milepost.model import leaf, structure, value
from milepost.model.format import CHUNK, LeafTable, Manifest, Note, Noted, RootRecord, WriterRecord
from test_docs import program

PAGE = (Path(__file__).parent.parent / "docs" / "reference" / "format.md").read_text()
RECORDS = {
    "milepost.json": RootRecord,
    "writers/&lt;n&gt;.json": WriterRecord,
    "manifest.json": Manifest,
    "leaves.json": LeafTable,
    "notes/&lt;checkpoint id&gt;-&lt;n&gt;.json": Note,
    "noted/&lt;n&gt;.json": Noted,
}


def section(title: str) -> str:
    """Return what stands below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """Return the names in code font in the first cells of all tables of a text."""
    cells = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


# --- the reader


def test_the_reader_is_written_without_milepost_and_in_sixty_lines() -> None:
    source = Path(reader.__file__).read_text()
    code = [line for line in source.splitlines() if line.strip() and not line.startswith(("#", '"""'))]

    assert "milepost" not in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    assert len(code) <= 60


def arrays() -> Iterator[tuple[str, Any]]:
    """Yield arrays of every dtype and layout, by name."""
    numbers = np.array([[0, 1, 2], [3, 4, 1]])
    for name in leaf._TAGS | leaf._ML | dict.fromkeys(["complex128", "float128_x87", "complex256_x87"]):
        kind = leaf.dtype_info(name).numpy
        with np.errstate(all="ignore"):
            yield name, numbers.astype(kind)
    for kind in (">i4", ">f8", ">c8", ">U3", ">M8[s]"):
        yield f"big/{kind}", numbers.astype("i8").astype(kind)
    for kind in ("M8[ns]", "m8[25s]", "M8[D]", "U5", "S3", "V7"):
        yield kind, np.arange(6, dtype="i8").astype("S3" if kind == "V7" else kind).astype(kind)
    record = np.dtype({"names": ["x", "y"], "formats": [">f4", ("i2", (3,))], "offsets": [4, 12], "itemsize": 24})
    nested = np.dtype([("a", record), ("b", "S2")])
    for name, kind in (("record", record), ("nested", nested)):
        bits = np.random.default_rng(1).integers(0, 256, 5 * kind.itemsize, np.uint8)
        yield name, bits.view(kind)
    yield "0-d", np.array(2.5)
    yield "empty", np.empty((3, 0, 2), np.float32)
    yield "empty/bits", np.empty((0,), ml_dtypes.bfloat16)
    yield "fortran", np.asfortranarray(numbers)
    yield "reversed", np.arange(10)[::-2]
    yield "nan", np.array([0x7FF8000000000001, 0xFFF0000000000001, 1 << 63], np.uint64).view(np.float64)
    yield "chunks", np.random.default_rng(2).integers(0, 256, 2 * CHUNK + 5, np.uint8)
    yield "torch/complex32", torch.arange(6).view(torch.complex32)
    yield "torch/bf16", torch.linspace(0, 1, 7, dtype=torch.bfloat16)
    yield "torch/x2", torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)


def bits(array: Any) -> bytes:
    if isinstance(array, torch.Tensor):
        return array.contiguous().view(torch.uint8).numpy().tobytes()
    return np.asarray(array).tobytes()


def test_a_reader_written_from_the_page_alone_gives_equal_bytes(root: Path) -> None:
    wanted = dict(arrays())

    mp.save(root, wanted, step=7)

    found = reader.checkpoint(root / "7")
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].tobytes() == bits(array), name
        assert found[name].shape == tuple(array.shape), name


def test_the_reader_gives_numpy_dtypes_where_there_are_any(root: Path) -> None:
    wanted = {name: array for name, array in arrays() if isinstance(array, np.ndarray)}

    mp.save(root, wanted, step=7)

    found = reader.checkpoint(root / "7")
    opaque = {name for name, array in wanted.items() if found[name].dtype != array.dtype}
    assert opaque <= {*leaf._ML, "float128_x87", "complex256_x87", "empty/bits"}


def test_the_reader_joins_the_boxes_of_sharded_arrays(root: Path) -> None:
    devices = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    whole = np.arange(96, dtype=np.float32).reshape(8, 12)
    state = {
        str(spec): jax.device_put(whole, NamedSharding(devices, spec))
        for spec in (PartitionSpec("x", "y"), PartitionSpec(None, "y"), PartitionSpec(("x", "y")), PartitionSpec())
    }

    mp.save(root, state, step=1)

    table = reader.record(root / "1" / "leaves.json")
    assert sorted(len(array["boxes"]) for array in table["arrays"].values()) == [1, 2, 4, 4]
    assert all(array.tobytes() == whole.tobytes() for array in reader.checkpoint(root / "1").values())


def test_the_reader_follows_links_aliases_and_every_kind_of_node(root: Path) -> None:
    shared = np.arange(3.0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = {
        "frozen": np.ones(5000), "moves": np.zeros(2), "shared": [shared, (shared, shared)], "rng": jax.random.key(3),
        "model": model, "again": model, 3: {True: 1, None: "x", b"\x00h": 2.5, 0.5: None, "": 1},
        "a/b@*": {"__metadata__": np.ones(1), "%int:3": np.zeros(1)}, "none": {}, "loader": mp.PerProcess({"at": 4}),
    }  # fmt: skip
    with mp.Checkpointer(root, save="every step") as saver:
        for step in (1, 2):
            saver.save(step, state)
            saver.wait()
            state["moves"] += 1

    manifest = reader.record(root / "2" / "manifest.json")
    found = reader.checkpoint(root / "2")

    assert [linked for _, _, linked in manifest["files"]] == [True, False, False]
    assert list(found) == list(state)
    assert found["frozen"].sum() == 5000
    assert found["moves"].tolist() == [1, 1]
    assert found["shared"][0] is found["shared"][1][0] is found["shared"][1][1]
    assert found["again"] is found["model"]
    assert found["model"]["0.weight"] is found["model"]["1.weight"]
    assert found["rng"].tobytes() == np.asarray(jax.random.key_data(state["rng"])).tobytes()
    assert found[3] == {True: 1, None: "x", b"\x00h": 2.5, 0.5: None, "": 1}
    assert list(found["a/b@*"]) == ["__metadata__", "%int:3"]
    assert found["none"] == {}
    assert found["loader"] == {"0": {"at": 4}}


def test_the_official_package_alone_gives_the_state_when_packs_are_opened_in_order(root: Path) -> None:
    rng = np.random.default_rng(4)
    state = {name: np.zeros(size) for name, size in zip("abcdef", (1, 10, 100, 100, 1000, 3000), strict=True)}

    for step in range(1, 40):
        for name in rng.choice(list(state), rng.integers(0, 4), replace=False):
            state[name] += rng.integers(-1, 2)  # goes back to earlier values, too
        mp.save(root, state, step=step)
        found: dict[str, Any] = {}
        for file, _, _ in reader.record(root / str(step) / "manifest.json")["files"]:
            if file.endswith(".safetensors"):
                found |= load_file(root / str(step) / file)
        assert all(found[name].tobytes() == array.tobytes() for name, array in state.items())


def latest(root: Path) -> Path | None:
    """Return the slot of the latest checkpoint, as the page says, for roots without prefix and width."""
    numbers = [int(file.stem) for file in root.glob("writers/*.json")]
    head = reader.record(root / "writers" / f"{max(numbers)}.json")
    start = -1 if head["resumed_from"] is None else int(head["resumed_from"].partition(".g")[0])
    names = [re.fullmatch(r"(0|[1-9]\d*)(?:\.g([1-9]\d*))?", file.parent.name) for file in root.glob("*/manifest.json")]
    slots = [(int(name[1]), int(name[2] or 1), root / name[0]) for name in names if name]
    epochs = {slot: reader.record(slot[2] / "manifest.json")["epoch"] for slot in slots}
    for slot in sorted(slots, reverse=True):
        if slot[2].name not in head["superseded"] and (epochs[slot] >= head["epoch"] or slot[0] <= start):
            return slot[2]
    return max(slots, key=lambda slot: (epochs[slot], *slot))[2] if slots else None


def test_the_page_says_which_checkpoint_is_the_latest(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        for step in (1, 2, 12):
            saver.save(step, {"x": step}).result()
        saver.save(12, {"x": 0}, overwrite=True)
    assert latest(root) == root / "12.g2"

    with mp.Checkpointer(root, resume_from=mp.open(root)[1]) as saver:
        saver.save(2, {"x": 2}).result()
        assert latest(root) == root / "2.g2"
    mp.open(root).delete(2)
    assert latest(root) == root / "1"
    mp.open(root).delete(1)

    left = mp.open(root).latest()
    assert left is not None
    assert latest(root) == root / left.info.slot == root / "12.g2"


# --- the page leaves nothing out


@pytest.mark.parametrize("title", RECORDS)
def test_the_page_lists_every_member_of_a_record(title: str) -> None:
    fields = [*RECORDS[title].__struct_fields__, "digest"]

    assert first_column(section(title))[: len(fields)] == fields


def test_the_page_lists_every_member_of_an_array_and_a_box() -> None:
    names = first_column(section("leaves.json"))

    for kind in (fmt.StoredArray, fmt.StoredBox):
        fields = list(kind.__struct_fields__)
        assert names[names.index(fields[0]) :][: len(fields)] == fields


def test_the_page_lists_every_dtype_and_its_place_in_a_pack() -> None:
    rows = [line.split("|") for line in section("dtypes").splitlines() if line.startswith("| `")]
    places: dict[str, str] = {}
    for row in rows:
        names, tags = re.findall(r"`([^`]+)`", row[1]), row[4].strip().split(", ")
        places |= dict(zip(names, tags if len(tags) == len(names) else tags * len(names), strict=True))

    for name in leaf._TAGS | leaf._ML | leaf._PARTS | {"complex128": ""}:
        info = leaf.dtype_info(name)
        assert places[name] == ("raw" if info.raw else info.tag), name
    known = {*leaf._TAGS, *leaf._ML, *leaf._PARTS}
    assert {name for name in places if re.fullmatch(r"[a-z0-9_]+", name)} - known <= {
        "complex128",
        "bcomplex32",  # not in every release of ml_dtypes
        *(f"{name}_{form}" for name in leaf._LONG for form in ("x87", "ieee", "double_double")),
    }


def test_the_page_lists_every_tag_of_a_value_with_an_example_that_is_read() -> None:
    tags = first_column(section("Values"))
    examples = [json.loads(text) for text in re.findall(r'`(\{"\$.*\})` \|', section("Values"))]

    assert sorted(tag for tag in tags if tag.startswith("$")) == sorted(value._DECODERS)
    assert sorted(next(iter(example)) for example in examples) == sorted(value._DECODERS)
    for example in examples:
        again = value.encode(value.decode(example))
        assert again in (example, next(iter(example.values())))  # enums and devices come back as text


def test_the_page_lists_every_kind_of_node() -> None:
    assert set(re.findall(r'\{"(\w+)":', section("The tree"))) == {*structure._BODIES}


def test_the_page_gives_the_limits_that_the_code_has() -> None:
    limits = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section("Limits"), re.MULTILINE))

    assert limits["a record but the leaf table"] == f"{fmt.MAX_RECORD >> 20} MiB"
    assert limits["the leaf table"] == f"{fmt.MAX_LEAVES >> 20} MiB"
    assert limits["the header of a pack"] == f"{fmt.MAX_HEADER >> 20} MiB"
    assert limits["nodes of the tree above a leaf"] == str(structure.MAX_DEPTH)
    assert limits["the text of `$int`"] == f"{value._MAX_INT_DIGITS:,} characters"
    assert limits["dimensions of an array"] == str(fmt.MAX_DIMENSIONS)
    assert limits["dimensions in which one array is cut into boxes"] == str(fmt.MAX_CUTS)
    assert limits["objects and lists above a value within metrics and metadata"] == str(value._MAX_DEPTH)
    assert fmt.FORMAT in PAGE.splitlines()[0]


def plain(data: Any) -> Any:
    """Return a record without what differs from run to run: ids, times, digests of records, who and where."""
    text = msgspec.json.encode(data).decode()
    text = re.sub(r'"(sha256:)?[0-9a-f]{64}"|"\d{4}-\d\d-\d\dT[^"]*"|"[0-9a-f]{16}"|"[0-9a-f-]{36}"', '"…"', text)
    text = re.sub(r"p00000-[0-9a-f]{8}", "p00000", text)
    text = re.sub(r'"(user|host|python|milepost|numpy|jax|torch)":"[^"]*"', r'"\1":"…"', text)
    return json.loads(re.sub(r'"pid":\d+', '"pid":0', text))


def test_the_examples_of_the_page_are_what_its_program_writes(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(program(PAGE))
    subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, env=os.environ, check=True)
    example = tmp_path / "example"
    note = next((example / "30" / "notes").glob("*-0.json"))
    records = ["milepost.json", "writers/1.json", "30/manifest.json", "30/leaves.json"]
    files = [*records, note.relative_to(example), "noted/1.json"]

    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]

    assert [plain(item) for item in shown] == [plain(reader.record(example / file)) for file in files]
