# SPDX-License-Identifier: Apache-2.0
"""What every store must do, as tests: subclass `StoreContract` and give it a `store` fixture."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from milepost.errors import CheckpointError, ConflictError, CorruptionError, FormatError, NotFoundError, StorageError
from milepost.stores import Buffer, Hold, ObjectInfo, Store, open_store

MiB = 1 << 20

BAD_KEYS = [
    "",
    "/etc/passwd",
    "a//b",
    "a/",
    "../a",
    "a/../b",
    ".",
    "a/./b",
    "a\\b",
    "a\0b",
    "\ud800",
    ".tmp-1",
    "a/.trash-1",
]
BAD_PREFIXES = ["12000", "/", "/a/", "a//", "../", "a/../", "a\\/", ".trash-1/"]

VERBS: dict[str, Callable[[Store, str], object]] = {
    "put": lambda store, key: store.put(key, [b"x"]),
    "get": lambda store, key: store.get(key),
    "map": lambda store, key: store.map(key),
    "link from": lambda store, key: store.link(key, "good"),
    "link to": lambda store, key: store.link("good", key),
    "hold": lambda store, key: store.hold(key, exclusive=False),
}


class Interrupted(Exception):
    """What `data` raises in these tests."""


def interrupted(*buffers: bytes) -> Iterator[Buffer]:
    yield from buffers
    raise Interrupted


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def outcomes(count: int, work: Callable[[int], object]) -> list[CheckpointError | None]:
    """Return what each of `count` threads, started together, raised."""
    start = threading.Barrier(count)
    raised: list[CheckpointError | None] = [None] * count

    def run(index: int) -> None:
        start.wait()
        try:
            work(index)
        except CheckpointError as error:
            raised[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


class StoreContract:
    """The suite. A subclass gives `store`, an empty store, and `another` where `open_store(store.url)` will not do."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("give the suite a `store` fixture")

    def another(self, store: Store) -> Store:
        """Return a second handle on the same objects, as another process would have."""
        return open_store(store.url)

    def test_what_was_put_is_what_one_gets(self, store: Store) -> None:
        store.put("a/b/c", [b"one", bytearray(b"two"), b"", memoryview(b"three"), memoryview(b"\1\0\2\0").cast("H")])

        assert store.get("a/b/c") == b"onetwothree\1\0\2\0"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("empty", [])
        store.put("empty-too", [b""])

        assert store.get("empty") == store.map("empty") == b""
        assert list(store.list("")) == [ObjectInfo("empty", 0), ObjectInfo("empty-too", 0)]

    def test_small_and_large_buffers_keep_their_order(self, store: Store) -> None:
        buffers = [bytes([index]) * size for index, size in enumerate((10, 3 * MiB, 1, 300_000, *[17] * 200, MiB))]

        store.put("list", buffers)
        store.put("generator", iter(buffers))

        assert store.get("list") == store.get("generator") == b"".join(buffers)

    def test_a_buffer_may_be_used_again_once_the_next_is_asked_for(self, store: Store) -> None:
        buffer = bytearray(400_000)

        def refilled() -> Iterator[Buffer]:
            for value, size in ((1, 400_000), (2, 10), (3, 20), (4, 400_000)):
                buffer[:] = bytes([value]) * len(buffer)
                yield memoryview(buffer)[:size]

        store.put("key", refilled())

        assert store.get("key") == b"\1" * 400_000 + b"\2" * 10 + b"\3" * 20 + b"\4" * 400_000

    def test_another_handle_sees_it_at_once(self, store: Store) -> None:
        other = self.another(store)

        store.put("a", [b"1"])
        store.put("b/c", [b"2"], flush=False)

        assert keys(other) == ["a", "b/c"]
        assert other.get("b/c") == b"2"

    def test_create_refuses_a_key_that_exists(self, store: Store) -> None:
        store.put("key", [b"first"])

        with pytest.raises(ConflictError) as caught:
            store.put("key", [b"second"])

        assert caught.value.code == "exists"
        assert store.get("key") == b"first"

    def test_overwrite_replaces_and_creates(self, store: Store) -> None:
        store.put("key", [b"first"], mode="overwrite")
        store.put("key", [b"second"], mode="overwrite")

        assert store.get("key") == b"second"

    def test_exactly_one_of_many_creators_wins(self, store: Store) -> None:
        stores = [store, *(self.another(store) for _ in range(7))]

        for turn in range(5):
            raised = outcomes(8, lambda index, turn=turn: stores[index].put(f"{turn}/m", [bytes([index]) * 1000]))

            winners = [index for index, error in enumerate(raised) if error is None]
            assert len(winners) == 1
            assert all(isinstance(error, ConflictError) for error in raised if error is not None)
            assert store.get(f"{turn}/m") == bytes([winners[0]]) * 1000

    def test_a_reader_never_sees_half_an_overwrite(self, store: Store) -> None:
        versions = [bytes([value]) * 10_000 for value in range(20)]
        store.put("key", [versions[0]])
        seen: list[bytes] = []

        def work(index: int) -> None:
            for version in versions:
                if index == 0:
                    store.put("key", [version[:5_000], version[5_000:]], mode="overwrite")
                else:
                    seen.append(bytes(store.get("key")))

        assert outcomes(3, work) == [None] * 3
        assert set(seen) <= set(versions)

    def test_nothing_is_visible_after_a_failed_put(self, store: Store) -> None:
        with pytest.raises(Interrupted):
            store.put("slot/pack", interrupted(b"x" * 100, b"y" * 2 * MiB))

        assert keys(store) == []
        with pytest.raises(NotFoundError):
            store.get("slot/pack")
        store.put("slot/pack", [b"again"])
        assert keys(store) == ["slot/pack"]

    def test_a_failed_overwrite_leaves_the_old_object(self, store: Store) -> None:
        store.put("key", [b"old"])

        with pytest.raises(Interrupted):
            store.put("key", interrupted(b"new"), mode="overwrite")

        assert store.get("key") == b"old"

    def test_nothing_is_visible_while_it_is_written(self, store: Store) -> None:
        seen: list[str] = []

        def data() -> Iterator[Buffer]:
            yield b"x" * 2 * MiB
            seen.extend(keys(self.another(store)))
            yield b"y"

        store.put("slot/pack", data())

        assert seen == []
        assert keys(store) == ["slot/pack"]

    def test_a_range_is_read_exactly(self, store: Store) -> None:
        store.put("key", [b"0123456789"])

        assert store.get("key", start=3) == b"3456789"
        assert store.get("key", length=4) == b"0123"
        assert store.get("key", start=3, length=4) == b"3456"
        assert store.get("key", start=10) == store.get("key", start=10, length=0) == b""

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (8, 3), (11, 0), (11, None), (1 << 40, 1)])
    def test_a_range_beyond_the_end_is_corruption(self, store: Store, start: int, length: int | None) -> None:
        store.put("key", [b"0123456789"])

        with pytest.raises(CorruptionError, match="key"):
            store.get("key", start=start, length=length)

    def test_a_range_is_read_into_memory_that_is_given(self, store: Store) -> None:
        store.put("key", [b"0123456789"])
        memory = bytearray(b"....")
        out = memoryview(memory)

        assert store.get("key", start=2, out=out) is out
        assert memory == b"2345"
        store.get("key", start=4, length=4, out=memoryview(memory).cast("I"))
        assert memory == b"4567"
        with pytest.raises(CorruptionError):
            store.get("key", start=8, out=out)
        with pytest.raises(ValueError, match="length=3"):
            store.get("key", length=3, out=out)

    def test_what_one_gets_is_ones_own(self, store: Store) -> None:
        store.put("key", [b"0123456789"])

        store.get("key")[:] = b"x" * 10

        assert store.get("key") == b"0123456789"

    def test_mapped_bytes_are_private_where_there_are_any(self, store: Store) -> None:
        store.put("key", [b"x" * 10_000, b"end"])
        try:
            mapped = store.map("key")
        except StorageError as error:
            if error.code != "unsupported":
                raise
            pytest.skip("this store cannot map")

        assert mapped == store.get("key")
        mapped[:3] = b"abc"
        assert mapped[:4] == b"abcx"
        assert store.get("key", length=4) == b"xxxx"
        store.retire("nothing/")
        assert mapped[-3:] == b"end"

    @pytest.mark.parametrize("verb", ["get", "map", "link from", "hold"])
    def test_what_is_not_there_is_not_found(self, store: Store, verb: str) -> None:
        store.put("folder/key", [b"x"])

        for key in ("nothing", "no/thing", "folder", "folder/key/below"):
            with pytest.raises(NotFoundError) as caught:
                VERBS[verb](store, key)
            assert key in str(caught.value)
        assert keys(store) == ["folder/key"]

    @pytest.mark.parametrize("key", BAD_KEYS)
    @pytest.mark.parametrize("verb", VERBS)
    def test_a_key_cannot_lead_elsewhere(self, store: Store, verb: str, key: str) -> None:
        store.put("good" if verb == "link to" else "other", [b"x"])

        with pytest.raises(FormatError, match="no key of a store"):
            VERBS[verb](store, key)
        assert len(keys(store)) == 1

    @pytest.mark.parametrize("prefix", BAD_PREFIXES)
    def test_a_prefix_cannot_lead_elsewhere(self, store: Store, prefix: str) -> None:
        store.put("12000/m", [b"x"])

        with pytest.raises(FormatError):
            store.list(prefix)
        with pytest.raises(FormatError):
            store.retire(prefix)
        assert keys(store) == ["12000/m"]

    def test_a_listing_is_sorted_and_has_sizes(self, store: Store) -> None:
        names = ["b", "a/z", "a-1", "a/b/c", "a0", "ä", "a.b", "Z"]
        for size, name in enumerate(names):
            store.put(name, [b"x" * size])

        expected = sorted((name, size) for size, name in enumerate(names))
        assert [(info.key, info.nbytes) for info in store.list("")] == expected
        assert keys(store, "a/") == ["a/b/c", "a/z"]

    def test_a_listing_of_one_level_has_objects_and_folders(self, store: Store) -> None:
        for name in ("2000/m", "2000/notes/n", "300/m", "milepost.json", "2000.g2/m"):
            store.put(name, [b"xy"])

        assert list(store.list("", delimiter="/")) == [
            ObjectInfo("2000.g2/", None),
            ObjectInfo("2000/", None),
            ObjectInfo("300/", None),
            ObjectInfo("milepost.json", 2),
        ]
        assert list(store.list("2000/", delimiter="/")) == [ObjectInfo("2000/m", 2), ObjectInfo("2000/notes/", None)]

    def test_a_listing_of_nothing_is_empty(self, store: Store) -> None:
        assert keys(store) == []
        store.put("2000/m", [b"x"])

        assert keys(store, "2000/m/") == keys(store, "200/") == keys(store, "2000/notes/deep/") == []

    def test_a_listing_sees_the_last_put(self, store: Store) -> None:
        for index in range(20):
            store.put(f"{index}/m", [b"x"])

            assert f"{index}/m" in keys(store)
            assert ObjectInfo(f"{index}/", None) in list(store.list("", delimiter="/"))

    def test_a_linked_object_outlives_its_source(self, store: Store) -> None:
        store.put("1/pack", [b"weights"])

        store.link("1/pack", "2/pack")
        store.link("2/pack", "3/deep/pack", flush=False)
        store.retire("1/")
        store.retire("2/")

        assert keys(store) == ["3/deep/pack"]
        assert store.get("3/deep/pack") == b"weights"

    def test_a_link_is_create_only(self, store: Store) -> None:
        store.put("a", [b"a"])
        store.put("b", [b"b"])

        with pytest.raises(ConflictError) as caught:
            store.link("a", "b")

        assert caught.value.code == "exists"
        assert store.get("b") == b"b"

    def test_overwriting_one_key_leaves_its_links_alone(self, store: Store) -> None:
        store.put("a", [b"old"])
        store.link("a", "b")

        store.put("a", [b"new"], mode="overwrite")

        assert (store.get("a"), store.get("b")) == (b"new", b"old")

    def test_what_is_retired_is_gone_and_nothing_else(self, store: Store) -> None:
        for key in ("1/a", "1/b/c", "1.g2/a", "10/a", "milepost.json"):
            store.put(key, [b"x"])

        store.retire("1/")
        store.retire("1/")
        store.retire("no/thing/")
        store.retire("milepost.json/")

        assert keys(store) == ["1.g2/a", "10/a", "milepost.json"]
        assert keys(store, "1/") == []
        store.put("1/a", [b"new"])
        assert store.get("1/a") == b"new"

    def test_a_folder_below_a_folder_can_be_retired(self, store: Store) -> None:
        store.put("1/m", [b"x"])
        store.put("1/notes/n", [b"x"])

        store.retire("1/notes/")

        assert keys(store) == ["1/m"]

    def test_the_root_cannot_be_retired(self, store: Store) -> None:
        with pytest.raises(FormatError, match="root"):
            store.retire("")

    def test_a_listing_has_a_retired_folder_whole_or_not_at_all(self, store: Store) -> None:
        names = [f"slot/{index:02}" for index in range(30)]

        def retire_or_look(index: int, seen: list[list[str]], done: threading.Event) -> None:
            if index == 0:
                store.retire("slot/")
                done.set()
            while not done.is_set():
                seen.append(keys(store, "slot/"))

        for _ in range(5):
            for name in names:
                store.put(name, [b"x"], flush=False)
            seen: list[list[str]] = []
            work = partial(retire_or_look, seen=seen, done=threading.Event())

            assert outcomes(3, work) == [None] * 3
            assert all(listing in ([], names) for listing in seen)

    def test_sweeping_leaves_every_object(self, store: Store) -> None:
        store.sweep()
        store.put("1/m", [b"x"])
        store.retire("1/")
        store.put("2/m", [b"x"])
        store.put("milepost.json", [b"x"])

        store.sweep()

        assert keys(store) == ["2/m", "milepost.json"]

    def test_a_claim_makes_a_folder_that_is_not_there(self, store: Store) -> None:
        store.put("1/pack", [b"12345"])

        with store.claim("2/") as claim:
            assert list(store.list("", delimiter="/")) == [ObjectInfo("1/", None), ObjectInfo("2/", None)]
            claim.put("leaves.json", [b"{", b"}"], flush=False)
            claim.link("1/pack", "pack", flush=False)
            claim.put("manifest.json", [b"{}"])

        assert keys(store) == ["1/pack", "2/leaves.json", "2/manifest.json", "2/pack"]
        assert (store.get("2/leaves.json"), store.get("2/pack")) == (b"{}", b"12345")

    def test_a_folder_can_be_claimed_once(self, store: Store) -> None:
        store.put("1/pack", [b"x"])
        store.claim("2/").close()

        for prefix in ("1/", "2/"):
            with pytest.raises(ConflictError) as caught:
                self.another(store).claim(prefix)
            assert caught.value.code == "exists"
        store.retire("1/")
        store.retire("2/")
        store.claim("1/").close()
        store.claim("2/").close()
        with pytest.raises(FormatError):
            store.claim("")

    def test_exactly_one_of_many_claimers_wins(self, store: Store) -> None:
        stores = [store, *(self.another(store) for _ in range(7))]

        raised = outcomes(8, lambda index: stores[index].claim("1/").close())

        assert raised.count(None) == 1
        assert all(isinstance(error, ConflictError) for error in raised if error is not None)

    def test_a_claim_is_create_only_and_writes_whole_objects(self, store: Store) -> None:
        store.put("1/pack", [b"old"])
        with store.claim("2/") as claim:
            claim.put("pack", [b"new"])
            for attempt in (lambda: claim.put("pack", [b"x"]), lambda: claim.link("1/pack", "pack")):
                with pytest.raises(ConflictError) as caught:
                    attempt()
                assert caught.value.code == "exists"
            with pytest.raises(Interrupted):
                claim.put("torn", interrupted(b"x"))
            with pytest.raises(NotFoundError):
                claim.link("1/nothing", "linked")
            for name in ("notes/n", "../pack", "", ".tmp-1"):
                with pytest.raises(FormatError):
                    claim.put(name, [b"x"])

        assert keys(store) == ["1/pack", "2/pack"]
        assert store.get("2/pack") == b"new"

    @pytest.mark.parametrize("replaced", [True, False])
    @pytest.mark.parametrize("verb", ["put", "link", "while it writes"])
    def test_a_writer_that_was_overtaken_cannot_publish(self, store: Store, verb: str, replaced: bool) -> None:
        successor = self.another(store)
        store.put("0/pack", [b"x"])
        claim = store.claim("1/")
        claim.put("pack-of-first", [b"12345"], flush=False)

        def takeover() -> Iterator[Buffer]:
            successor.retire("1/")
            if replaced:
                with successor.claim("1/") as other:
                    other.put("pack-of-second", [b"12345"])
            yield b"{}"

        data = takeover() if verb == "while it writes" else list(takeover())
        link, put = partial(claim.link, "0/pack"), partial(claim.put, data=data)
        with claim, pytest.raises(ConflictError) as caught:
            (link if verb == "link" else put)(name="manifest.json")

        assert caught.value.code == "fenced"
        assert keys(store) == ["0/pack", *["1/pack-of-second"] * replaced]

    def test_shared_holds_are_many_and_an_exclusive_one_is_alone(self, store: Store) -> None:
        store.put("lock", [b""])
        other = self.another(store)
        with store.hold("lock", exclusive=False) as first:
            if not first.supported:
                pytest.skip("this store has no locks")
            with other.hold("lock", exclusive=False), pytest.raises(ConflictError) as caught:
                other.hold("lock", exclusive=True)
            assert caught.value.code == "busy"
        with other.hold("lock", exclusive=True):
            for exclusive, handle in itertools.product((False, True), (store, other)):
                with pytest.raises(ConflictError, match="lock"):
                    handle.hold("lock", exclusive=exclusive)

    def test_a_hold_ends_when_it_is_closed_and_may_be_closed_twice(self, store: Store) -> None:
        first = store.hold("lock", exclusive=True, create=True)
        first.close()
        second = store.hold("lock", exclusive=True)
        first.close()

        if second.supported:
            with pytest.raises(ConflictError):
                store.hold("lock", exclusive=False)
        second.close()

    def test_a_hold_makes_its_object_only_when_told_to(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            store.hold("deep/lock", exclusive=True)
        assert keys(store) == []
        store.put("there", [b"bytes"])

        store.hold("deep/lock", exclusive=True, create=True).close()
        store.hold("there", exclusive=True, create=True).close()

        assert keys(store) == ["deep/lock", "there"]
        assert store.get("there") == b"bytes"

    def test_only_one_of_many_gets_an_exclusive_hold(self, store: Store) -> None:
        store.put("lock", [b""])
        stores = [store, *(self.another(store) for _ in range(7))]
        with store.hold("lock", exclusive=False) as hold:
            if not hold.supported:
                pytest.skip("this store has no locks")
        holds: list[Hold] = []

        raised = outcomes(8, lambda index: holds.append(stores[index].hold("lock", exclusive=True)))

        assert len(holds) == 1
        assert all(isinstance(error, ConflictError) for error in raised if error is not None)
        for hold in holds:
            hold.close()

    def test_locks_bind_only_those_who_ask_for_them(self, store: Store) -> None:
        store.put("1/manifest.json", [b"{}"])
        hold = store.hold("1/manifest.json", exclusive=False)

        store.retire("1/")
        with pytest.raises(NotFoundError):
            store.hold("1/manifest.json", exclusive=False)
        store.put("1/manifest.json", [b"{}"])

        with store.hold("1/manifest.json", exclusive=True):  # another object than the one that is held
            hold.close()
