# SPDX-License-Identifier: Apache-2.0
"""Folders: listed, linked into, retired as a whole, claimed once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from milepost.errors import ConflictError, FormatError, NotFoundError
from milepost.stores import Buffer, ObjectInfo, Store
from milepost.testing.stores.suite import (
    BAD_PREFIXES,
    Interrupted,
    Suite,
    interrupted,
    keys,
    outcomes,
)


class ListContract(Suite):
    """What `list` promises."""

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


class RetireContract(Suite):
    """What `link`, `retire` and `sweep` promise."""

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


class ClaimContract(Suite):
    """What `claim` promises."""

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
