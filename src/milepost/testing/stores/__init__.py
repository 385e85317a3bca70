# SPDX-License-Identifier: Apache-2.0
"""What every store must do, as tests: subclass `StoreContract` and give it a `store` fixture."""

from __future__ import annotations

from milepost.testing.stores.folders import ClaimContract, ListContract, RetireContract
from milepost.testing.stores.locks import HoldContract
from milepost.testing.stores.objects import GetContract, PutContract
from milepost.testing.stores.suite import keys

__all__ = ["StoreContract", "keys"]


class StoreContract(PutContract, GetContract, ListContract, RetireContract, ClaimContract, HoldContract):
    """The suite. A subclass gives `store`, an empty store, and `another` where `open_store(store.url)` will not do."""
