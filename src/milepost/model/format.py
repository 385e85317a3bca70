# SPDX-License-Identifier: Apache-2.0
"""Everything that a reader in another language must know: names, records, versions, limits.

`docs/reference/format.md` says it in prose. Every record is one JSON object whose last member is the SHA-256 of all
bytes before that member; packs are plain safetensors.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from milepost.errors import CorruptionError, Damage, FormatError, message
from milepost.model.leaf import DtypeInfo, LeafSpec

FORMAT = "1-dev"
ROOT = "milepost.json"
WRITERS = "writers/"
LOCK = "writer.lock"
MANIFEST = "manifest.json"
LEAVES = "leaves.json"
NOTES = "notes/"
NOTED = "noted/"

ALIGNMENT = 4096
CHUNK = 4 << 20
MAX_STEP = (1 << 63) - 1
# Neither written nor read beyond this size, so that a record cannot make its reader take memory without bound: JSON
# takes up to 25 times as much once it is read. A leaf takes some 200 bytes of the leaf table.
MAX_RECORD = 16 << 20
MAX_LEAVES = 256 << 20
# safetensors refuses headers over 100 MB (its README, "Format"); packs are split well before.
MAX_HEADER = 64 << 20
# NumPy's own limit, and more than any mesh has.
MAX_DIMENSIONS = 64
MAX_CUTS = 8

_TRAILER = re.compile(rb',"digest":"sha256:([0-9a-f]{64})"\}\n\Z')
_TRAILER_LENGTH = len(',"digest":"sha256:') + 64 + len('"}\n')
_RECORD_ID = re.compile(r"[0-9a-f]{16}")


class RootRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`milepost.json`: what all checkpoints of a root share; created once."""

    format: str
    id: str
    created: str
    prefix: str = ""
    width: int = 0
    metadata: dict[str, Any] | None = None


class WriterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`writers/<epoch>.json`: one writer's claim; a commit of an older epoch is fenced.

    Attributes:
        resumed_from: the slot that was `latest` when this writer began, or the one it chose to go on from.
        superseded: slots of older epochs that come after `resumed_from`, and so are no longer `latest`.
        line: the epoch from which on checkpoints are in the line wherever they lie, older ones only up to
            `resumed_from`. It is the writer's own, or, while it finds out where to go on, the one of the record before.
    """

    format: str
    epoch: int
    id: str
    user: str
    host: str
    pid: int
    boot: str
    start: str
    resumed_from: str | None
    superseded: list[str]
    line: int


class FileRecord(msgspec.Struct, frozen=True, array_like=True):
    """A file of a step: its name and size, and whether an earlier save wrote it (a hard link)."""

    name: str
    nbytes: int
    linked: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`: the record that makes a checkpoint exist."""

    format: str
    id: str
    root: str
    epoch: int
    step: int
    generation: int
    parent: str | None
    time: str
    reason: str
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    versions: dict[str, str]
    world: int
    nbytes: int
    files: list[FileRecord]
    leaves: str
    pins: list[str] = []
    keep: str = ""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """`notes/<checkpoint id>-<n>.json`: something said about a checkpoint after its commit."""

    format: str
    checkpoint: str
    time: str
    metrics: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    pin: str | None = None
    unpin: str | None = None


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """`noted/<n>.json`: a note was added to a slot; so a writer need not look at the notes of every slot."""

    format: str
    slot: str
    checkpoint: str


class PackRecord(msgspec.Struct, frozen=True, array_like=True):
    """A pack: its name and size, and size and xxh3-128 of its safetensors header (length field included)."""

    name: str
    nbytes: int
    header_nbytes: int
    header_digest: str


class StoredBox(msgspec.Struct, frozen=True, array_like=True):
    """A stored range of a leaf: where its bytes lie, and their digests.

    Attributes:
        pack: index into the table's packs.
        offset, nbytes: byte range in the file.
        digest: xxh3-128 of the bytes when they fit one chunk, else of the chunks' digests in order; hex.
        chunks: the digests of all 4 MiB chunks, concatenated, base64; empty when there is only one.
        start, shape: the range in the leaf; None when it is the whole leaf.
    """

    pack: int
    offset: int
    nbytes: int
    digest: str
    chunks: str = ""
    start: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


class StoredArray(msgspec.Struct, frozen=True, omit_defaults=True):
    """An array leaf. `key` names the generator when the data are the words of JAX keys (last dimension)."""

    dtype: str
    shape: tuple[int, ...]
    boxes: list[StoredBox]
    key: str = ""
    origin: str = ""

    @property
    def data_spec(self) -> LeafSpec:
        return LeafSpec("array", self.dtype, self.shape)

    @property
    def spec(self) -> LeafSpec:
        return LeafSpec("key", f"key<{self.key}>", self.shape[:-1]) if self.key else self.data_spec


class LeafTable(msgspec.Struct, frozen=True, kw_only=True):
    """`leaves.json`: packs, arrays by key path, all other leaves as tagged JSON, and the tree's structure."""

    format: str
    packs: list[PackRecord]
    arrays: dict[str, StoredArray]
    values: dict[str, Any]
    tree: Any


Record = TypeVar("Record", RootRecord, WriterRecord, Manifest, Note, Noted, LeafTable)


class _Version(msgspec.Struct):
    format: str


def new_id() -> str:
    """Return 16 random hex digits."""
    return secrets.token_hex(8)


def seal(record: msgspec.Struct) -> bytes:
    """Return a record's bytes: its JSON, with the digest of all bytes before it as the last member.

    Raises:
        FormatError: it is larger than a reader accepts.
    """
    body = msgspec.json.encode(record)[:-1]
    sealed = body + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
    if len(sealed) > limit_of(type(record)):
        text = message(
            f"the {type(record).__name__} would be too large for its readers",
            expected=f"at most {limit_of(type(record)):,} bytes", found=f"{len(sealed):,}",
            remedy="Save large texts and bytes as arrays, and many leaves as few.",
        )  # fmt: skip
        raise FormatError(text)
    return sealed


