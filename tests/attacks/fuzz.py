# SPDX-License-Identifier: Apache-2.0
"""Change records and packs of a root at random, seal them again, and read all of it.

    python tests/attacks/fuzz.py --count 1000000 --seed 0

Each forgery is tried in the same process, in which nothing may be executed, opened outside of the root, or take more
than a little time and memory. Only errors of milepost may come out, or what was saved, bit for bit. The last line is
JSON. Exit code 1: something else happened, and the seed of the forgery is printed.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import json
import logging
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import milepost as mp

# https://docs.python.org/3/library/audit_events.html
EXECUTED = frozenset(
    {"exec", "compile", "code.__new__", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "os.system", "os.exec",
     "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.__new__", "import"}
)  # fmt: skip
OPENED = frozenset(
    {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.chmod", "os.truncate"}
)

VALUES: list[Any] = [
    0, 1, -1, 7, 8, 64, 4096, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 10**30, 0.5, 1e308, True,
    False, None, "", "w", "a/b", "../../etc/passwd", "/etc/passwd", ".", "..", "\0", "é", "\ud800", "x" * 5_000,
    "0" * 32,
    "float64", "object", ">f8", "key<fry>", "p00000-00000000.safetensors", "1-dev", "2", "sha256:" + "0" * 64, [], {},
    [[]], [0], [1 << 40], [-1], [[[[[[]]]]]], {"dict": {}}, {"$int": "0xff"}, {"$float": "nan"}, {"list": [0, "w"]},
    {"$numpy": ["float64", "AAAAAAAA8D8="]}, {"$bytes": "AA=="}, {"$tuple": []}, {"state": 0}, {"shared": "w"},
]  # fmt: skip

STRANGE = ["NaN", "1e999", "\\ud800", "[" * 100_000, '{"a":' * 5_000, '"', ",", "\x00"]

TREE = {
    "w": np.arange(300.0).reshape(30, 10), "b": np.float32([1, 2, 3]), "c": np.array([1 + 2j]),
    "t": (1, "x", None, b"y"), "deep": {"a": [{"b": np.int8([5])}]}, "rng": np.random.default_rng(3),
    "when": np.datetime64("2026-01-01"),
}  # fmt: skip


class Corpus:
    """A root, and forgeries of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with mp.Checkpointer(root, save="every step") as saver:
            saver.save(1, TREE, metrics={"loss": 1.0}, metadata={"note": "a"})
            saver.save(2, TREE | {"w": np.zeros((30, 10))}, metrics={"loss": 0.5})
        mp.open(root).annotate(2, metrics={"eval": 2.0})
        mp.open(root).pin(2, "best")
        self.files = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for path in self.files:
            path.chmod(0o600)
        self.targets = [path for path in self.files if path.suffix in (".json", ".safetensors")]
        self.expected = {step: told(checkpoint) for step, checkpoint in mp.open(root).items()}

    def forged(self, random_: random.Random) -> list[Path]:
        """Change one file, rarely two; return which. Those that name it are changed along, so that digests agree."""
        changed: list[Path] = []
        for path in random_.sample(self.targets, random_.choice((1, 1, 1, 2))):
            data = self.files[path]
            if path.suffix == ".json" and random_.random() < 0.9:
                data = sealed(mutated_text(random_, mutated(random_, json.loads(data))))
            elif path.suffix == ".safetensors" and random_.random() < 0.5:
                data = mutated_header(random_, data)
            else:
                data = mutated_bytes(random_, data)
            rewritten(path, data)
            changed.append(path)
            if path.name == "leaves.json" and random_.random() < 0.95:
                changed.append(self._named(path, data))
        return changed

    def _named(self, leaves: Path, data: bytes) -> Path:
        manifest = leaves.parent / "manifest.json"
        record = json.loads(self.files[manifest])
        record["leaves"] = "sha256:" + hashlib.sha256(data[:-85]).hexdigest()
        rewritten(manifest, sealed(json.dumps(record)))
        return manifest

    def restore(self, changed: list[Path]) -> None:
        for path in changed:
            rewritten(path, self.files[path])


