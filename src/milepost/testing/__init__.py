# SPDX-License-Identifier: Apache-2.0
"""What whoever writes a store, an adapter or a group tests it with; pytest is needed.

A new store is one file and one test class:

    from milepost.testing.stores import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(...)
"""

import pytest

pytest.register_assert_rewrite("milepost.testing.stores")