def limit_of(kind: type[msgspec.Struct]) -> int:
    """Return how many bytes a record of a kind has at most."""
    return MAX_LEAVES if kind is LeafTable else MAX_RECORD


def unseal(data: bytes | memoryview, kind: type[Record], where: str) -> Record:
    """Return the record in `data`, checked.

    Raises:
        FormatError: written by a newer milepost, or sound but not of this kind.
        CorruptionError: torn or altered.
    """
    data = bytes(data)
    digest = digest_of(data)
    if digest is None or f"sha256:{hashlib.sha256(data[:-_TRAILER_LENGTH]).hexdigest()}" != digest:
        _check_version(data, where)
        expected = digest or "a digest at the end"
        found = f"{len(data)} bytes of other content" if data else "an empty file"
        raise CorruptionError(
            message(
                f"{where} is damaged: its bytes do not have the digest that it ends with",
                expected=expected,
                found=found,
                remedy="Restore that file from a copy, or load another step (`milepost verify` lists the whole ones).",
            ),
            damaged=(Damage(None, "", where, 0, 0, expected, found),),
        )
    _check_version(data, where)
    try:
        record = msgspec.json.decode(data, type=kind)
        # Of members of one name the parser takes the last, other readers take the first. What comes out the same when
        # it is written again has none; that is a tenth of the time of parsing, and all records that we wrote.
        if msgspec.json.encode(record)[:-1] != data[:-_TRAILER_LENGTH]:
            json.loads(data.decode("utf-8"), object_pairs_hook=_no_member_twice, parse_constant=_no_number)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"{where} is no {kind.__name__} of format {FORMAT}: {error}") from error
    return record


def _no_member_twice(members: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in members}
    if len(names) < len(members):
        twice = next(name for i, (name, _) in enumerate(members) if name in (other for other, _ in members[:i]))
        raise ValueError(f"the member {twice[:80]!r} is there twice")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def time_of(text: str) -> dt.datetime:
    """Return the time that a record gives.

    Raises:
        FormatError: it is none.
    """
    try:
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{text[:80]!r} in a record is no time") from error


def digest_of(data: bytes) -> str | None:
    """Return the digest that a record ends with, `sha256:...`, None when it has none."""
    match = _TRAILER.search(data[-_TRAILER_LENGTH:])
    return f"sha256:{match[1].decode()}" if match else None


def _check_version(data: bytes, where: str) -> None:
    try:
        version = msgspec.json.decode(data, type=_Version).format
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    if version != FORMAT:
        raise FormatError(
            message(
                f"{where} is of another format",
                expected=FORMAT,
                found=version[:40],
                remedy="Read it with the version of milepost that wrote it, or a newer one.",
            ),
            code="newer",
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """A step directory: `12000`, or its later generation `12000.g2`; without a name, the store's own folder."""

    name: str
    step: int
    generation: int

    def key(self, file: str) -> str:
        return f"{self.name}/{file}" if self.name else file


@dataclass(frozen=True, slots=True)
class StepFormat:
    """How slots are named: a prefix (`step_12000`) and a fixed width (`00012000`); 0 for as many digits as needed."""

    prefix: str = ""
    width: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)?", self.prefix) or not 0 <= self.width <= 19:
            raise ValueError(
                f"step format with prefix {self.prefix!r} and width {self.width}: a prefix is a letter followed by"
                " letters, digits, `_` or `-`; a width is 0 to 19"
            )

    def slot(self, step: int, generation: int = 1) -> Slot:
        if not 0 <= step <= MAX_STEP:
            raise ValueError(f"step {step} is out of range: steps are 0 to 2^63 - 1")
        suffix = f".g{generation}" if generation > 1 else ""
        return Slot(f"{self.prefix}{step:0{self.width}d}{suffix}", step, generation)

    def parse(self, name: str) -> Slot | None:
        """Return the slot of a folder's name, None when it is no slot of this format."""
        match = re.fullmatch(rf"{re.escape(self.prefix)}(\d{{1,19}})(?:\.g([1-9]\d{{0,8}}))?", name)
        if match is None or int(match[1]) > MAX_STEP:
            return None
        slot = self.slot(int(match[1]), int(match[2] or 1))
        return slot if slot.name == name else None


def pack_name(rank: int, identity: str) -> str:
    """Return the name of a pack: the process that wrote it, and half of the save's id."""
    return f"p{rank:05d}-{identity}.safetensors"


def is_pack_name(name: str) -> bool:
    """Return whether a name is one that `pack_name` makes: no other name of a record ever reaches the store."""
    return re.fullmatch(r"p\d{5,}-[0-9a-f]{8}\.safetensors", name) is not None


def is_id(text: str) -> bool:
    """Return whether the text is an id of ours."""
    return _RECORD_ID.fullmatch(text) is not None


def tensor_name(path: str, start: Sequence[int] | None) -> str:
    """Return a box's name in the pack: the key path, and where it starts when it is a part of the leaf."""
    return path if start is None else f"{path}@{','.join(map(str, start))}"


def pack_header(entries: Sequence[tuple[str, DtypeInfo, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors header (length field included), padded with spaces to a multiple of 4096.

    Args:
        entries: name, dtype, shape and bytes of each tensor, in file order.
        metadata: text for `__metadata__`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, info, shape, nbytes in entries:
        header[name] = {
            "dtype": info.tag,
            "shape": info.stored_shape(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = msgspec.json.encode(header)
    length = math.ceil((8 + len(text)) / ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)