def rewritten(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def sealed(text: str) -> bytes:
    text = text.rstrip()
    data = text.encode("utf-8", "surrogatepass")
    if text.endswith("}"):
        try:
            record = json.loads(text)
            record.pop("digest", None)
            data = json.dumps(record).encode() if "digest" in text else data
        except (ValueError, AttributeError, RecursionError):
            pass
    body = data.removesuffix(b"}")
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def mutated(random_: random.Random, record: Any) -> Any:
    """Return a record with one to three places changed."""
    for _ in range(random_.choice((1, 1, 2, 3))):
        places = list(walk(record))
        if not places:
            return record
        holder, name = random_.choice(places)
        what = random_.random()
        if what < 0.6:
            holder[name] = copy.deepcopy(random_.choice(VALUES))
        elif what < 0.75 and isinstance(holder[name], int) and not isinstance(holder[name], bool):
            holder[name] += random_.choice((-1, 1, 8, -8, 1 << 40))
        elif what < 0.85:
            del holder[name]
        elif isinstance(holder, list):
            holder.insert(random_.randrange(len(holder) + 1), copy.deepcopy(random_.choice(VALUES)))
        else:
            holder[random_.choice([*holder, "x", "", "\ud800"])] = copy.deepcopy(random_.choice(VALUES))
    return record


def walk(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        yield node, name
        yield from walk(child)


def mutated_text(random_: random.Random, record: Any) -> str:
    """Return a record as text: mostly as it is, else with something that no writer would write."""
    text = json.dumps(record)
    what = random_.random()
    if what < 0.8:
        return text
    at = random_.randrange(len(text) + 1)
    if what < 0.85:
        return (
            text[:at]
            + random_.choice(["NaN", "1e999", "\\ud800", "[" * 100_000, '{"a":' * 5_000, '"', ",", "\x00"])
            + text[at:]
        )
    if what < 0.9:  # a member twice
        return text.replace("{", '{"format":"1-dev","step":1,', 1)
    return text[: at // 2] + text[at // 2 :].replace(
        random_.choice("0123456789[]{}:,"), random_.choice("0123456789[]{}:,"), 1
    )


def mutated_bytes(random_: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    what = random_.random()
    if what < 0.6 and changed:
        for _ in range(random_.choice((1, 1, 4))):
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    elif what < 0.8:
        del changed[random_.randrange(len(changed) + 1) :]
    else:
        changed += random_.randbytes(random_.choice((1, 4096)))
    return bytes(changed)


def mutated_header(random_: random.Random, data: bytes) -> bytes:
    """Return a pack whose safetensors header lies."""
    length = struct.unpack_from("<Q", data)[0]
    if random_.random() < 0.3:
        return struct.pack("<Q", random_.choice((0, 1, length - 1, length + 8, 1 << 40, (1 << 64) - 1))) + data[8:]
    text = json.dumps(mutated(random_, json.loads(data[8 : 8 + length]))).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", length) + text.ljust(length)[:length] + data[8 + length :]


def told(checkpoint: mp.Checkpoint) -> str:
    """Return all that a checkpoint holds, as text that differs when a bit does."""
    loaded = checkpoint.load()
    leaves = {path: leaf_text(ref.read()) for path, ref in checkpoint.leaves.items()}
    return f"{sorted(loaded)} {leaves}"


def leaf_text(value: Any) -> str:
    return base64.b64encode(value.tobytes()).decode() if isinstance(value, np.ndarray) else repr(value)


def attacked(root: Path) -> dict[int, str]:
    """Read everything in a root in every way; return what was in it."""
    found: dict[int, str] = {}
    catalog = mp.open(root)
    str(catalog)
    for step, checkpoint in catalog.items():
        found[step] = told(checkpoint)
        str((checkpoint.metrics, checkpoint.metadata, checkpoint.info, checkpoint.created))
        checkpoint.load(lazy=True)
        checkpoint.verify()
    catalog.restore(on_corrupt="previous")
    return found


def run(count: int, seed: int, folder: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        corpus = Corpus(Path(scratch) / "root")
        attacked(corpus.root)  # what is imported when first needed
        for warm in range(200):
            tried(corpus, random.Random(-1 - warm))
        watched = Watch(corpus.root)
        sys.addaudithook(watched)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes: Counter[str] = Counter()
        untyped: list[str] = []
        wrong: list[int] = []
        slowest = 0.0
        for number in range(seed * 1_000_000_000, seed * 1_000_000_000 + count):
            watched.on = True
            outcome, seconds = tried(corpus, random.Random(number), watched)
            watched.on = False
            slowest = max(slowest, seconds)
            kind, _, text = outcome.partition(" ")
            outcomes[kind] += 1
            if kind == "untyped":
                untyped.append(f"{number}: {text}")
            elif kind == "wrong":
                wrong.append(number)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) >> 10
    return {
        "tried": count, "refused": outcomes["refused"], "read": outcomes["read"], "executed": watched.executed,
        "opened outside": watched.outside, "untyped errors": untyped, "wrong bytes": wrong,
        "slowest s": round(slowest, 3), "memory MiB": memory,
    }  # fmt: skip


class Watch:
    """Hears what the interpreter does."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.on = False
        self.executed: list[str] = []
        self.outside: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in EXECUTED:
            self.executed.append(f"{event} {str(arguments)[:100]}")
        elif event in OPENED and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            inside = path == self.root or path.startswith(self.root + "/")
            plain = "/" not in path and path != ".."  # a name within an open folder
            if not inside and not plain:
                self.outside.append(f"{event} {path[:100]}")


def tried(corpus: Corpus, random_: random.Random, watched: Watch | None = None) -> tuple[str, float]:
    """Try one forgery: `refused`, `read`, `wrong`, or `untyped` with the error; and how long it took."""
    if watched is not None:
        watched.on = False
    changed = corpus.forged(random_)
    if watched is not None:
        watched.on = True
    start = time.process_time()  # others may use the machine
    try:
        found = attacked(corpus.root)
    except mp.CheckpointError:
        outcome = "refused"
    except Exception as error:  # noqa: BLE001 this is what is looked for
        outcome = f"untyped {type(error).__name__}: {str(error)[:200]}"
    else:
        outcome = judged(corpus, found, changed)
    seconds = time.process_time() - start
    if watched is not None:
        watched.on = False
    corpus.restore(changed)
    return outcome, seconds


def judged(corpus: Corpus, found: dict[int, str], changed: list[Path]) -> str:
    """What was read must be what was saved, unless a leaf table says otherwise, whose digests are right."""
    forged = {path.parent.name for path in changed if path.name in ("leaves.json", "manifest.json")}
    same = all(found[step] == corpus.expected.get(step) for step in found if str(step) not in forged)
    return "read" if same else "wrong"


def main(argv: list[str], say: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    asked = parser.parse_args(argv)
    logging.disable()  # every forgery would be told of
    found = run(asked.count, asked.seed, asked.folder)
    say(json.dumps(found))
    return any(found[name] for name in ("executed", "opened outside", "untyped errors", "wrong bytes"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
