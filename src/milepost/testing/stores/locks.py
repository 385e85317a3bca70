# SPDX-License-Identifier: Apache-2.0
"""Locks, where a store has them."""

from __future__ import annotations

import itertools

import pytest

from milepost.errors import ConflictError, NotFoundError
from milepost.stores import Hold, Store
from milepost.testing.stores.suite import (
    Suite,
    keys,
    outcomes,
)


class HoldContract(Suite):
    """What `hold` promises."""

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
