# SPDX-License-Identifier: Apache-2.0
"""Objects: written whole, once, and read exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from milepost.errors import ConflictError, CorruptionError, FormatError, NotFoundError, StorageError
from milepost.stores import Buffer, ObjectInfo, Store
from milepost.testing.stores.suite import (
    BAD_KEYS,
    VERBS,
    Interrupted,
    MiB,
    Suite,
    interrupted,
    keys,
    outcomes,
)


class PutContract(Suite):
    """What `put` promises."""

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


class GetContract(Suite):
    """What `get` and `map` promise, and what no key may do."""

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
